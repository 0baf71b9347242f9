"""The button "Test connection", and the report behind it."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext as _

from ..contrib.doctor import examine
from ..diagnoses import Severity
from ..models import FHIRServer
from ..views.base import outside_transactions
from .base import TrustAdmin

__all__ = ["PASSED", "TestConnectionMixin"]

PASSED = [{"added": {"name": "Connection test", "object": "✓"}}]
"""What the history says of a test that found nothing wrong with the server."""


class TestConnectionMixin(TrustAdmin):
    """Runs the doctor on a server, or that of a row, as ``smart_doctor`` does."""

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
