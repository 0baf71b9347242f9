"""Servers whose endpoints can differ between clients: one configuration for each."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart.exceptions import DiscoveryStatusError, ServerMovedError
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.servers.discovery import fetch_configuration, get_configuration
from django_smart.servers.presets import PRESETS
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    get_callback,
    get_launch,
    make_browser,
    make_registration,
    start_login,
)
from tests.grants.working import refresh_grants

pytestmark = pytest.mark.django_db

_HEADER = "Epic-Client-ID"
_SECOND = "second-client"
_OTHER = "https://other.example.org/r4"
_CALLBACK = "https://app.example.org/smart/callback/second/"


@pytest.fixture
def asked(ehr: EHRSimulator) -> list[str | None]:
    """For which clients the configuration was requested; one has its own endpoint."""
    asked: list[str | None] = []

    def respond_by_client(respond: Any, request: Any) -> Any:
        response = respond(request)
        if not request.path.endswith("/smart-configuration"):
            return response
        client_id = request.headers.get(_HEADER)
        asked.append(client_id)
        if client_id == "unknown":
            return Response("unknown client", status=403)
        if client_id != _SECOND:
            return response
        document = json.loads(response.get_data())
        document["token_endpoint"] = get_own_endpoint(ehr)
        return Response(json.dumps(document), mimetype="application/json")

    ehr.interceptors.append(respond_by_client)
    return asked


@pytest.fixture
def server() -> FHIRServer:
    values = PRESETS["epic"]
    return make_registration(
        **{f"server__{name}": value for name, value in values.items()}
    ).server


def add_second(server: FHIRServer, client_id: str = _SECOND) -> ClientRegistration:
    return make_registration(
        server,
        client_id=client_id,
        redirect_uri=_CALLBACK,
        is_ehr_default=False,
        is_standalone_default=False,
    )


@pytest.mark.usefixtures("ehr")
def test_server_does_not_see_the_clients_of_another(
    asked: list[str | None], server: FHIRServer
) -> None:
    add_second(server)
    make_registration(server__slug="other", server__base_url=_OTHER, client_id="hidden")
    fetch_configuration(server)
    assert asked == [CLIENT_ID, _SECOND]


def get_own_endpoint(ehr: EHRSimulator) -> str:
    return f"{ehr.token_endpoint}?client={_SECOND}"


def connect(ehr: EHRSimulator, registration: ClientRegistration) -> TokenGrant:
    client_id, redirect_uri = registration.client_id, registration.redirect_uri
    ehr.register_client(
        client_id, client_secret=CLIENT_SECRET, redirect_uris=[redirect_uri]
    )
    browser = make_browser()
    chosen = dict(parse_qsl(registration.login_query))
    callback = ehr.authorize(start_login(browser, **chosen))
    grant = get_launch(get_callback(browser, callback)).grant
    assert grant is not None
    return grant


def test_each_client_has_its_own_endpoints(
    ehr: EHRSimulator, server: FHIRServer, asked: list[str | None]
) -> None:
    add_second(server)
    first, second = (
        get_configuration(server, client_id) for client_id in (CLIENT_ID, _SECOND)
    )
    assert first.token_endpoint == ehr.token_endpoint
    assert second.token_endpoint == get_own_endpoint(ehr)
    # Together, and then from the row.
    assert asked == [CLIENT_ID, _SECOND]
    stored = FHIRServer.objects.get()
    assert get_configuration(stored, _SECOND) == second
    assert get_configuration(stored, CLIENT_ID) == first
    assert len(asked) == 2


def test_one_client_costs_one_request(
    server: FHIRServer, asked: list[str | None]
) -> None:
    get_configuration(server, CLIENT_ID)
    assert asked == [CLIENT_ID]


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "k"}])
def test_without_the_header_all_clients_share_one_configuration(
    server: FHIRServer, asked: list[str | None], headers: dict[str, str]
) -> None:
    server.quirks = {"discovery_headers": headers}
    server.save()
    add_second(server)
    known = [get_configuration(server, each) for each in (CLIENT_ID, _SECOND, "")]
    assert known[0] == known[1] == known[2]
    assert asked == [None]
    assert server.state.client_configurations == {}


def test_tokens_of_each_client_come_from_its_own_endpoint(
    ehr: EHRSimulator, server: FHIRServer, asked: list[str | None]
) -> None:
    # The second client is registered after the configuration was stored.
    grants = [connect(ehr, server.registrations.get())]
    grants.append(connect(ehr, add_second(server)))
    assert asked == [CLIENT_ID, CLIENT_ID, _SECOND]
    endpoints = [ehr.token_endpoint, get_own_endpoint(ehr)]
    assert [each.url for each in ehr.requests_to("token")] == endpoints
    refresh_grant(grants[1])
    assert ehr.requests_to("refresh")[-1].url == endpoints[1]
    due = timezone.now() - timedelta(minutes=1)
    TokenGrant.objects.update(refresh_due_at=due, received_at=due)
    assert refresh_grants([each.pk for each in grants]).refreshed == 2
    refreshed = {each.url for each in ehr.requests_to("refresh")[1:]}
    assert refreshed == set(endpoints)
    assert len(asked) == 3


def test_client_that_the_server_does_not_know_stops_no_other(
    ehr: EHRSimulator, server: FHIRServer, asked: list[str | None]
) -> None:
    add_second(server, "unknown")
    assert get_configuration(server, CLIENT_ID).token_endpoint == ehr.token_endpoint
    with pytest.raises(DiscoveryStatusError):
        get_configuration(server, "unknown")
    server = FHIRServer.objects.get()
    assert get_configuration(server, CLIENT_ID).token_endpoint == ehr.token_endpoint
    assert len(asked) == 4


def test_endpoint_of_one_client_that_moves_waits_for_the_operator(
    ehr: EHRSimulator, server: FHIRServer, asked: list[str | None]
) -> None:
    add_second(server)
    fetch_configuration(server)
    server.state.pinned[f"token_endpoint of {_SECOND}"] = (
        "https://elsewhere.example/token"
    )
    server.full_clean()
    server.save()
    with pytest.raises(ServerMovedError, match=f"token_endpoint of {_SECOND}"):
        fetch_configuration(server)
    assert server.state.moved == {f"token_endpoint of {_SECOND}": get_own_endpoint(ehr)}
