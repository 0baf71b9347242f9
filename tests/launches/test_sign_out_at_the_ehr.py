"""Sign-out at the EHR too: where it is set, for who signed in there."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from django_smart.models import ClientRegistration, FHIRServer, Launch, ServerState
from django_smart.servers.discovery import fetch_configuration
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import connect, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

END_SESSION = "https://ehr.example.org/logout"


@pytest.fixture
def server(ehr: EHRSimulator) -> FHIRServer:
    """A server that signs people out, and is set to."""
    answer(ehr, "smart-configuration", end_session_endpoint=END_SESSION)
    return make_registration(server__rp_initiated_logout=True).server


def sign_out(browser: Client) -> str:
    response = browser.post("/smart/logout/")
    assert response.status_code == 302
    assert "_auth_user_id" not in browser.session
    return str(response["Location"])


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("own", [{}, {"tenant": ["1"]}])
def test_sign_out_goes_on_to_the_ehr(
    ehr: EHRSimulator, settings: Any, own: dict[str, list[str]]
) -> None:
    settings.LOGOUT_REDIRECT_URL = "/bye/"
    if own:
        endpoint = f"{END_SESSION}?tenant=1"
        FHIRServer.objects.update(overrides={"end_session_endpoint": endpoint})
    browser = make_browser()
    opened = launch(browser, ehr)
    ClientRegistration.objects.update(client_id="a b&c")
    ehr.clear_requests()
    url = urlsplit(sign_out(browser))
    assert f"{url.scheme}://{url.netloc}{url.path}" == END_SESSION
    assert parse_qs(url.query) == {
        **own,
        "client_id": ["a b&c"],
        "post_logout_redirect_uri": ["https://app.example.org/bye/"],
    }
    # Here it is over whatever becomes of that.
    opened.refresh_from_db()
    assert opened.status == Launch.Status.ENDED
    assert ehr.requests_to("smart-configuration") == []


@pytest.mark.usefixtures("server")
def test_sign_out_goes_on_to_the_ehr_after_the_launch_has_ended(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    # Such as by "Disconnect"; the session at the EHR is open all the same.
    Launch.objects.end(reason="disconnected", now=timezone.now())
    assert sign_out(browser).startswith(END_SESSION)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("setting", "back"),
    [
        (None, "https://app.example.org/"),
        ("admin:login", "https://app.example.org/admin/login/"),
        ("https://www.example.org/bye", "https://www.example.org/bye"),
    ],
)
def test_the_way_back_is_where_sign_out_leads_to(
    ehr: EHRSimulator, settings: Any, setting: str | None, back: str
) -> None:
    settings.LOGOUT_REDIRECT_URL = setting
    browser = make_browser()
    launch(browser, ehr)
    query = parse_qs(urlsplit(sign_out(browser)).query)
    assert query["post_logout_redirect_uri"] == [back]


@pytest.mark.usefixtures("server")
def test_sign_out_stays_here_unless_the_server_is_set_to_it(ehr: EHRSimulator) -> None:
    FHIRServer.objects.update(quirks={"rp_initiated_logout": False})
    browser = make_browser()
    launch(browser, ehr)
    assert sign_out(browser) == "/"


@pytest.mark.parametrize("url", [None, "http://ehr.example.org/logout", 7])
def test_sign_out_stays_here_if_the_server_cannot_do_it(
    ehr: EHRSimulator, url: object
) -> None:
    make_registration(server__rp_initiated_logout=True)
    answer(ehr, "openid-configuration", end_session_endpoint=url)
    browser = make_browser()
    launch(browser, ehr)
    assert sign_out(browser) == "/"


def test_nobody_who_signed_in_otherwise_is_sent_to_the_ehr(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    ada = get_user_model().objects.create(username="ada")
    browser = make_browser()
    browser.force_login(ada, backend="django.contrib.auth.backends.ModelBackend")
    connect(browser, ehr)
    assert sign_out(browser) == "/"
    # Nor is anybody without a launch, or without an identity.
    stranger = make_browser()
    assert sign_out(stranger) == "/"
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.rs")
    browser.force_login(ada, backend="django.contrib.auth.backends.ModelBackend")
    launch(browser, ehr)
    assert sign_out(browser) == "/"


@pytest.mark.usefixtures("server")
def test_configuration_that_was_lost_keeps_sign_out_here(ehr: EHRSimulator) -> None:
    browser = make_browser()
    launch(browser, ehr)
    ServerState.objects.update(configuration=None)
    assert sign_out(browser) == "/"


# Where the endpoint is learnt


def test_endpoint_is_learnt_from_the_openid_configuration(ehr: EHRSimulator) -> None:
    server = make_registration(server__rp_initiated_logout=True).server
    answer(ehr, "openid-configuration", end_session_endpoint=END_SESSION)
    assert fetch_configuration(server).end_session_endpoint == END_SESSION
    server.refresh_from_db()
    stored = server.read_configuration()
    assert stored is not None
    assert stored.end_session_endpoint == END_SESSION
    # What the SMART configuration has said is not overwritten.
    assert (stored.issuer, stored.jwks_uri) == (ehr.issuer, ehr.jwks_uri)


def test_openid_configuration_is_not_asked_for_without_need(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    fetch_configuration(server)
    assert ehr.requests_to("openid-configuration") == []


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"issuer": "https://elsewhere.example.net"}]
)
def test_openid_configuration_that_is_wrong_costs_the_sign_out_alone(
    ehr: EHRSimulator,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    server = make_registration(server__rp_initiated_logout=True).server
    answer(ehr, "openid-configuration", **fault)
    assert fetch_configuration(server).end_session_endpoint is None
    assert f"Server {server.pk}: " in caplog.text
    browser = make_browser()
    assert launch(browser, ehr).identity is not None
    assert sign_out(browser) == "/"


@pytest.mark.compliance("IDT-02", "IDT-06")
def test_algorithms_are_learnt_from_the_openid_configuration(ehr: EHRSimulator) -> None:
    make_registration()
    answer(ehr, "smart-configuration", remove=("jwks_uri",))
    answer(
        ehr,
        "openid-configuration",
        id_token_signing_alg_values_supported=["ES384", 7],
    )
    with pytest.raises(AssertionError, match="id_token_signature"):
        launch(make_browser(), ehr)
    ehr.interceptors.pop()
    ServerState.objects.update(configuration_fetched_at=None, discovery_failed_at=None)
    assert launch(make_browser(), ehr).identity is not None


# What an EHR lets a person do there


@pytest.mark.compliance("SEC-12")
def test_connections_lead_to_where_the_ehr_shows_what_has_access(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    ada = get_user_model().objects.create(username="ada")
    browser = make_browser()
    browser.force_login(ada, backend="django.contrib.auth.backends.ModelBackend")
    answer(
        ehr,
        "smart-configuration",
        management_endpoint="https://ehr.example.org/apps?a=1&b=2",
    )
    connect(browser, ehr)
    page = browser.get("/smart/connections/").content.decode()
    assert 'href="https://ehr.example.org/apps?a=1&amp;b=2"' in page
    ServerState.objects.update(configuration=None)
    page = browser.get("/smart/connections/").content.decode()
    assert "https://ehr.example.org/apps" not in page
