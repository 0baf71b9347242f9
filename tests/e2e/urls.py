"""The tests' site with the callback where the specification's example has it."""

from __future__ import annotations

from django.urls import path

from django_smart.views import CallbackView
from tests.urls import urlpatterns as site

urlpatterns = [*site, path("graph.html", CallbackView.as_view())]
