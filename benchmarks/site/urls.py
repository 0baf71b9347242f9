"""URLs of every site that is measured."""

from __future__ import annotations

from typing import Any

from django.urls import include, path

from benchmarks import settings
from benchmarks.site import by_hand, views

urlpatterns: list[Any] = [
    path("smart/", include("django_smart.urls")),
    path("plain/", views.plain),
    path("user/", views.with_user),
    path("fhir/", views.with_fhir),
    path("by-hand/login/", by_hand.begin),
    path("by-hand/callback/", by_hand.complete),
]
if settings.PEERS:
    from benchmarks.site import with_authlib

    urlpatterns += [
        path("authlib/login/", with_authlib.begin),
        path("authlib/callback/", with_authlib.complete),
    ]
if settings.PEERS == "all":
    urlpatterns += [path("mozilla/", include("mozilla_django_oidc.urls"))]
if settings.HAS_ALLAUTH:
    urlpatterns += [path("allauth/", include("allauth.urls"))]
