"""Sign-out, and the list of a user's connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.db.models import OuterRef, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.urls import get_script_prefix
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views.decorators.cache import never_cache

from ..error_pages.retry import sign_in_again
from ..grants.ending import disconnect_grant
from ..launches.browser import get_browser
from ..launches.frames import is_framed
from ..launches.prefix import get_protocol_url
from ..launches.request_state import get_user
from ..launches.sign_out import find_end_session_url
from ..models import ClientRegistration, Identity, Launch, TokenGrant
from ..models.identity import IdentityQuerySet
from .base import ProtocolView, get_next_url
from .picker import tell_apart

__all__ = ["ConnectionsView", "LogoutView"]


@method_decorator(never_cache, name="dispatch")
class LogoutView(ProtocolView):
    """
    Sign-out: ``POST logout/``, optionally with ``next``, a path of this site.

    The site's own sign-out view works as well.
    """

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        """End the session and this browser's launches; sign out at the EHR if set."""
        url = resolve_url(settings.LOGOUT_REDIRECT_URL or get_script_prefix())
        if is_framed(request):
            # Only pages that lead to a launch can be shown there.
            url = get_protocol_url("login")
        user, browser_digests = get_user(request), get_browser(request).digests
        there = None
        if user is not None:
            there = find_end_session_url(
                browser_digests, user_id=user.pk, return_to=url
            )
        logout(request)
        next_url = get_next_url(request, request.POST.get("next", ""))
        return HttpResponseRedirect(there or next_url or url)


@method_decorator(never_cache, name="dispatch")
class ConnectionsView(ProtocolView):
    """
    A user's grants, and the connected accounts that can sign them in.

    ``GET connections/``; ``POST`` with ``grant`` disconnects, and with ``identity``
    no longer lets that account sign the user in.
    """

    http_method_names = ["get", "head", "options", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        """List the connected organizations, with scopes and dates."""
        return self._list(request)

    def _list(self, request: HttpRequest, *, status: int = 200) -> HttpResponse:
        launches = Launch.objects.filter(grant=OuterRef("pk")).order_by("pk")
        grants = (
            self._get_shown(request)
            .select_related("registration__server", "identity")
            .annotate(launch_kind=Subquery(launches.values("kind")[:1]))
            # The oldest first: a new one does not change the numbers of the others.
            .order_by(
                "registration__server__name", "registration__server_id", "created_at"
            )
        )
        shown: list[Any] = _leave_out_renewed(grants)
        self._mark(shown)
        ended = {
            grant.registration_id
            for grant in shown
            if grant.is_ending_soon or not _is_active(grant)
        }
        startable = ClientRegistration.objects.startable().filter(pk__in=ended)
        # What this site can use while the user is away.
        lasting = [each for each in shown if each.is_used and each.is_offline]
        sign_ins: list[Any] = list(
            self._get_connected(request)
            .filter(may_sign_in=True)
            .select_related("server")
        )
        servers = {each.server.slug: str(each.server) for each in sign_ins}
        for identity in sign_ins:
            identity.name = tell_apart(servers)[identity.server.slug]
        context = {
            "grants": shown,
            "sign_ins": sign_ins,
            "are_patients": any(not each.is_of_clinician for each in lasting),
            "are_clinicians": any(each.is_of_clinician for each in lasting),
            # An EHR launch can only be repeated in the EHR.
            "can_connect_again": set(startable.values_list("pk", flat=True)),
            "can_connect": ClientRegistration.objects.standalone().exists(),
            "sign_in": None
            if get_user(request)
            else sign_in_again(request, None, next_url=get_protocol_url("connections")),
        }
        return render(request, "django_smart/connections.html", context, status=status)

    def get_label(self, grant: TokenGrant) -> str:
        """
        Return a label that distinguishes *grant* from others at its server.

        For example, return the patient's name, if your site stores it.  Default: an
        empty string, and several grants at one server are numbered.
        """
        return ""

    def _mark(self, grants: Sequence[Any]) -> None:
        """Add the values that the page shows."""
        now = timezone.now()
        servers = [each.registration.server for each in grants]
        names = tell_apart({each.slug: str(each) for each in servers})
        numbers: Counter[int] = Counter()
        total = Counter(each.registration.server_id for each in grants)
        for grant in grants:
            registration = grant.registration
            server_id = registration.server_id
            numbers[server_id] += 1
            grant.name = names[registration.server.slug]
            grant.label = self.get_label(grant)
            grant.is_used = (
                _is_active(grant)
                and registration.is_active
                and registration.server.is_active
            )
            grant.is_ending_soon = grant.is_ending(now)
            grant.number = numbers[server_id] if total[server_id] > 1 else 0
            fhir_user = grant.identity.fhir_user if grant.identity else ""
            grant.is_of_clinician = "Practitioner" in fhir_user

    def post(self, request: HttpRequest) -> HttpResponse:
        """
        End one grant of this user, or the choice that an account signs them in.

        Disconnecting ends that choice as well, even if the same account has another
        connection. A worker revokes the grant at the EHR.
        """
        if "identity" in request.POST:
            return self._withdraw(request)
        pk = _read_pk(request, "grant")
        shown = self._get_shown(request).select_related(
            "registration__server", "identity__server"
        )
        grant = shown.filter(pk=pk).first()
        if grant is None:
            ended = self._get_own(request).exclude(status__in=TokenGrant.ENDABLE)
            if ended.filter(pk=pk).exists():
                # A second click.
                return HttpResponseRedirect(get_protocol_url("connections"))
            # The session ran out, or nothing of this user's was chosen.
            messages.warning(
                request, gettext("Nothing was disconnected."), fail_silently=True
            )
            return self._list(request, status=404)
        disconnect_grant(grant)
        name = str(grant.registration.server)
        active = self._get_shown(request).active()
        text = (
            gettext("One connection to %(name)s was ended. Another one remains.")
            if active.filter(registration__server__name=name).exists()
            else gettext("%(name)s is disconnected.")
        )
        # A site may do without django.contrib.messages.
        messages.success(request, text % {"name": name}, fail_silently=True)
        if grant.identity is not None:
            self._end_sign_in(request, grant.identity)
        return HttpResponseRedirect(get_protocol_url("connections"))

    def _withdraw(self, request: HttpRequest) -> HttpResponse:
        pk = _read_pk(request, "identity")
        connected = self._get_connected(request).select_related("server")
        identity = connected.filter(pk=pk).first()
        if identity is None:
            messages.warning(
                request, gettext("Nothing was changed."), fail_silently=True
            )
            return self._list(request, status=404)
        self._end_sign_in(request, identity)
        return HttpResponseRedirect(get_protocol_url("connections"))

    @staticmethod
    def _end_sign_in(request: HttpRequest, identity: Identity) -> None:
        if identity.withdraw_sign_in():
            text = gettext("Your account at %(name)s no longer signs you in here.")
            text %= {"name": identity.server}
            messages.success(request, text, fail_silently=True)

    @staticmethod
    def _get_connected(request: HttpRequest) -> IdentityQuerySet:
        user = get_user(request)
        if user is None:
            return Identity.objects.none()
        return Identity.objects.filter(user_id=user.pk, is_connected=True)

    @staticmethod
    def _get_own(request: HttpRequest) -> Any:
        user = get_user(request)
        if user is None:
            return TokenGrant.objects.none()
        return TokenGrant.objects.filter(user_id=user.pk)

    def _get_shown(self, request: HttpRequest) -> Any:
        return self._get_own(request).connected(timezone.now())


def _read_pk(request: HttpRequest, name: str) -> int:
    """The primary key that was sent; 0, which no row has, if it is none."""
    value = request.POST.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= 18 else 0


def _is_active(grant: TokenGrant) -> bool:
    return grant.status == TokenGrant.Status.ACTIVE


def _leave_out_renewed(grants: Collection[TokenGrant]) -> list[TokenGrant]:
    """Leave out grants that ended at the EHR and were replaced by a newer one."""
    # Compared here, because not every database compares exactly.
    active = [grant for grant in grants if _is_active(grant) and grant.is_offline]
    return [
        grant
        for grant in grants
        if _is_active(grant)
        or not any(grant.is_same_connection_as(each) for each in active)
    ]
