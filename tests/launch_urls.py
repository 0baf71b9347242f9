"""The tests' site with a page that shows its launch, and Django's own sign-out."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LogoutView
from django.contrib.messages import get_messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path

from django_smart.models import Launch
from tests.urls import urlpatterns as site


def show(request: HttpRequest) -> JsonResponse:
    """Which launch the request belongs to."""
    smart: Any = request.smart  # type: ignore[attr-defined]  # the middleware's
    return JsonResponse({"launched": bool(smart), "patient": smart.patient_id})


def open_page(browser: Client, launch: Launch) -> int:
    """The status with which *browser* is shown the page of *launch*."""
    return browser.get(f"/~{launch.key}/page/").status_code


def get_code(response: Any) -> str:
    """The code that an error page tells."""
    page = response.content.decode()
    return str(page.partition("<code>")[2].partition("</code>")[0])


def show_notices(request: HttpRequest) -> HttpResponse:
    """What the messages framework has to say."""
    return HttpResponse("\n".join(str(each) for each in get_messages(request)))


@login_required
def show_members(request: HttpRequest) -> HttpResponse:
    """A page for users who are signed in."""
    return HttpResponse("members")


urlpatterns = [
    *site,
    path("members/", show_members),
    path("notices/", show_notices),
    path("page/", show),
    path("sign-out/", LogoutView.as_view(next_page="/")),
]
