"""What is wrong with a form, told while it is filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.urls import path, reverse

from .base import BaseAdmin

__all__ = ["LiveCheckMixin"]

if TYPE_CHECKING:
    _Base = BaseAdmin
else:  # A mixin: the class beside it is the admin.
    _Base = object

# What is not filled in yet is no fault while somebody types; the secret is not sent.
_NOT_YET = {"required", "null", "blank"}
_NOT_SENT = {"client_secret", "client_secret_env", "clear_client_secret"}


class LiveCheckMixin(_Base):
    """``admin.js`` sends the form as it stands, and shows the answer in it."""

    def get_urls(self) -> list[Any]:
        """Django's, and two that check: a new row, and one that is there."""
        view = self.admin_site.admin_view(self.check_form)
        name = f"{self.opts.app_label}_{self.opts.model_name}_check"
        return [
            path("check/", view, name=name),
            path("<path:object_id>/check/", view, name=name),
            *super().get_urls(),
        ]

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """With the address that checks."""
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_check"
        context = {"check_url": reverse(name, args=[object_id] if object_id else [])}
        return super().changeform_view(
            request, object_id, form_url, {**context, **(extra_context or {})}
        )

    def check_form(
        self, request: HttpRequest, object_id: str | None = None
    ) -> HttpResponse:
        """Errors by field as JSON; nothing is stored, and no server is asked."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        obj = self.get_object(request, unquote(object_id)) if object_id else None
        allowed = (
            self.has_change_permission(request, obj)
            if obj is not None
            else object_id is None and self.has_add_permission(request)
        )
        if not allowed:
            raise PermissionDenied
        form: Any = self.get_form(request, obj, change=obj is not None)(
            request.POST, instance=obj
        )
        form.asks_server = False
        errors = {
            field: [
                message
                for error in found
                if error.code not in _NOT_YET
                for message in error.messages
            ]
            for field, found in form.errors.as_data().items()
            if field not in _NOT_SENT
        }
        errors["__all__"] = [*errors.get("__all__", ()), *form.find_known_problems()]
        return JsonResponse({"errors": {k: v for k, v in errors.items() if v}})
