"""URLs of every site that is measured."""

from __future__ import annotations

from typing import Any

from django.urls import include, path

from benchmarks import settings
from benchmarks.site import by_hand, clinic, five_reads, views

urlpatterns: list[Any] = [
    path("smart/", include("django_smart.urls")),
    path("plain/", views.plain),
    path("user/", views.with_user),
    path("fhir/", views.with_fhir),
    path("chart/", clinic.chart),
    path("five/client/", five_reads.with_client),
    path("five/async-client/", five_reads.with_async_client),
    path("five/httpx/", five_reads.with_httpx),
    path("by-hand/login/", by_hand.begin),
    path("by-hand/callback/", by_hand.complete),
]
if "django.contrib.admin" in settings.INSTALLED_APPS:
    from django.contrib import admin

    urlpatterns += [path("admin/", admin.site.urls)]
if settings.PEERS:
    from benchmarks.site import with_authlib, with_authlib_and_launch

    urlpatterns += [
        path("authlib/login/", with_authlib.begin),
        path("authlib/callback/", with_authlib.complete),
        path("authlib-launch/launch/", with_authlib_and_launch.launch),
        path("authlib-launch/login/", with_authlib_and_launch.begin),
        path("authlib-launch/callback/", with_authlib_and_launch.complete),
    ]
if settings.PEERS == "all":
    urlpatterns += [path("mozilla/", include("mozilla_django_oidc.urls"))]
if settings.HAS_ALLAUTH:
    urlpatterns += [path("allauth/", include("allauth.urls"))]
