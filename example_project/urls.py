"""Addresses of the example site."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path, re_path
from django.views.i18n import JavaScriptCatalog

from django_smart.views import FHIRProxyView
from example_project import views

urlpatterns = [
    path("", views.home, name="home"),
    path("patient/", views.patient, name="patient"),
    path("status.json", views.status, name="status"),
    re_path(r"^fhir/(?P<path>.*)$", FHIRProxyView.as_view(), name="fhir"),
    # The texts of vitals.js in the language of the page.
    path(
        "texts.js",
        JavaScriptCatalog.as_view(packages=["example_project"]),
        name="texts",
    ),
    path("accounts/login/", LoginView.as_view(), name="login"),
    path("accounts/logout/", LogoutView.as_view(), name="logout"),
    path("smart/", include("django_smart.urls")),
    path("admin/", admin.site.urls),
]
