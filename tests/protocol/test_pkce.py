"""PKCE."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.protocol.authorization import build_code_challenge
from tests.protocol.helpers import VECTORS

UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


@pytest.mark.compliance("AUTH-04")
@pytest.mark.parametrize(
    "vector", VECTORS["pkce_s256"], ids=lambda vector: vector["id"]
)
def test_the_published_pairs_verify_as_the_specification_says(vector):
    challenge = build_code_challenge(vector["code_verifier"])
    assert (challenge == vector["code_challenge"]) is vector["verifies"]


@pytest.mark.compliance("AUTH-04")
@pytest.mark.parametrize("verifier", ["a" * 43, "~" * 128, UNRESERVED])
def test_a_verifier_of_unreserved_characters_is_taken(verifier):
    assert build_code_challenge(verifier)


@pytest.mark.compliance("AUTH-04")
@pytest.mark.parametrize(
    "verifier", ["", "a" * 42, "a" * 129, "a" * 43 + "\n", "a" * 42 + "é", "a b" * 20]
)
def test_any_other_verifier_is_refused(verifier):
    with pytest.raises(ValueError, match="43 to 128"):
        build_code_challenge(verifier)


@given(st.text(UNRESERVED, min_size=43, max_size=128))
def test_a_challenge_is_43_characters_without_padding(verifier):
    challenge = build_code_challenge(verifier)
    assert len(challenge) == 43
    assert set(challenge) <= set(UNRESERVED) - {".", "~"}
