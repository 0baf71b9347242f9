"""Pages under a launch, and the caches on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.utils.decorators import sync_and_async_middleware
from django.views.decorators.cache import cache_control

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser
from tests.site.browsers import make_async_browser, open_chart
from tests.site.urls import urlpatterns as site

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launches.test_caches"),
    pytest.mark.usefixtures("registration"),
]

_PAIR = (
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
)
_INSIDE = "django_smart.middleware.SMARTCacheMiddleware"
_seen: list[str] = []


def show(request: HttpRequest) -> HttpResponse:
    """The patient of the launch, by code that does not look at the session."""
    _seen.append(request.path)
    return HttpResponse(request.smart.patient_id)  # type: ignore[attr-defined]


urlpatterns = [
    *site,
    path("shown/", show),
    path("short/", cache_control(max_age=60, private=True)(show)),
    path("public/", cache_control(max_age=60, public=True)(show)),
]


@pytest.fixture(params=["with ours inside", "without"])
def cached_site(settings: Any, request: Any) -> Iterator[None]:
    """Django's per-site cache, inside our middleware, as its documentation says."""
    ours, *others = settings.MIDDLEWARE
    inside = [_INSIDE] if request.param == "with ours inside" else []
    settings.MIDDLEWARE = [ours, _PAIR[0], *others, *inside, _PAIR[1]]
    settings.CACHE_MIDDLEWARE_SECONDS = 600
    _seen.clear()
    yield
    cache.clear()


ours_inside = pytest.mark.parametrize(
    "cached_site", ["with ours inside"], indirect=True
)
both_stacks = pytest.mark.parametrize("method", ["get", "aget"])


def _read(
    browser: Client, opened: Launch, page: str = "shown", *, method: str = "get"
) -> Any:
    url = f"/~{opened.key}/{page}/"
    if method == "get":
        return browser.get(url)
    return async_to_sync(make_async_browser(browser).get)(url, secure=True)


def test_page_of_a_launch_is_kept_by_nobody(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert _read(browser, opened)["Cache-Control"] == "private, no-store"
    assert browser.get("/shown/")["Cache-Control"] == "private, no-store"
    # Without a patient, it is the site's.
    assert "Cache-Control" not in make_browser().get("/shown/")


def test_view_may_say_otherwise(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert _read(browser, opened, "short")["Cache-Control"] == "max-age=60, private"


@pytest.mark.usefixtures("cached_site")
def test_ended_launch_is_not_shown_from_the_cache_of_the_site(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert [_read(browser, opened).status_code for _ in range(2)] == [200, 200]
    Launch.objects.filter(pk=opened.pk).end(reason="idle", now=timezone.now())
    response = _read(browser, opened)
    assert response.status_code == 410
    assert opened.context["patient"] not in response.content.decode()


@pytest.mark.usefixtures("cached_site")
def test_another_browser_is_not_shown_the_cache_of_the_site(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert _read(browser, opened).status_code == 200
    response = _read(make_browser(), opened)
    assert response.status_code == 403
    assert opened.context["patient"] not in response.content.decode()


@pytest.mark.usefixtures("cached_site")
def test_unknown_key_is_not_shown_the_cache_of_the_site(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert _read(browser, opened).status_code == 200
    Launch.objects.filter(pk=opened.pk).delete()
    assert _read(browser, opened).status_code == 404


@ours_inside
@both_stacks
@pytest.mark.parametrize("page", ["shown", "short"])
@pytest.mark.usefixtures("cached_site")
def test_page_of_a_launch_never_enters_the_cache_of_the_site(
    ehr: EHRSimulator, page: str, method: str
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    for count in (1, 2):
        response = _read(browser, opened, page, method=method)
        assert response.content.decode() == opened.context["patient"]
        assert len(_seen) == count


@ours_inside
@pytest.mark.usefixtures("cached_site")
def test_page_without_a_prefix_that_used_a_launch_is_not_cached(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    pages = [browser.get("/shown/").content.decode() for _ in range(2)]
    assert (pages, len(_seen)) == ([opened.context["patient"]] * 2, 2)
    # What has to do with no launch is.
    assert len([make_browser().get("/whoami/") for _ in range(2)]) == 2
    assert len(_seen) == 2


@ours_inside
@both_stacks
@pytest.mark.parametrize("status", [410, 403, 404])
@pytest.mark.usefixtures("cached_site")
def test_key_is_checked_before_the_cache_is_asked(
    ehr: EHRSimulator, method: str, status: int
) -> None:
    """Of a page that its view has made public, so that the cache has it."""
    browser = make_browser()
    opened = launch(browser, ehr)
    for _ in range(2):
        response = _read(browser, opened, "public", method=method)
        assert response.content.decode() == opened.context["patient"]
        assert len(_seen) == 1
    launches = Launch.objects.filter(pk=opened.pk)
    if status == 410:
        launches.end(reason="idle", now=timezone.now())
    elif status == 404:
        launches.delete()
    else:
        browser = make_browser()
    response = _read(browser, opened, "public", method=method)
    assert response.status_code == status
    assert opened.context["patient"] not in response.content.decode()


@sync_and_async_middleware
def answer_early(get_response: Any) -> Any:
    """A middleware that answers before session and user are loaded."""

    def answer(request: HttpRequest) -> HttpResponse | None:
        if request.method == "OPTIONS" and request.path_info != "/shown/":
            return HttpResponse(headers={"Access-Control-Allow-Origin": "*"})
        return HttpResponse("file") if request.path_info == "/app.js" else None

    async def answer_async(request: HttpRequest) -> HttpResponse:
        return answer(request) or await get_response(request)

    def answer_sync(request: HttpRequest) -> HttpResponse:
        return answer(request) or get_response(request)

    return answer_async if iscoroutinefunction(get_response) else answer_sync


@pytest.fixture
def early_answers(settings: Any) -> None:
    """As WhiteNoise and django-cors-headers ask to be placed."""
    ours, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [ours, f"{__name__}.answer_early", *others]


@both_stacks
@pytest.mark.usefixtures("early_answers")
def test_key_is_checked_for_what_is_answered_before_the_user_is_known(
    ehr: EHRSimulator, method: str
) -> None:
    chart = open_chart(ehr)
    get = getattr(chart, method)
    assert chart.launch.user_id is not None
    assert get("/app.js").content == b"file"
    # Whoever has only the browser's cookie is not that user.
    del chart.browser.cookies["sessionid"]
    response = get("/app.js")
    assert (response.status_code, response.context["code"]) == (
        403,
        "launch_signed_out",
    )
    chart.browser.cookies.clear()
    assert get("/app.js").context["code"] == "launch_foreign"


@pytest.mark.usefixtures("early_answers")
def test_user_whose_session_gets_another_key_stays_signed_in(
    ehr: EHRSimulator, settings: Any
) -> None:
    chart = open_chart(ehr)
    before = chart.browser.cookies["sessionid"].value
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 10
    assert chart.get("/app.js").content == b"file"
    assert chart.browser.cookies["sessionid"].value != before
    assert chart.get("/shown/").status_code == 200


@pytest.mark.usefixtures("early_answers")
def test_preflight_has_no_cookies_and_is_not_refused(ehr: EHRSimulator) -> None:
    chart = open_chart(ehr)
    chart.browser.cookies.clear()
    asked = {"Access-Control-Request-Method": "POST"}

    def ask(method: str, path: str, **headers: str) -> int:
        url = chart.url(path)
        return chart.browser.generic(method, url, headers=headers).status_code

    assert ask("OPTIONS", "/app.js", **asked) == 200
    # Nothing else is, nor is a view called.
    assert ask("OPTIONS", "/app.js") == 403
    assert ask("GET", "/app.js", **asked) == 403
    assert ask("OPTIONS", "/shown/", **asked) == 403
