"""A parent comes back: two children at one hospital, and themselves at another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path
from playwright.sync_api import Browser, BrowserContext, Page, expect

from django_smart.decorators import smart_required
from django_smart.models import Launch, TokenGrant
from django_smart.templatetags.fhir import human_name
from django_smart.testing import EHRSimulator
from tests.factories import make_registration, register_at

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

MARISOL, SOREN, XIUYING = "Marisol Jean Quillfeather", "Søren Ægir", "Xiuying Lu"
PASSWORD = "a password of no value"
SCOPE = (
    "openid fhirUser launch/patient offline_access "
    "patient/Patient.rs patient/Observation.rs"
)
_PAGE = """
{% extends "django_smart/base.html" %}{% load smart %}
{% block title %}Results{% endblock %}
{% block content %}<h1>Results of {{ name }}</h1><p>{{ number }} measurements</p>
<p><a href="/results/">All records</a></p>
<form method="post" action="{% smart_url "logout" %}">{% csrf_token %}
<button class="smart-button smart-secondary">Sign out</button></form>{% endblock %}
"""


@smart_required(scopes="patient/Observation.rs", context="patient")
def results(request: Any) -> HttpResponse:
    """A page of the site that a patient comes back to."""
    smart = request.smart
    found = smart.fhir.search("Observation", patient=smart.patient_id, _count=5)
    patient = smart.fhir.read("Patient", smart.patient_id)
    context = {"name": human_name(patient), "number": len(found)}
    page = engines["django"].from_string(_PAGE)
    return HttpResponse(page.render(context, request))


def opened(request: HttpRequest) -> HttpResponse:
    """What a launch opens."""
    return HttpResponse("<!doctype html><title>Open</title><h1>The record is open</h1>")


urlpatterns = [
    path("results/", results),
    path("opened/", opened),
    path("accounts/", include("django.contrib.auth.urls")),
    path("smart/", include("django_smart.urls")),
]


@pytest.fixture
def hospitals(
    live_server: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, EHRSimulator]]:
    """Two hospitals, the second of which grants less than the site asks for."""
    # Playwright runs a loop of its own in this thread; the queries here are no views.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost", "127.0.0.1"]
    settings.SMART_LAUNCH_REDIRECT_URL = "/opened/"
    settings.LOGIN_REDIRECT_URL = "/results/"
    (engine,) = settings.TEMPLATES
    login = (
        '{% extends "django_smart/base.html" %}{% block title %}Sign in{% endblock %}'
        '{% block content %}<h1>Sign in</h1><form method="post">{% csrf_token %}'
        '{{ form.as_p }}<button class="smart-button">Sign in</button></form>'
        "{% endblock %}"
    )
    loaders = [
        (
            "django.template.loaders.locmem.Loader",
            {"registration/login.html": login},
        ),
        "django.template.loaders.app_directories.Loader",
    ]
    options = {**engine["OPTIONS"], "loaders": loaders}
    settings.TEMPLATES = [{**engine, "APP_DIRS": False, "OPTIONS": options}]
    harbour = EHRSimulator("https://harbour.example.org/r4")
    lake = EHRSimulator("https://lake.example.org/r4")
    lake.quirks = ["scopes_trimmed"]
    with harbour.serve(), lake.serve():
        names = {"harbour": "Harbour Children's Hospital", "lake": "Lakeside Clinic"}
        for slug, ehr in (("harbour", harbour), ("lake", lake)):
            redirect_uri = f"{live_server.url}/smart/callback/{slug}/"
            make_registration(
                server__slug=slug,
                server__name=names[slug],
                server__base_url=ehr.base_url,
                ehr_scope="",
                standalone_scope=SCOPE,
                redirect_uri=redirect_uri,
                callback_id=slug,
            )
            register_at(ehr, redirect_uri, name="Growth chart")
        User.objects.create_user("pat", password=PASSWORD, first_name="Pat")
        yield {"harbour": harbour, "lake": lake}


@pytest.fixture(params=[(375, 740), (1280, 800)], ids=["phone", "desk"])
def context(
    request: pytest.FixtureRequest, chromium: Browser, live_server: Any
) -> Iterator[BrowserContext]:
    """The parent's browser."""
    width, height = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height}, base_url=live_server.url
    )
    yield context
    context.close()


def sign_in(page: Page) -> None:
    page.get_by_label("Username").fill("pat")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def connect(page: Page, hospital: str, person: str) -> None:
    """Choose the hospital, sign in there as *person*, and approve."""
    page.goto("/smart/login/")
    page.get_by_role("link", name=hospital).click()
    go_to(page, hospital, person)
    page.get_by_role("heading", name="The record is open").wait_for()


def go_to(page: Page, hospital: str, person: str) -> None:
    """Go there from the page that asks, sign in as *person* and approve."""
    page.get_by_role("button", name=f"Continue to {hospital}").click()
    page.get_by_text("signed in").or_(page.get_by_text("Sign in")).first.wait_for()
    if page.get_by_role("button", name="Not you?").count():
        page.get_by_role("button", name="Not you?").click()
    page.get_by_role("button", name=person.split()[0]).click()
    page.get_by_role("button", name="Approve").click()


def come_back_tomorrow(hospitals: dict[str, EHRSimulator]) -> None:
    """Let a day go by, for the site and for the hospitals."""
    day = timedelta(days=1)
    names = ("created_at", "received_at", "expires_at", "refresh_due_at")
    TokenGrant.objects.update(**{each: F(each) - day for each in names})
    names = ("created_at", "completed_at", "last_used_at", "expires_at")
    Launch.objects.update(**{each: F(each) - day for each in names})
    for ehr in hospitals.values():
        ehr.expire_access_tokens()


def test_parent_connects_three_records_and_comes_back(
    context: BrowserContext, hospitals: dict[str, EHRSimulator], tmp_path: Path
) -> None:
    page = context.new_page()
    numbers = iter(range(100))

    def look(name: str) -> None:
        path = tmp_path / f"{next(numbers):02}-{name}.png"
        page.screenshot(path=path, full_page=True)
        # Nothing is wider than the screen.
        width = "document.documentElement.scrollWidth - innerWidth"
        assert page.evaluate(width) <= 0

    page.goto("/results/")
    sign_in(page)
    page.get_by_role("link", name="Connect your records").wait_for()
    look("none")
    page.goto("/smart/login/?server=harbour")
    look("confirm")
    connect(page, "Harbour Children's Hospital", MARISOL)
    connect(page, "Harbour Children's Hospital", SOREN)
    connect(page, "Lakeside Clinic", XIUYING)
    page.goto("/smart/connections/")
    page.get_by_role("heading", name=MARISOL).wait_for()
    look("connections")
    page.goto("/results/")
    look("several")
    page.get_by_role("button", name=MARISOL).click()
    page.get_by_role("heading", name=f"Results of {MARISOL}").wait_for()
    look("open")
    page.get_by_role("button", name="Sign out").click()

    come_back_tomorrow(hospitals)
    page.goto("/results/")
    look("sign-in")
    sign_in(page)
    # Back at the page: whose record is it about?
    page.get_by_role("heading", name="Whose record?").wait_for()
    look("whose")
    lacking = page.get_by_role("listitem").filter(has_text="Lakeside Clinic")
    expect(lacking).to_contain_text("test results")
    assert lacking.get_by_role("button").count() == 0
    lacking.get_by_role("link", name="Connect again").wait_for()
    for person in (MARISOL, SOREN):
        page.goto("/results/")
        page.get_by_role("button", name=person).click()
        page.get_by_role("heading", name=f"Results of {person}").wait_for()
    # Without results, their own record opens from the list.
    page.goto("/smart/connections/")
    own = page.get_by_role("listitem").filter(has=page.get_by_text("Lakeside Clinic"))
    own.get_by_role("button", name="Open").click()
    page.get_by_role("heading", name="The record is open").wait_for()
    page.goto(page.url.replace("/opened/", "/results/"))
    expect(page.get_by_role("main")).to_contain_text("This page also needs")
    look("lacks")

    page.goto("/smart/connections/")
    child = page.get_by_role("listitem").filter(
        has=page.get_by_role("heading", name=SOREN)
    )
    child.get_by_role("button", name="Disconnect").click()
    # Without the name: messages may be kept in a cookie.
    page.get_by_role("status").first.wait_for()
    assert page.get_by_role("heading", name=SOREN).count() == 0
    look("disconnected")
    page.goto("/results/")
    assert page.get_by_role("button", name=SOREN).count() == 0
    page.get_by_role("button", name=MARISOL).wait_for()
    # The hospital ends the access, which the page that was open says.
    TokenGrant.objects.filter(patient_name=MARISOL).lose(error="invalid_grant")
    TokenGrant.objects.active().filter(registration__server__slug="harbour").lose(
        error="invalid_grant"
    )
    page.goto("/results/")
    look("over")
    over = page.get_by_role("listitem").filter(has_text=MARISOL)
    expect(over).to_contain_text("ended this access")
    over.get_by_role("link", name="Connect again").click()
    go_to(page, "Harbour Children's Hospital", MARISOL)
    page.get_by_role("heading", name=f"Results of {MARISOL}").wait_for()
