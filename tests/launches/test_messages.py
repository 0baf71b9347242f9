"""Messages of ``django.contrib.messages`` stay with the launch they were queued in."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import messages
from django.contrib.auth.signals import user_logged_in
from django.contrib.messages.storage.base import BaseStorage
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone

from django_smart.models import Launch
from tests.ehr import make_browser
from tests.site.browsers import Chart, open_chart
from tests.site.urls import urlpatterns as site

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("registration"),
]


def _queue(request: HttpRequest) -> HttpResponse:
    messages.info(request, request.GET["text"])
    return HttpResponse("queued")


def _show(request: HttpRequest) -> HttpResponse:
    return HttpResponse("|".join(map(str, messages.get_messages(request))))


urlpatterns = [*site, path("queue/", _queue), path("show/", _show)]


@pytest.fixture(params=["cookie.Cookie", "session.Session", "fallback.Fallback"])
def _storage(request, settings):
    """Each of Django's storages."""
    settings.MESSAGE_STORAGE = f"django.contrib.messages.storage.{request.param}Storage"


def queue(chart: Chart, text: str) -> None:
    """A view of this chart says something to whoever comes next."""
    assert chart.get("/queue/", {"text": text}).content == b"queued"


def shown(chart: Chart, *, method: str = "get") -> str:
    """What the next page of this chart shows."""
    return str(getattr(chart, method)("/show/").content.decode())


@pytest.mark.usefixtures("_storage")
@pytest.mark.parametrize("method", ["get", "aget"])
# Longer than a cookie holds: the fallback then uses the session, too.
@pytest.mark.parametrize("length", [1, 3000])
def test_message_of_one_chart_is_never_shown_in_another(ehr, settings, method, length):
    if "Cookie" in settings.MESSAGE_STORAGE and length > 1:
        length = 1000
    one = open_chart(ehr)
    shown(one)  # who is signed in
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    plain = Chart(one.browser, one.launch, "/")
    queue(one, "a" * length)
    queue(two, "b" * length)
    queue(plain, "c" * length)
    queue(one, "A")
    assert shown(two, method=method) == "b" * length
    assert shown(plain, method=method) == "c" * length
    assert shown(one, method=method) == f"{'a' * length}|A"
    for chart in (one, two, plain):
        assert shown(chart, method=method) == ""


@pytest.mark.usefixtures("_storage")
def test_message_outlives_pages_that_do_not_show_it(ehr):
    chart = open_chart(ehr)
    shown(chart)  # who is signed in
    queue(chart, "saved")
    chart.get("/links/")
    chart.get("/links")  # a redirect, which adds the slash
    chart.get("/nowhere/")
    assert shown(chart) == "saved"


def _welcome(request: HttpRequest, **_kwargs: object) -> None:
    messages.success(request, "welcome")


@pytest.mark.usefixtures("_storage")
def test_message_of_the_sign_in_is_shown_by_the_page_it_leads_to(ehr):
    user_logged_in.connect(_welcome)
    try:
        one = open_chart(ehr)
    finally:
        user_logged_in.disconnect(_welcome)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    assert shown(two) == ""
    assert shown(one).startswith("welcome|")


def test_message_of_the_sign_in_is_shown_where_no_launch_has_a_prefix(ehr, settings):
    settings.SMART_LAUNCH_PREFIX = ""
    user_logged_in.connect(_welcome)
    try:
        chart = open_chart(ehr)
    finally:
        user_logged_in.disconnect(_welcome)
    assert shown(chart).startswith("welcome|")


def test_site_without_messages_opens_charts(ehr, settings):
    settings.MIDDLEWARE = [
        each for each in settings.MIDDLEWARE if "Message" not in each
    ]
    assert open_chart(ehr).get("/links/").status_code == 200


class OwnStorage(BaseStorage):
    """Keeps nothing in the browser."""

    def _get(self, *_args: Any, **_kwargs: Any) -> Any:
        return [], True

    def _store(self, *_args: Any, **_kwargs: Any) -> Any:
        return []


def test_storage_of_the_site_s_own_is_left_alone(ehr, settings):
    settings.MESSAGE_STORAGE = f"{__name__}.OwnStorage"
    assert open_chart(ehr).get("/links/").status_code == 200


@pytest.mark.usefixtures("_storage")
def test_messages_of_a_stranger_s_pages_work_as_ever():
    browser: Client = make_browser()
    browser.get("/queue/", {"text": "hello"})
    assert browser.get("/show/").content == b"hello"
    assert not any("messages_" in name for name in browser.cookies)


# Cookies of charts whose pages never show their messages


def _get_cookies(browser: Client) -> set[str]:
    """The browser's cookies with messages, except that of pages without a launch."""
    return {
        name
        for name, morsel in browser.cookies.items()
        if name.startswith("messages_") and morsel.value
    }


def test_change_of_user_deletes_messages_of_the_charts_it_closes(ehr, registration):
    registration.user_switch = registration.UserSwitch.SWITCH
    registration.save()
    clinicians = [each for each in ehr.users if each.startswith("Practitioner/")]
    browser = make_browser()
    for user in clinicians[:2] * 2:
        # From the second on, the launch has a message: who is signed in now.
        chart = open_chart(ehr, browser, user=user)
        assert chart.get("/links/").status_code == 200
        assert _get_cookies(browser) <= {f"messages_{chart.launch.key}"}
    assert "signed in" in shown(chart)


@pytest.mark.parametrize("signs_out", [False, True])
def test_only_messages_of_closed_charts_are_deleted(ehr, *, signs_out):
    browser = make_browser()
    charts = [open_chart(ehr, browser) for _ in range(3)]
    for chart in charts:
        queue(chart, "saved")
    # Of the site itself, which may use any name.
    browser.cookies["messages_theme"] = "dark"
    # Of another site on the same host.
    other = f"messages_{'k' * 32}"
    browser.cookies[other] = "saved there"
    own = {"messages_theme", other}
    Launch.objects.filter(pk=charts[0].launch.pk).end(
        reason="too_many_open", now=timezone.now()
    )
    if signs_out:
        browser.post("/smart/logout/")
        assert _get_cookies(browser) == own
        return
    open_chart(ehr, browser)
    kept = {f"messages_{chart.launch.key}" for chart in charts[1:]}
    assert _get_cookies(browser) == own | kept
    assert [shown(chart) for chart in charts[1:]] == ["saved", "saved"]
