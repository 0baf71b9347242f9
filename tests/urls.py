"""URLs of the site the tests run in."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("smart/", include("django_smart.urls")),
]
