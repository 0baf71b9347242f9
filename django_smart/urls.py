"""The protocol's URLs: ``path("smart/", include("django_smart.urls"))``."""

from __future__ import annotations

from django.urls import path

from . import views

__all__ = ["app_name", "urlpatterns"]

app_name = "django_smart"

urlpatterns = [
    path("launch/", views.LaunchView.as_view(), name="launch"),
    path("launch/<slug:launch_slug>/", views.LaunchView.as_view(), name="launch"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("callback/<slug:callback_id>/", views.CallbackView.as_view(), name="callback"),
    path("decide/<slug:key>/", views.DecideView.as_view(), name="decide"),
    path("jwks.json", views.JWKSView.as_view(), name="jwks"),
    path("jwks/<int:registration_id>.json", views.JWKSView.as_view(), name="jwks"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("connections/", views.ConnectionsView.as_view(), name="connections"),
    path(
        "connections/open/",
        views.OpenConnectionView.as_view(),
        name="open_connection",
    ),
]
