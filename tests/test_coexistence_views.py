"""Beside mozilla-django-oidc, with its own views and a server for the staff."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.test import Client
from django.utils import timezone
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from django_smart.models import ClientRegistration, Identity, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import SITE, get_callback, make_browser
from tests.known import OURS, THEIRS
from tests.site.browsers import open_chart
from tests.transport.servers import Server, answer

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.site.oidc_urls"),
    pytest.mark.usefixtures("registration", "staff"),
]

STAFF_SECRET = "a-secret-of-the-staff"


@pytest.fixture(scope="module")
def staff_server() -> Iterator[EHRSimulator]:
    """The server that the staff sign in at, on a port of its own."""
    server = EHRSimulator("https://staff.example.org/fhir")
    server.register_client(
        "staff",
        client_secret=STAFF_SECRET,
        auth_method="client_secret_post",
        redirect_uris=[f"{SITE}/oidc/callback/"],
    )
    with server.serve("127.0.0.1"):
        yield server


@pytest.fixture(params=[[OURS, THEIRS], [THEIRS, OURS]], ids=["ours", "theirs"])
def staff(
    request: Any, staff_server: EHRSimulator, settings: Any
) -> Iterator[EHRSimulator]:
    """That server, for mozilla-django-oidc; one and the other backend comes first."""
    claims = json.dumps({"sub": "sam", "email": "sam@example.org"}).encode()
    settings.AUTHENTICATION_BACKENDS = request.param
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django_smart.middleware.SessionRefresh",
    ]
    settings.OIDC_RP_CLIENT_ID = "staff"
    settings.OIDC_RP_CLIENT_SECRET = STAFF_SECRET
    settings.OIDC_RP_SCOPES = "openid profile"
    settings.OIDC_RP_SIGN_ALGO = "RS256"
    settings.OIDC_USE_PKCE = True
    settings.OIDC_AUTH_REQUEST_EXTRA_PARAMS = {"aud": staff_server.base_url}
    settings.OIDC_OP_AUTHORIZATION_ENDPOINT = staff_server.authorization_endpoint
    settings.OIDC_OP_TOKEN_ENDPOINT = staff_server.token_endpoint
    settings.OIDC_OP_JWKS_ENDPOINT = staff_server.jwks_uri
    staff_server.clear_requests()
    headers = ("Content-Type: application/json", "Connection: close")
    with Server(answer(claims, headers=headers)) as users:
        settings.OIDC_OP_USER_ENDPOINT = f"http://127.0.0.1:{users.port}/"
        yield staff_server


def sign_in_as_staff(browser: Client, staff: EHRSimulator) -> str:
    """The whole way through the views of mozilla-django-oidc; returns the code."""
    started = browser.get("/oidc/authenticate/", {"next": "/links/"})
    return follow(browser, staff, started["Location"])


def follow(browser: Client, staff: EHRSimulator, url: str) -> str:
    """From the staff's server back to the callback; returns the code."""
    callback = staff.authorize(url)
    assert callback.startswith(f"{SITE}/oidc/callback/")
    assert get_callback(browser, callback).status_code == 302
    assert browser.session[BACKEND_SESSION_KEY] == THEIRS
    return parse_qs(urlsplit(callback).query)["code"][0]


def codes_sent_to(server: EHRSimulator) -> list[str]:
    """The codes that were exchanged at *server*."""
    return [dict(request.form)["code"] for request in server.requests_to("token")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Which backend went about to find or make a user, in order."""
    calls: list[type] = []
    upstream = OIDCAuthenticationBackend.authenticate

    def authenticate(self: Any, request: Any, **values: Any) -> Any:
        calls.append(type(self))
        return upstream(self, request, **values)

    monkeypatch.setattr(OIDCAuthenticationBackend, "authenticate", authenticate)
    return calls


def test_staff_and_launches_never_meet(
    ehr: EHRSimulator, staff: EHRSimulator, asked: list[type]
) -> None:
    staff_code = sign_in_as_staff(make_browser(), staff)
    assert asked == [OIDCAuthenticationBackend]
    assert codes_sent_to(staff) == [staff_code]
    assert ehr.requests == []
    staff.clear_requests()

    chart = open_chart(ehr)
    assert chart.browser.session[BACKEND_SESSION_KEY] == OURS
    assert asked == [OIDCAuthenticationBackend]
    assert staff.requests == []
    assert [code in ehr.store.codes for code in codes_sent_to(ehr)] == [True]
    usernames = get_user_model().objects.values_list("username", flat=True)
    assert len(usernames) == 2
    assert Identity.objects.count() == 1


def test_code_at_the_other_callback_is_refused(
    ehr: EHRSimulator, staff: EHRSimulator
) -> None:
    browser = make_browser()
    started = browser.get("/oidc/authenticate/")
    query = urlsplit(staff.authorize(started["Location"])).query
    assert browser.get(f"/smart/callback/?{query}").status_code == 400

    launch_id = ehr.create_launch("growth-chart", patient=None)
    started = browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})
    query = urlsplit(ehr.authorize(started["Location"])).query
    assert browser.get(f"/oidc/callback/?{query}").status_code >= 400
    for server in (ehr, staff):
        assert server.requests_to("token") == []
    assert not get_user_model().objects.exists()


def test_one_browser_for_staff_and_for_a_launch(
    ehr: EHRSimulator, staff: EHRSimulator
) -> None:
    ClientRegistration.objects.update(user_switch="switch")
    browser = make_browser()
    sign_in_as_staff(browser, staff)
    chart = open_chart(ehr, browser)
    assert chart.get("/private/").status_code == 200
    # Somebody else signs in there: the launch is not theirs.
    sign_in_as_staff(browser, staff)
    assert chart.get("/private/").status_code != 200
    row = Launch.objects.get(pk=chart.launch.pk)
    assert row.user != get_user_model().objects.get(email="sam@example.org")


def test_session_refresh_is_for_the_staff_alone(
    ehr: EHRSimulator, staff: EHRSimulator
) -> None:
    browser = make_browser()
    with time_machine.travel(timezone.now(), tick=True) as clock:
        sign_in_as_staff(browser, staff)
        chart = open_chart(ehr)
        staff.clear_requests()
        clock.shift(timedelta(hours=2))
        assert chart.get("/private/").status_code == 200
        assert staff.requests == []

        response = browser.get("/links/")
        assert response["Location"].startswith(staff.authorization_endpoint)
        assert "prompt=none" in response["Location"]
        follow(browser, staff, response["Location"])
        assert browser.get("/links/").status_code == 200
