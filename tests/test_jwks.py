"""This site's public keys, as EHRs fetch them."""

from __future__ import annotations

import base64

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_smart.models import ClientRegistration, SigningKey
from django_smart.protocol.jwk import PrivateKey, load_private_key
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser

pytestmark = pytest.mark.django_db

PATH = "/smart/jwks.json"


def private_values(key: PrivateKey) -> list[int]:
    """Every number of a private key that its public half does not have."""
    numbers = key.private_numbers()
    names = ("d", "p", "q", "dmp1", "dmq1", "iqmp", "private_value")
    return [getattr(numbers, name) for name in names if hasattr(numbers, name)]


def encode(number: int) -> list[bytes]:
    """*number* as it could stand in a JWK, in a PEM file, or anywhere else."""
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    url_safe = base64.urlsafe_b64encode(raw).rstrip(b"=")
    return [url_safe, base64.b64encode(raw), raw.hex().encode(), str(number).encode()]


@pytest.mark.compliance("JWKS-02", "JWKS-06", "JWKS-07", "JWKS-11")
def test_body_has_both_keys_of_an_overlap_and_nothing_private() -> None:
    keys = [
        create_signing_key(algorithm, status=status)
        for algorithm in ("RS384", "ES384")
        for status in ("active", "next", "retired", "removed")
    ]
    response = Client().get(PATH, headers={"Accept": "application/json"}, secure=True)
    assert response["Content-Type"] == "application/json"
    published = response.json()["keys"]
    assert [each["kid"] for each in published] == [
        key.kid for key in keys if key.status != "removed"
    ]
    assert {frozenset(each) for each in published} == {
        frozenset({"kty", "kid", "alg", "use", "n", "e"}),
        frozenset({"kty", "kid", "alg", "use", "crv", "x", "y"}),
    }
    for key in keys:
        for number in private_values(load_private_key(key.private_key)):
            for text in encode(number):
                # A part of it would do as well.
                assert text[:40] not in response.content
        for line in key.private_key.splitlines()[2:-1]:
            assert line.encode() not in response.content
    assert b"PRIVATE" not in response.content


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.compliance("JWKS-04", "JWKS-05")
def test_keys_are_for_everybody_and_cost_one_query(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    monkeypatch: pytest.MonkeyPatch,
    *,
    atomic: bool,
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    create_signing_key("ES384")
    launched = make_browser()
    launch(launched, ehr)
    # Also for a browser that has every cookie of ours.
    for browser in (make_browser(), launched):
        with CaptureQueriesContext(connection) as queries:
            response = browser.get(PATH)
        assert len(queries) == 1
        assert "private_key" not in queries[0]["sql"]
        assert response.status_code == 200
        assert not response.cookies
        assert "Vary" not in response
        assert response["Cache-Control"] == "public, max-age=3600"
        assert response["Access-Control-Allow-Origin"] == "*"


@pytest.mark.compliance("JWKS-09")
def test_what_is_exported_is_what_is_published() -> None:
    create_signing_key("ES384")
    create_signing_key("ES384", status="next")
    assert Client().get(PATH, secure=True).json() == SigningKey.objects.as_jwks()
