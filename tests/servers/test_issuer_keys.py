"""Whose keys prove whose identities: no server's word is enough for another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from werkzeug.wrappers import Response

from django_smart import transport
from django_smart.exceptions import DiscoveryStatusError
from django_smart.models import FHIRServer, Identity
from django_smart.servers.discovery import fetch_configuration, get_jwks
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    get_callback,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
OPENID = "/openid-configuration"


@contextmanager
def mounted(issuer: str) -> Iterator[EHRSimulator]:
    """Another EHR, whose ID tokens are those of *issuer*."""
    other = EHRSimulator("https://other.example.org/r4", issuer=issuer)
    other.register_client(
        CLIENT_ID, client_secret=CLIENT_SECRET, redirect_uris=[REDIRECT_URI]
    )
    with transport.mounted("https://other.example.org", other.adapter()):
        yield other


@pytest.fixture
def other() -> Iterator[EHRSimulator]:
    """Another EHR, which says that its ID tokens are those of the first one."""
    with mounted("https://ehr.example.org/v/r4/sim/abc") as other:
        yield other


def register(other: EHRSimulator, **values: Any) -> FHIRServer:
    return make_registration(
        server__slug="other", server__base_url=other.base_url, **values
    ).server


def refuse(other: EHRSimulator) -> None:
    """A launch there, which has to sign nobody in."""
    browser = make_browser()
    response = get_callback(browser, other.authorize(start_ehr_launch(browser, other)))
    assert response.status_code >= 400
    assert "_auth_user_id" not in browser.session


@pytest.mark.compliance("IDT-02", "IDT-09")
@pytest.mark.parametrize("capabilities", [["launch-ehr", "sso-openid-connect"], []])
@pytest.mark.parametrize("known", [True, False])
def test_server_cannot_sign_in_who_is_known_by_another(
    ehr: EHRSimulator,
    other: EHRSimulator,
    capabilities: list[str],
    known: bool,
) -> None:
    make_registration()
    if known:
        assert launch(make_browser(), ehr).identity is not None
    register(other)
    assert other.issuer == ehr.issuer
    answer(other, SMART, capabilities=capabilities)
    refuse(other)
    assert Identity.objects.count() == known
    # Asked, the issuer named its own keys.
    assert FHIRServer.objects.get(slug="other").jwks_uri == ehr.jwks_uri
    assert launch(make_browser(), ehr).identity is not None


def test_issuer_that_is_named_below_the_base_alone_is_asked_too(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    make_registration()
    server = register(other)
    answer(other, SMART, remove=("issuer",))
    answer(other, OPENID, jwks_uri=ehr.jwks_uri)
    fetch_configuration(server)
    assert (server.issuer, server.jwks_uri) == (ehr.issuer, ehr.jwks_uri)
    refuse(other)


@pytest.mark.parametrize("status", [404, 500])
def test_keys_are_let_go_of_with_their_issuer(ehr: EHRSimulator, status: int) -> None:
    make_registration()
    own = "https://other.example.org"
    with mounted(own) as other:
        server = register(other)
        assert launch(make_browser(), other).identity is not None
    FHIRServer.objects.filter(pk=server.pk).update(configuration_fetched_at=None)
    answer(ehr, OPENID, status=status)
    with mounted(ehr.issuer) as other:
        refuse(other)
        server.refresh_from_db()
        assert server.jwks is None
        with pytest.raises(DiscoveryStatusError):
            get_jwks(server)
    assert list(Identity.objects.values_list("issuer", flat=True)) == [own]


def test_on_one_host_the_issuer_settles_a_dispute(
    ehr: EHRSimulator, registration: Any
) -> None:
    fetch_configuration(registration.server)
    neighbour = make_registration(
        server__slug="neighbour", server__base_url="https://ehr.example.org/other/r4"
    ).server
    elsewhere = {"jwks_uri": "https://ehr.example.org/other/jwks"}
    document = registration.server.configuration | elsewhere

    def respond_for_both(respond: Any, request: Any) -> Any:
        if request.path == "/other/r4/.well-known/smart-configuration":
            return Response(json.dumps(document), mimetype="application/json")
        return respond(request)

    ehr.interceptors.append(respond_for_both)
    fetch_configuration(neighbour)
    assert neighbour.jwks_uri == ehr.jwks_uri
    # Who has nobody to dispute with is believed.
    FHIRServer.objects.exclude(pk=neighbour.pk).update(issuer="https://a.example.org")
    fetch_configuration(neighbour)
    assert neighbour.jwks_uri == elsewhere["jwks_uri"]


def test_operator_may_vouch_for_a_server(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    register(other, server__id_token_issuer=other.issuer)
    assert launch(make_browser(), other).identity is not None
    assert ehr.requests == []
