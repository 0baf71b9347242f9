"""``request.smart``: what the EHR said of the launch, in every way it is offered."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.template import engines

from django_smart.exceptions import BearerBoundaryError
from django_smart.models import Launch
from django_smart.protocol.style import SMARTStyle
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import make_browser
from tests.site.browsers import SITE_MARKS, Chart, make_context, open_chart

pytestmark = SITE_MARKS

ROLE = "https://example.org/roles/friend"


def open_context(ehr: EHRSimulator, **values: Any) -> Any:
    """``request.smart`` of a page of a new launch."""
    chart = open_chart(ehr, **values)
    return make_context(chart, user=chart.launch.user)


def make_empty_context() -> Any:
    return make_context(Chart(make_browser(), Launch(), "/"), user=AnonymousUser())


# Context


@pytest.mark.compliance("FCTX-01", "FCTX-02", "FCTX-04", "FCTX-05")
def test_further_resources_are_found_by_role(ehr):
    items = [
        {"reference": "List/1"},
        {"reference": "List/2", "role": "launch"},
        {"reference": "Patient/7", "role": ROLE},
        {"identifier": {"value": "x"}, "type": "Task", "role": ROLE, "more": [1]},
        {"display": "none of the three"},
    ]
    context = open_context(ehr, fhir_context=items)
    assert [item.reference for item in context.items_with_role()] == [
        "List/1",
        "List/2",
    ]
    friends = context.items_with_role(ROLE)
    assert [item.reference for item in friends] == ["Patient/7", ""]
    assert friends[1].extra == {"more": [1]}
    assert context.items_with_role("https://example.org/roles/other") == ()
    assert len(context.fhir_context) == 4
    assert make_empty_context().items_with_role() == ()


@pytest.mark.compliance("FCTX-07", "FCTX-08")
def test_references_are_resolved_at_the_server_of_the_launch_alone(ehr):
    observation = next(iter(ehr.data["Observation"]))
    items = [
        {"reference": f"Observation/{observation}"},
        {"canonical": "https://elsewhere.example.net/Questionnaire/1|2"},
    ]
    context = open_context(ehr, fhir_context=items)
    inside, outside = context.fhir_context
    ehr.clear_requests()
    assert context.fhir.resolve(inside.reference)["id"] == observation
    assert ehr.requests[0].url == f"{ehr.base_url}/{inside.reference}"
    with pytest.raises(BearerBoundaryError):
        context.fhir.resolve(outside.canonical)
    assert len(ehr.requests) == 1


# Style


@pytest.mark.compliance("RESP-15", "RESP-16")
def test_style_of_the_ehr_is_a_value(ehr):
    context = open_context(ehr)
    # A launch does not wait for it.
    assert ehr.requests_to("smart-style") == []
    assert context.style.color_text == "#2a2520"
    assert context.style.font_family_heading == "Georgia, serif"
    (request,) = ehr.requests_to("smart-style")
    assert "Authorization" not in request.headers
    assert open_context(ehr).style == context.style
    assert len(ehr.requests_to("smart-style")) == 1


def test_event_loop_is_not_held_up_by_a_style(ehr):
    context = open_context(ehr)

    async def use() -> SMARTStyle | None:
        await context.aload()
        assert context.style is None
        assert ehr.requests_to("smart-style") == []
        style = await context.astyle()
        assert context.style is style
        return style

    style = async_to_sync(use)()
    assert style is not None
    assert style.color_text == "#2a2520"
    assert len(ehr.requests_to("smart-style")) == 1


# {% smart_style %}


def render(smart: Any, source: str = "{% smart_style %}", **values: Any) -> str:
    template = engines["django"].from_string("{% load smart %}[" + source + "]")

    class Request:
        pass

    request = Request()
    if smart is not None:
        request.smart = smart  # type: ignore[attr-defined]
    return template.render({"request": request, **values})


@pytest.mark.compliance("RESP-15")
def test_tag_sets_custom_properties(ehr):
    page = render(open_context(ehr))
    assert page.startswith("[<style>:root{--smart-color-background:#fbfaf7;")
    assert page.endswith("--smart-font-family-heading:Georgia, serif;}</style>]")


def test_tag_takes_the_nonce_of_the_page(ehr):
    page = render(open_context(ehr), "{% smart_style nonce=n %}", n='a"b')
    assert page.startswith('[<style nonce="a&quot;b">:root{')


def test_tag_is_empty_without_a_style_a_launch_or_the_middleware(ehr):
    assert render(None) == "[]"
    assert render(make_empty_context()) == "[]"
    template = engines["django"].from_string("{% load smart %}[{% smart_style %}]")
    assert template.render({}) == "[]"
    answer(ehr, "/smart-style.json", status=500)
    assert render(open_context(ehr)) == "[]"


def test_tag_breaks_no_page_of_an_event_loop(ehr):
    context = open_context(ehr)

    async def use() -> tuple[str, str]:
        unasked = render(context)
        await context.astyle()
        return unasked, render(context)

    unasked, asked = async_to_sync(use)()
    assert unasked == "[]"
    assert "--smart-color-text" in asked
