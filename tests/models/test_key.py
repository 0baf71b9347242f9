"""Signing keys: which sign, which are published, and how."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from django_smart.models import SigningKey
from django_smart.servers.signing_keys import create_signing_key

pytestmark = pytest.mark.django_db


@pytest.mark.compliance("JWKS-02")
def test_what_stands_in_a_row_beside_the_public_half_is_not_published() -> None:
    key = create_signing_key("ES384")
    published = dict(key.public_jwk)
    SigningKey.objects.update(public_jwk={**published, "d": "private", "x5u": "odd"})
    assert SigningKey.objects.as_jwks() == {"keys": [published]}


@pytest.mark.parametrize("status", ["active", "next"])
def test_of_each_algorithm_one_key_is_active_and_one_next(status: str) -> None:
    create_signing_key("ES384", status=status)
    with pytest.raises(IntegrityError), transaction.atomic():
        create_signing_key("ES384", status=status)
    create_signing_key("RS384", status=status)
    for _ in range(2):
        create_signing_key("ES384", status="retired")
        create_signing_key("ES384", status="removed")
    assert SigningKey.objects.filter(slot__isnull=False).count() == 2


def test_key_id_is_unique_and_compared_exactly() -> None:
    key = create_signing_key("ES384")
    for kid, is_new in ((key.kid, False), (key.kid.swapcase(), True)):
        twin = SigningKey(
            kid=kid, algorithm="ES384", private_key="x", public_jwk={}, status="retired"
        )
        if is_new:
            twin.save()
            continue
        with pytest.raises(IntegrityError), transaction.atomic():
            twin.save()


def test_text_of_a_key_shows_nothing_of_it() -> None:
    key = create_signing_key("ES384")
    assert str(key) == "ES384 (active)"
    assert "PRIVATE" not in repr(vars(key))
