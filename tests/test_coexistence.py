"""Beside mozilla-django-oidc, which a site may use for its staff."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, authenticate
from django.core.exceptions import ImproperlyConfigured
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from django_smart.backends import SMARTAuthenticationBackend
from tests.ehr import SITE
from tests.known import OURS, THEIRS
from tests.site.browsers import open_chart

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.site.oidc_urls"),
    pytest.mark.usefixtures("registration"),
]


@pytest.fixture(autouse=True)
def _staff_server(settings):
    settings.OIDC_RP_CLIENT_ID = "staff"
    settings.OIDC_RP_CLIENT_SECRET = "staff secret"
    settings.OIDC_OP_AUTHORIZATION_ENDPOINT = "https://staff.example.org/authorize"
    settings.OIDC_OP_TOKEN_ENDPOINT = "https://staff.example.org/token"
    settings.OIDC_OP_USER_ENDPOINT = "https://staff.example.org/user"
    settings.OIDC_RP_SIGN_ALGO = "HS256"
    settings.OIDC_RP_SCOPES = "openid email staff"
    # Settings of the staff's server that must not reach ours.
    settings.OIDC_USERNAME_ALGO = lambda email: "from the staff's algorithm"
    settings.OIDC_CREATE_USER = False
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        OURS,
        THEIRS,
    ]
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django_smart.middleware.SessionRefresh",
    ]


@pytest.mark.parametrize("backends", [[OURS, THEIRS], [THEIRS, OURS]])
def test_launch_never_asks_the_staff_s_backend(ehr, settings, monkeypatch, backends):
    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the staff's backend was asked")

    settings.AUTHENTICATION_BACKENDS = backends
    for name in ("authenticate", "get_token", "get_userinfo", "verify_token"):
        monkeypatch.setattr(OIDCAuthenticationBackend, name, fail)
    chart = open_chart(ehr)
    assert chart.launch.user is not None
    assert chart.launch.user.get_username().startswith("smart-")
    assert chart.browser.session[BACKEND_SESSION_KEY] == OURS
    assert chart.get("/private/").status_code == 200


def test_authenticate_never_triggers_ours(ehr, rf, settings, django_user_model):
    settings.AUTHENTICATION_BACKENDS = [OURS]
    user = django_user_model.objects.create_user("maria", password="right")
    request = rf.get("/oidc/callback/?code=c&state=s")
    request.session = {}
    for values in (
        {"username": "maria", "password": "right"},
        {"nonce": "n", "code_verifier": "v"},
        {},
    ):
        assert authenticate(request, **values) is None
        assert authenticate(None, **values) is None
    assert not ehr.requests
    settings.AUTHENTICATION_BACKENDS.append("django.contrib.auth.backends.ModelBackend")
    assert authenticate(request, username="maria", password="right") == user


def test_staff_s_session_refresh_leaves_our_sessions_alone(ehr):
    chart = open_chart(ehr)
    assert chart.get("/links/").status_code == 200
    assert chart.browser.get("/links/").status_code == 200


def test_staff_s_session_refresh_knows_no_launch(ehr):
    chart = open_chart(ehr)
    # The first request of this process that upstream looks at is under a launch.
    chart.browser.handler.load_middleware()
    assert chart.get("/links/").status_code == 200
    session = chart.browser.session
    session["oidc_id_token_expiration"] = time.time() - 1
    session.save()
    asked = chart.get("/links/")["Location"]
    assert asked.startswith("https://staff.example.org/authorize?")
    assert parse_qs(urlsplit(asked).query)["redirect_uri"] == [f"{SITE}/oidc/callback/"]
    assert chart.browser.session["oidc_login_next"] == chart.url("/links/")
    assert chart.browser.get("/oidc/callback/")["Location"] == "/"


@pytest.mark.parametrize("exempt", ["links", "/links/", re.compile("^/links/")])
def test_url_exempt_from_session_refresh_is_so_under_a_launch(ehr, settings, exempt):
    settings.OIDC_EXEMPT_URLS = [exempt]
    chart = open_chart(ehr)
    session = chart.browser.session
    session["oidc_id_token_expiration"] = time.time() - 1
    session.save()
    assert chart.get("/links/").status_code == 200
    assert chart.browser.get("/links/").status_code == 200
    assert chart.get("/private/").status_code == 302


def test_staff_s_sign_in_starts_outside_of_a_launch(ehr, settings):
    settings.LOGOUT_REDIRECT_URL = "/"
    chart = open_chart(ehr)
    first = chart.get("/oidc/authenticate/", {"next": chart.url("/links/")})
    assert first["Location"].startswith("/oidc/authenticate/?next=")
    asked = chart.browser.get(first["Location"])["Location"]
    assert parse_qs(urlsplit(asked).query)["redirect_uri"] == [f"{SITE}/oidc/callback/"]
    assert chart.browser.session["oidc_login_next"] == chart.url("/links/")
    # A form on a page of the launch signs out.
    assert chart.post("/oidc/logout/").status_code == 302
    assert BACKEND_SESSION_KEY not in chart.browser.session


def test_our_backend_reads_none_of_the_staff_s_settings(settings):
    for name in (
        "OIDC_RP_CLIENT_ID",
        "OIDC_OP_TOKEN_ENDPOINT",
        "OIDC_OP_USER_ENDPOINT",
    ):
        delattr(settings, name)
    backend = SMARTAuthenticationBackend()
    name = backend.get_username({"iss": "https://ehr.example.org", "sub": "1"})
    assert name.startswith("smart-")


def test_staff_s_rest_api_names_its_backend(settings):
    pytest.importorskip("rest_framework", reason="needs the extra drf")
    from mozilla_django_oidc.contrib.drf import OIDCAuthentication

    with pytest.raises(ImproperlyConfigured):
        OIDCAuthentication()
    settings.OIDC_DRF_AUTH_BACKEND = THEIRS
    assert type(OIDCAuthentication().backend) is OIDCAuthenticationBackend
