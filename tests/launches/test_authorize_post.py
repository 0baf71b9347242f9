"""The authorization request as a form that sends itself."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.staticfiles import finders
from django.utils import timezone

from django_smart.models import FHIRServer
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    BASE_URL,
    CLIENT_ID,
    PATIENT,
    get_callback,
    get_launch,
    make_browser,
    post_login,
    start_ehr_launch,
)
from tests.factories import make_registration
from tests.known import BY_POST
from tests.launches.forms import Form

pytestmark = pytest.mark.django_db

# Many scopes, each with words, as a granular request has them.
LONG_SCOPE = "launch " + " ".join(
    f"patient/Observation.rs?category=http://terminology.example.org/kinds|kind-{n}"
    for n in range(30)
)


def start(browser: Any, ehr: EHRSimulator, **values: Any) -> Any:
    """An EHR launch up to this site's answer."""
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    query = {"iss": BASE_URL, "launch": launch_id, **values}
    return browser.get("/smart/launch/", query)


@pytest.mark.compliance("AUTH-08", "AUTH-09", "AUTH-10")
@pytest.mark.parametrize("kind", ["ehr", "standalone"])
def test_request_by_post_has_what_a_request_by_get_has(
    ehr: EHRSimulator, kind: str
) -> None:
    make_registration()
    answers = []
    for parameters in ({}, BY_POST):
        FHIRServer.objects.update(authorization_parameters=parameters)
        browser = make_browser()
        if kind == "ehr":
            answers.append(start(browser, ehr))
        else:
            answers.append(browser.get("/smart/login/", {"server": "harbour"}))
    assert [each.status_code for each in answers] == [302, 200]
    form = Form(answers[1].content)
    assert (form.method, form.action) == ("post", ehr.authorization_endpoint)
    query = parse_qsl(urlsplit(answers[0]["Location"]).query)
    assert [name for name, _ in form.inputs] == [
        *(name for name, _ in query),
        *BY_POST,
    ]
    once = {"state", "nonce", "code_challenge", "launch", *BY_POST}
    assert dict(form.inputs).keys() >= {"state", "nonce", "code_challenge"}
    assert [pair for pair in form.inputs if pair[0] not in once] == [
        pair for pair in query if pair[0] not in once
    ]
    callback = ehr.authorize(form.action, form=form.inputs)
    assert get_launch(get_callback(browser, callback)).identity is not None
    assert [each.method for each in ehr.requests_to("authorize")] == ["POST"]


def test_confirmed_connection_goes_by_post_too(
    ehr: EHRSimulator, django_user_model: Any
) -> None:
    make_registration(server__authorization_parameters=BY_POST)
    browser = make_browser()
    browser.force_login(
        django_user_model.objects.create_user("ada"),
        "django.contrib.auth.backends.ModelBackend",
    )
    response = post_login(browser)
    form = Form(response.content)
    callback = ehr.authorize(form.action, form=form.inputs)
    launch = get_launch(get_callback(browser, callback))
    assert (launch.intent, launch.user) == (
        "connect",
        django_user_model.objects.get(username="ada"),
    )


@pytest.mark.compliance("AUTH-09")
@pytest.mark.parametrize(
    ("scope", "is_advertised", "is_form"),
    [
        ("launch patient/Patient.rs", True, False),
        (LONG_SCOPE, True, True),
        (LONG_SCOPE, False, False),
    ],
)
def test_form_is_for_what_an_address_cannot_carry(
    ehr: EHRSimulator, scope: str, is_advertised: bool, is_form: bool
) -> None:
    make_registration(ehr_scope=scope)
    if not is_advertised:
        answer(ehr, "/smart-configuration", capabilities=["launch-ehr"])
    response = start(make_browser(), ehr)
    assert response.status_code == (200 if is_form else 302)
    if is_form:
        assert dict(Form(response.content).inputs)["scope"] == scope
    else:
        assert (len(response["Location"]) > 2000) is (scope == LONG_SCOPE)


@pytest.mark.compliance("AUTH-09")
def test_two_thousand_characters_still_go_by_get(ehr: EHRSimulator) -> None:
    registration = make_registration(ehr_scope="launch")
    browser = make_browser()
    spare = 2000 - len(start_ehr_launch(browser, ehr))
    name = "__" + "x" * (spare - len("%20__"))
    registration.ehr_scope = f"launch {name}"
    registration.save()
    assert len(start_ehr_launch(browser, ehr)) == 2000
    registration.ehr_scope += "x"
    registration.save()
    assert start(browser, ehr).status_code == 200


@pytest.mark.compliance("AUTH-10")
@pytest.mark.parametrize(
    "value",
    [
        '"><script>alert(1)</script>',
        "'><img src=x onerror=alert(1)>",
        "{{ 7|add:7 }}{% now '_Y_' %}",
        "a&amp;b&lt;c &quot;",
        "ü 漢 🙂 \u2028",
        "</form></html>",
    ],
)
def test_no_value_gets_out_of_its_attribute(ehr: EHRSimulator, value: str) -> None:
    registration = make_registration(
        server__authorization_parameters=BY_POST, server__name=value[:200]
    )
    registration.client_id = value
    registration.save()
    response = start(make_browser(), ehr, launch=value)
    form = Form(response.content)
    assert dict(form.inputs)["launch"] == value
    assert dict(form.inputs)["client_id"] == value
    assert form.buttons == 1
    assert form.inline == []
    assert form.scripts == ["/static/django_smart/authorize-post.js"]
    year = f"_{timezone.now():%Y}_".encode()
    for markup in (b"<script>", b"<img", year, b"</form></html>"):
        assert markup not in response.content


@pytest.mark.compliance("AUTH-13")
def test_query_of_the_endpoint_stays_in_the_address(ehr: EHRSimulator) -> None:
    endpoint = f"{ehr.authorization_endpoint}?tenant=a%20b&x=%22%3E"
    make_registration(
        server__authorization_parameters=BY_POST,
        server__overrides={"authorization_endpoint": endpoint},
    )
    form = Form(start(make_browser(), ehr).content)
    assert form.action == endpoint
    assert "tenant" not in dict(form.inputs)


@pytest.mark.compliance("CALL-10")
@pytest.mark.parametrize(
    ("static_url", "files"),
    [
        ("/static/", "'self'"),
        ("https://cdn.example.org/s/", "'self' https://cdn.example.org"),
        ("//cdn.example.org/s/", "'self' cdn.example.org"),
    ],
)
def test_page_allows_nothing_but_its_own_form_and_files(
    ehr: EHRSimulator, settings: Any, static_url: str, files: str
) -> None:
    settings.STATIC_URL = static_url
    make_registration(server__authorization_parameters=BY_POST)
    response = start(make_browser(), ehr)
    policy = dict(
        each.split(" ", 1) for each in response["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": files,
        "style-src": files,
        "img-src": files,
        "font-src": files,
        "form-action": "https://ehr.example.org 'self' https:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response["Cache-Control"] == "private, no-store"
    assert response["Referrer-Policy"] == "no-referrer"
    form = Form(response.content)
    assert form.scripts == [f"{static_url}django_smart/authorize-post.js"]
    assert form.inline == []
    assert finders.find("django_smart/authorize-post.js")
