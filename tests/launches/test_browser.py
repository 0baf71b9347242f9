"""The cookies of launches: what they look like, and when they come and go."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from django_smart.fields import digest
from django_smart.launches.browser import get_browser
from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    connect,
    copy_browser,
    get_callback,
    get_launch,
    get_launch_cookies,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import make_user
from tests.site.browsers import SITE_MARKS, open_chart

pytestmark = SITE_MARKS

FIRST = "__Host-smart_browser"
LOGIN = "/smart/login/?server=harbour"
# Of a launch that nobody signs in with.
NO_IDENTITY = "launch launch/patient patient/Patient.rs"


def get_name(opened: Launch) -> str:
    return f"{FIRST}_{digest(opened.key)[:16]}"


def connect_as_maria(ehr: EHRSimulator) -> None:
    """From then on, launches of that account ask its user to sign in first."""
    browser = make_browser()
    browser.force_login(
        make_user("maria"), backend="django.contrib.auth.backends.ModelBackend"
    )
    connect(browser, ehr)


# What they look like


def test_cookie_over_https_is_bound_to_the_host():
    (cookie,) = make_browser().get(LOGIN).cookies.values()
    pending = Launch.objects.get()
    assert cookie.key == get_name(pending)
    assert len(cookie.value) == 43
    assert digest(cookie.value) == pending.browser_digest
    assert cookie.value not in pending.key
    attributes = {name: value for name, value in cookie.items() if value}
    # No domain, no lifetime beyond the browser's session.
    assert attributes == {
        "path": "/",
        "secure": True,
        "httponly": True,
        "samesite": "Lax",
    }


def test_cookie_over_http_is_neither_secure_nor_called_so():
    (cookie,) = Client(HTTP_SEC_FETCH_SITE="same-origin").get(LOGIN).cookies.values()
    assert cookie.key == get_name(Launch.objects.get()).removeprefix("__Host-")
    attributes = {name: value for name, value in cookie.items() if value}
    assert attributes == {"path": "/", "httponly": True, "samesite": "Lax"}


def test_plain_cookie_is_not_believed_over_https(ehr):
    chart = open_chart(ehr)
    name = get_name(chart.launch)
    value = chart.browser.cookies.pop(name).value
    chart.browser.cookies[name.removeprefix("__Host-")] = value
    assert chart.get("/links/").status_code == 403


def test_name_of_the_cookies_is_a_setting(settings):
    settings.SMART_BROWSER_COOKIE_NAME = "other"
    (name,) = make_browser().get(LOGIN).cookies
    assert name.startswith("__Host-other_")


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
    assert FIRST not in str(make_browser().get(path).cookies)


def test_browser_of_a_request_is_one_and_never_shows_a_secret(rf):
    request = rf.get("/")
    request.COOKIES[f"smart_browser_{'0' * 16}"] = "s" * 43
    browser = get_browser(request)
    assert browser is get_browser(request)
    assert browser.digests == (digest("s" * 43),)
    assert repr(browser) == "<Browser: 1 launches>"


# What they open


@pytest.mark.parametrize(
    "value", ["", "a", "a" * 42, "a" * 44, "a" * 42 + "!", "a" * 42 + "é", "a" * 9999]
)
def test_malformed_cookie_opens_nothing(ehr, value):
    chart = open_chart(ehr)
    chart.browser.cookies[get_name(chart.launch)] = value
    assert chart.get("/links/").status_code == 403
    assert chart.browser.get("/whoami/").json()["reason"] == "no_launch"


def test_cookie_that_is_missing_foreign_or_of_another_launch_opens_nothing(ehr):
    browser = make_browser()
    first, second = launch(browser, ehr), launch(browser, ehr)
    cookies = get_launch_cookies(browser)
    own = cookies[get_name(first)]
    for value in (cookies[get_name(second)], first.browser_digest, "x" * 43):
        browser.cookies[get_name(first)] = value
        assert browser.get(f"/~{first.key}/links/").status_code == 403
    # Nor under the name of another launch.
    browser.cookies[get_name(second)] = own
    del browser.cookies[get_name(first)]
    assert browser.get(f"/~{first.key}/links/").status_code == 403
    browser.cookies[get_name(first)] = own
    assert browser.get(f"/~{first.key}/links/").status_code == 200


def test_cookie_of_another_launch_completes_nothing(ehr):
    victim, attacker = make_browser(), make_browser()
    url = ehr.authorize(start_ehr_launch(victim, ehr))
    start_ehr_launch(attacker, ehr)
    (name,), (own,) = get_launch_cookies(victim), get_launch_cookies(attacker)
    attacker.cookies[name] = attacker.cookies[own].value
    assert get_callback(attacker, url).status_code == 403


@pytest.mark.parametrize("scope", ["", NO_IDENTITY])
@pytest.mark.parametrize("earlier", [0, 1])
def test_noted_start_cookie_opens_nothing(ehr, earlier, scope):
    """A shared machine: what could be noted of a launch before it completed."""
    if scope:
        ClientRegistration.objects.update(ehr_scope=scope)
    browser = make_browser()
    seen = [launch(browser, ehr) for _ in range(earlier)]
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    noted = copy_browser(browser)

    opened = get_launch(get_callback(browser, url))

    if session := browser.cookies.get(settings.SESSION_COOKIE_NAME):
        noted.cookies[settings.SESSION_COOKIE_NAME] = session.value
    assert noted.get(f"/~{opened.key}/whoami/").status_code == 403
    assert browser.get(f"/~{opened.key}/whoami/").status_code == 200
    shown = [each.context["patient"] for each in seen]
    assert noted.get("/whoami/").json()["patient"] in {None, *shown}
    # Nor is it sent anything, with the same callback or another one.
    for again in (url, "/smart/callback/?state=junk&code=junk"):
        assert not get_launch_cookies(noted).keys() & set(
            get_callback(noted, again).cookies
        )


# When they go


def test_sign_out_deletes_them(ehr):
    browser = make_browser()
    opened = [launch(browser, ehr) for _ in range(2)]
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    deleted = browser.post("/smart/logout/").cookies
    assert get_launch_cookies(browser) == {}
    for name in (get_name(each) for each in Launch.objects.all()):
        assert (deleted[name]["max-age"], deleted[name]["secure"]) == (0, True)
    for each in opened:
        assert browser.get(f"/~{each.key}/links/").status_code == 410
    # Nor can what was under way be finished.
    assert get_callback(browser, url).status_code == 409


@pytest.mark.parametrize("secret", ["first", "second"])
@pytest.mark.parametrize("stage", ["pending", "held", "open"])
def test_sign_out_with_any_secret_ends_a_launch_at_any_stage(ehr, stage, secret):
    """In another tab, whose request was sent while the launch went on."""
    if stage == "held":
        connect_as_maria(ehr)
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    row = Launch.objects.latest("pk")
    tab = copy_browser(browser)
    if stage != "pending":
        get_callback(browser, url)
    row.refresh_from_db()
    assert row.status == stage
    (tab if secret == "first" else browser).post("/smart/logout/")
    row.refresh_from_db()
    assert row.error_code == "signed_out"
    assert row.status == ("ended" if stage == "open" else "failed")
    assert get_callback(browser, url).status_code == 409
    assert not TokenGrant.objects.active().filter(is_offline=False).exists()


def test_launch_that_is_declined_takes_its_cookie_along(ehr):
    connect_as_maria(ehr)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    page = response["Location"]
    assert len(get_launch_cookies(browser)) == 1
    assert browser.post(page, {"choice": "cancel"}).status_code == 403
    assert get_launch_cookies(browser) == {}


@pytest.mark.parametrize("reason", ["ended", "failed", "deleted"])
def test_cookies_of_launches_that_are_over_go_with_the_next_start(ehr, reason):
    browser = make_browser()
    opened = launch(browser, ehr)
    if reason == "ended":
        Launch.objects.end(reason="ended_by_staff", now=timezone.now())
    elif reason == "failed":
        url = ehr.authorize(start_ehr_launch(browser, ehr), approve=False)
        assert get_callback(browser, url).status_code == 403
        assert len(get_launch_cookies(browser)) == 2
    else:
        Launch.objects.all().delete()
    browser.get(LOGIN, headers={"Sec-Fetch-Site": "none"})
    start_ehr_launch(browser, ehr)
    names = {get_name(each) for each in Launch.objects.filter(status="pending")}
    kept = {get_name(opened)} if reason == "failed" else set()
    assert get_launch_cookies(browser).keys() == names | kept


def test_browser_with_very_many_launches_keeps_few_cookies(ehr, settings):
    settings.SMART_LAUNCHES_PER_BROWSER = 5
    browser = make_browser()
    for _ in range(15):
        start_ehr_launch(browser, ehr)
        launch(browser, ehr)
    pending = Launch.objects.filter(status="pending")
    opened = Launch.objects.open()
    assert (pending.count(), opened.count()) == (9, 5)
    expected = {get_name(each) for each in (*pending, *opened)}
    assert get_launch_cookies(browser).keys() == expected


# Which launch a page without a prefix may use


def whoami(browser: Client) -> tuple[Any, str]:
    found = browser.get("/whoami/").json()
    return found["patient"], found["reason"]


def test_limit_of_open_launches_does_not_count_anew(ehr, settings):
    settings.SMART_LAUNCH_PREFIX = ""
    settings.SMART_LAUNCHES_PER_BROWSER = 1
    browser = make_browser()
    first, second = list(ehr.data["Patient"])[:2]
    launch_without_prefix(browser, ehr, patient=first)
    assert whoami(browser) == (first, "")
    launch_without_prefix(browser, ehr, patient=second)
    # The tab of the first chart must not become one of the second.
    assert whoami(browser) == (None, "ambiguous")


def test_second_launch_counts_after_it_has_ended(ehr):
    browser = make_browser()
    _, second = launch(browser, ehr), launch(browser, ehr)
    Launch.objects.filter(pk=second.pk).end(reason="idle", now=timezone.now())
    start_ehr_launch(browser, ehr)
    assert get_name(second) not in get_launch_cookies(browser)
    # Its tab may still be there, and must not write into the first chart.
    assert whoami(browser) == (None, "ambiguous")


def launch_without_prefix(browser, ehr, **values):
    url = ehr.authorize(start_ehr_launch(browser, ehr, **values))
    assert get_callback(browser, url).status_code == 302


@pytest.mark.parametrize("prefix", ["~", ""])
def test_sign_out_counts_anew_where_no_url_names_the_launch(ehr, settings, prefix):
    settings.SMART_LAUNCH_PREFIX = prefix
    browser = make_browser()
    open_chart(ehr, browser)
    browser.post("/smart/logout/")
    again = open_chart(ehr, browser).launch
    expected = (None, "ambiguous") if prefix else (again.context["patient"], "")
    assert whoami(browser) == expected


@pytest.mark.parametrize("ending", ["portal", "0123456789abcdef"])
def test_cookie_of_another_site_on_this_host_is_not_ours(ehr, ending):
    browser = make_browser()
    browser.cookies[f"{FIRST}_{ending}"] = "x" * 43
    opened = launch(browser, ehr)
    # It is the only launch of this browser, so no page has to ask which one is meant.
    assert whoami(browser) == (opened.context["patient"], "")
    assert bool(browser.cookies[f"{FIRST}_{ending}"].value) is (ending == "portal")


# At one moment


def test_two_first_launches_at_one_moment_both_complete(ehr: EHRSimulator) -> None:
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


@pytest.mark.parametrize("scope", ["", NO_IDENTITY])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("user", [0, 1])
def test_two_callbacks_at_one_moment_both_complete(ehr, last, user, scope):
    # An EHR that opens several frames, perhaps when somebody else has signed in to it.
    ClientRegistration.objects.update(user_switch="switch")
    browser = open_chart(ehr).browser
    if scope:
        ClientRegistration.objects.update(ehr_scope=scope)
    person = list(ehr.users)[user]
    callbacks = [
        ehr.authorize(start_ehr_launch(browser, ehr, user=person)) for _ in range(2)
    ]
    # Both requests have the cookies of now; what comes last is kept.
    tabs = [copy_browser(browser), copy_browser(browser)]
    answers = [get_callback(tab, url) for tab, url in zip(tabs, callbacks, strict=True)]
    for answer in (answers[1 - last], answers[last]):
        browser.cookies.update(answer.cookies)
    for answer in answers:
        assert browser.get(answer["Location"] + "links/").status_code == 200
    assert whoami(browser) == (None, "ambiguous")


def test_first_two_callbacks_at_one_moment_leave_nothing_to_guess(ehr):
    browser = make_browser()
    urls = [ehr.authorize(start_ehr_launch(browser, ehr)) for _ in range(2)]
    tabs = [copy_browser(browser), copy_browser(browser)]
    for answer in [get_callback(tab, url) for tab, url in zip(tabs, urls, strict=True)]:
        browser.cookies.update(answer.cookies)
    assert whoami(browser) == (None, "ambiguous")


def test_second_use_of_a_state_leaves_the_cookie_of_the_first(ehr):
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    tab = copy_browser(browser)
    opened = get_launch(get_callback(browser, url))
    again = get_callback(tab, url)
    assert again.status_code == 409
    assert get_name(opened) not in again.cookies


def test_second_use_of_a_state_leads_to_what_the_first_one_asks(ehr):
    connect_as_maria(ehr)
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    tab = copy_browser(browser)
    question = get_callback(browser, url)["Location"]
    again = get_callback(tab, url)
    assert (again.status_code, again.context["retry"].url) == (409, question)


def test_start_at_the_moment_of_a_callback_leaves_its_cookie(ehr):
    browser = make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr))
    tab = copy_browser(browser)
    opened = get_launch(get_callback(browser, url))
    started = tab.get(LOGIN)
    assert get_name(opened) not in started.cookies
