"""The middleware in its stacks: prefix, pages of refusal, cookie and queries."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import get_script_prefix, path, reverse
from django.utils import timezone

from django_smart.middleware import SMARTMiddleware
from django_smart.models import ClientRegistration, Identity, Launch, TokenGrant
from tests.ehr import EHR_SCOPE, PATIENT, get_callback, make_browser, start_login
from tests.site.browsers import SITE_MARKS, Chart, make_async_browser, open_chart
from tests.site.urls import urlpatterns as site

pytestmark = SITE_MARKS

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
STACKS = ("get", "aget")


def describe(response: Any) -> dict[str, Any]:
    """The JSON object a view answered with."""
    assert response.status_code == 200, response.content
    data: dict[str, Any] = response.json()
    return data


@pytest.mark.parametrize("method", STACKS)
@pytest.mark.parametrize("view", ["whoami", "awhoami"])
def test_prefix_selects_the_launch(ehr, method, view):
    chart = open_chart(ehr)
    got = describe(getattr(chart, method)(f"/{view}/"))
    assert got == {
        "launched": True,
        "patient": PATIENT,
        "reason": "",
        "url": chart.url("/whoami/"),
    }
    # Nothing is left behind for whatever this thread serves next.
    assert get_script_prefix() == "/"
    assert reverse("whoami") == "/whoami/"


@pytest.mark.parametrize("method", STACKS)
@pytest.mark.parametrize("view", ["whoami", "awhoami"])
def test_two_charts_of_one_browser_never_cross(ehr, method, view):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    for _ in range(2):
        for chart, patient in ((one, PATIENT), (two, OTHER_PATIENT)):
            got = describe(getattr(chart, method)(f"/{view}/"))
            assert (got["patient"], got["url"]) == (patient, chart.url("/whoami/"))


def _meet(request: HttpRequest) -> JsonResponse:
    """Answers once the other chart's request is inside its view as well."""
    _meeting.wait(60)
    return JsonResponse(
        {"patient": request.smart.patient_id, "url": reverse("meet")}  # type: ignore[attr-defined]
    )


async def _ameet(request: HttpRequest) -> JsonResponse:
    await _ameeting.wait()
    smart = await request.asmart()  # type: ignore[attr-defined]
    return JsonResponse({"patient": smart.patient_id, "url": reverse("meet")})


_meeting = threading.Barrier(2)
_ameeting = asyncio.Barrier(2)
urlpatterns = [*site, path("meet/", _meet, name="meet"), path("ameet/", _ameet)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls(__name__)
def test_charts_never_cross_between_threads(ehr):
    one = open_chart(ehr)
    charts = {PATIENT: one}
    charts[OTHER_PATIENT] = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    got: dict[str, Any] = {}

    def visit(patient: str, chart: Chart) -> None:
        browser = make_browser()
        browser.cookies = chart.browser.cookies
        try:
            responses = [browser.get(chart.url("/meet/")) for _ in range(5)]
            got[patient] = [response.json() for response in responses]
        finally:
            connections.close_all()

    threads = [threading.Thread(target=visit, args=item) for item in charts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for patient, chart in charts.items():
        assert got[patient] == [{"patient": patient, "url": chart.url("/meet/")}] * 5


@pytest.mark.urls(__name__)
def test_charts_never_cross_between_tasks_of_one_event_loop(ehr):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)

    async def visit(chart: Chart) -> list[dict[str, str]]:
        browser = make_async_browser(chart.browser)
        url = chart.url("/ameet/")
        return [(await browser.get(url, secure=True)).json() for _ in range(5)]

    async def visit_both() -> list[list[dict[str, str]]]:
        return list(await asyncio.gather(visit(one), visit(two)))

    for chart, patient, got in zip(
        (one, two),
        (PATIENT, OTHER_PATIENT),
        async_to_sync(visit_both)(),
        strict=True,
    ):
        assert got == [{"patient": patient, "url": chart.url("/meet/")}] * 5


@pytest.mark.parametrize("method", STACKS)
def test_prefix_is_taken_back_after_a_failed_view(ehr, method):
    chart = open_chart(ehr)
    chart.browser.raise_request_exception = False
    if method == "get":
        assert chart.get("/broken/").status_code == 500
    else:
        with pytest.raises(ZeroDivisionError):
            chart.aget("/broken/")
    assert get_script_prefix() == "/"


def test_prefix_is_taken_back_when_the_stack_below_raises(rf):
    def fail(request: HttpRequest) -> HttpResponse:
        assert reverse("links").startswith("/~")
        raise ZeroDivisionError

    async def afail(request: HttpRequest) -> HttpResponse:
        return fail(request)

    request = rf.get(f"/~{'k' * 24}/links/")
    with pytest.raises(ZeroDivisionError):
        SMARTMiddleware(fail)(request)
    assert get_script_prefix() == "/"
    request = rf.get(f"/~{'k' * 24}/links/")
    with pytest.raises(ZeroDivisionError):
        async_to_sync(SMARTMiddleware(afail).__acall__)(request)
    assert get_script_prefix() == "/"


@pytest.mark.parametrize("method", STACKS)
def test_unknown_key_is_not_found(ehr, method):
    chart = open_chart(ehr)
    chart.landing = f"/~{'A' * 24}/"
    response = getattr(chart, method)("/links/")
    assert response.status_code == 404
    assert b"<code>launch_unknown</code>" in response.content
    # The page's own links are good without the key.
    assert b'href="/~' not in response.content
    assert response["Cache-Control"] == "private, no-store"
    assert get_script_prefix() == "/"


def test_pending_launch_has_no_page_yet(ehr):
    chart = open_chart(ehr)
    Launch.objects.update(status=Launch.Status.PENDING, completed_at=None, grant=None)
    assert chart.get("/links/").status_code == 404


@pytest.mark.parametrize("method", STACKS)
def test_key_is_no_credential(ehr, method):
    chart = open_chart(ehr)
    owner = chart.browser
    chart.browser = make_browser()
    response = getattr(chart, method)("/links/")
    assert response.status_code == 403
    assert b"<code>launch_foreign</code>" in response.content
    chart.browser = owner
    assert chart.get("/links/").status_code == 200


@pytest.mark.parametrize("method", STACKS)
def test_expired_session_leads_to_the_site_s_sign_in_and_back(ehr, settings, method):
    settings.LOGIN_URL = "/admin/login/"
    chart = open_chart(ehr)
    # Somebody who connected the account, and signs in on the site.
    Identity.objects.update(may_sign_in=False)
    session = chart.browser.cookies.pop("sessionid")
    response = getattr(chart, method)("/links/?page=2")
    assert response.status_code == 403
    assert b"<code>launch_signed_out</code>" in response.content
    login = urlsplit(response.context["retry"].url)
    assert login.path == "/admin/login/"
    assert parse_qs(login.query) == {"next": [f"{chart.landing}links/?page=2"]}
    # Back in a session of the same user.
    chart.browser.cookies["sessionid"] = session.value
    assert getattr(chart, method)("/links/?page=2").status_code == 200


@pytest.mark.parametrize("login_url", ["/smart/login/", "/admin/login/"])
def test_expired_session_of_who_signs_in_through_the_ehr_has_no_button(
    ehr, settings, login_url
):
    settings.LOGIN_URL = login_url
    chart = open_chart(ehr)
    del chart.browser.cookies["sessionid"]
    response = chart.get("/links/")
    assert b"<code>launch_signed_out</code>" in response.content
    assert response.context["retry"] is None


def test_expired_session_has_no_button_to_a_page_that_is_missing(ehr, settings):
    settings.LOGIN_URL = "/no-such-page/"
    chart = open_chart(ehr)
    Identity.objects.update(may_sign_in=False)
    del chart.browser.cookies["sessionid"]
    assert chart.get("/links/").context["retry"] is None


def test_expired_session_of_a_sign_in_through_the_ehr_leads_there(ehr, settings):
    settings.LOGIN_URL = "/admin/login/"
    ClientRegistration.objects.update(standalone_scope="openid fhirUser launch/patient")
    browser = make_browser()
    landing = get_callback(browser, ehr.authorize(start_login(browser)))["Location"]
    landing += "links/"
    assert browser.get(landing).status_code == 200
    del browser.cookies["sessionid"]
    response = browser.get(landing)
    assert b"<code>launch_signed_out</code>" in response.content
    assert "/smart/login/?server=" in response.context["retry"].url


@pytest.mark.parametrize("how", ["session", "idle", "signed_out", "foreign"])
def test_form_that_came_too_late_is_said_to_be_lost(ehr, how):
    chart = open_chart(ehr)
    if how == "session":
        del chart.browser.cookies["sessionid"]
    elif how == "idle":
        Launch.objects.update(last_used_at=timezone.now() - timedelta(days=1))
    elif how == "signed_out":
        chart.browser.post("/smart/logout/")
    else:
        chart.browser = make_browser()
    response = chart.post("/form/", {"note": "of an hour"})
    assert response.status_code in {403, 410}
    assert response.context["form_was_sent"] is True
    assert "not saved" in response.text
    assert "not saved" not in chart.get("/form/").text


@pytest.mark.parametrize("method", STACKS)
def test_ended_launch_is_gone(ehr, method):
    chart = open_chart(ehr)
    Launch.objects.end(reason="signed_out", now=timezone.now())
    response = getattr(chart, method)("/links/")
    assert response.status_code == 410
    assert b"<code>launch_ended</code>" in response.content


def test_refused_prefix_answers_every_method(ehr):
    chart = open_chart(ehr)
    chart.landing = f"/~{'A' * 24}/"
    assert chart.post("/form/").status_code == 404
    response = chart.browser.head(chart.url("/links/"))
    assert (response.status_code, response.content) == (404, b"")


@pytest.mark.parametrize(
    "inner",
    ["/admin/login/?next=/admin/", "/smart/jwks.json", "/smart/login/?server=x&next=/"],
)
@pytest.mark.parametrize("method", STACKS)
def test_admin_and_protocol_urls_leave_the_prefix(ehr, method, inner):
    chart = open_chart(ehr)
    response = getattr(chart, method)(inner)
    assert (response.status_code, response["Location"]) == (302, inner)
    assert chart.browser.head(chart.url(inner))["Location"] == inner
    assert chart.post(inner).status_code == 404
    assert get_script_prefix() == "/"


def test_leaving_the_prefix_keeps_the_path_as_it_was_written(ehr):
    chart = open_chart(ehr)
    inner = "/admin/auth/user/a%3Fb%23c%20d/change/"
    assert chart.get(f"{inner}?q=%2F%26")["Location"] == f"{inner}?q=%2F%26"


@pytest.mark.urls("tests.site.root_admin_urls")
@pytest.mark.parametrize(
    "inner", ["//evil.example/", "/%2Fevil.example/", "/%5Cevil.example/", "/\\evil/"]
)
@pytest.mark.compliance("SEC-03")
def test_leaving_the_prefix_never_leaves_the_site(inner):
    # An admin at the root answers every path, and no launch is needed to get here.
    response = make_browser().get(f"/~{'A' * 24}{inner}")
    assert response.status_code == 302
    assert response["Location"].startswith(("/%2F", "/%5C"))


def test_launch_prefix_can_be_named(ehr, settings):
    settings.SMART_LAUNCH_PREFIX = "chart-"
    chart = open_chart(ehr)
    assert chart.landing == f"/chart-{chart.launch.key}/"
    assert describe(chart.get("/whoami/"))["patient"] == PATIENT
    chart.landing = f"/~{chart.launch.key}/"
    assert chart.get("/whoami/").status_code == 404


def test_launch_prefix_can_be_turned_off(ehr, settings):
    settings.SMART_LAUNCH_PREFIX = ""
    chart = open_chart(ehr)
    assert chart.landing == "/"
    assert describe(chart.get("/whoami/"))["patient"] == PATIENT
    assert chart.browser.get(f"/~{chart.launch.key}/whoami/").status_code == 404
    # With a second launch any choice would be a guess, and no page can name one.
    open_chart(ehr, chart.browser, patient=OTHER_PATIENT)
    got = describe(chart.get("/whoami/"))
    assert (got["launched"], got["reason"]) == (False, "ambiguous")
    page = chart.get("/chart/")
    assert page.status_code == 403
    assert b"Open charts" not in page.content


@pytest.mark.parametrize("method", STACKS)
def test_untouched_request_costs_nothing(ehr, method, django_assert_num_queries):
    chart = open_chart(ehr)
    chart.landing = "/"
    with django_assert_num_queries(0):
        response = getattr(chart, method)("/untouched/")
    assert response.content == b"False"
    assert "Vary" not in response
    assert not response.cookies


@pytest.mark.parametrize("method", STACKS)
def test_prefix_costs_one_query_beside_session_and_user(
    ehr, method, django_assert_num_queries
):
    chart = open_chart(ehr)
    with django_assert_num_queries(3) as queries:
        describe(getattr(chart, method)("/chart/scopes/"))
    tables = [query["sql"].split("FROM")[1].split()[0] for query in queries]
    assert sum("django_smart_launch" in table for table in tables) == 1


def test_responses_that_depend_on_the_browser_vary_by_cookie(ehr):
    chart = open_chart(ehr)
    assert "Cookie" in chart.get("/whoami/")["Vary"]
    chart.landing = "/"
    assert "Cookie" in chart.get("/whoami/")["Vary"]


@pytest.mark.parametrize("method", STACKS)
def test_site_that_asks_everyone_to_log_in_can_still_launch(ehr, settings, method):
    settings.LOGIN_URL = "/accounts/login/"
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    stranger = Chart(make_browser(), Launch(), "/")
    for url, status in (
        ("/smart/launch/", 400),
        ("/smart/login/", 200),
        ("/smart/login/?server=harbour", 302),
        ("/smart/callback/", 400),
        ("/smart/jwks.json", 200),
    ):
        response = getattr(stranger, method)(url)
        assert response.status_code == status
        assert "accounts" not in response.get("Location", "")
    response = getattr(stranger, method)("/links/")
    assert response["Location"] == "/accounts/login/?next=/links/"
    assert getattr(open_chart(ehr), method)("/links/").status_code == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("prefixed", [True, False])
def test_due_token_is_refreshed_outside_of_the_view_s_transaction(
    ehr, monkeypatch, prefixed
):
    chart = _open_refreshable_chart(ehr)
    if not prefixed:
        chart.landing = "/"
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    ehr.clear_requests()
    assert describe(chart.get("/fhir/")) == {"id": PATIENT}
    assert len(ehr.requests_to("refresh")) == 1
    assert len(ehr.requests_to("fhir")) == 1
    # Fresh now: nothing more is sent.
    describe(chart.get("/fhir/"))
    assert len(ehr.requests_to("refresh")) == 1


def test_transaction_of_a_stranger_s_view_needs_nothing(monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert describe(make_browser().get("/whoami/"))["reason"] == "no_launch"


def test_view_without_fhir_works_while_the_ehr_is_away(ehr, monkeypatch):
    chart = _open_refreshable_chart(ehr)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    ehr.faults = {"refresh_500"}
    assert describe(chart.get("/whoami/"))["patient"] == PATIENT


def _open_refreshable_chart(ehr: Any) -> Chart:
    """A chart whose access token has ended and can be refreshed."""
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} offline_access")
    chart = open_chart(ehr)
    TokenGrant.objects.update(expires_at=timezone.now())
    return chart


@pytest.mark.django_db(transaction=True)
def test_page_that_only_reads_works_while_the_database_does(ehr, caplog):
    def only_read(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE"):
            raise OperationalError("cannot execute in a read-only transaction")
        return execute(sql, *args)

    chart = open_chart(ehr)
    long_ago = timezone.now() - timedelta(days=2)
    Launch.objects.update(last_used_at=timezone.now() - timedelta(minutes=5))
    TokenGrant.objects.update(last_used_at=long_ago, is_offline=True)
    with connection.execute_wrapper(only_read):
        assert chart.get("/fhir/").status_code == 200
    assert caplog.text.count("its use was not noted") == 2
    assert TokenGrant.objects.get().last_used_at == long_ago
