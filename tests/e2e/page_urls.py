"""The tests' site, with pages of ours by name that otherwise need an EHR to get to."""

from __future__ import annotations

from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template import engines
from django.urls import path

from django_smart.error_pages import Retry, render_error
from django_smart.exceptions import (
    AuthorizationDeniedError,
    InsufficientScopeError,
    NoLaunchError,
)
from tests.urls import urlpatterns as site

PAGES = (
    "/smart/login/",
    "/smart/login/?q=clinic",
    "/smart/login/?q=nowhere",
    "/smart/login/?server=harbour",
    "/smart/connections/",
    "/smart/launch/",
    "/smart/callback/?state=unknown&code=x",
    "/pages/banner/",
    "/pages/denied/",
    "/pages/scopes/",
    "/pages/charts/",
    "/pages/records/",
    "/pages/new-window/",
    "/pages/authorize-post/",
    "/pages/decide/sign_in/named/",
    "/pages/decide/sign_in/unnamed/",
    "/pages/decide/switch/named/",
    "/pages/decide/switch/unnamed/",
    "/pages/decide/link/named/",
    "/pages/decide/link/unnamed/",
    "/pages/choice/now/",
    "/pages/choice/later/",
    "/pages/choice/never/",
)
"""Every page for people, in each of its states."""

_SERVER = "Harbour Children's Hospital of the Northern Counties"
_BANNER = """
{% extends "django_smart/base.html" %}{% load smart %}
{% block title %}Chart{% endblock %}
{% block smart_header %}{% patient_banner patient heading=1 %}{% endblock %}
{% block content %}<h2>Results</h2>{% endblock %}
"""
_RETRY = Retry(
    url="/smart/login/", label="Connect your records", site_url="/admin/login/"
)


def denied(request: HttpRequest) -> HttpResponse:
    """With what the EHR says of it."""
    error = AuthorizationDeniedError(
        "refused",
        error="access_denied",
        error_description="The patient's record is closed to outside applications.",
        error_uri="https://ehr.example.org/help",
    )
    return render_error(request, error, retry=_RETRY, server_name=_SERVER, kind="ehr")


def scopes(request: HttpRequest) -> HttpResponse:
    """With what a page needs in addition."""
    error = InsufficientScopeError(
        "missing", missing="patient/Observation.rs patient/Condition.r"
    )
    return render_error(request, error, retry=_RETRY, server_name=_SERVER)


def charts(request: HttpRequest) -> HttpResponse:
    """With charts to choose from."""
    opened = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    known = {
        "url": "/~aaaaaaaaaaaaaaaaaaaaaa/",
        "server_name": _SERVER,
        "opened_at": opened,
        "is_from_today": False,
    }
    extra: dict[str, Any] = {
        "form_was_sent": True,
        "open_charts": [
            SimpleNamespace(
                **known,
                kind="ehr",
                patient_name="Wilhelmina Featherstonehaugh-Cholmondeley",
                birth_date=date(1970, 2, 28),
            ),
            SimpleNamespace(
                **known, kind="standalone", patient_name="", birth_date=None
            ),
        ],
    }
    return render_error(request, NoLaunchError("none"), extra=extra)


def records(request: HttpRequest) -> HttpResponse:
    """With records to choose from: one opens, one lacks something, one is over."""
    when = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    names = ("Wilhelmina Featherstonehaugh-Cholmondeley", "", "Ada Lovelace")
    shown = [
        {
            "grant": SimpleNamespace(
                pk=number,
                patient_name=name,
                created_at=when,
                ends_at=when,
                ended_at=when,
            ),
            "name": _SERVER,
            "is_over": number == 3,
            "missing": "patient/Observation.rs" if number == 2 else "",
            "connect_again": _RETRY,
        }
        for number, name in enumerate(names, 1)
    ]
    extra: dict[str, Any] = {"records": shown, "page": "/results/"}
    return render_error(
        request,
        NoLaunchError("none"),
        code="grant_ambiguous",
        retry=_RETRY,
        extra=extra,
    )


def new_window(request: HttpRequest) -> HttpResponse:
    """In a frame that keeps no cookies."""
    context = {"server": SimpleNamespace(name=_SERVER), "url": "/smart/launch/"}
    return render(request, "django_smart/new_window.html", context)


def decide(request: HttpRequest, question: str, names: str) -> HttpResponse:
    """The page that asks who goes on."""
    is_named = names == "named"
    here = {
        "name": "Maria Lopez" if is_named else "",
        "origin": f"{_SERVER}, 9:14 a.m.",
    }
    there = {
        "name": "Wilhelmina Featherstonehaugh-Cholmondeley" if is_named else "",
        "fhir_user": "Practitioner/6e2f0a1c-93d0-4a51-b9c8-0d4b7e6a2f11",
        "origin": f"{_SERVER}, 9:31 a.m.",
    }
    context = {
        "server": SimpleNamespace(name=_SERVER),
        "question": question,
        "here": None if question == "sign_in" and not is_named else here,
        "there": there,
        "may_say_no": True,
        "may_link": question == "link" and is_named,
        "decide_url": request.path,
        "sign_in_url": "/smart/login/",
        "site_sign_in_url": "/admin/login/",
    }
    return render(request, "django_smart/decide.html", context)


def choice(request: HttpRequest, when: str) -> HttpResponse:
    """The page that asks whether an account may sign its user in."""
    context = {
        "identity": SimpleNamespace(
            pk=1,
            server=SimpleNamespace(name=_SERVER),
            created_at=datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
        ),
        "may_choose": when == "now",
        "after_sign_out": "/admin/login/" if when == "later" else "",
    }
    return render(request, "django_smart/sign_in_choice.html", context)


def authorize_post(request: HttpRequest) -> HttpResponse:
    """The form that sends itself."""
    form = SimpleNamespace(
        endpoint="https://ehr.example.org/", parameters=[("state", "x")]
    )
    context = {"server": SimpleNamespace(name=_SERVER), "request_form": form}
    return render(request, "django_smart/authorize_post.html", context)


def banner(request: HttpRequest) -> HttpResponse:
    """A page of a site's own, of a patient of whom all is known."""
    patient = {
        "resourceType": "Patient",
        "id": "1",
        "name": [{"text": "Wilhelmina Featherstonehaugh-Cholmondeley"}],
        "birthDate": "1931-02",
        "deceasedDateTime": "2019-11-30",
        "gender": "female",
        "identifier": [{"type": {"coding": [{"code": "MR"}]}, "value": "HB-7-1024"}],
    }
    page = engines["django"].from_string(_BANNER)
    return HttpResponse(page.render({"patient": patient}, request))


urlpatterns = [
    *site,
    path("pages/banner/", banner),
    path("pages/denied/", denied),
    path("pages/scopes/", scopes),
    path("pages/charts/", charts),
    path("pages/records/", records),
    path("pages/new-window/", new_window),
    path("pages/authorize-post/", authorize_post),
    path("pages/choice/<slug:when>/", choice),
    path("pages/decide/<slug:question>/<slug:names>/", decide),
]
