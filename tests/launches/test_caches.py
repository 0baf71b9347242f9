"""Pages under a launch, and the caches on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.views.decorators.cache import cache_control

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser
from tests.site.browsers import make_async_browser
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


@pytest.fixture
def cached_site(settings: Any) -> Iterator[None]:
    """Django's per-site cache, inside our middleware, as its documentation says."""
    ours, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [ours, _PAIR[0], *others, _INSIDE, _PAIR[1]]
    settings.CACHE_MIDDLEWARE_SECONDS = 600
    _seen.clear()
    yield
    cache.clear()


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
