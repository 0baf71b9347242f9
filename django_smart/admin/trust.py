"""Servers and registrations: who may change them, and the test of a connection."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext as _

from ..contrib.doctor import examine
from ..diagnoses import Severity
from ..models import FHIRServer
from ..views.base import outside_transactions
from .base import BaseAdmin

__all__ = ["PASSED", "TrustAdmin", "has_trust"]

PASSED = [{"added": {"name": "Connection test", "object": "✓"}}]
"""What the history says of a test that found nothing wrong with the server."""


def has_trust(request: HttpRequest) -> bool:
    """Whether the user may decide where secrets go and who is signed in by whom."""
    return request.user.has_perm("django_smart.trust_fhirserver")


class TrustAdmin(BaseAdmin):
    """
    Servers and registrations, which decide where secrets and browsers are sent.

    Django's own permissions are not enough: the form also requires *trust*, and the
    actions, the ``operational_fields`` and the connection test require *operate*.
    """

    operational_fields: tuple[str, ...] = ()

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may see such rows and operate servers."""
        may_operate = request.user.has_perm("django_smart.operate_fhirserver")
        return may_operate and self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Django's, with *trust*."""
        return has_trust(request) and super().has_add_permission(request)

    def has_change_permission(
        self, request: HttpRequest, obj: models.Model | None = None
    ) -> bool:
        """Django's, if there is a field that the user may change."""
        may_change = has_trust(request) or (
            bool(self.operational_fields) and self.has_operate_permission(request)
        )
        return may_change and super().has_change_permission(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """All that do not concern operating, for those without *trust*."""
        fields = super().get_readonly_fields(request, obj)
        if has_trust(request):
            return fields
        # Also those of the form alone, which it would accept although no page has them.
        return (*fields, *(self.form.base_fields.keys() - {*self.operational_fields}))

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: Any = None
    ) -> HttpResponse:
        """Stay on the new row's page, which shows the next step, if the user may."""
        stays = not {"_addanother", IS_POPUP_VAR}.intersection(request.POST)
        if stays and self.has_view_or_change_permission(request, obj):
            post = request.POST.copy()
            post["_continue"] = "1"
            request.POST = post  # type: ignore[assignment]  # as Django's own UserAdmin
        return super().response_add(request, obj, post_url_continue)

    def get_urls(self) -> list[Any]:
        """Django's, and that of the report."""
        view = self.admin_site.admin_view(self.test_connection)
        return [
            path(
                "<path:object_id>/test/",
                # Nothing is written in one piece, and servers are waited for.
                outside_transactions(view),
                name=f"{self.opts.app_label}_{self.opts.model_name}_test",
            ),
            *super().get_urls(),
        ]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With the button for those who may press it."""
        if context["original"]:
            context["may_test"] = self.has_operate_permission(request)
        return super().render_change_form(request, context, *args, **kwargs)

    def test_connection(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and show what is wrong, why it matters and what to do."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return HttpResponseRedirect(self.get_admin_url("index"))
        if request.method != "POST":
            name = f"{self.opts.app_label}_{self.opts.model_name}_change"
            return HttpResponseRedirect(self.get_admin_url(name, obj.pk))
        server = obj if isinstance(obj, FHIRServer) else obj.server
        findings = examine([server])
        faults = [
            each
            for each in findings
            if each.severity == Severity.ERROR
            or (each.subject and each.severity != Severity.NOTE)
        ]
        if not faults:
            user: Any = request.user
            LogEntry.objects.log_actions(user.pk, [obj], CHANGE, PASSED)
        parts = [
            (name, [each for each in findings if each.subject == subject])
            for name, subject in ((server.name, server.slug), (_("This site"), ""))
        ]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": obj,
            "parts": parts,
            "media": self.media,
            "title": _("Connection test"),
            "has_view_permission": self.has_view_permission(request, obj),
        }
        return TemplateResponse(
            request, "django_smart/admin/test_connection.html", context
        )
