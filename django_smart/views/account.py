"""Sign-out, and the list of a user's connections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render, resolve_url
from django.urls import get_script_prefix
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views.decorators.cache import never_cache

from ..error_pages import Retry, harden
from ..error_pages.retry import (
    find_site_sign_in,
    reconnect,
    sign_in_again,
    try_again,
)
from ..exceptions import ReauthorizationRequiredError, SMARTError
from ..grants.ending import disconnect_grant
from ..launches.browser import get_browser
from ..launches.frames import is_framed
from ..launches.prefix import build_launch_url, get_protocol_url
from ..launches.records import (
    find_newest,
    find_records,
    open_record,
    read_names,
)
from ..launches.request_state import get_user
from ..launches.sign_out import find_end_session_url
from ..models import ClientRegistration, Identity, TokenGrant
from ..models.identity import IdentityQuerySet
from ..models.server import tell_apart
from .base import ProtocolView, get_next_url
from .fresh_sign_in import build_choice_url, may_choose

__all__ = ["ConnectionsView", "LogoutView", "OpenConnectionView"]


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

    def get_error_context(self, error: SMARTError) -> dict[str, object]:
        """Offer the button again, with a valid token, to a browser that needs it."""
        # Not to one that another site sent here without cookies: the token comes with
        # a cookie, perhaps of a new session, which would replace the browser's own.
        user, digests = get_user(self.request), get_browser(self.request).digests
        return {"signs_out": user is not None or bool(digests)}


@method_decorator(never_cache, name="dispatch")
class ConnectionsView(ProtocolView):
    """
    A user's grants, and the connected accounts that can sign them in.

    ``GET connections/``; ``POST`` with ``grant`` disconnects.  ``GET`` with ``account``
    asks whether that account may sign the user in, and ``POST`` with ``identity`` and
    ``may_sign_in``, which is empty for no, stores it.  Both take ``next``.
    """

    http_method_names = ["get", "head", "options", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        """List the connected organizations, with scopes and dates, or ask."""
        pk = _read_pk(request.GET, "account")
        account = self._get_connected(request).filter(pk=pk).first()
        return self._ask(request, account) if account else self._list(request)

    def _ask(self, request: HttpRequest, account: Identity) -> HttpResponse:
        """
        Ask whether *account* may sign the user in, or say when they can choose.

        Template: ``django_smart/sign_in_choice.html``.
        """
        can_sign_in_again = may_choose(request, account, later=True)
        url = build_choice_url(account)
        context = {
            "identity": account,
            "people": _get_people(self._get_shown(request), account),
            "may_choose": may_choose(request, account),
            "next": get_next_url(request, request.GET.get("next", "")),
            "after_sign_out": find_site_sign_in(request, url)
            if can_sign_in_again
            else "",
        }
        return harden(render(request, "django_smart/sign_in_choice.html", context))

    def _list(self, request: HttpRequest, *, status: int = 200) -> HttpResponse:
        grants = (
            self._get_shown(request)
            .select_related("registration__server", "identity")
            .order_by("pk")
        )
        shown: list[Any] = list(find_newest(grants).values())
        # Those at one server together, in the order in which they were connected.
        servers_of = (each.registration.server for each in shown)
        order = {server.pk: (str(server), server.pk) for server in servers_of}
        shown.sort(key=lambda grant: order[grant.registration.server_id])
        self._mark(shown)
        read_names(each for each in shown if each.is_used)
        _add_runs(shown)
        ended = {
            grant.registration_id
            for grant in shown
            if grant.is_ending_soon or not _is_active(grant)
        }
        startable = ClientRegistration.objects.startable().filter(pk__in=ended)
        # What this site can use while the user is away.
        lasting = [each for each in shown if each.is_used and each.is_offline]
        accounts: list[Any] = [
            each
            for each in self._get_connected(request)
            if each.may_sign_in or may_choose(request, each, later=True)
        ]
        servers = {each.server.slug: str(each.server) for each in accounts}
        for account in accounts:
            account.name = tell_apart(servers)[account.server.slug]
            account.people = _get_people(shown, account)
            account.choice_url = build_choice_url(account)
        context = {
            "grants": shown,
            "accounts": accounts,
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

    def _mark(self, grants: Sequence[Any]) -> None:
        """Add the values that the page shows."""
        now = timezone.now()
        servers = [each.registration.server for each in grants]
        names = tell_apart({each.slug: str(each) for each in servers})
        for grant in grants:
            registration = grant.registration
            grant.name = names[registration.server.slug]
            grant.is_used = (
                _is_active(grant)
                and registration.is_active
                and registration.server.is_active
            )
            grant.can_open = grant.is_used and grant.is_offline and grant.is_of_patient
            grant.is_ending_soon = grant.is_ending(now)
            fhir_user = grant.identity.fhir_user if grant.identity else ""
            grant.is_of_clinician = "Practitioner" in fhir_user

    def post(self, request: HttpRequest) -> HttpResponse:
        """
        End one connection of this user, or store whether an account signs them in.

        Disconnecting ends that choice as well, even if the same account has another
        connection. A worker revokes the grant at the EHR.
        """
        if "identity" in request.POST:
            return self._choose(request)
        pk = _read_pk(request.POST, "grant")
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
        name = str(grant.registration.server)
        for each in shown:
            if each.connection == grant.connection:
                disconnect_grant(each)
        active = self._get_shown(request).active()
        # Without the patient's name: messages may be kept in a cookie.
        text = (
            gettext("One connection to %(name)s was ended. Another one remains.")
            if active.filter(registration__server__name=name).exists()
            else gettext("%(name)s is disconnected.")
        )
        # A site may do without django.contrib.messages.
        text %= {"name": name}
        messages.success(request, text, fail_silently=True)
        if grant.identity is not None:
            self._end_sign_in(request, grant.identity)
        return HttpResponseRedirect(get_protocol_url("connections"))

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Offer the list again."""
        return try_again(get_protocol_url("connections"))

    def _choose(self, request: HttpRequest) -> HttpResponse:
        pk = _read_pk(request.POST, "identity")
        identity = self._get_connected(request).filter(pk=pk).first()
        if identity is None:
            messages.warning(
                request, gettext("Nothing was changed."), fail_silently=True
            )
            return self._list(request, status=404)
        next_url = get_next_url(request, request.POST.get("next", ""))
        if not request.POST.get("may_sign_in"):
            self._end_sign_in(request, identity)
        elif may_choose(request, identity):
            identity.let_sign_in(may_sign_in=True)
        else:
            # The page says what to do first.
            next_url = build_choice_url(identity, next_url=next_url)
        return harden(HttpResponseRedirect(next_url or get_protocol_url("connections")))

    @staticmethod
    def _end_sign_in(request: HttpRequest, identity: Identity) -> None:
        if identity.let_sign_in(may_sign_in=False):
            text = gettext("Your account at %(name)s no longer signs you in here.")
            text %= {"name": identity.server}
            messages.success(request, text, fail_silently=True)

    @staticmethod
    def _get_connected(request: HttpRequest) -> IdentityQuerySet:
        user = get_user(request)
        if user is None:
            return Identity.objects.none()
        own = Identity.objects.filter(user_id=user.pk, is_connected=True)
        return own.select_related("server")

    @staticmethod
    def _get_own(request: HttpRequest) -> Any:
        user = get_user(request)
        if user is None:
            return TokenGrant.objects.none()
        return TokenGrant.objects.filter(user_id=user.pk)

    def _get_shown(self, request: HttpRequest) -> Any:
        return self._get_own(request).connected(timezone.now())


@method_decorator(never_cache, name="dispatch")
class OpenConnectionView(ConnectionsView):
    """
    ``POST connections/open/`` with ``grant``, and with ``next``, a path of this site.

    Opens a connection of the signed-in patient like a chart, without contacting the
    EHR, and goes to ``next`` or to the page that launches open.
    """

    http_method_names = ["options", "post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        """Open what this user has connected; nothing else is opened or stored."""
        user = get_user(request)
        if user is None:
            # The session ran out; the page there leads to the sign-in.
            return harden(HttpResponseRedirect(get_protocol_url("connections")))
        grant = self._get_own(request).filter(pk=_read_pk(request.POST, "grant"))
        chosen = grant.select_related("registration__server").first()
        for record in find_records(user):
            if chosen is not None and record.connection == chosen.connection:
                return self._open(request, record)
        messages.warning(request, gettext("Nothing was opened."), fail_silently=True)
        return self._list(request, status=404)

    def _open(self, request: HttpRequest, record: TokenGrant) -> HttpResponse:
        self.registration = record.registration
        if not _is_active(record):
            raise ReauthorizationRequiredError("The EHR has ended this connection.")
        launch = open_record(request, record)
        next_url = get_next_url(request, request.POST.get("next", ""))
        return harden(HttpResponseRedirect(build_launch_url(launch, next_url)))

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Offer to connect the same organization again, or the list."""
        if self.registration is None:
            return super().get_retry(error)
        next_url = get_next_url(self.request, self.request.POST.get("next", ""))
        return reconnect(self.registration, next_url=next_url)


def _read_pk(values: QueryDict, name: str) -> int:
    """The primary key that was sent; 0, which no row has, if it is none."""
    value = values.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= 18 else 0


def _is_active(grant: TokenGrant) -> bool:
    return grant.status == TokenGrant.Status.ACTIVE


def _get_people(grants: Iterable[TokenGrant], account: Identity) -> list[str]:
    """Whose records *account* has connected, which tells one account from another."""
    own = [each for each in grants if each.identity_id == account.pk]
    return sorted({each.patient_name for each in own if each.patient_name})


def _add_runs(grants: Iterable[Any]) -> None:
    """Add how far each whole record was read, if this site keeps them."""
    if not apps.is_installed("django_smart.contrib.records"):
        return
    from ..contrib.records.models import SyncRun

    for grant in grants:
        grant.run = SyncRun.objects.find_latest(grant)
