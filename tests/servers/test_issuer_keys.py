"""Whose keys prove whose identities: no server's word is enough for another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urljoin

import pytest
import time_machine
from django.utils import timezone

from django_smart import transport
from django_smart.exceptions import ServerMovedError
from django_smart.models import FHIRServer, Identity, ServerState
from django_smart.servers.discovery import (
    fetch_configuration,
    get_configuration,
    refresh_servers,
)
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    CLIENT_ID,
    PATIENT,
    get_callback,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import (
    make_identity,
    make_registration,
    make_server,
    make_user,
    register_at,
)
from tests.launch_urls import get_code

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
OPENID = "/openid-configuration"
OTHER = "https://other.example.org"


@contextmanager
def mounted(issuer: str) -> Iterator[EHRSimulator]:
    """Another EHR, whose ID tokens are those of *issuer*."""
    other = EHRSimulator("https://other.example.org/r4", issuer=issuer)
    register_at(other)
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
    launch_id = other.create_launch(CLIENT_ID, patient=PATIENT)
    response = browser.get(
        "/smart/launch/", {"iss": other.base_url, "launch": launch_id}
    )
    if response.status_code == 302:
        response = get_callback(browser, other.authorize(response["Location"]))
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
    # If it was asked, the issuer named its own keys.
    assert FHIRServer.objects.get(slug="other").state.jwks_uri in ("", ehr.jwks_uri)
    assert launch(make_browser(), ehr).identity is not None


def test_keys_on_another_host_are_used_once_the_operator_names_the_issuer(
    ehr: EHRSimulator, registration: Any, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = "https://keys.example.net/jwks"
    answer(ehr, SMART, jwks_uri=elsewhere)
    answer(ehr, OPENID, status=404)
    callback = ehr.authorize(start_ehr_launch(browser := make_browser(), ehr))
    assert get_code(get_callback(browser, callback)) == "server_unsupported"
    assert "set the server's ID token issuer" in caplog.text
    assert FHIRServer.objects.get().state.jwks_uri == ""
    FHIRServer.objects.update(id_token_issuer=ehr.issuer)
    fetch_configuration(FHIRServer.objects.get())
    assert FHIRServer.objects.get().state.jwks_uri == elsewhere


@pytest.mark.usefixtures("registration")
def test_openid_configuration_that_is_down_is_no_lack_of_the_server(
    ehr: EHRSimulator,
) -> None:
    answer(ehr, SMART, jwks_uri="https://keys.example.net/jwks")
    answer(ehr, OPENID, status=503)
    callback = ehr.authorize(start_ehr_launch(browser := make_browser(), ehr))
    assert get_code(get_callback(browser, callback)) == "discovery_status"


def test_issuer_that_is_named_below_the_base_alone_is_asked_too(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    make_registration()
    server = register(other)
    answer(other, SMART, remove=("issuer",))
    answer(other, OPENID, jwks_uri=ehr.jwks_uri)
    fetch_configuration(server)
    assert (server.state.issuer, server.state.jwks_uri) == (ehr.issuer, ehr.jwks_uri)
    refuse(other)


def test_issuer_that_moves_to_another_origin_waits_for_the_operator(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    own = "https://other.example.org"
    with mounted(own) as other:
        server = register(other)
        assert launch(make_browser(), other).identity is not None
    server.refresh_from_db()
    known = server.state.pinned
    assert known["issuer"] == own
    ServerState.objects.filter(pk=server.pk).update(configuration_fetched_at=None)
    with mounted(ehr.issuer) as other:
        browser = make_browser()
        with pytest.raises(ServerMovedError):
            fetch_configuration(server)
        response = browser.get(
            "/smart/launch/",
            {
                "iss": other.base_url,
                "launch": other.create_launch(CLIENT_ID, patient=None),
            },
        )
        assert response.context["code"] == "server_moved"
        server.refresh_from_db()
        assert (server.state.issuer, server.state.pinned) == (own, known)
        # Until the operator accepts what it names now.
        server.state.pinned = {}
        server.state.save()
        fetch_configuration(server)
        assert server.state.issuer == ehr.issuer
    assert list(Identity.objects.values_list("issuer", flat=True)) == [own]


@pytest.mark.parametrize("name", ["jwks_uri", "token_endpoint"])
def test_value_that_moves_within_its_origin_is_taken(
    ehr: EHRSimulator, registration: Any, name: str
) -> None:
    server = registration.server
    fetch_configuration(server)
    moved = f"{server.state.pinned[name]}/v2"
    answer(ehr, SMART, **cast("Any", {name: moved}))
    fetch_configuration(server)
    assert server.state.pinned[name] == moved
    assert server.state.moved == {}


def test_token_endpoint_that_moves_to_another_origin_gets_no_credentials(
    registration: Any,
    ehr: EHRSimulator,
) -> None:
    known = fetch_configuration(registration.server).token_endpoint
    answer(ehr, SMART, token_endpoint="https://elsewhere.example/token")
    ServerState.objects.update(configuration_fetched_at=None)
    server = FHIRServer.objects.get()
    assert get_configuration(server).token_endpoint == known
    assert set(server.state.moved) == {"token_endpoint"}


@pytest.mark.parametrize("moved", [f"{OTHER}/realms/x", f"{OTHER}/auth/realms/x/"])
def test_issuer_of_known_identities_changes_only_if_the_operator_approves(
    moved: str, caplog: Any
) -> None:
    known = f"{OTHER}/auth/realms/x"
    with mounted(known) as other:
        server = register(other)
        user = launch(make_browser(), other).user
        server.refresh_from_db()
    with mounted(moved) as other:
        with pytest.raises(ServerMovedError):
            fetch_configuration(server)
        assert "issuer" in caplog.text
        refuse(other)
        server.refresh_from_db()
        assert (server.state.issuer, server.state.pinned["issuer"]) == (known, known)
        assert server.state.moved == {"issuer": moved}
        # Once the identities have the new issuer, nobody gets a second account.
        for identity in Identity.objects.filter(server=server, issuer=known):
            identity.issuer = moved
            identity.save()
        fetch_configuration(server)
        assert (server.state.pinned["issuer"], server.state.moved) == (moved, {})
        assert launch(make_browser(), other).user == user
    assert Identity.objects.get().issuer == moved


def test_issuer_that_comes_back_needs_no_approval(
    ehr: EHRSimulator, registration: Any
) -> None:
    assert launch(make_browser(), ehr).identity is not None
    with time_machine.travel(timezone.now(), tick=False) as clock:
        answer(ehr, SMART, issuer=f"{ehr.issuer}/")
        registration.server.refresh_from_db()
        with pytest.raises(ServerMovedError):
            fetch_configuration(registration.server)
        ehr.interceptors.pop()
        clock.shift(timedelta(minutes=11))
        refresh_servers()
    registration.server.refresh_from_db()
    assert registration.server.state.moved == {}
    assert registration.server.state.configuration_fetched_at is not None


@pytest.mark.parametrize(
    ("name", "moved"),
    [("issuer", "/"), ("token_endpoint", "https://elsewhere.example/token")],
)
def test_moved_value_is_an_error_in_the_log_once(
    ehr: EHRSimulator, registration: Any, caplog: Any, name: str, moved: str
) -> None:
    caplog.set_level("INFO")
    server = registration.server
    assert launch(make_browser(), ehr).identity is not None
    values: dict[str, Any] = {name: urljoin(f"{ehr.issuer}/", moved)}
    answer(ehr, SMART, **values)
    for _ in range(3):
        with pytest.raises(ServerMovedError):
            fetch_configuration(FHIRServer.objects.get(pk=server.pk))
    told = [
        (each.levelname, each.getMessage())
        for each in caplog.records
        if f"{name} changed" in each.getMessage()
    ]
    assert [level for level, _ in told] == ["ERROR", "INFO", "INFO"]
    assert {text for _, text in told} == {
        f"Server {server.slug}: {name} changed; the known values stay in use, and no "
        "one can sign in until an operator accepts them."
    }


def test_operator_may_approve_an_issuer_without_its_identities() -> None:
    known, moved = f"{OTHER}/auth", OTHER
    with mounted(known) as other:
        server = register(other)
        assert launch(make_browser(), other).identity is not None
        server.refresh_from_db()
    with mounted(moved):
        with pytest.raises(ServerMovedError):
            fetch_configuration(server)
        server.state.pinned = {}
        server.state.save()
        fetch_configuration(server)
        assert (server.state.issuer, server.state.moved) == (moved, {})


def test_issuer_of_identities_in_its_login_group_waits_for_the_operator(
    ehr: EHRSimulator,
) -> None:
    server = make_registration(server__login_group="vendor").server
    fetch_configuration(server)
    branch = make_server(
        slug="branch", base_url="https://branch.example.org/r4", login_group="vendor"
    )
    make_identity(make_user(), server=branch, issuer=server.state.issuer)
    answer(ehr, SMART, issuer=f"{server.state.issuer}/")
    with pytest.raises(ServerMovedError):
        fetch_configuration(server)


def test_issuer_without_identities_moves_within_its_origin(
    ehr: EHRSimulator, registration: Any
) -> None:
    server = registration.server
    fetch_configuration(server)
    moved = f"{server.state.issuer}/"
    answer(ehr, SMART, issuer=moved)
    fetch_configuration(server)
    assert (server.state.issuer, server.state.pinned["issuer"]) == (moved, moved)
    assert server.state.moved == {}


def test_refreshes_use_the_endpoint_that_moved_together_with_the_issuer(
    ehr: EHRSimulator, registration: Any
) -> None:
    server = registration.server
    grant = launch(make_browser(), ehr).grant
    assert grant is not None
    endpoint = get_configuration(server).token_endpoint
    moved = f"{endpoint}/v2"
    answer(ehr, SMART, issuer=f"{ehr.issuer}/", token_endpoint=moved)
    with pytest.raises(ServerMovedError):
        fetch_configuration(server)
    server.refresh_from_db()
    assert get_configuration(server).token_endpoint == moved
    assert server.state.pinned["token_endpoint"] == moved
    assert server.state.issuer == ehr.issuer


def test_token_endpoint_that_moves_to_another_origin_is_not_used(
    ehr: EHRSimulator, registration: Any
) -> None:
    name, server = "token_endpoint", registration.server
    known = fetch_configuration(server).token_endpoint, server.state.jwks_uri
    answer(ehr, SMART, token_endpoint="https://elsewhere.example/moved")
    with pytest.raises(ServerMovedError):
        fetch_configuration(server)
    server.refresh_from_db()
    assert (server.read_configuration().token_endpoint, server.state.jwks_uri) == known
    assert set(server.state.moved) == {name}


def test_servers_of_one_login_group_know_the_same_people(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    make_registration(server__login_group="vendor")
    register(other, server__login_group="vendor")
    first = launch(make_browser(), ehr)
    other._signing_keys = ehr._signing_keys
    second = launch(make_browser(), other)
    assert first.identity is not None
    assert second.identity is not None
    assert first.identity != second.identity
    assert first.user == second.user


def test_server_that_names_another_ones_issuer_reaches_none_of_its_users(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    make_registration()
    server = register(other)
    victim = launch(make_browser(), ehr).user
    # It passes on genuine ID tokens, which prove an identity at that server alone.
    other._signing_keys = ehr._signing_keys
    answer(other, SMART, jwks_uri=ehr.jwks_uri)
    fetch_configuration(server)
    assert launch(make_browser(), other).user != victim
    assert launch(make_browser(), ehr).user == victim


@pytest.mark.parametrize("name", ["issuer", "jwks_uri", "token_endpoint"])
@pytest.mark.parametrize("is_known", [True, False])
def test_server_that_names_values_of_another_stops_no_other(
    ehr: EHRSimulator, registration: Any, name: str, is_known: bool
) -> None:
    with mounted(OTHER) as other:
        server = register(other)
        if is_known:
            fetch_configuration(server)
        fetch_configuration(registration.server)
        values: dict[str, Any] = {name: registration.server.state.pinned[name]}
        answer(other, SMART, **values)
        ServerState.objects.update(configuration_fetched_at=None)
        refresh_servers()
        assert launch(make_browser(), ehr).identity is not None
        server.refresh_from_db()
        registration.server.refresh_from_db()
        # A key URL outside the issuer's origin is not even looked at.
        assert (name in server.state.moved) is (is_known and name != "jwks_uri")
        assert registration.server.state.moved == {}


def test_tenants_of_one_vendor_need_no_login_group(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    make_registration()
    register(other)
    first = launch(make_browser(), ehr)
    # Issuer and keys are the same for all of them.
    other._signing_keys = ehr._signing_keys
    answer(other, SMART, jwks_uri=ehr.jwks_uri)
    second = launch(make_browser(), other)
    assert first.identity is not None
    assert second.identity is not None
    assert first.user != second.user


def test_operator_may_vouch_for_a_server(
    ehr: EHRSimulator, other: EHRSimulator
) -> None:
    register(other, server__id_token_issuer=other.issuer)
    assert launch(make_browser(), other).identity is not None
    assert ehr.requests == []
