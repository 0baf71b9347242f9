"""Sign-out, and what a user has connected."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotFound,
    HttpResponseRedirect,
)
from django.shortcuts import render, resolve_url
from django.urls import get_script_prefix
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views.decorators.cache import never_cache

from ..grants.ending import disconnect_grant, enqueue_revocations
from ..launches.browser import get_browser
from ..launches.prefix import get_protocol_url
from ..launches.sign_out import find_end_session_url
from ..models import ClientRegistration, TokenGrant
from .base import ProtocolView, get_user

__all__ = ["ConnectionsView", "LogoutView"]


@method_decorator(never_cache, name="dispatch")
class LogoutView(ProtocolView):
    """Sign-out: ``POST logout/``.  The site's own sign-out view does as well."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        """End this browser's launches and the session, and the EHR's if it is set."""
        url = resolve_url(settings.LOGOUT_REDIRECT_URL or get_script_prefix())
        user, browser_digests = get_user(request), get_browser(request).digests
        there = None
        if user is not None:
            there = find_end_session_url(
                browser_digests, user_id=user.pk, return_to=url
            )
        logout(request)
        return HttpResponseRedirect(there or url)


@method_decorator(never_cache, name="dispatch")
class ConnectionsView(ProtocolView):
    """A user's grants: ``GET connections/``; ``POST`` with ``grant`` disconnects."""

    http_method_names = ["get", "head", "options", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        """Which organisations are connected, what for and since when."""
        grants = self._get_grants(request).select_related("registration__server")
        shown = _leave_out_renewed(
            grants.order_by("registration__server__name", "-created_at")
        )
        ended = {grant.registration_id for grant in shown if not _is_active(grant)}
        standalone = ClientRegistration.objects.standalone().filter(pk__in=ended)
        context = {
            "grants": shown,
            # Of an EHR launch no button of ours can make another one.
            "can_connect_again": set(standalone.values_list("pk", flat=True)),
        }
        return render(request, "django_smart/connections.html", context)

    def post(self, request: HttpRequest) -> HttpResponse:
        """End one grant of this user; the EHR is told by a worker."""
        grant_id = request.POST.get("grant", "")
        grants = self._get_grants(request)
        if not grant_id.isdecimal() or len(grant_id) > 18:
            return HttpResponseNotFound()
        grant = (
            grants.filter(pk=int(grant_id))
            .select_related("registration__server")
            .first()
        )
        if grant is None:
            return HttpResponseNotFound()
        enqueue_revocations(disconnect_grant(grant))
        messages.success(
            request,
            gettext("%(name)s is disconnected.")
            % {"name": grant.registration.server.name},
            fail_silently=True,  # a site may do without django.contrib.messages
        )
        return HttpResponseRedirect(get_protocol_url("connections"))

    @staticmethod
    def _get_grants(request: HttpRequest) -> Any:
        user = get_user(request)
        if user is None:
            return TokenGrant.objects.none()
        shown = (
            TokenGrant.Status.ACTIVE,
            TokenGrant.Status.NEEDS_REAUTHORIZATION,
        )
        return TokenGrant.objects.offline().filter(user_id=user.pk, status__in=shown)


def _is_active(grant: TokenGrant) -> bool:
    return grant.status == TokenGrant.Status.ACTIVE


def _leave_out_renewed(grants: Collection[TokenGrant]) -> list[TokenGrant]:
    """Without those that ended at the EHR and that a newer one took the place of."""
    # Compared here: not every database does it exactly.
    active = {
        (grant.registration_id, grant.patient_id)
        for grant in grants
        if _is_active(grant)
    }
    return [
        grant
        for grant in grants
        if _is_active(grant) or (grant.registration_id, grant.patient_id) not in active
    ]
