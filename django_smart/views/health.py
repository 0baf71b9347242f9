"""How refreshing goes, for a monitor."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.utils.log import log_response
from django.views.decorators.cache import never_cache
from django.views.generic import View

from ..contrib.monitoring import ServerHealth, read_health
from ..grants.deployment import is_owner
from ..models import TaskRun
from ..models.task_run import REFRESH
from .base import outside_transactions

__all__ = ["HealthView"]

logger = logging.getLogger(__name__)

_SHORTEST_TOKEN = 16
# Of several servers; what ends grants comes before what only delays them.
_WORST_FIRST = ("many_lost", "stopped", "overdue", "failing", "ehr_paused")


# A monitor has no session; who may see the page is checked below.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(outside_transactions, name="dispatch")
@method_decorator(never_cache, name="dispatch")
class HealthView(View):
    """
    Counts and times of each server's grants, as JSON, for staff and monitors.

    The package's URLs do not include it; add it to yours.  Without *token*, only staff
    with permission to view FHIR servers may see it.

    Attributes:
        token: the token that a monitor sends as ``Authorization: Bearer …``, at least
            16 characters.
        overdue_after: seconds that a grant may be overdue for a refresh before the
            status is 503 instead of 200.  It is also 503 if a registration is stopped,
            if many grants were lost or are failing, or if another deployment owns the
            grants.
        many_lost: number of grants lost at one server within an hour that counts as
            many.
    """

    token = ""
    overdue_after = 300.0
    many_lost = 20
    http_method_names = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Django's; a token that can be guessed is a mistake of the configuration."""
        token = initkwargs.get("token", cls.token)
        if token and len(token) < _SHORTEST_TOKEN:
            raise ImproperlyConfigured(
                f"HealthView: token has fewer than {_SHORTEST_TOKEN} "
                "characters; generate one with secrets.token_urlsafe()."
            )
        return super().as_view(**initkwargs)

    def get(self, request: HttpRequest) -> JsonResponse:
        """The counts, or 401 or 403."""
        try:
            if not self.has_permission(request):
                return self._refuse()
            health = read_health()
            is_ours = is_owner()
            ran_at = TaskRun.objects.get_time(REFRESH)
        except DatabaseError as exc:
            logger.warning("Health cannot be determined: %s", type(exc).__name__)
            return self._respond(request, {"status": "unavailable"})
        status = self._get_status(health.values(), is_ours=is_ours, ran_at=ran_at)
        body = {
            "status": status,
            "at": max((one.read_at for one in health.values()), default=None),
            "last_run_at": ran_at,
            "servers": [self._as_json(one) for one in health.values()],
        }
        return self._respond(request, body)

    # Hooks for subclasses

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether *request* has the token, or is from permitted staff."""
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            # Without a configured token, no sent token matches.
            return bool(self.token) and hmac.compare_digest(
                sent.strip().encode(), self.token.encode()
            )
        user: Any = getattr(request, "user", None)
        # Not every user model has staff or permissions.
        return bool(
            user
            and user.is_active
            and getattr(user, "is_staff", False)
            and hasattr(user, "has_perm")
            and user.has_perm("django_smart.view_fhirserver")
        )

    # Not meant to be overridden

    def _respond(self, request: HttpRequest, body: dict[str, Any]) -> JsonResponse:
        response = JsonResponse(body, status=200 if body["status"] == "ok" else 503)
        if response.status_code != 200:
            # As an error, each poll would be mailed to the site's admins.
            log_response(
                "Unhealthy (%s): %s",
                body["status"],
                request.path,
                response=response,
                request=request,
                level="warning",
            )
        return response

    def _get_status(
        self,
        health: Iterable[ServerHealth],
        *,
        is_ours: bool,
        ran_at: datetime | None,
    ) -> str:
        if not is_ours:
            return "not_adopted"
        found = set()
        for one in health:
            is_overdue = one.overdue > self._limit
            if is_overdue and (ran_at is None or one.read_at - ran_at > self._limit):
                return "no_worker"
            status = self._get_status_of(one)
            # A pause is no fault until grants wait for it.
            if status != "ehr_paused" or is_overdue:
                found.add(status)
        return next((status for status in _WORST_FIRST if status in found), "ok")

    def _get_status_of(self, health: ServerHealth) -> str:
        return health.get_status(overdue_after=self._limit, many_lost=self.many_lost)

    @property
    def _limit(self) -> timedelta:
        return timedelta(seconds=self.overdue_after)

    def _refuse(self) -> JsonResponse:
        if not self.token:
            return JsonResponse(
                {"error": "Sign in as staff with permission to view FHIR servers."},
                status=403,
            )
        return JsonResponse(
            {"error": "Send the token: Authorization: Bearer …"},
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _as_json(self, health: ServerHealth) -> dict[str, Any]:
        return {
            "server": health.slug,
            "status": self._get_status_of(health),
            "is_active": health.is_active,
            "grants": health.grants,
            "due": health.due,
            "failing": health.failing,
            "oldest_overdue_seconds": round(health.overdue.total_seconds(), 3),
            "lost_last_hour": health.lost,
            "paused": health.paused,
            "paused_until": health.paused_until,
            "stopped_registrations": health.stopped_registrations,
            "ending": health.ending,
            "last_success_at": health.last_success_at,
            "last_failure_at": health.last_failure_at,
            "last_error": health.last_error,
        }
