"""
The site of the walks: pages that say whose they are, as any site would build them.

Every value that could be another patient's is marked with ``data-patient``.  Half of
the links and forms are built by name, the others are paths written by hand, which know
nothing of launches.  What a form has done is told by a message on the next page.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path, reverse
from django.utils.html import format_html_join
from django.views.decorators.http import require_POST
from django.views.generic import View

from django_smart.decorators import smart_required
from django_smart.error_pages import render_error
from django_smart.exceptions import SMARTError
from django_smart.mixins import SMARTRequiredMixin
from tests.urls import urlpatterns as package

_PAGE = """{% load smart %}<!doctype html><html lang="en"><title>Chart</title>
<script>
// As htmx does it, and whatever comes is shown.
async function load(button) {
  const headers = {"HX-Request": "true", "HX-Current-URL": location.href};
  const response = await fetch(button.getAttribute("hx-get"), {headers});
  return document.querySelector("#part").innerHTML = await response.text();
}
</script>
{% for message in messages %}{% if message.extra_tags == "patient" %}
<p data-patient="{{ message }}">Saved</p>{% endif %}{% endfor %}
<h1 data-patient="{{ patient }}">{{ name }}</h1>
<p data-page="{{ page }}"></p>
<ul>{% for each in observations %}<li data-patient="{{ each }}"></li>{% endfor %}</ul>
<a href="{% url 'patient' %}" data-by-name>by name</a>
<a href="{% url 'labs' %}?page=1" data-by-name>by name</a>
<a href="?page=2">relative</a>
<a href="/patient/">by hand</a>
<a href="/labs/?page=1">by hand</a>
<a href="/moved">by hand</a>
<button hx-get="{% url 'part' %}" data-by-name type="button">part</button>
<button hx-get="/part/" type="button">part by hand</button>
<div id="part"></div>
{% for action, mark in actions %}<form action="{{ action }}"{{ mark }} method="post">
{% csrf_token %}
<input type="hidden" name="patient" value="{{ patient }}">
<input type="hidden" name="number" value="{{ number }}"><button>Write</button></form>
{% endfor %}
<form method="post" action="{% smart_url 'logout' %}">{% csrf_token %}
<button>Sign out</button></form></html>"""
_PART = '<p data-patient="{{ patient }}">{{ name }}</p>'

#: What forms have written: the patient that the form named, and that of the launch.
notes: list[tuple[str, str]] = []


def _render(
    request: HttpRequest, text: str, context: dict[str, Any] | None = None
) -> HttpResponse:
    """A page of the launch's patient, who is read from the EHR."""
    fhir = request.smart.fhir  # type: ignore[attr-defined]
    try:
        patient = fhir.read("Patient", request.smart.patient_id)  # type: ignore[attr-defined]
    except SMARTError as exc:
        return render_error(request, exc)
    context = {
        "patient": patient["id"],
        "name": patient["name"][0]["family"],
        "number": time.monotonic_ns(),
        **(context or {}),
    }
    return HttpResponse(_compile(text).render(context, request))


@cache
def _compile(text: str) -> Any:
    return engines["django"].from_string(text)


def _get_context(page: str) -> dict[str, Any]:
    return {
        "page": page,
        "actions": [
            (reverse("note"), " data-by-name"),
            (reverse("anote"), " data-by-name"),
            ("/note/", ""),
            ("/anote/", ""),
        ],
    }


@smart_required
def patient(request: HttpRequest) -> HttpResponse:
    """Who the chart is about."""
    return _render(request, _PAGE, _get_context("patient"))


class Labs(SMARTRequiredMixin):
    """Results, in pages."""

    smart_context = "patient"

    def get(self, request: HttpRequest) -> HttpResponse:
        """One page of them."""
        smart = request.smart  # type: ignore[attr-defined]
        try:
            found = smart.fhir.search(
                "Observation", patient=smart.patient_id, _count=3, limit=4
            )
            subjects = [each["subject"]["reference"] for each in found]
        except SMARTError as exc:
            return render_error(request, exc)
        context = _get_context("labs") | {
            "observations": [each.removeprefix("Patient/") for each in subjects]
        }
        return _render(request, _PAGE, context)


@smart_required
async def part(request: HttpRequest) -> HttpResponse:
    """A part of a page, for a script; the page after it has something to say."""
    smart = await request.asmart()  # type: ignore[attr-defined]
    messages.info(request, smart.patient_id, extra_tags="patient")
    return await sync_to_async(_render)(request, _PART)


def _write(request: HttpRequest) -> HttpResponse:
    smart = request.smart  # type: ignore[attr-defined]
    notes.append((request.POST.get("patient", ""), smart.patient_id))
    messages.success(request, smart.patient_id, extra_tags="patient")
    return redirect("patient")


@require_POST
@smart_required
def note(request: HttpRequest) -> HttpResponse:
    """Writes a note into the chart."""
    return _write(request)


class ANote(SMARTRequiredMixin, View):
    """The same, asynchronous."""

    async def post(self, request: HttpRequest) -> HttpResponse:
        """Write a note."""
        await request.asmart()  # type: ignore[attr-defined]
        return await sync_to_async(_write)(request)


def beside(request: HttpRequest) -> HttpResponse:
    """Pages side by side, in frames of this site's own."""
    pages = [[url] for url in request.GET.getlist("url")]
    return HttpResponse(format_html_join("", '<iframe src="{}"></iframe>', pages))


urlpatterns = [
    *package,
    path("", patient),
    path("patient/", patient, name="patient"),
    path("labs/", Labs.as_view(), name="labs"),
    path("moved/", lambda request: redirect("patient")),
    path("part/", part, name="part"),
    path("note/", note, name="note"),
    path("anote/", ANote.as_view(), name="anote"),
    path("beside/", beside),
]
