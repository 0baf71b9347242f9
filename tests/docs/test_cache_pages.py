"""What the page about caches says to write."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpResponse
from django.urls import path

from django_smart.checks import check_structure
from django_smart.decorators import smart_required
from django_smart.testing import EHRSimulator
from tests.docs.blocks import apply, read_blocks
from tests.ehr import launch, make_browser
from tests.site.urls import urlpatterns as site

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.docs.test_cache_pages")]

_VIEW, _MIDDLEWARE = read_blocks("how-to/views.rst", "Cached pages")


def _make_view() -> Any:
    names: dict[str, Any] = {
        "__name__": __name__,
        "HttpResponse": HttpResponse,
        "smart_required": smart_required,
    }
    body = "return HttpResponse(request.smart.patient_id)"
    exec(_VIEW.code.replace("...", body), names)
    return names["growth_chart"]


def _home(request: Any) -> HttpResponse:
    return HttpResponse("open" if request.smart else "none")


urlpatterns = [*site, path("growth/", _make_view()), path("home/", _home)]


@pytest.mark.usefixtures("registration")
def test_view_keeps_its_page_for_a_minute(ehr: EHRSimulator, settings: Any) -> None:
    apply(settings, _MIDDLEWARE)
    assert check_structure() == []
    browser = make_browser()
    opened = launch(browser, ehr)
    response = browser.get(f"/~{opened.key}/growth/")
    assert response.content.decode() == opened.context["patient"]
    assert response["Cache-Control"] == "private, max-age=60"


@pytest.mark.usefixtures("registration")
def test_page_of_nobody_is_not_served_to_whom_has_a_chart_open(
    ehr: EHRSimulator, settings: Any
) -> None:
    apply(settings, _MIDDLEWARE)
    assert make_browser().get("/home/").content == b"none"
    browser = make_browser()
    launch(browser, ehr)
    assert browser.get("/home/").content == b"open"
