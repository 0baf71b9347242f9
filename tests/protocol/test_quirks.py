"""What is declared of odd servers, and what of it is stored and read."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from django_smart.protocol.quirks import QUIRKS, QuirkError, Quirks
from django_smart.testing.simulator.ehr import QUIRKS as SIMULATED


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_every_quirk_has_a_witness_and_a_default_that_is_its_own(name: str) -> None:
    quirk = QUIRKS[name]
    assert len(quirk.witness) > 20
    assert re.search(r"\(20\d\d|SMART App Launch", quirk.witness)
    assert getattr(Quirks(), name) == quirk.default
    assert quirk.simulated in {"", *SIMULATED}


def test_only_what_concerns_refreshes_is_operational() -> None:
    operational = {name for name, quirk in QUIRKS.items() if quirk.is_operational}
    assert operational == {"refresh_token_lifetime", "rate_limit"}


def test_server_without_quirks_stores_nothing() -> None:
    assert Quirks().as_json() == {}
    assert Quirks.read({}) == Quirks()
    assert Quirks().replace({"nonce_required": True}) == Quirks()


def test_stored_quirks_are_read_as_they_were() -> None:
    stored = {
        "aud_rule": "base_url",
        "discovery_headers": {"Epic-Client-ID": "{client_id}"},
        "nonce_required": False,
        "refresh_token_lifetime": 90.0,
        "rate_limit": 0.16,
    }
    quirks = Quirks.read(stored)
    assert quirks == Quirks(
        aud_rule="base_url",
        discovery_headers={"Epic-Client-ID": "{client_id}"},
        nonce_required=False,
        refresh_token_lifetime=timedelta(seconds=90),
        rate_limit=0.16,
    )
    assert quirks.as_json() == stored


def test_quirks_of_another_version_are_kept_and_not_used() -> None:
    stored = {"pkce": "never", "aud_rule": "none", "rate_limit": 5}
    quirks = Quirks.read(stored)
    assert (quirks.aud_rule, quirks.rate_limit) == ("as_received", 5)
    assert quirks.unknown == {"pkce": "never", "aud_rule": "none"}
    assert quirks.as_json() == stored
    assert quirks.replace({"rate_limit": None}).unknown == quirks.unknown
    changed = quirks.replace({"aud_rule": "base_url"})
    assert (changed.aud_rule, changed.unknown) == ("base_url", {"pkce": "never"})
    assert quirks.replace({"aud_rule": None}).unknown == {"pkce": "never"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate_limt": 5}, "There is no quirk rate_limt. Did you mean rate_limit?"),
        ({"colour": "red"}, "There is no quirk colour."),
        ({"colour": None}, "There is no quirk colour."),
        ({"bearer_boundary": "orign"}, "(did you mean origin?)"),
        ({"bearer_boundary": "x"}, "bearer_boundary must be one of base, origin."),
        ({"bearer_boundary": ["base"]}, "must be one of base, origin."),
        ({"nonce_required": "no"}, "nonce_required must be true or false."),
        ({"nonce_required": 0}, "nonce_required must be true or false."),
        ({"rate_limit": True}, "rate_limit must be a number above 0."),
        ({"rate_limit": 0}, "rate_limit must be a number above 0."),
        ({"rate_limit": float("nan")}, "rate_limit must be a number above 0."),
        ({"refresh_token_lifetime": "90"}, "must be a number of seconds above 0."),
        ({"refresh_token_lifetime": 10**400}, "must be a number of seconds above 0."),
        ({"discovery_headers": []}, "must be a JSON object"),
        ({"discovery_headers": {"X": 1}}, "must be a JSON object"),
        ({"discovery_headers": {1: "x"}}, "must be a JSON object"),
        ({"discovery_headers": {"X Y": "z"}}, "must be a JSON object"),
        ({"discovery_headers": {"X": "a\r\nY: b"}}, "must be a JSON object"),
        ({"discovery_headers": {"X": "é"}}, "must be a JSON object"),
    ],
)
def test_wrong_names_and_values_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuirkError) as raised:
        Quirks().replace(values)
    assert message in str(raised.value)
    assert {raised.value.name} == values.keys()
