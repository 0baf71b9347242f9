"""``SMARTRequiredMixin``: the decorator's rules for classes."""

from __future__ import annotations

import pytest
from django.http import HttpRequest
from django.views.generic import TemplateView

from django_smart.mixins import SMARTRequiredMixin
from django_smart.models import Launch
from tests.ehr import PATIENT, make_browser
from tests.site.browsers import SITE_MARKS, Chart, open_chart

pytestmark = SITE_MARKS

stacks = pytest.mark.parametrize("method", ["get", "aget"])


@stacks
@pytest.mark.parametrize("path", ["/chart/mixin/", "/chart/mixin/async/"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_view_runs_with_a_launch_that_suffices(ehr, method, path, prefixed):
    chart = open_chart(ehr)
    if not prefixed:
        chart.landing = "/"
    assert getattr(chart, method)(path).json()["patient"] == PATIENT


@stacks
@pytest.mark.parametrize("path", ["/chart/mixin/", "/chart/mixin/async/"])
def test_view_does_not_run_without_a_launch(method, path):
    stranger = Chart(make_browser(), Launch(), "/")
    response = getattr(stranger, method)(path)
    assert response.status_code == 403
    assert b"<code>no_launch</code>" in response.content


@stacks
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/chart/mixin/missing/", b"Condition"),
        ("/chart/mixin/encounter/", b"<code>encounter_missing</code>"),
    ],
)
def test_what_is_missing_is_named(ehr, method, path, expected):
    response = getattr(open_chart(ehr), method)(path)
    assert response.status_code == 403
    assert expected in response.content


def test_methods_that_the_view_lacks_are_refused_as_ever(ehr):
    chart = open_chart(ehr)
    assert chart.post("/chart/mixin/").status_code == 405
    assert chart.post("/chart/mixin/async/").status_code == 405


def test_mixin_goes_before_other_views():
    class Page(SMARTRequiredMixin, TemplateView):
        def get_context_data(self, **kwargs: object) -> dict[str, object]:
            return {}

    assert Page.mro().index(SMARTRequiredMixin) < Page.mro().index(TemplateView)
    request = HttpRequest()
    assert Page(request=request).request is request
