"""Views as sites have them; none of them knows of launch prefixes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.shortcuts import redirect
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import TemplateView, View

from django_smart.decorators import smart_required
from django_smart.mixins import SMARTRequiredMixin
from django_smart.protocol.scopes import ScopeSet

_LINKS = (
    "{% load static smart %}"
    "{% url 'links' %} {% static 'a.css' %} {% get_media_prefix %}b.png "
    "{% smart_url 'login' %} {{ request.get_full_path }}"
)
_FORM = (
    "<form method=post action=\"{% url 'form' %}\">{% csrf_token %}"
    "{{ request.smart.patient_id }}</form>"
)


def render_links(request: HttpRequest) -> str:
    """The links of a page, separated by spaces."""
    return engines["django"].from_string(_LINKS).render({}, request)


def describe(request: HttpRequest) -> dict[str, Any]:
    """What a view can learn of its launch."""
    smart = request.smart  # type: ignore[attr-defined]
    return {
        "launched": bool(smart),
        "patient": smart.patient_id,
        "reason": smart.reason,
        "url": reverse("whoami"),
    }


def links(request: HttpRequest) -> HttpResponse:
    """Links by every tag that builds one."""
    return HttpResponse(render_links(request))


def template(request: HttpRequest) -> TemplateResponse:
    """The same, rendered after the view has returned."""
    return TemplateResponse(request, engines["django"].from_string(_LINKS))


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """The same, rendered after every middleware has returned."""

    def parts() -> Iterator[str]:
        yield render_links(request)
        yield f" {reverse('links')}"

    return StreamingHttpResponse(parts())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    """The same under ASGI."""

    async def parts() -> AsyncIterator[str]:
        yield await sync_to_async(render_links)(request)
        yield f" {reverse('links')}"

    return StreamingHttpResponse(parts())


class Page(TemplateView):
    """A class-based view."""

    def render_to_response(self, context: Any, **kwargs: Any) -> HttpResponse:
        """The links again."""
        return HttpResponse(render_links(self.request))


def whoami(request: HttpRequest) -> JsonResponse:
    """Needs no launch."""
    return JsonResponse(describe(request))


async def awhoami(request: HttpRequest) -> JsonResponse:
    """Needs no launch, and waits for it."""
    await request.asmart()  # type: ignore[attr-defined]
    return JsonResponse(describe(request))


def untouched(request: HttpRequest) -> HttpResponse:
    """Asks for nothing; tells whether the session was read."""
    return HttpResponse(str(request.session.accessed))


def go(request: HttpRequest) -> HttpResponseRedirect:
    """A redirect by name."""
    return redirect("links")


def numbers(request: HttpRequest) -> JsonResponse:
    """A list in pages."""
    page = Paginator(range(25), 10).get_page(request.GET.get("page"))
    following = (
        f"{request.path}?page={page.next_page_number()}" if page.has_next() else None
    )
    return JsonResponse({"items": list(page), "next": following})


def form(request: HttpRequest) -> HttpResponse:
    """A form that posts to itself."""
    if request.method == "POST":
        return redirect("links")
    return HttpResponse(engines["django"].from_string(_FORM).render({}, request))


@login_required
def private(request: HttpRequest) -> HttpResponse:
    """For signed-in users."""
    return HttpResponse(request.user.get_username())


def broken(request: HttpRequest) -> HttpResponse:
    """Fails."""
    raise ZeroDivisionError


def fhir(request: HttpRequest) -> JsonResponse:
    """Reads the patient of the launch."""
    smart = request.smart  # type: ignore[attr-defined]
    return JsonResponse({"id": smart.fhir.read("Patient", smart.patient_id)["id"]})


def _ok(request: HttpRequest) -> JsonResponse:
    return JsonResponse(describe(request))


async def _aok(request: HttpRequest) -> JsonResponse:
    return JsonResponse(describe(request))


chart = smart_required(_ok)
chart_called = smart_required()(_ok)
chart_scopes = smart_required(scopes="patient/Patient.rs")(_ok)
chart_scope_set = smart_required(scopes=ScopeSet.parse("patient/Patient.r"))(_ok)
chart_missing = smart_required(scopes="patient/Patient.r patient/Condition.rs")(_ok)
chart_context = smart_required(context="patient")(_ok)
chart_encounter = smart_required(context=("patient", "encounter"))(_ok)
achart = smart_required(_aok)
achart_missing = smart_required(scopes="patient/Condition.rs")(_aok)


@method_decorator(smart_required(scopes="patient/Patient.rs"), name="dispatch")
class Decorated(View):
    """Decorated as Django's own decorators are put on classes."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """What the launch is."""
        return JsonResponse(describe(request))


@method_decorator(smart_required, name="dispatch")
class ADecorated(View):
    """The same, asynchronous."""

    async def get(self, request: HttpRequest) -> JsonResponse:
        """What the launch is."""
        return JsonResponse(describe(request))


@method_decorator([smart_required, csrf_exempt], name="dispatch")
class AmongOthers(ADecorated):
    """The same, between other decorators."""


class Mixed(SMARTRequiredMixin):
    """With the mixin."""

    smart_scopes: str | ScopeSet = "patient/Patient.rs"
    smart_context: str | tuple[str, ...] = "patient"

    def get(self, request: HttpRequest) -> JsonResponse:
        """What the launch is."""
        return JsonResponse(describe(request))


class MixedMissing(Mixed):
    """With the mixin, and a scope that nobody grants."""

    smart_scopes = ScopeSet.parse("patient/Condition.rs")


class MixedEncounter(Mixed):
    """With the mixin, and context that the launch lacks."""

    smart_context = ("patient", "encounter")


class AMixed(SMARTRequiredMixin):
    """With the mixin, asynchronous."""

    async def get(self, request: HttpRequest) -> JsonResponse:
        """What the launch is."""
        return JsonResponse(describe(request))
