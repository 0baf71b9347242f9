"""How long a launch can be used, and how many of them one browser can have."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone
from django.utils.html import escape

from django_smart.error_pages.words import ENDINGS
from django_smart.launches.purge import purge
from django_smart.models import Launch, TokenGrant
from tests.ehr import launch, make_browser
from tests.site.browsers import SITE_MARKS, Chart, make_context, open_chart

pytestmark = SITE_MARKS


@pytest.fixture(autouse=True)
def _half_an_hour(settings: Any) -> None:
    settings.SMART_LAUNCH_IDLE_LIFETIME = 1800
    settings.SESSION_COOKIE_AGE = 365 * 86400


def used_at(chart: Chart) -> Any:
    """When the launch was used last, as it is stored."""
    return Launch.objects.get(pk=chart.launch.pk).last_used_at


@pytest.mark.parametrize("method", ["get", "aget"])
def test_launch_that_is_left_alone_ends(ehr, method):
    chart = open_chart(ehr)
    with time_machine.travel(used_at(chart) + timedelta(seconds=1799), tick=False):
        assert getattr(chart, method)("/links/").status_code == 200
    with time_machine.travel(timezone.now() + timedelta(seconds=3601), tick=False):
        response = getattr(chart, method)("/links/")
    assert response.status_code == 410
    assert str(ENDINGS["idle"]) in response.content.decode()
    assert b"<code>launch_ended</code>" in response.content


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("prefixed", [True, False])
def test_use_is_noted_once_a_minute(ehr, django_assert_num_queries, prefixed):
    chart = open_chart(ehr)
    if not prefixed:
        chart.landing = "/"
    start = used_at(chart)
    for seconds, noted in ((59, 0), (61, 61), (100, 61), (121, 121)):
        now = start + timedelta(seconds=seconds)
        with time_machine.travel(now, tick=False):
            assert chart.get("/whoami/").json()["launched"] is True
        assert used_at(chart) == start + timedelta(seconds=noted)


@pytest.mark.django_db(transaction=True)
def test_view_s_transaction_keeps_no_lock_of_the_launch(ehr):
    chart = open_chart(ehr)
    long_ago = used_at(chart) - timedelta(minutes=5)
    Launch.objects.update(last_used_at=long_ago)
    with transaction.atomic():
        assert make_context(chart, user=chart.launch.user).launch == chart.launch
        assert used_at(chart) == long_ago
    assert used_at(chart) > long_ago


def test_request_that_was_overtaken_never_sets_the_time_back(ehr):
    chart = open_chart(ehr)
    stale = Launch.objects.get()
    assert stale.last_used_at is not None
    later = stale.last_used_at + timedelta(minutes=5)
    Launch.objects.update(last_used_at=later)
    Launch.objects.note_use(stale, now=later - timedelta(minutes=2))
    assert used_at(chart) == later


def test_use_never_opens_an_ended_launch_again(ehr):
    chart = open_chart(ehr)
    stale = Launch.objects.get()
    Launch.objects.end(reason="signed_out", now=timezone.now())
    Launch.objects.note_use(stale, now=timezone.now() + timedelta(hours=1))
    assert used_at(chart) == stale.last_used_at


def test_launch_that_is_in_use_ends_with_its_lifetime(ehr, settings):
    settings.SMART_LAUNCH_LIFETIME = 3600
    chart = open_chart(ehr)
    start = timezone.now()
    for minutes, status in ((20, 200), (40, 200), (59, 200), (61, 410)):
        with time_machine.travel(start + timedelta(minutes=minutes), tick=False):
            response = chart.get("/links/")
        assert response.status_code == status
    assert str(ENDINGS["lifetime"]) in response.content.decode()


def test_page_without_a_prefix_does_not_use_a_launch_that_was_left_alone(ehr):
    chart = open_chart(ehr)
    chart.landing = "/"
    with time_machine.travel(timezone.now() + timedelta(hours=1), tick=False):
        assert chart.get("/whoami/").json()["launched"] is False


def test_purge_ends_what_was_left_alone_and_what_is_too_old(ehr, settings):
    settings.SMART_LAUNCH_LIFETIME = 7200
    old, idle, used = (launch(make_browser(), ehr) for _ in range(3))
    now = timezone.now()
    Launch.objects.filter(pk=old.pk).update(completed_at=now - timedelta(hours=3))
    Launch.objects.filter(pk=idle.pk).update(last_used_at=now - timedelta(hours=1))
    # Before it has run, they count as ended.
    assert list(Launch.objects.live(now)) == [used]
    purge()
    found = dict(Launch.objects.values_list("pk", "error_code"))
    assert found == {old.pk: "lifetime", idle.pk: "idle", used.pk: ""}
    active = TokenGrant.objects.active().values_list("launches", flat=True)
    assert list(active) == [used.pk]


def test_browser_with_too_many_loses_the_one_left_alone_for_longest(ehr, settings):
    settings.SMART_LAUNCHES_PER_BROWSER = 3
    browser = make_browser()
    start = timezone.now()
    charts = []
    for minute in range(3):
        with time_machine.travel(start + timedelta(minutes=minute), tick=False):
            charts.append(open_chart(ehr, browser))
    other = open_chart(ehr, make_browser())
    with time_machine.travel(start + timedelta(minutes=5), tick=False):
        charts[0].get("/links/")
    with time_machine.travel(start + timedelta(minutes=6), tick=False):
        charts.append(open_chart(ehr, browser))
        statuses = [chart.get("/links/").status_code for chart in charts]
        ended = charts[1].get("/links/")
        assert other.get("/links/").status_code == 200
    assert statuses == [200, 410, 200, 200]
    assert str(ENDINGS["too_many_open"]) in ended.content.decode()
    row = Launch.objects.with_related().get(pk=charts[1].launch.pk)
    assert row.error_code == "too_many_open"
    # Its tokens are of no use to anybody now.
    assert row.grant is not None
    assert row.grant.is_revocation_pending


def test_launches_started_with_a_cookie_each_count_together(ehr, settings):
    settings.SMART_LAUNCHES_PER_BROWSER = 1
    charts = [open_chart(ehr), open_chart(ehr)]
    # Both answers came to the same browser, which kept the later one's cookie.
    first, browser = (chart.browser for chart in charts)
    for name in first.cookies.keys() - browser.cookies.keys():
        browser.cookies[name] = first.cookies[name].value
    newest = open_chart(ehr, browser)
    assert set(Launch.objects.open()) == {newest.launch}


@pytest.mark.parametrize(
    "reason",
    ["user_changed", "context_changed", "ended_by_staff", "of_a_later_version"],
)
def test_page_says_why_a_launch_ended(ehr, reason):
    chart = open_chart(ehr)
    Launch.objects.end(reason=reason, now=timezone.now())
    response = chart.get("/links/")
    assert response.status_code == 410
    assert str(escape(ENDINGS.get(reason, ""))) in response.content.decode()
    assert b"from the patient" in response.content
