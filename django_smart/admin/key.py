"""Admin of signing keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..exceptions import KeyRotationError
from ..models import SigningKey
from ..servers.signing_keys import generate_key, rotate_key
from .base import BaseAdmin

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["SigningKeyAdmin"]

_Status = SigningKey.Status


@admin.register(SigningKey)
class SigningKeyAdmin(BaseAdmin):
    """
    Operators create key pairs here, and choose the algorithm and who uses them.

    The first key of an algorithm signs at once.  A later one is published first, so
    that EHRs know it before it is used, and signs when an operator activates it.
    """

    is_changeable = False
    list_display = (
        "kid",
        "algorithm",
        "registration",
        "status",
        "created_at",
        "activated_at",
        "retired_at",
    )
    list_filter = ("status", "algorithm")
    list_select_related = ("registration__server",)
    search_fields = ("kid",)
    actions = ("activate", "withdraw")
    readonly_fields = (
        "kid",
        "status",
        "public_key",
        "created_at",
        "activated_at",
        "retired_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[SigningKey]:
        """Without the private keys: they are not even read."""
        return SigningKey.objects.defer("private_key")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Algorithm and owner, and all that is public once there is a key."""
        chosen = ["algorithm", "registration"]
        return chosen if obj is None else [*chosen, *self.readonly_fields]

    def get_obstacle(self, obj: SigningKey) -> StrOrPromise:
        """EHRs may still check signatures of a key that signed until now."""
        if obj.status in {_Status.ACTIVE, _Status.RETIRED}:
            return _("remove the key from the JWK Set first")
        return ""

    def save_model(
        self, request: HttpRequest, obj: SigningKey, form: Any, change: bool
    ) -> None:
        """Make the key pair, or take the one that a second click has just made."""
        try:
            obj.pk = generate_key(obj.algorithm, obj.registration).pk
        except KeyRotationError as exc:
            self.message_user(request, str(exc), messages.WARNING)
            keys = SigningKey.objects.of(obj.registration).published()
            obj.pk = keys.filter(algorithm=obj.algorithm).latest("pk").pk
        obj.refresh_from_db()

    @admin.display(description=_("public JWK"))
    def public_key(self, obj: SigningKey) -> SafeString:
        """What EHRs get to see."""
        text = json.dumps(obj.public_jwk, indent=2, sort_keys=True)
        return format_html("<pre>{}</pre>", text)

    @admin.action(
        description=_("Sign with the selected keys from now on"),
        permissions=["operate"],
    )
    def activate(self, request: HttpRequest, queryset: QuerySet[SigningKey]) -> None:
        """Rotate to keys that EHRs know by now; those before them retire."""
        keys = list(queryset.filter(status=_Status.NEXT))
        if not keys:
            message = gettext("Only published next keys can be activated.")
            self.message_user(request, message, messages.WARNING)
            return
        rotated = []
        for key in keys:
            try:
                rotated.append(rotate_key(key.algorithm, key.registration))
            except KeyRotationError as exc:
                self.message_user(request, str(exc), messages.ERROR)
        self.log_action(request, rotated, "status")
        if rotated:
            message = ngettext(
                "%(count)d key signs from now on; the one before it stays published.",
                "%(count)d keys sign from now on; those before them stay published.",
                len(rotated),
            ) % {"count": len(rotated)}
            self.message_user(request, message, messages.SUCCESS)

    @admin.action(
        description=_("Remove the selected keys from the JWK Set"),
        permissions=["operate"],
    )
    def withdraw(self, request: HttpRequest, queryset: QuerySet[SigningKey]) -> None:
        """Take keys that do not sign out of the JWK Set."""
        published = queryset.filter(status__in=[_Status.NEXT, _Status.RETIRED])
        pks = list(published.values_list("pk", flat=True))
        SigningKey.objects.filter(pk__in=pks).remove()
        keys = list(SigningKey.objects.filter(pk__in=pks, status=_Status.REMOVED))
        self.log_action(request, keys, "status")
        done = ngettext(
            "%(count)d key is no longer published.",
            "%(count)d keys are no longer published.",
            len(keys),
        )
        nothing = gettext("Keys that sign stay published: activate another one first.")
        self.tell_result(request, len(keys), done=done, nothing=nothing)
