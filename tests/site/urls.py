"""URLs of the site, the admin and the package among them."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from tests.site import views
from tests.urls import urlpatterns as package

urlpatterns: list[URLPattern | URLResolver] = [
    *package,
    path("links/", views.links, name="links"),
    path("template/", views.template),
    path("stream/", views.stream),
    path("astream/", views.astream),
    path("page/", views.Page.as_view()),
    path("whoami/", views.whoami, name="whoami"),
    path("awhoami/", views.awhoami),
    path("untouched/", views.untouched),
    path("go/", views.go),
    path("numbers/", views.numbers),
    path("form/", views.form, name="form"),
    path("private/", views.private),
    path("broken/", views.broken),
    path("fhir/", views.fhir),
    path("chart/", views.chart, name="chart"),
    path("chart/called/", views.chart_called),
    path("chart/scopes/", views.chart_scopes),
    path("chart/scope-set/", views.chart_scope_set),
    path("chart/missing/", views.chart_missing),
    path("chart/context/", views.chart_context),
    path("chart/encounter/", views.chart_encounter),
    path("chart/async/", views.achart),
    path("chart/async/missing/", views.achart_missing),
    path("chart/decorated/", views.Decorated.as_view()),
    path("chart/decorated/async/", views.ADecorated.as_view()),
    path("chart/decorated/among-others/", views.AmongOthers.as_view()),
    path("chart/mixin/", views.Mixed.as_view()),
    path("chart/mixin/missing/", views.MixedMissing.as_view()),
    path("chart/mixin/encounter/", views.MixedEncounter.as_view()),
    path("chart/mixin/async/", views.AMixed.as_view()),
    path("accounts/", include("django.contrib.auth.urls")),
]
