"""A site whose default admin is empty: the models are in others, of other names."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.urls import include, path

from django_smart.admin import ClientRegistrationAdmin, FHIRServerAdmin
from django_smart.models import ClientRegistration, FHIRServer

default, ops, servers = AdminSite(), AdminSite(name="ops"), AdminSite(name="servers")
ops.register(ClientRegistration, ClientRegistrationAdmin)
ops.register(FHIRServer, FHIRServerAdmin)
servers.register(FHIRServer, FHIRServerAdmin)

urlpatterns = [
    path("admin/", default.urls),
    path("ops/", ops.urls),
    path("servers/", servers.urls),
    path("smart/", include("django_smart.urls")),
]
