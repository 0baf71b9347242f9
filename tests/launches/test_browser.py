"""The browser cookie: what it looks like, and when it comes and goes."""

from __future__ import annotations

from http.cookies import Morsel
from typing import Any

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.test import Client

from django_smart.fields import digest
from django_smart.launches.browser import get_browser
from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import (
    get_callback,
    get_launch,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.site.browsers import SITE_MARKS, open_chart

pytestmark = SITE_MARKS

SECURE, PLAIN = "__Host-smart_browser", "smart_browser"
LOGIN = "/smart/login/?server=harbour"


def cookie_of(response: Any, name: str = SECURE) -> Morsel[str]:
    """The cookie that *response* sets."""
    morsel: Morsel[str] = response.cookies[name]
    return morsel


def test_cookie_over_https_is_bound_to_the_host():
    cookie = cookie_of(make_browser().get(LOGIN))
    assert len(cookie.value) == 43
    attributes = {name: value for name, value in cookie.items() if value}
    # No domain, no lifetime beyond the browser's session.
    assert attributes == {
        "path": "/",
        "secure": True,
        "httponly": True,
        "samesite": "Lax",
    }


def test_cookie_over_http_is_neither_secure_nor_called_so():
    response = Client(HTTP_SEC_FETCH_SITE="same-origin").get(LOGIN)
    assert SECURE not in response.cookies
    cookie = cookie_of(response, PLAIN)
    attributes = {name: value for name, value in cookie.items() if value}
    assert attributes == {"path": "/", "httponly": True, "samesite": "Lax"}


def test_plain_cookie_is_not_believed_over_https():
    browser = make_browser()
    browser.cookies[PLAIN] = "a" * 43
    value = cookie_of(browser.get(LOGIN)).value
    assert value != "a" * 43
    assert Launch.objects.get().browser_digest == digest(value)


def test_name_of_the_cookie_is_a_setting(settings):
    settings.SMART_BROWSER_COOKIE_NAME = "other"
    assert "__Host-other" in make_browser().get(LOGIN).cookies


def test_cookie_is_set_once(ehr):
    browser = make_browser()
    start_ehr_launch(browser, ehr)
    value = browser.cookies[SECURE].value
    assert SECURE not in browser.get(LOGIN).cookies
    assert {row.browser_digest for row in Launch.objects.all()} == {digest(value)}


@pytest.mark.parametrize(
    "path",
    [
        *("/links/", "/whoami/", "/chart/", "/untouched/"),
        *("/smart/login/", "/smart/login/?server=other", "/smart/jwks.json"),
        *("/smart/launch/", "/smart/callback/?state=x&code=y", "/smart/connections/"),
        f"/~{'k' * 24}/links/",
    ],
)
def test_no_cookie_is_set_while_nothing_is_launched(path):
    assert SECURE not in make_browser().get(path).cookies


@pytest.mark.parametrize(
    "value", ["", "a", "a" * 42, "a" * 44, "a" * 42 + "!", "a" * 42 + "é", "a" * 9999]
)
def test_malformed_cookie_is_ignored_and_replaced(rf, value):
    request = rf.get("/")
    request.COOKIES[PLAIN] = value
    assert get_browser(request).digest is None
    get_browser(request).ensure()
    response = HttpResponse()
    get_browser(request).apply(response)
    assert len(response.cookies[PLAIN].value) == 43


def test_malformed_cookie_opens_no_launch(ehr):
    chart = open_chart(ehr)
    chart.browser.cookies[SECURE] = chart.launch.browser_digest
    assert chart.get("/links/").status_code == 403
    assert chart.browser.get("/whoami/").json()["reason"] == "no_launch"


def test_sign_out_replaces_the_cookie(ehr):
    chart = open_chart(ehr)
    before = chart.browser.cookies[SECURE].value
    cookie = cookie_of(chart.browser.post("/smart/logout/"))
    assert before not in cookie.value
    assert cookie["secure"]
    assert chart.get("/links/").status_code == 410


def test_browser_of_a_request_is_one(rf):
    request = rf.get("/")
    assert get_browser(request) is get_browser(request)
    assert repr(get_browser(request)) == "<Browser: new>"


def test_browser_never_shows_its_value(rf):
    request = rf.get("/")
    request.COOKIES[PLAIN] = "s" * 43
    browser = get_browser(request)
    assert "s" * 43 not in repr(browser)
    assert browser.digest == digest("s" * 43)


def test_rotation_keeps_its_promise(rf):
    request = rf.get("/")
    request.COOKIES[PLAIN] = "s" * 43
    browser = get_browser(request)
    promised = browser.prepare_rotation()
    assert promised == browser.prepare_rotation()
    assert browser.digest == digest("s" * 43)
    browser.rotate()
    assert browser.digest == promised
    # Another one is another value.
    browser.rotate()
    assert browser.digest != promised


def test_two_first_launches_at_one_moment_both_complete(ehr: EHRSimulator) -> None:
    """Each answer brings a cookie, and the browser keeps the one that came last."""
    first, second, browser = make_browser(), make_browser(), make_browser()
    callbacks = []
    for tab, patient in zip(
        (first, second), list(ehr.data["Patient"])[:2], strict=True
    ):
        callbacks.append(ehr.authorize(start_ehr_launch(tab, ehr, patient=patient)))
        browser.cookies.update(tab.cookies)

    opened = [get_launch(get_callback(browser, url)) for url in callbacks]

    for each in opened:
        # Known here, by key and cookie: neither 403 nor 410.
        assert browser.get(f"/~{each.key}/whoami/").status_code == 200
    assert opened[0].browser_digest == opened[1].browser_digest


def test_cookie_of_another_launch_proves_nothing(ehr: EHRSimulator) -> None:
    victim, attacker = make_browser(), make_browser()
    url = ehr.authorize(start_ehr_launch(victim, ehr))
    start_ehr_launch(attacker, ehr)
    (name,) = [n for n in victim.cookies if n.startswith("__Host-smart_browser_")]
    attacker.cookies[name] = "x" * 43

    assert get_callback(attacker, url).status_code == 403


@pytest.mark.parametrize("ending", ["portal", "0123456789abcdef"])
def test_cookie_of_another_site_on_this_host_is_not_ours(ehr, ending):
    browser = make_browser()
    browser.cookies[f"{SECURE}_{ending}"] = "x" * 43
    opened = launch(browser, ehr)
    # It is the only launch of this browser, so no page has to ask which one is meant.
    assert browser.get("/whoami/").json()["patient"] == opened.context["patient"]


@pytest.mark.parametrize("last", [0, 1])
def test_two_callbacks_at_one_moment_of_another_user_both_complete(ehr, last):
    ClientRegistration.objects.update(user_switch="switch")
    # An EHR that opens several frames when somebody else has signed in to it.
    browser = open_chart(ehr).browser
    user = list(ehr.users)[1]
    callbacks = [
        ehr.authorize(start_ehr_launch(browser, ehr, user=user)) for _ in range(2)
    ]
    # Both requests have the cookies of now; what comes last is kept.
    answers = []
    for url in callbacks:
        once = make_browser()
        once.cookies.load({name: each.value for name, each in browser.cookies.items()})
        answers.append(get_callback(once, url))
    for answer in (answers[1 - last], answers[last]):
        browser.cookies.update(answer.cookies)
    for answer in answers:
        assert browser.get(answer["Location"] + "links/").status_code == 200


def test_browser_without_a_cookie_never_gets_one_that_can_be_told_before(rf):
    browsers = [get_browser(rf.get("/")) for _ in range(2)]
    assert len({each.prepare_rotation() for each in browsers}) == 2


def test_sign_out_gives_a_cookie_that_nothing_before_leads_to(rf):
    digests = set()
    for _ in range(2):
        request = rf.get("/")
        request.COOKIES[PLAIN] = "s" * 43
        get_browser(request).rotate()
        digests.add(get_browser(request).digest)
    assert len(digests) == 2


# What a cookie that somebody noted is good for

NO_IDENTITY = "launch launch/patient patient/Patient.rs"


def _copy(browser: Client) -> Client:
    """Another browser, with what somebody could note of this one's cookies."""
    other = make_browser()
    for name, cookie in browser.cookies.items():
        if name.startswith(SECURE):
            other.cookies[name] = cookie.value
    return other


def _use_no_identity() -> None:
    ClientRegistration.objects.update(ehr_scope=NO_IDENTITY)


@pytest.mark.parametrize("earlier", [0, 1])
def test_noted_cookie_does_not_open_what_is_launched_later(ehr, earlier):
    """A shared machine, and a launch that nobody signs in with."""
    _use_no_identity()
    browser = make_browser()
    seen = [launch(browser, ehr) for _ in range(earlier)]
    shown = [each.context["patient"] for each in seen]
    start_ehr_launch(browser, ehr)
    noted = _copy(browser)

    opened = launch(browser, ehr, patient=list(ehr.data["Patient"])[1])

    assert noted.get(f"/~{opened.key}/whoami/").status_code == 403
    assert noted.get("/whoami/").json()["patient"] in {None, *shown}
    for each in [*seen, opened]:
        assert browser.get(f"/~{each.key}/whoami/").status_code == 200


def test_launches_without_an_identity_at_one_moment_both_complete(ehr):
    _use_no_identity()
    browser = make_browser()
    before = launch(browser, ehr)
    urls = [ehr.authorize(start_ehr_launch(browser, ehr)) for _ in range(2)]
    tabs = [_copy(browser), _copy(browser)]
    opened = [
        get_launch(get_callback(tab, url)) for tab, url in zip(tabs, urls, strict=True)
    ]
    for tab in tabs:
        browser.cookies.update(tab.cookies)
    for each in (before, *opened):
        assert browser.get(f"/~{each.key}/whoami/").status_code == 200
    assert len({each.browser_digest for each in (before, *opened)}) == 3


def test_launches_with_and_without_an_identity_at_one_moment_both_complete(ehr):
    browser = make_browser()
    user = launch(browser, ehr).user
    Launch.objects.all().delete()
    urls = [ehr.authorize(start_ehr_launch(browser, ehr))]
    _use_no_identity()
    urls.append(ehr.authorize(start_ehr_launch(browser, ehr)))
    tabs = [make_browser(), make_browser()]
    opened = []
    for tab, url in zip(tabs, urls, strict=True):
        tab.cookies.load(browser.cookies.output(header=""))
        opened.append(get_launch(get_callback(tab, url)))
    for tab in tabs:
        browser.cookies.update(tab.cookies)
    for each in opened:
        assert each.user == user
        assert browser.get(f"/~{each.key}/whoami/").status_code == 200


@pytest.mark.parametrize("state", ["junk", "used", "of a launch started before"])
def test_replaced_cookie_never_leads_to_the_one_that_replaced_it(ehr, state):
    """Whoever noted it has any session, and may have started launches with it."""
    ClientRegistration.objects.update(user_switch="switch")
    browser = open_chart(ehr).browser
    noted = _copy(browser)
    noted.cookies[settings.SESSION_COOKIE_NAME] = "anything"
    prepared = ehr.authorize(start_ehr_launch(noted, ehr, user=list(ehr.users)[1]))
    used = ehr.authorize(start_ehr_launch(browser, ehr, user=list(ehr.users)[1]))
    opened = get_launch(get_callback(browser, used))
    known = {each.value for each in browser.cookies.values() if each.value}

    url = {
        "junk": "/smart/callback/?state=junk&code=junk",
        "used": used,
        "of a launch started before": prepared,
    }[state]
    answer = get_callback(noted, url)

    brought = {
        each.value
        for name, each in answer.cookies.items()
        # The same text for every browser.
        if each.value and not name.startswith("messages_")
    }
    # What it is sent back was its own.
    assert not {each for each in brought & known if not each.endswith("!")}
    assert noted.get(f"/~{opened.key}/whoami/").status_code == 403
