"""The clinic's addresses, in several languages."""

from __future__ import annotations

from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path

from tests.sites.urls import pages
from tests.urls import urlpatterns as package

urlpatterns = [
    *package,
    path("i18n/", include("django.conf.urls.i18n")),
    *i18n_patterns(*pages),
]
