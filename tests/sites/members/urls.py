"""The addresses of a site that cookiecutter-django made."""

from __future__ import annotations

from django.urls import include, path

from tests.sites.urls import urlpatterns as pages

urlpatterns = [*pages, path("accounts/", include("allauth.urls"))]
