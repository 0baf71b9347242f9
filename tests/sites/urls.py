"""The clinic's addresses."""

from __future__ import annotations

from django.urls import path

from tests.sites import views
from tests.urls import urlpatterns as package

pages = [
    path("chart/", views.chart, name="chart"),
    path("results/", views.Results.as_view(), name="results"),
    path("note/", views.note, name="note"),
    path("moved/", views.moved, name="moved"),
    path("staff/", views.staff, name="staff"),
    path("sign-in/", views.login, name="login"),
]
urlpatterns = [*package, *pages]
