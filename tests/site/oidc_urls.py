"""The site's URLs, with mozilla-django-oidc's for its staff."""

from __future__ import annotations

from django.urls import include, path

from tests.site.urls import urlpatterns as site

urlpatterns = [*site, path("oidc/", include("mozilla_django_oidc.urls"))]
