"""How refreshing goes, for a monitor."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, transaction
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View

from ..contrib.monitoring import ServerHealth, read_health

__all__ = ["HealthView"]

logger = logging.getLogger(__name__)

_SHORTEST_TOKEN = 16


# A monitor has no session; who may see the page is checked below.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(transaction.non_atomic_requests, name="dispatch")
@method_decorator(never_cache, name="dispatch")
class HealthView(View):
    """
    Counts and times of each server's grants, as JSON, for staff and monitors.

    Not among the package's URLs: put it where you want it.  Without *token* only staff
    with the permission to view FHIR servers get an answer.

    Attributes:
        token: what a monitor sends as ``Authorization: Bearer …``; 16 characters or
            more.
        overdue_after: seconds that a grant may wait for its refresh until the status
            is 503 in place of 200; a registration that is stopped makes it so too.
    """

    token = ""
    overdue_after = 300.0
    http_method_names = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Django's; a token that can be guessed is a mistake of the configuration."""
        token = initkwargs.get("token", cls.token)
        if token and len(token) < _SHORTEST_TOKEN:
            raise ImproperlyConfigured(
                f"HealthView: token has less than {_SHORTEST_TOKEN} characters; make "
                "one with secrets.token_urlsafe()."
            )
        return super().as_view(**initkwargs)

    def get(self, request: HttpRequest) -> JsonResponse:
        """The counts, or 401 or 403."""
        try:
            if not self.has_permission(request):
                return self._refuse()
            now = timezone.now()
            health = read_health(now=now)
        except DatabaseError as exc:
            logger.warning("Health cannot be read: %s", type(exc).__name__)
            return JsonResponse({"status": "unavailable"}, status=503)
        status = self._get_status(health.values(), now)
        body = {
            "status": status,
            "at": now,
            "servers": [_as_json(one, now) for one in health.values()],
        }
        return JsonResponse(body, status=200 if status == "ok" else 503)

    # Hooks for subclasses

    def has_permission(self, request: HttpRequest) -> bool:
        """Whether *request* has the token, or comes from staff who may see servers."""
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            # Without a token of ours nothing that is sent fits.
            return bool(self.token) and hmac.compare_digest(
                sent.strip().encode(), self.token.encode()
            )
        user = getattr(request, "user", None)
        return bool(
            user
            and user.is_active
            and user.is_staff
            and user.has_perm("django_smart.view_fhirserver")
        )

    # Not meant to be overridden

    def _get_status(self, health: Iterable[ServerHealth], now: datetime) -> str:
        limit = timedelta(seconds=self.overdue_after)
        if any(one.get_overdue(now) > limit for one in health):
            return "overdue"
        if any(one.stopped_registrations for one in health):
            return "stopped"
        return "ok"

    def _refuse(self) -> JsonResponse:
        if not self.token:
            return JsonResponse(
                {"error": "Sign in as staff who may view FHIR servers."}, status=403
            )
        return JsonResponse(
            {"error": "Send the token: Authorization: Bearer …"},
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )


def _as_json(health: ServerHealth, now: datetime) -> dict[str, Any]:
    return {
        "server": health.slug,
        "is_active": health.is_active,
        "grants": health.grants,
        "due": health.due,
        "failing": health.failing,
        "oldest_overdue_seconds": round(health.get_overdue(now).total_seconds(), 3),
        "paused_until": health.paused_until,
        "stopped_registrations": health.stopped_registrations,
        "last_success_at": health.last_success_at,
        "last_failure_at": health.last_failure_at,
        "last_error": health.last_error,
    }
