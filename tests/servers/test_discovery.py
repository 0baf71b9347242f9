"""Discovery: fetched rarely, kept in the server's row, served stale if it must be."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
import time_machine
from django.utils import timezone

from django_smart import transport
from django_smart.exceptions import (
    DiscoveryError,
    ResponseTooLargeError,
    ServerUnreachableError,
)
from django_smart.models import FHIRServer
from django_smart.servers.discovery import (
    fetch_configuration,
    fetch_jwks,
    get_configuration,
    get_issuer,
    get_jwks,
    refresh_servers,
)
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.ehr import launch, make_browser
from tests.errors import raises_code
from tests.factories import make_registration, make_server

pytestmark = pytest.mark.django_db


@pytest.mark.compliance("DISC-01", "DISC-02", "DISC-03")
def test_configuration_is_fetched_once_and_kept_in_the_row(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    configuration = get_configuration(server)
    assert configuration.token_endpoint == ehr.token_endpoint
    (request,) = ehr.requests
    assert request.url == f"{ehr.base_url}/.well-known/smart-configuration"
    assert request.headers["Accept"] == "application/json"
    stored = FHIRServer.objects.get()
    assert get_configuration(stored) == configuration
    assert len(ehr.requests) == 1
    assert (stored.state.issuer, stored.state.jwks_uri) == (ehr.issuer, ehr.jwks_uri)


def test_headers_of_the_row_are_sent_with_discovery(ehr: EHRSimulator) -> None:
    server = make_registration(
        server__discovery_headers={"Epic-Client-ID": "growth-chart"}
    ).server
    get_configuration(server)
    assert ehr.requests[0].headers["Epic-Client-ID"] == "growth-chart"


def test_stored_configuration_is_checked_by_the_settings_in_force(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    get_configuration(server)
    document: Any = server.state.configuration
    document["token_endpoint"] = "http://ehr.example.org/token"
    server.save()
    assert get_configuration(server).token_endpoint == ehr.token_endpoint
    assert len(ehr.requests) == 2


def test_fetching_without_saving_leaves_the_row_alone(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    fetch_configuration(server, save=False)
    fetch_jwks(server, save=False)
    assert server.state.issuer == ehr.issuer
    assert server.state.jwks is not None
    server.refresh_from_db()
    assert (server.state.issuer, server.state.configuration, server.state.jwks) == (
        "",
        None,
        None,
    )


@pytest.mark.parametrize("name", ["issuer", "jwks_uri"])
def test_url_that_no_column_takes_is_refused(
    ehr: EHRSimulator,
    server: FHIRServer,
    name: str,
) -> None:
    url = f"https://ehr.example.org/{'x' * 1000}"
    answer(ehr, "/smart-configuration", **cast("Any", {name: url}))
    with pytest.raises(DiscoveryError):
        fetch_configuration(server)


# Keys


@pytest.mark.compliance("IDT-03")
def test_issuer_of_the_row_comes_before_the_discovered_one(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    get_configuration(server)
    assert get_issuer(server) == ehr.issuer
    server.id_token_issuer = "https://login.example.org"
    assert get_issuer(server) == "https://login.example.org"


def test_plain_http_keys_are_for_the_named_hosts_alone(
    server: FHIRServer, settings: Any
) -> None:
    ehr = EHRSimulator(base_url="http://ehr.example.org/v/r4/sim/abc/fhir")
    server.id_token_issuer = ehr.issuer
    with transport.mounted("http://ehr.example.org", ehr.adapter()):
        settings.SMART_INSECURE_HTTP_HOSTS = ["ehr.example.org"]
        assert fetch_jwks(server, save=False)["keys"]


def test_jwk_set_of_more_than_half_a_megabyte_is_not_read(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    get_configuration(server)
    answer(ehr, "/auth/jwks", padding="x" * 400_000)
    assert get_jwks(server)["keys"]
    answer(ehr, "/auth/jwks", padding="x" * 600_000)
    with pytest.raises(ResponseTooLargeError):
        fetch_jwks(server)
    kept = FHIRServer.objects.get().state.jwks or {}
    assert len(kept["padding"]) == 400_000


def test_configuration_of_more_than_half_a_megabyte_is_not_read(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    answer(ehr, "/.well-known/smart-configuration", padding="x" * 600_000)
    with pytest.raises(ResponseTooLargeError):
        get_configuration(server)
    assert FHIRServer.objects.get().state.configuration is None


# The task


def test_servers_are_refreshed_past_half_of_the_lifetime(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        assert refresh_servers() == 0
        assert [each.exchange for each in ehr.requests] == ["smart-configuration"]
        get_jwks(FHIRServer.objects.get())
        ehr.clear_requests()
        clock.shift(timedelta(hours=11))
        assert refresh_servers() == 0
        assert ehr.requests == []
        clock.shift(timedelta(hours=2))
        assert refresh_servers() == 0
        assert [each.exchange for each in ehr.requests] == [
            "smart-configuration",
            "jwks",
        ]
    assert server.pk == FHIRServer.objects.get().pk


@pytest.mark.compliance("DISC-11")
def test_odd_member_that_no_launch_needs_is_ignored_and_logged(
    ehr: EHRSimulator, server: FHIRServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_smart.servers")
    answer(ehr, "/smart-configuration", management_endpoint="http://ehr.example.org/")
    assert launch(make_browser(), ehr).status == "open"
    assert caplog.text.count("management_endpoint") == 1


def test_server_that_cannot_be_reached_does_not_stop_the_others(
    ehr: EHRSimulator, server: FHIRServer, caplog: pytest.LogCaptureFixture
) -> None:
    away = make_registration(
        server__slug="away", server__base_url="https://away.example.org/r4"
    ).server
    make_server(
        slug="off", name="Off", base_url="https://off.example.org/r4", is_active=False
    )
    with transport.mounted("https://away.example.org", Away()):
        assert refresh_servers() == 1
        with pytest.raises(ServerUnreachableError):
            fetch_configuration(away)
    assert f"Server {away.pk}: discovery failed (server_unreachable)" in caplog.text
    server.refresh_from_db()
    assert server.state.configuration is not None
    assert len(ehr.requests) == 1


def _move(server: FHIRServer) -> None:
    """Correct the address, as an operator does."""
    moved = FHIRServer.objects.get(pk=server.pk)
    moved.base_url = "https://moved.example.org/r4"
    moved.save()


def test_server_is_asked_where_it_is_when_its_turn_comes(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    later = make_server(
        slug="later", name="Later", base_url="https://later.example.org/r4"
    )
    off = make_server(slug="off", name="Off", base_url="https://off.example.org/r4")
    assert list(FHIRServer.objects.active()) == [server, later, off]

    def change_the_others(respond: Any, request: Any) -> Any:
        _move(later)
        FHIRServer.objects.filter(pk=off.pk).update(is_active=False)
        return respond(request)

    ehr.interceptors.append(change_the_others)
    moved = EHRSimulator(base_url="https://moved.example.org/r4")
    with (
        transport.mounted("https://later.example.org", Away()),
        transport.mounted("https://off.example.org", Away()),
        transport.mounted("https://moved.example.org", moved.adapter()),
    ):
        assert refresh_servers() == 0
    later.refresh_from_db()
    assert later.state.configuration is not None


def test_answer_of_an_address_that_was_changed_meanwhile_is_not_stored(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    def move(respond: Any, request: Any) -> Any:
        _move(server)
        return respond(request)

    ehr.interceptors.append(move)
    with raises_code("discovery_busy"):
        fetch_configuration(server)
    stored = FHIRServer.objects.get()
    assert (stored.state.configuration, stored.state.pinned) == (None, {})
    assert stored.base_url == "https://moved.example.org/r4"
