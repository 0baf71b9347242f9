"""The launch prefix: kept by everything a page builds links with."""

from __future__ import annotations

import asyncio
import re
from io import BytesIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.core.handlers.asgi import ASGIHandler
from django.http import FileResponse
from django.urls import get_script_prefix

from django_smart.launches.prefix import LaunchPrefix
from django_smart.models import ClientRegistration
from tests.ehr import PATIENT, make_browser
from tests.site.browsers import (
    SITE_MARKS,
    Chart,
    make_async_browser,
    make_mounted_browser,
    open_chart,
)

pytestmark = SITE_MARKS

KEY = "k" * 24


@pytest.fixture(autouse=True)
def _script_prefix():
    yield
    assert get_script_prefix() == "/"


def text_of(response: Any) -> str:
    """The body, streamed or not."""
    if not response.streaming:
        return str(response.content.decode())
    if not response.is_async:
        return b"".join(response.streaming_content).decode()

    async def collect() -> str:
        return b"".join([part async for part in response.streaming_content]).decode()

    return async_to_sync(collect)()


# What pages build links with


@pytest.mark.parametrize("method", ["get", "aget"])
@pytest.mark.parametrize("view", ["links", "template", "page", "stream", "astream"])
def test_links_of_a_page_keep_the_prefix(ehr, method, view):
    chart = open_chart(ehr)
    links = text_of(getattr(chart, method)(f"/{view}/?a=1")).split()
    assert links[:5] == [
        chart.url("/links/"),
        "/static/a.css",
        "/media/b.png",
        "/smart/login/",
        chart.url(f"/{view}/?a=1"),
    ]
    assert links[5:] in ([], [chart.url("/links/")])
    # The same page without the prefix.
    chart.landing = "/"
    assert text_of(getattr(chart, method)(f"/{view}/")).split()[0] == "/links/"


def test_streams_of_two_charts_can_be_read_in_turn(ehr):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser)
    plain = Chart(one.browser, one.launch, "/")
    charts = (one, two, plain)
    streams = [iter(chart.get("/stream/")) for chart in charts]
    for _ in range(2):
        for chart, stream in zip(charts, streams, strict=True):
            assert chart.url("/links/") in next(stream).decode().split()
            assert get_script_prefix() == "/"
    for stream in streams:
        assert list(stream) == []


def test_asynchronous_streams_of_two_charts_can_be_read_at_once(ehr):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser)
    responses = [one.aget("/astream/"), two.aget("/astream/")]

    async def read(response: Any) -> list[str]:
        parts = []
        async for part in response.streaming_content:
            parts.append(part.decode().split()[0])
            await asyncio.sleep(0)
        return parts

    async def read_both() -> list[list[str]]:
        return await asyncio.gather(*map(read, responses))

    got = async_to_sync(read_both)()
    assert got == [[chart.url("/links/")] * 2 for chart in (one, two)]


def test_stream_that_fails_midway_gives_the_prefix_back(rf):
    prefix = LaunchPrefix.find(rf.get(f"/~{KEY}/"))
    assert prefix

    def parts():
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prefix._stream(parts()))
    assert get_script_prefix() == "/"


def test_files_are_sent_as_they_are(rf):
    file = BytesIO(b"a")
    response = FileResponse(file)
    prefix = LaunchPrefix.find(rf.get(f"/~{KEY}/"))
    assert prefix
    prefix.keep_for(response)
    assert response.file_to_stream is file


@pytest.mark.parametrize("first", ["launched", "plain"])
@pytest.mark.parametrize("method", ["get", "aget"])
def test_static_and_media_urls_do_not_depend_on_the_first_page(
    ehr, settings, first, method
):
    chart = open_chart(ehr)
    plain = Chart(chart.browser, chart.launch, "/")
    # Django reads them once for each process; assigning a setting makes it forget.
    settings.STATIC_URL = "assets/"
    settings.MEDIA_URL = "uploads/"
    pages = [chart, plain] if first == "launched" else [plain, chart]
    for page in pages:
        links = text_of(getattr(page, method)("/links/")).split()
        assert links[1:3] == ["/assets/a.css", "/uploads/b.png"]


@pytest.mark.parametrize("method", ["get", "aget"])
def test_redirects_by_name_keep_the_prefix(ehr, method):
    chart = open_chart(ehr)
    assert getattr(chart, method)("/go/")["Location"] == chart.url("/links/")


@pytest.mark.parametrize("method", ["get", "aget"])
def test_appended_slash_keeps_the_prefix_and_the_query(ehr, method):
    chart = open_chart(ehr)
    response = getattr(chart, method)("/links?a=1")
    assert response.status_code == 301
    assert response["Location"] == chart.url("/links/?a=1")


def test_pages_of_a_list_keep_the_prefix(ehr):
    chart = open_chart(ehr)
    url, seen = chart.url("/numbers/"), []
    while url:
        assert url.startswith(chart.landing)
        page = chart.browser.get(url).json()
        seen += page["items"]
        url = page["next"]
    assert seen == list(range(25))


def test_prefix_without_a_slash_is_the_root(ehr):
    chart = open_chart(ehr)
    url = chart.landing.removesuffix("/")
    # The site has no page at its root: found by the site's own 404, not by ours.
    response = chart.browser.get(url)
    assert response.status_code == 404
    assert b"launch_" not in response.content


def test_absolute_urls_keep_the_prefix(ehr):
    chart = open_chart(ehr)
    request = chart.get("/links/?a=1").wsgi_request
    assert request.build_absolute_uri() == (
        f"https://app.example.org{chart.url('/links/?a=1')}"
    )
    assert request.path_info == "/links/"


def test_login_by_a_fixed_address_comes_back_to_the_chart(ehr, settings):
    settings.LOGIN_URL = "/accounts/login/"
    ask_for_no_identity()
    chart = open_chart(ehr)
    assert chart.launch.user is None
    response = chart.get("/private/")
    assert response["Location"] == f"/accounts/login/?next={chart.url('/private/')}"


def test_login_by_name_keeps_the_prefix(ehr, settings):
    settings.LOGIN_URL = "login"
    ask_for_no_identity()
    chart = open_chart(ehr)
    response = chart.get("/private/")
    assert response["Location"] == (
        f"{chart.url('/accounts/login/')}?next={chart.url('/private/')}"
    )


def ask_for_no_identity() -> None:
    """Let launches sign nobody in."""
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.rs")


def test_private_pages_of_the_launch_s_user_are_served(ehr):
    chart = open_chart(ehr)
    response = chart.get("/private/")
    assert response.content.decode() == str(chart.launch.user)


@pytest.mark.parametrize("prefixed", [True, False])
def test_forms_keep_the_prefix_and_csrf_protects_them(ehr, prefixed):
    browser = make_browser()
    browser.handler.enforce_csrf_checks = True
    chart = open_chart(ehr, browser)
    if not prefixed:
        chart.landing = "/"
    page = chart.get("/form/").content.decode()
    assert PATIENT in page
    (action,) = re.findall(r'action="([^"]+)"', page)
    (token,) = re.findall(r'value="([^"]+)"', page)
    assert action == chart.url("/form/")
    origin = {"origin": "https://app.example.org"}
    response = browser.post(action, {"csrfmiddlewaretoken": token}, headers=origin)
    assert response["Location"] == chart.url("/links/")
    assert browser.post(action, headers=origin).status_code == 403


@pytest.mark.urls("tests.site.i18n_urls")
@pytest.mark.parametrize("method", ["get", "aget"])
def test_language_prefixes_stand_behind_the_launch_s(ehr, settings, method):
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE[:3],
        "django.middleware.locale.LocaleMiddleware",
        *settings.MIDDLEWARE[3:],
    ]
    chart = open_chart(ehr)
    get = getattr(chart, method)
    response = get("/links/?a=1", headers={"accept-language": "de"})
    assert response["Location"] == chart.url("/de/links/?a=1")
    links = text_of(get("/de/links/")).split()
    assert links[0] == chart.url("/de/links/")
    assert links[3] == "/smart/login/"
    assert get("/smart/jwks.json")["Location"] == "/smart/jwks.json"


# A sign-out, and who signs in, under a prefix


def post(chart: Chart, path: str, values: dict[str, str], *, is_async: bool) -> Any:
    """POST as ASGI or as WSGI does it."""
    if not is_async:
        return chart.post(path, values)
    browser = make_async_browser(chart.browser)
    return async_to_sync(browser.post)(chart.url(path), values, secure=True)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("setting", ["links", "/links/"])
def test_sign_out_of_the_site_leads_out_of_the_prefix(ehr, settings, setting, is_async):
    settings.LOGOUT_REDIRECT_URL = setting
    chart = open_chart(ehr)
    response = post(chart, "/accounts/logout/", {}, is_async=is_async)
    assert (response.status_code, response["Location"]) == (302, "/links/")
    assert chart.get("/links/").status_code == 410
    assert chart.browser.get("/links/").status_code == 200


def test_sign_out_of_a_mounted_site_stays_there(ehr, settings):
    settings.LOGOUT_REDIRECT_URL = "links"
    chart = open_chart(ehr, make_mounted_browser())
    assert chart.post("/accounts/logout/")["Location"] == "/app/links/"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_same", [False, True])
def test_sign_in_leads_to_the_launch_of_its_own_user_alone(
    ehr, settings, django_user_model, is_same, is_async
):
    settings.LOGIN_REDIRECT_URL = "links"
    owner: Any = open_chart(ehr).launch.user
    user = owner if is_same else django_user_model(username="sam")
    user.set_password("a password")
    user.save()
    chart = open_chart(ehr)
    values = {"username": user.username, "password": "a password"}
    response = post(chart, "/accounts/login/", values, is_async=is_async)
    assert response.status_code == 302
    assert response["Location"] == (chart.url("/links/") if is_same else "/links/")
    chart.browser.cookies.update(response.cookies)
    assert chart.browser.get(response["Location"]).status_code == 200


# A site that is not at the root of its host


def test_mounted_site_keeps_both_prefixes(ehr, settings):
    settings.STATIC_URL = "static/"
    settings.MEDIA_URL = "media/"
    settings.LOGIN_URL = "login"
    chart = open_chart(ehr, make_mounted_browser())
    assert chart.landing == f"/app/~{chart.launch.key}/"
    assert text_of(chart.get("/links/")).split() == [
        chart.url("/links/"),
        "/app/static/a.css",
        "/app/media/b.png",
        "/app/smart/login/",
        chart.url("/links/"),
    ]
    assert chart.get("/go/")["Location"] == chart.url("/links/")
    assert chart.get("/links")["Location"] == chart.url("/links/")
    assert chart.get("/smart/jwks.json?a=1")["Location"] == "/app/smart/jwks.json?a=1"
    assert text_of(chart.get("/stream/")).split()[0] == chart.url("/links/")
    chart.landing = "/app/"
    assert text_of(chart.get("/links/")).split()[0] == "/app/links/"


def test_mounted_site_sees_which_chart_a_request_comes_from(ehr):
    chart = open_chart(ehr, make_mounted_browser())
    chart.landing = "/app/"
    for key, launched in ((chart.launch.key, True), (KEY, False)):
        referer = f"https://app.example.org/app/~{key}/form/"
        response = chart.get("/whoami/", headers={"referer": referer})
        assert response.json()["launched"] is launched


@pytest.mark.django_db(transaction=True)
def test_mounted_asgi_site_keeps_both_prefixes(ehr):
    chart = open_chart(ehr)
    cookies = "; ".join(f"{k}={m.value}" for k, m in chart.browser.cookies.items())
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "https",
        "root_path": "/app",
        "path": f"/app/~{chart.launch.key}/links/",
        "query_string": b"",
        "headers": [(b"host", b"app.example.org"), (b"cookie", cookies.encode())],
    }

    async def exchange() -> list[dict[str, Any]]:
        communicator = ApplicationCommunicator(ASGIHandler(), scope)
        await communicator.send_input({"type": "http.request", "body": b""})
        start = await communicator.receive_output(60)
        body = await communicator.receive_output(60)
        await communicator.wait(60)
        return [start, body]

    # The handler works in a thread and a task of its own.
    start, body = async_to_sync(exchange)()
    assert start["status"] == 200
    links = body["body"].decode().split()
    assert links[0] == f"/app/~{chart.launch.key}/links/"
    assert links[3] == "/app/smart/login/"
