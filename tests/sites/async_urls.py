"""The clinic's addresses, with asynchronous views."""

from __future__ import annotations

from django.urls import path

from tests.sites import views
from tests.urls import urlpatterns as package

urlpatterns = [
    *package,
    path("chart/", views.achart, name="chart"),
    path("results/", views.AResults.as_view(), name="results"),
    path("note/", views.ANote.as_view(), name="note"),
    path("moved/", views.amoved, name="moved"),
    path("staff/", views.astaff, name="staff"),
    path("sign-in/", views.login, name="login"),
]
