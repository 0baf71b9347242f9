"""``smart_doctor --launch``: through the site's own middleware, and nothing is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import shared_task
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session
from django.core import mail
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models.signals import post_save
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_script_prefix
from django.urls import path

from django_smart import signals
from django_smart.contrib.doctor.launch import find_unrequested_scopes, try_launch
from django_smart.decorators import smart_required
from django_smart.diagnoses import Finding
from django_smart.models import ClientRegistration, FHIRServer, Launch
from tests.factories import make_registration, make_server
from tests.site.urls import urlpatterns as site

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.contrib.doctor.test_launch"),
]


@smart_required(scopes="patient/Condition.rs")
def show_problems(request: Any) -> HttpResponse:
    return HttpResponse(len(list(request.smart.fhir.search("Condition"))))


def fail(request: HttpRequest) -> HttpResponse:
    raise ValueError("the view of the site fails")


_REMINDED: list[str] = []


@shared_task
def remind(by: str) -> None:
    """A task of the site."""
    _REMINDED.append(by)


def show_and_remind(request: HttpRequest) -> HttpResponse:
    Group.objects.create(name="opened a chart")
    transaction.on_commit(lambda: remind.delay("a view"))
    transaction.on_commit(lambda: send_mail("A chart was opened"))
    return HttpResponse("A chart")


def send_mail(subject: str) -> None:
    mail.send_mail(subject, "", None, ["staff@example.org"])


urlpatterns = [
    *site,
    path("reminding/", smart_required(show_and_remind)),
    path("problems/", show_problems, name="problems"),
    path("fail/", fail),
]


@pytest.fixture(autouse=True)
def https_site(settings: Any) -> None:
    settings.SMART_SITE_URL = "https://app.example.org"
    settings.SMART_LAUNCH_REDIRECT_URL = "/problems/"


def find() -> list[Finding]:
    return list(try_launch())


def find_one() -> Finding:
    (finding,) = find()
    assert "Traceback" not in finding.what
    return finding


def count() -> list[int]:
    users = (get_user_model(), Group)
    models = (ClientRegistration, FHIRServer, Launch, Session, *users)
    return [model._default_manager.count() for model in models]


def test_healthy_site_is_launched_and_nothing_is_kept_or_sent() -> None:
    seen: list[Any] = []

    def note(**values: Any) -> None:
        seen.append(values)
        send_mail("Someone signed in")
        remind.delay("a receiver")

    sent = [signals.launch_completed, user_logged_in, post_save]
    before = count()
    _REMINDED.clear()
    for each in sent:
        each.connect(note)
    try:
        assert find() == []
        assert (seen, mail.outbox, _REMINDED, count()) == ([], [], [], before)
        make_server()
        assert seen
        assert "a receiver" in _REMINDED
    finally:
        for each in sent:
            each.disconnect(note)


@pytest.mark.django_db(transaction=True)
def test_what_a_view_leaves_for_the_commit_is_neither_kept_nor_sent(
    settings: Any,
) -> None:
    settings.SMART_LAUNCH_REDIRECT_URL = "/reminding/"
    before = count()
    _REMINDED.clear()
    assert find() == []
    assert (mail.outbox, _REMINDED, count()) == ([], [], before)
    show_and_remind(HttpRequest())
    assert len(mail.outbox) == 1
    assert _REMINDED == ["a view"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_ENGINE", "django.contrib.sessions.backends.signed_cookies"),
        ("SESSION_ENGINE", "django.contrib.sessions.backends.cache"),
        ("SESSION_ENGINE", "django.contrib.sessions.backends.file"),
        ("SMART_LAUNCH_PREFIX", ""),
        ("SMART_SITE_URL", "https://app.example.org:8443"),
        ("SMART_SITE_URL", ""),
        ("SECURE_SSL_REDIRECT", True),
        ("TIME_ZONE", "Asia/Kathmandu"),
        ("CSRF_USE_SESSIONS", True),
        ("SECURE_PROXY_SSL_HEADER", ("HTTP_X_FORWARDED_PROTO", "https")),
    ],
)
def test_healthy_site_of_another_shape_is_launched(
    settings: Any, name: str, value: object
) -> None:
    setattr(settings, name, value)
    before = count()
    assert find() == []
    assert count() == before


def test_site_below_a_path_is_launched_there(settings: Any) -> None:
    settings.SMART_LAUNCH_REDIRECT_URL = "problems"
    with override_script_prefix("/app/"):
        assert find() == []


def test_landing_page_that_fails_is_named_with_its_place(settings: Any) -> None:
    settings.SMART_LAUNCH_REDIRECT_URL = "/fail/"
    finding = find_one()
    assert "ValueError at" in finding.what
    assert "test_launch.py" in finding.what


def test_site_in_frames_is_launched_in_one() -> None:
    server = make_server(frame_origins=["https://a.example"])
    make_registration(server)
    assert find() == []


class Refuse:
    """Middleware that refuses what it does not know."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        raise PermissionDenied


class Drop(Refuse):
    """Middleware that removes the cookies of the session."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.cookies.pop("sessionid", None)
        return response


class Crash(Refuse):
    """Middleware that needs something which an anonymous user does not have."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        raise AttributeError("'AnonymousUser' object has no attribute 'profile'")


class Frame(Refuse):
    """Middleware that forbids frames."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers["X-Frame-Options"] = "DENY"
        return response


@pytest.mark.parametrize(
    ("middleware", "is_first", "what"),
    [
        (Refuse, False, "The launch URL responds with status 403"),
        (Crash, False, "raises AttributeError at"),
        (Drop, True, "cookie is lost"),
    ],
)
def test_middleware_that_breaks_the_launch_is_named(
    settings: Any, middleware: type, is_first: bool, what: str
) -> None:
    added = f"{__name__}.{middleware.__name__}"
    own = list(settings.MIDDLEWARE)
    settings.MIDDLEWARE = [added, *own] if is_first else [*own, added]
    logging.disable()
    try:
        findings = find()
    finally:
        logging.disable(logging.NOTSET)
    assert findings[0].code == "launch_broken"
    assert what in findings[0].what


def test_middleware_that_forbids_frames_is_named(settings: Any) -> None:
    make_registration(make_server(frame_origins=["https://a.example"]))
    settings.MIDDLEWARE = [f"{__name__}.Frame", *settings.MIDDLEWARE]
    assert "X-Frame-Options is DENY" in find_one().what


@pytest.mark.parametrize(
    ("base", "what"),
    [
        ("<title>Clinic</title>", "shows no title"),
        ("{% include 'nothing.html' %}", "raises TemplateDoesNotExist"),
    ],
)
def test_base_template_that_breaks_error_pages_is_named(
    settings: Any, tmp_path: Path, base: str, what: str
) -> None:
    (tmp_path / "django_smart").mkdir()
    (tmp_path / "django_smart" / "base.html").write_text(base)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    finding = find_one()
    assert (finding.code, finding.severity) == ("error_page_broken", "warning")
    assert what in finding.what


def test_sign_in_page_without_a_url_does_not_stop_the_launch(settings: Any) -> None:
    settings.LOGIN_URL = "no-such-name"
    assert find() == []


def test_landing_page_that_does_not_exist_is_named(settings: Any) -> None:
    settings.SMART_LAUNCH_REDIRECT_URL = "/nowhere/"
    assert "status 404" in find_one().what


def test_site_that_requires_a_sign_in_opens_for_whom_the_launch_signs_in(
    settings: Any,
) -> None:
    required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, required]
    assert find() == []


def test_view_whose_scopes_no_registration_requests_is_named() -> None:
    assert list(find_unrequested_scopes()) == []
    make_registration(ehr_scope="launch openid patient/Patient.rs", standalone_scope="")
    found = [each for each in find_unrequested_scopes() if "/problems/" in each.what]
    assert [each.code for each in found] == ["scopes_not_requested"]
    assert "patient/Condition.rs" in found[0].what
    ClientRegistration.objects.update(ehr_scope="launch openid patient/*.rs")
    assert not [e for e in find_unrequested_scopes() if "/problems/" in e.what]
