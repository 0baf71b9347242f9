"""Pages under a launch, and the caches on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.views.decorators.cache import cache_control

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser
from tests.urls import urlpatterns as site

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launches.test_caches"),
    pytest.mark.usefixtures("registration"),
]

_PAIR = (
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
)


def show(request: HttpRequest) -> HttpResponse:
    """The patient of the launch, by code that does not look at the session."""
    return HttpResponse(request.smart.patient_id)  # type: ignore[attr-defined]


urlpatterns = [
    *site,
    path("shown/", show),
    path("short/", cache_control(max_age=60, private=True)(show)),
]


@pytest.fixture
def cached_site(settings: Any) -> Iterator[None]:
    """Django's per-site cache, inside our middleware, as its documentation says."""
    ours, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [ours, _PAIR[0], *others, _PAIR[1]]
    settings.CACHE_MIDDLEWARE_SECONDS = 600
    yield
    cache.clear()


def _read(browser: Client, opened: Launch, page: str = "shown") -> Any:
    return browser.get(f"/~{opened.key}/{page}/")


def test_page_of_a_launch_is_kept_by_nobody(ehr: EHRSimulator) -> None:
    browser = make_browser()
    opened = launch(browser, ehr)
    assert _read(browser, opened)["Cache-Control"] == "private, no-store"
    assert "Cache-Control" not in browser.get("/shown/")


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
