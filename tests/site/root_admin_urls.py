"""A site whose admin is its root, and catches every path."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

urlpatterns = [path("", admin.site.urls)]
