"""The package's own pages: form, access for everybody, and what sites may change."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import engines
from django.test import Client, RequestFactory
from django.utils import translation

from django_smart.error_pages import Retry, render_error
from django_smart.exceptions import NoLaunchError
from django_smart.launches.open_charts import OpenChart
from django_smart.templatetags.scope_words import in_words
from tests import factories
from tests.factories import make_registration

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """What a test asks of a page: well-formed, and its elements in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            self.headings.append(f"{self._open[-1]} {data.strip()}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def registration(db: None) -> Any:
    return make_registration()


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create_user("rosa")


@pytest.fixture
def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def make_grant(registration: Any, user: User) -> Any:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return partial(
        factories.make_grant,
        registration,
        user=user,
        scope="patient/Observation.rs patient/Patient.rs offline_access",
        received_at=now,
        expires_at=now,
        refresh_due_at=None,
    )


def make_error_page() -> str:
    request = RequestFactory().get("/page/")
    response = render_error(
        request,
        NoLaunchError("for developers"),
        retry=Retry(url="/again/", label="Try again"),
        extra={
            "clean_address": True,
            "form_was_sent": True,
            "open_charts": [
                OpenChart(
                    url="/~key/",
                    patient_name=name,
                    birth_date=None,
                    server_name="Harbour Hospital",
                    kind="ehr",
                    opened_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
                    is_from_today=False,
                    connection=None,
                )
                for name in ("Marisol Quillfeather", "")
            ],
        },
    )
    return response.content.decode()


@pytest.fixture(
    params=[
        *("picker", "empty picker", "confirm", "connections", "no connections"),
        *("anonymous connections", "disconnected", "error", "new window"),
    ]
)
def page(request: Any, registration: Any, browser: Client, make_grant: Any) -> str:
    """Each of the package's pages."""
    if request.param == "error":
        return make_error_page()
    if request.param == "empty picker":
        type(registration).objects.update(is_active=False)
    if request.param in {"connections", "disconnected"}:
        grant = make_grant()
        make_grant(
            status="needs_reauthorization", ended_at=datetime(2026, 3, 2, tzinfo=UTC)
        )
    if request.param == "disconnected":
        response = browser.post("/smart/connections/", {"grant": grant.pk}, follow=True)
    elif request.param == "new window":
        response = browser.get(
            "/smart/launch/",
            {"iss": registration.server.base_url, "launch": "x"},
            headers={"Sec-Fetch-Dest": "iframe"},
        )
    elif request.param == "anonymous connections":
        response = Client().get("/smart/connections/")
    else:
        path = {
            "picker": "login/",
            "empty picker": "login/",
            "confirm": "login/?server=harbour",
        }.get(request.param, "connections/")
        response = browser.get(f"/smart/{path}")
    assert response.status_code == 200
    return str(response.content.decode())


def test_page_says_its_language_and_what_it_is(page):
    found = Page(page)
    assert found.all("html") == [{"lang": "en", "dir": "ltr"}]
    assert page.startswith("<!doctype html>")
    title = re.search(r"<title>(.+)</title>", page)
    assert title is not None
    assert title[1].strip() == title[1] != ""


def test_page_has_one_main_part_and_headings_in_order(page):
    found = Page(page)
    assert len(found.all("main")) == 1
    levels = [int(heading[1]) for heading in found.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_page_works_under_a_strict_content_security_policy(page):
    found = Page(page)
    for tag, attrs in found.elements:
        assert tag != "style"
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
    assert all(script.get("src") for script in found.all("script"))


def test_page_fits_small_screens_and_both_colour_schemes(page):
    metas = {meta.get("name"): meta.get("content") for meta in Page(page).all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"


def test_classes_of_a_page_are_its_own(page):
    for _, attrs in Page(page).elements:
        for name in (attrs.get("class") or "").split():
            assert name.startswith("smart-")


def test_links_and_buttons_of_a_page_say_different_things(page):
    labels = re.findall(
        r"<(?:a|button)\b[^>]*>(.*?)</(?:a|button)>", page, flags=re.DOTALL
    )
    assert len(labels) == len(set(labels))
    assert all(re.sub("<[^>]+>", "", label).strip() for label in labels)


def test_page_is_written_from_right_to_left_where_people_read_so(registration):
    with translation.override("ar"):
        content = make_error_page()
    assert Page(content).all("html") == [{"lang": "ar", "dir": "rtl"}]


def test_connections_tell_what_for_and_since_when(browser, make_grant):
    make_grant()
    content = browser.get("/smart/connections/").content.decode()
    for words in (
        ">Harbour Hospital</bdi></h2>",
        "See: test results and measurements; name, date of birth and other details",
        "Keep this access when you are not signed in",
        "Connected since ",
        "Disconnect</button>",
    ):
        assert words in content


def test_connection_that_the_organisation_ended_says_so(browser, make_grant):
    make_grant(
        status="needs_reauthorization", ended_at=datetime(2026, 3, 2, tzinfo=UTC)
    )
    content = browser.get("/smart/connections/").content.decode()
    assert "March 2, 2026" in content
    assert 'href="/smart/login/?server=harbour"' in content
    # An operator may restore it, which its owner can prevent.
    assert 'name="grant"' in content


def test_person_is_told_that_an_organisation_is_disconnected(browser, make_grant):
    grant = make_grant()
    response = browser.post("/smart/connections/", {"grant": grant.pk}, follow=True)
    (message,) = response.context["messages"]
    assert "Harbour Hospital" in str(message)
    content = response.content.decode()
    assert content.count('role="status"') == content.count(str(message)) == 1
    assert not response.context["grants"]
    assert 'name="grant"' not in content


def test_disconnecting_needs_no_messages_framework(browser, make_grant, settings):
    settings.INSTALLED_APPS = [
        app for app in settings.INSTALLED_APPS if "messages" not in app
    ]
    settings.MIDDLEWARE = [
        name for name in settings.MIDDLEWARE if "Message" not in name
    ]
    grant = make_grant()
    response = browser.post("/smart/connections/", {"grant": grant.pk})
    assert response.status_code == 302


def test_confirmation_names_the_account_and_what_is_asked_for(browser, registration):
    content = browser.get("/smart/login/?server=harbour&next=/a/").content.decode()
    assert "<strong>rosa</strong>" in content
    for words in in_words(registration.standalone_scope):
        assert f"<li>{words}</li>" in content
    assert 'name="next" value="/a/"' in content
    assert 'href="/smart/login/?next=%2Fa%2F"' in content


def test_confirmation_lets_whoever_is_somebody_else_sign_out(browser, registration):
    content = browser.get("/smart/login/?server=harbour").content.decode()
    assert ("post", "/smart/logout/") in [
        (form["method"], form["action"]) for form in Page(content).all("form")
    ]


def test_site_can_put_its_own_page_around(registration, browser, settings, tmp_path):
    folder = tmp_path / "django_smart"
    folder.mkdir()
    (folder / "base.html").write_text(
        "<title>{% block title %}{% endblock %}</title>"
        '<main class="ours">{% block content %}{% endblock %}</main>',
        encoding="utf-8",
    )
    settings.TEMPLATES = [
        {**settings.TEMPLATES[0], "DIRS": [tmp_path, *settings.TEMPLATES[0]["DIRS"]]}
    ]
    content = browser.get("/smart/login/").content.decode()
    assert '<main class="ours">' in content
    assert re.search("<title>.+</title>", content)
    assert "Harbour Hospital" in content


def test_parts_of_an_error_page_can_be_replaced(db, settings):
    template = engines["django"].from_string(
        '{% extends "django_smart/error.html" %}'
        "{% block smart_actions %}<p>Call us.</p>{% endblock %}"
    )
    content = template.render({"title": "T", "advice": "A.", "code": "c"})
    assert "<p>Call us.</p>" in content
    assert "<h1>T</h1>" in content


@pytest.mark.compliance("SEC-09")
@pytest.mark.parametrize(
    ("scopes", "sentences"),
    [
        ("", []),
        ("launch launch/patient online_access", []),
        ("openid fhirUser", ["See who you are"]),
        ("patient/Observation.rs", ["See: test results and measurements"]),
        ("patient/Observation.read", ["See: test results and measurements"]),
        ("patient/Condition.c", ["Add or change: health problems"]),
        (
            "patient/Condition.* patient/Observation.rs?category=laboratory",
            [
                "See: health problems; test results and measurements",
                "Add or change: health problems",
            ],
        ),
        ("user/*.rs", ["See, for everyone you have access to: all kinds of records"]),
        (
            "user/Condition.u",
            ["Add or change, for everyone you have access to: health problems"],
        ),
        ("patient/Basic.r unheard-of", ["See: Basic"]),
        (
            "patient/Goal.r patient/Goal.s offline_access",
            ["See: goals", "Keep this access when you are not signed in"],
        ),
    ],
)
def test_scopes_are_told_in_words(scopes, sentences):
    assert in_words(scopes) == sentences
