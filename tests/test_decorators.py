"""``smart_required``: who may see a view, and what everybody else is told."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import quote

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.utils import timezone

from django_smart.decorators import smart_required
from django_smart.exceptions import ScopeSyntaxError
from django_smart.models import ClientRegistration, Launch
from tests.ehr import PATIENT, make_browser
from tests.site.browsers import SITE_MARKS, Chart, open_chart

pytestmark = SITE_MARKS

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
SATISFIED = (
    *("/chart/", "/chart/called/", "/chart/scopes/", "/chart/scope-set/"),
    *("/chart/context/", "/chart/async/"),
    *("/chart/decorated/", "/chart/decorated/async/"),
    "/chart/decorated/among-others/",
)
stacks = pytest.mark.parametrize("method", ["get", "aget"])


def make_stranger() -> Chart:
    """A browser without any launch."""
    return Chart(make_browser(), Launch(), "/")


def links_of(response: Any) -> list[str]:
    """Where the page's links lead."""
    return [
        html.unescape(url)
        for url in re.findall(r'<a [^>]*href="(/[^"]+)"', response.content.decode())
    ]


@stacks
@pytest.mark.parametrize("path", SATISFIED)
def test_view_runs_with_a_launch_that_suffices(ehr, method, path):
    chart = open_chart(ehr)
    assert getattr(chart, method)(path).json()["patient"] == PATIENT
    chart.landing = "/"
    assert getattr(chart, method)(path).json()["patient"] == PATIENT


@stacks
@pytest.mark.parametrize("path", SATISFIED)
def test_view_does_not_run_without_a_launch(method, path):
    response = getattr(make_stranger(), method)(path)
    assert response.status_code == 403
    assert b"<code>no_launch</code>" in response.content
    assert response["Cache-Control"] == "private, no-store"
    assert links_of(response) == [f"/smart/login/?next={quote(path, safe='')}"]


@stacks
def test_login_is_offered_only_if_there_is_something_to_log_in_to(method):
    ClientRegistration.objects.update(standalone_scope="")
    for path in ("/chart/", "/~unknown/chart/"):
        response = getattr(make_stranger(), method)(path)
        assert response.status_code in {403, 404}
        assert links_of(response) == []
        assert b"connect your records" not in response.content


@stacks
@pytest.mark.parametrize("path", ["/chart/missing/", "/chart/async/missing/"])
def test_missing_scopes_are_named(ehr, method, path):
    chart = open_chart(ehr)
    response = getattr(chart, method)(path)
    assert response.status_code == 403
    text = response.content.decode()
    assert "<code>scope_insufficient</code>" in text
    assert "Condition" in text
    assert "Observation" not in text


@stacks
def test_scopes_that_are_not_asked_for_are_logged(ehr, method, caplog):
    chart = open_chart(ehr)
    getattr(chart, method)("/chart/missing/")
    assert caplog.text.count("does not request") == 1
    assert "patient/Condition" in caplog.text
    caplog.clear()
    Launch.objects.update(scope_asked="patient/*.cruds")
    getattr(chart, method)("/chart/missing/")
    assert "does not request" not in caplog.text


@stacks
def test_missing_context_is_named(ehr, method):
    response = getattr(open_chart(ehr), method)("/chart/encounter/")
    assert response.status_code == 403
    assert b"<code>encounter_missing</code>" in response.content


def test_encounter_in_context_suffices(ehr):
    encounter = next(iter(ehr.data["Encounter"]))
    chart = open_chart(ehr, encounter=encounter)
    assert chart.get("/chart/encounter/").status_code == 200


@stacks
def test_several_launches_are_listed_to_choose_from(ehr, method):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    # Of other people, and over: not to be shown.
    open_chart(ehr)
    plain = Chart(one.browser, one.launch, "/")
    response = getattr(plain, method)("/chart/?a=1&b=%2F%C3%A9")
    assert response.status_code == 403
    assert b"<code>ambiguous</code>" in response.content
    links = links_of(response)
    expected = {chart.url("/chart/?a=1&b=%2F%C3%A9") for chart in (one, two)}
    assert {link for link in links if "~" in link} == expected
    for link in expected:
        assert one.browser.get(link).status_code == 200
    # A patient's name or id has no place on a page that was not asked for by one.
    assert PATIENT.encode() not in response.content


@stacks
def test_ended_launch_is_counted_but_not_listed(ehr, method):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    Launch.objects.filter(pk=one.launch.pk).end(reason="test", now=timezone.now())
    response = getattr(Chart(one.browser, one.launch, "/"), method)("/chart/")
    assert b"<code>ambiguous</code>" in response.content
    assert [link for link in links_of(response) if "~" in link] == [two.url("/chart/")]


def test_launches_without_a_user_are_not_listed_to_who_signs_in_later(
    ehr, django_user_model
):
    ClientRegistration.objects.update(ehr_scope="launch patient/Patient.rs")
    one = open_chart(ehr)
    open_chart(ehr, one.browser)
    plain = Chart(one.browser, one.launch, "/")
    assert len([x for x in links_of(plain.get("/chart/")) if "~" in x]) == 2
    one.browser.force_login(django_user_model.objects.create_user("sam"))
    response = plain.get("/chart/")
    assert response.status_code == 403
    assert not [x for x in links_of(response) if "~" in x]


def test_decorated_view_keeps_its_name():
    @smart_required(scopes="patient/Patient.r")
    def view(request: Any) -> HttpResponse:
        """Its text."""
        return HttpResponse()

    assert (view.__name__, view.__doc__) == ("view", "Its text.")


def test_wrong_scopes_are_found_when_the_module_is_loaded():
    with pytest.raises(ScopeSyntaxError):
        smart_required(scopes="patient/Patient.sr")


def test_decorator_asks_for_the_middleware(rf):
    @smart_required
    def view(request: Any) -> HttpResponse:
        return HttpResponse()

    with pytest.raises(ImproperlyConfigured, match="SMARTMiddleware"):
        view(rf.get("/"))
