"""The protocol's views: what they answer, and where they never lead."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.test import Client

from django_smart.models import ClientRegistration, FHIRServer, Launch
from tests.ehr import PATIENT, get_callback, make_browser
from tests.factories import make_registration
from tests.site.browsers import SITE_MARKS, make_mounted_browser, open_chart

pytestmark = SITE_MARKS

HARBOUR = "/smart/login/?server=harbour"
ORIGIN = {"origin": "https://app.example.org"}


def text_of(response: Any) -> str:
    return str(response.content.decode())


# Headers


def is_kept_secret(response: Any) -> bool:
    """Out of caches, and its address out of ``Referer`` but for the origin."""
    return response["Cache-Control"] == "private, no-store" and response[
        "Referrer-Policy"
    ] in {*("no-referrer", "origin", "strict-origin")}


@pytest.mark.compliance("CALL-10")
def test_callback_leaves_no_trace(ehr):
    browser = make_browser()
    started = browser.get(HARBOUR)
    assert is_kept_secret(started)
    url = ehr.authorize(started["Location"], user=f"Patient/{PATIENT}")
    done = get_callback(browser, url)
    assert (done.status_code, is_kept_secret(done)) == (302, True)
    assert "code=" not in done["Location"]
    used = get_callback(browser, url)
    assert (used.status_code, is_kept_secret(used)) == (409, True)
    for path in ("/smart/callback/", "/smart/callback/?state=x&code=y"):
        refused = browser.get(path)
        assert (refused.status_code, is_kept_secret(refused)) == (400, True)


@pytest.mark.parametrize("is_signed_in", [False, True])
@pytest.mark.parametrize(
    "path",
    ["/smart/login/", "/smart/login/?q=har&next=/links/", HARBOUR, "/smart/launch/"],
)
def test_pages_of_the_protocol_are_kept_out_of_caches(user, path, is_signed_in):
    browser = make_browser()
    if is_signed_in:
        browser.force_login(user)
    assert is_kept_secret(browser.get(path))
    assert "no-store" in browser.get("/smart/connections/")["Cache-Control"]


def test_every_path_allows_its_methods_alone():
    browser = make_browser()
    allowed = {
        "/smart/launch/": {"GET", "HEAD", "OPTIONS"},
        "/smart/login/": {"GET", "HEAD", "OPTIONS", "POST"},
        "/smart/callback/": {"GET", "OPTIONS"},
        "/smart/jwks.json": {"GET", "HEAD", "OPTIONS"},
        "/smart/logout/": {"OPTIONS", "POST"},
        "/smart/connections/": {"GET", "HEAD", "OPTIONS", "POST"},
    }
    for path, methods in allowed.items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
            response = browser.generic(method, path)
            assert (response.status_code == 405) is (method not in methods), (
                method,
                path,
            )
        options = browser.options(path)
        assert {name.strip() for name in options["Allow"].split(",")} == methods
    assert not Launch.objects.exists()


def test_head_answers_as_get_without_a_body():
    browser = make_browser()
    for path, status in (
        ("/smart/launch/", 400),
        ("/smart/login/", 200),
        ("/smart/jwks.json", 200),
        ("/smart/connections/", 200),
    ):
        response = browser.head(path)
        assert (response.status_code, response.content) == (status, b"")


# login/


def test_picker_offers_what_can_be_logged_in_to():
    cases: dict[str, dict[str, Any]] = {
        "lake": {},
        "off": {"is_active": False},
        "server-off": {"server__is_active": False},
        "ehr-only": {"standalone_scope": ""},
    }
    for name, values in cases.items():
        make_registration(
            server__slug=name,
            server__name=f"<{name}>",
            server__base_url=f"https://{name}.example.org/fhir",
            **values,
        )
    page = text_of(make_browser().get("/smart/login/?next=/links/%3Fa=1%26b"))
    links = re.findall(r'href="/smart/login/(\?[^"]+)"', page)
    assert [parse_qs(link[1:].replace("&amp;", "&")) for link in links] == [
        {"server": ["lake"], "next": ["/links/?a=1&b"]},
        {"server": ["harbour"], "next": ["/links/?a=1&b"]},
    ]
    assert "&lt;lake&gt;" in page
    assert "<lake>" not in page


@pytest.mark.parametrize("is_everywhere", [True, False])
def test_signed_in_user_has_to_press_a_button(ehr, user, settings, is_everywhere):
    if not is_everywhere:
        # Some sites protect single views.
        check = "django.middleware.csrf.CsrfViewMiddleware"
        settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if each != check]
    browser = make_browser()
    browser.handler.enforce_csrf_checks = True
    browser.force_login(user)
    page = browser.get(HARBOUR + "&next=/links/")
    assert (page.status_code, is_kept_secret(page)) == (200, True)
    # The page's own policy comes after the response's: with "no-referrer" browsers
    # would send "Origin: null" with the form.
    assert '<meta name="referrer" content="strict-origin">' in text_of(page)
    assert "maria" in text_of(page)
    assert not ehr.requests
    assert not Launch.objects.exists()

    token, _ = re.findall(r'csrfmiddlewaretoken" value="(\w+)"', text_of(page))
    data = {"server": "harbour", "next": "/links/", "user": user.pk}
    data["csrfmiddlewaretoken"] = token
    started = browser.post("/smart/login/", data, headers=ORIGIN)
    assert started.status_code == 302
    launch = Launch.objects.get()
    assert (launch.intent, launch.user) == (Launch.Intent.CONNECT, user)
    assert launch.next_url == "/links/"
    del data["csrfmiddlewaretoken"]
    assert browser.post("/smart/login/", data, headers=ORIGIN).status_code == 403


@pytest.mark.parametrize(
    "server", ["other", "HARBOUR", "harbour ", "a\x00", "é", "'", "x" * 100_000]
)
def test_unknown_server_is_refused(ehr, server, user):
    browser = make_browser()
    assert browser.get("/smart/login/", {"server": server}).status_code == 400
    response = browser.post("/smart/login/", {"server": server})
    assert response.status_code == 400
    assert "<code>unknown_server</code>" in text_of(response)
    browser.force_login(user)
    assert browser.get("/smart/login/", {"server": server}).status_code == 400
    assert not ehr.requests


@pytest.mark.parametrize("what", ["registration", "server", "standalone"])
def test_inactive_registration_is_refused(ehr, what, user):
    if what == "registration":
        ClientRegistration.objects.update(is_active=False)
    elif what == "server":
        FHIRServer.objects.update(is_active=False)
    else:
        ClientRegistration.objects.update(standalone_scope="")
    browser = make_browser()
    for response in (
        browser.get(HARBOUR),
        browser.post("/smart/login/", {"server": "harbour"}),
    ):
        assert response.status_code == 403
        assert "<code>registration_inactive</code>" in text_of(response)
    assert not ehr.requests


# logout/


def test_logout_ends_session_and_launches(ehr, settings):
    chart = open_chart(ehr)
    response = chart.browser.post("/smart/logout/")
    assert (response.status_code, response["Location"]) == (302, "/")
    assert "no-store" in response["Cache-Control"]
    assert chart.browser.get("/whoami/").json()["launched"] is False
    assert chart.get("/links/").status_code == 410
    settings.LOGOUT_REDIRECT_URL = "links"
    assert chart.browser.post("/smart/logout/")["Location"] == "/links/"


def test_logout_of_a_mounted_site_stays_there():
    response = make_mounted_browser().post("/app/smart/logout/")
    assert response["Location"] == "/app/"


@pytest.mark.parametrize("is_in_session", [False, True])
def test_logout_cannot_be_forged(ehr, settings, is_in_session):
    settings.CSRF_USE_SESSIONS = is_in_session
    # Another site's form is sent without cookies.  A new session would replace the
    # visitor's, which signs them out as well.
    browser = Client(enforce_csrf_checks=True)
    refused = browser.post("/smart/logout/", headers={"origin": "https://example.com"})
    assert refused.status_code == 403
    assert not refused.cookies


@pytest.mark.parametrize(
    ("path", "data", "leads_to"),
    [
        (
            "login/",
            {"server": "harbour", "next": "/links/"},
            "login/?server=harbour&next=%2Flinks%2F",
        ),
        ("connections/", {"grant": 1}, "connections/"),
        ("connections/open/", {"grant": 1}, "connections/"),
    ],
)
def test_form_older_than_the_last_sign_in_leads_to_a_new_one(
    ehr, user, path, data, leads_to
):
    browser = make_browser()
    browser.handler.enforce_csrf_checks = True
    browser.force_login(user)
    response = browser.post(f"/smart/{path}", data, headers=ORIGIN)
    assert (response.status_code, response.context["code"]) == (403, "form_outdated")
    assert response.context["retry"].url == f"/smart/{leads_to}"
    assert browser.get(f"/smart/{leads_to}").status_code == 200


@pytest.mark.parametrize("path", ["login", "logout", "connections", "connections/open"])
def test_forms_are_checked_without_the_middleware(ehr, user, settings, path):
    settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if "Csrf" not in each]
    browser = make_browser()
    browser.handler.enforce_csrf_checks = True
    browser.force_login(user)
    data = {"server": "harbour", "user": user.pk}
    page = browser.post(f"/smart/{path}/", data, headers=ORIGIN)
    assert (page.status_code, page.context["code"]) == (403, "form_outdated")
    form = browser.get("/smart/login/", {"server": "harbour"})
    data["csrfmiddlewaretoken"] = str(form.context["csrf_token"])
    elsewhere = {"origin": "https://example.com"}
    assert browser.post(f"/smart/{path}/", data, headers=elsewhere).status_code == 403
    assert browser.post(f"/smart/{path}/", data, headers=ORIGIN).status_code != 403


def test_form_of_another_site_leads_to_no_sign_in(ehr):
    browser = make_browser()
    browser.handler.enforce_csrf_checks = True
    data = {"server": "harbour", "next": "/links/"}
    headers = {"origin": "https://example.com"}
    page = browser.post("/smart/login/", data, headers=headers)
    assert page.status_code == 403
    # Its button is a link of this site, which would redirect to the EHR at once.
    leads_to = page.context["retry"].url
    assert leads_to == "/smart/login/?next=%2Flinks%2F"
    assert browser.get(leads_to).status_code == 200
    assert not Launch.objects.exists()


def test_page_older_than_the_last_sign_in_can_still_sign_out(ehr):
    chart = open_chart(ehr)
    chart.browser.handler.enforce_csrf_checks = True
    page = chart.browser.post("/smart/logout/", headers=ORIGIN)
    assert (page.status_code, page.context["code"]) == (403, "form_outdated")
    assert chart.get("/links/").status_code == 200
    (action,) = re.findall(r'<form[^>]* action="([^"]+)"', text_of(page))
    (token,) = re.findall(r'csrfmiddlewaretoken" value="(\w+)"', text_of(page))
    values = {"csrfmiddlewaretoken": token}
    assert chart.browser.post(action, values, headers=ORIGIN).status_code == 302
    assert chart.get("/links/").status_code == 410


@pytest.mark.parametrize("cookie", ["sessionid", "__Host-smart_browser"])
def test_sign_out_is_offered_for_a_session_or_for_a_launch(ehr, cookie):
    chart = open_chart(ehr)
    chart.browser.handler.enforce_csrf_checks = True
    for name in list(chart.browser.cookies):
        if not name.startswith(cookie):
            del chart.browser.cookies[name]
    page = chart.browser.post("/smart/logout/", headers=ORIGIN)
    assert page.context["signs_out"] is True


# launch/


def test_start_at_another_host_than_the_callback_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    browser = make_browser()
    browser.get(HARBOUR)
    assert "state_foreign" not in caplog.text
    assert browser.get(HARBOUR, headers={"host": "testserver"}).status_code == 302
    assert "host testserver" in caplog.text
    assert "app.example.org" in caplog.text
