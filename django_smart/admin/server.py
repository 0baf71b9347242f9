"""Admin of FHIR servers: what one offers, and how its grants are doing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import date
from django.urls import path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..contrib.doctor import BASE_URL_WRONG, discover
from ..contrib.doctor.report import Observation, read_report
from ..contrib.monitoring import read_health
from ..diagnoses import Finding
from ..exceptions import SMARTError
from ..models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from ..protocol.quirks import QUIRKS
from ..servers.discovery import (
    DISCOVERED_COLUMNS,
    accept_moved,
    describe_configuration,
    describe_moved,
    fetch_configuration,
)
from ..servers.registering import apply_preset
from .base import (
    EMPTY,
    as_code,
    as_facts,
    as_list,
)
from .forms import FHIRServerForm
from .quirk_fields import get_quirk_label
from .trust import TrustAdmin, has_trust

if TYPE_CHECKING:
    from datetime import datetime

    from django_stubs_ext import StrOrPromise


__all__ = ["FHIRServerAdmin"]


def _describe_health(server: FHIRServer) -> Iterator[tuple[StrOrPromise, object]]:
    health = read_health([server.pk])[server.pk]
    for status in TokenGrant.Status:
        yield status.label, health.grants[status]
    yield _("due"), health.due
    waits = timesince(health.oldest_due_at) if health.oldest_due_at else EMPTY
    yield _("longest wait"), waits
    yield _("failing"), health.failing
    yield _("last success"), _at(health.last_success_at)
    yield _("last failure"), _at(health.last_failure_at)
    yield _("last error"), as_code(health.last_error)
    yield _("paused until"), _end_of_pause(server)
    yield _("stopped registrations"), health.stopped_registrations


def _end_of_pause(server: FHIRServer) -> str:
    if server.paused:
        return gettext("an operator resumes it")
    return _at(server.discovered.paused_until)


def _at(moment: datetime | None) -> str:
    return date(timezone.localtime(moment), "DATETIME_FORMAT") if moment else EMPTY


def _describe_observation(one: Observation) -> SafeString:
    where = gettext("in its configuration")
    if one.last_at:
        where = ngettext("%(count)d launch", "%(count)d launches", one.number) % {
            "count": one.number
        }
    return format_html(
        "{} ({}) {}", as_code(one.diagnosis.code), where, "; ".join(one.evidence)
    )


_OFFER = _("Server configuration")
_GRANTS = _("Grants")
_REPORT = _("What this EHR did, last 30 days")
# Of the server's state, shown as they are.
_TIMES = ("configuration_fetched_at", "jwks_fetched_at", "discovery_failed_at")


def _has_tokens(server: FHIRServer | None) -> bool:
    grants = TokenGrant.objects.filter(registration__server=server)
    return server is not None and grants.exists()


def _without(fieldset: Any, names: Collection[str]) -> Any:
    title, options = fieldset
    fields = [each for each in options["fields"] if each not in names]
    return title, {**options, "fields": fields}


@admin.register(FHIRServer)
class FHIRServerAdmin(TrustAdmin):
    """Where launches come from: its address, what it offers, and how it is odd."""

    form = FHIRServerForm
    operational_fields = (
        "turns",
        *(name for name, quirk in QUIRKS.items() if quirk.is_operational),
    )
    list_display = (
        "name",
        "slug",
        "is_active",
        "paused_until",
    )
    list_select_related = ("state",)
    list_filter = ("is_active", "paused", "preset")
    search_fields = ("name", "slug", "base_url")
    search_help_text = _("Name, slug or base URL")
    actions = ("rediscover", "pause", "unpause")
    readonly_fields = (
        "configuration",
        "moved_values",
        "quirk_values",
        "health",
        "report",
        "created_at",
        "updated_at",
    )
    fieldsets = (
        (
            None,
            {"fields": ("base_url", "preset", "name", "slug", "is_active")},
        ),
        (_OFFER, {"fields": ("configuration", "moved_values")}),
        (_GRANTS, {"fields": ("health",)}),
        (
            _REPORT,
            {
                "description": _(
                    "For its team, smart_doctor --report prints this as text."
                ),
                "fields": ("report",),
            },
        ),
        (
            _("Endpoint overrides"),
            {
                "classes": ("collapse",),
                "description": _("Empty fields use the server's own values."),
                "fields": (
                    "overrides",
                    "login_group",
                    "id_token_issuer",
                ),
            },
        ),
        (
            _("Vendor quirks"),
            {
                "classes": ("collapse",),
                "description": _("A preset fills in a vendor's known settings."),
                "fields": (
                    "quirk_values",
                    *QUIRKS,
                    "authorization_parameters",
                    "request_headers",
                    "turns",
                ),
            },
        ),
        (
            _("Frames"),
            {
                "classes": ("collapse",),
                "fields": ("frame_origins",),
            },
        ),
        (None, {"fields": (("created_at", "updated_at"),)}),
    )

    def get_urls(self) -> list[Any]:
        """Add a URL that accepts the values that the server publishes now."""
        view = self.admin_site.admin_view(self.accept)
        name = "django_smart_fhirserver_accept"
        return [path("<path:object_id>/accept/", view, name=name), *super().get_urls()]

    @admin.display(description=_("moved values"))
    def moved_values(self, obj: FHIRServer) -> SafeString | str:
        """What an operator has to approve before anyone can sign in there."""
        return as_list(describe_moved(obj))

    @admin.display(description=_("quirks that are set"))
    def quirk_values(self, obj: FHIRServer) -> SafeString | str:
        """Those that differ from the defaults, also of another version."""
        return as_list(
            f"{get_quirk_label(name)}: {value}"
            if name in QUIRKS and name not in obj.quirks.unknown
            else gettext("%(name)s: not known to this version, which ignores it")
            % {"name": name}
            for name, value in obj.quirks.as_json().items()
        )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Hide sections that would be empty."""
        fieldsets = list(super().get_fieldsets(request, obj))
        if obj is None:
            unknown = (_OFFER, _GRANTS, _REPORT)
            return [each for each in fieldsets[:-1] if each[0] not in unknown]
        if not obj.discovered.moved:
            fieldsets = [_without(each, {"moved_values"}) for each in fieldsets]
        may_change = self.has_change_permission(request, obj)
        if not (has_trust(request) and may_change):
            # Read from the row, the headers would be shown; quirks are no columns.
            kept = self.operational_fields if may_change else ()
            hidden = {"request_headers", *QUIRKS}.difference(kept)
            fieldsets = [_without(each, hidden) for each in fieldsets]
        return fieldsets

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With the way to its registrations, and to the next one."""
        server = context["original"]
        if server and server.discovered.moved and has_trust(request):
            context["shown"] = json.dumps(server.discovered.moved)
        site = self.admin_site
        if server and site.is_registered(ClientRegistration):
            registrations = site.get_model_admin(ClientRegistration)
            name = "django_smart_clientregistration"
            if registrations.has_view_permission(request):
                url = self.get_admin_url(f"{name}_changelist")
                context["registrations_url"] = f"{url}?server={server.pk}"
            if registrations.has_add_permission(request):
                url = self.get_admin_url(f"{name}_add")
                context["register_url"] = f"{url}?server={server.pk}"
        return super().render_change_form(request, context, *args, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Tokens never go to another address than the one that gave them."""
        fields = super().get_readonly_fields(request, obj)
        return (*fields, "base_url") if _has_tokens(obj) else fields

    def save_model(
        self, request: HttpRequest, obj: FHIRServer, form: Any, change: bool
    ) -> None:
        """Fill in the preset, forget what belongs to an old address, and ask."""
        if "preset" in form.changed_data:
            before = form.initial.get("preset", "")
            apply_preset(obj, before=before, keep=form.changed_quirks)
        super().save_model(request, obj, form, change)
        if change and "base_url" in form.changed_data:
            # What was found at one base URL says nothing of another one.
            ServerState.objects.forget(obj.pk, *DISCOVERED_COLUMNS)
        asked_otherwise = {"base_url", "discovery_headers", "overrides"}
        if obj.is_active and asked_otherwise.intersection(form.changed_data):
            self._ask_later(request, obj)

    def _ask_later(self, request: HttpRequest, server: FHIRServer) -> None:
        # After the transaction: an EHR is not waited for in one.
        transaction.on_commit(
            partial(self._ask, request, server.pk),
            using=router.db_for_write(FHIRServer),
        )

    def _ask(self, request: HttpRequest, server_id: int) -> None:
        server = FHIRServer.objects.get(pk=server_id)
        try:
            fetch_configuration(server)
        except SMARTError as exc:
            states = ServerState.objects.filter(pk=server_id)
            states.update(discovery_failed_at=timezone.now())
            found = discover(server)
            if isinstance(found, Finding) and found.code in BASE_URL_WRONG:
                message = f"{found.what} {found.fix}"
            else:
                message = gettext(
                    "The server's configuration could not be fetched (%(code)s): "
                    "%(why)s. Test the connection to see how to fix it; a worker "
                    "will try again as well."
                ) % {"why": str(exc).removesuffix("."), "code": exc.code}
            self.message_user(request, message, messages.WARNING)
        else:
            message = gettext("The server's configuration is shown below.")
            self.message_user(request, message, messages.SUCCESS)

    def get_row_actions(self, obj: FHIRServer) -> dict[str, StrOrPromise]:
        """Ask it again; pause it, or end its pause."""
        again: dict[str, StrOrPromise] = {}
        if obj.is_active:
            again["rediscover"] = _("Fetch configuration")
        if obj.paused:
            return {**again, "unpause": _("Resume refreshes")}
        return {**again, "pause": _("Pause refreshes")}

    def accept(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Pin the values that the page showed, if they are still the same."""
        server = self.get_object(request, unquote(object_id))
        may_accept = has_trust(request) and self.has_view_permission(request, server)
        if request.method != "POST" or server is None or not may_accept:
            raise PermissionDenied
        moved = server.discovered.moved
        if json.dumps(moved) == request.POST.get("shown") and accept_moved(
            server, moved
        ):
            self._ask_later(request, server)
            self.log_action(request, [server], "moved values")
            done = gettext("The new values are accepted.")
            self.message_user(request, done, messages.SUCCESS)
        else:
            changed = gettext("Nothing was accepted: the server's values changed.")
            self.message_user(request, changed, messages.WARNING)
        url = self.get_admin_url("django_smart_fhirserver_change", server.pk)
        return HttpResponseRedirect(url)

    @admin.action(
        description=_("Pause refreshes at the selected servers"),
        permissions=["operate"],
    )
    def pause(self, request: HttpRequest, queryset: QuerySet[FHIRServer]) -> None:
        """Have workers refresh none of their grants; launches go on."""
        self._set_paused(request, queryset, paused=True)

    @admin.action(
        description=_("Resume refreshes at the selected servers"),
        permissions=["operate"],
    )
    def unpause(self, request: HttpRequest, queryset: QuerySet[FHIRServer]) -> None:
        """Have workers refresh their grants again."""
        self._set_paused(request, queryset, paused=False)

    def _set_paused(
        self, request: HttpRequest, queryset: QuerySet[FHIRServer], *, paused: bool
    ) -> None:
        servers = list(queryset.exclude(paused=paused))
        # The columns of a page that was loaded earlier stay as they are now.
        FHIRServer.objects.filter(pk__in=[each.pk for each in servers]).update(
            paused=paused
        )
        self.log_action(request, servers, "paused")
        if paused:
            message = ngettext(
                "Workers refresh no grants of %(count)d server until you resume it.",
                "Workers refresh no grants of %(count)d servers until you resume them.",
                len(servers),
            )
        else:
            message = ngettext(
                "Workers refresh the grants of %(count)d server again.",
                "Workers refresh the grants of %(count)d servers again.",
                len(servers),
            )
        level = messages.SUCCESS if servers else messages.WARNING
        self.message_user(request, message % {"count": len(servers)}, level)

    @admin.action(
        description=_("Fetch the configuration of the selected servers"),
        permissions=["operate"],
    )
    def rediscover(self, request: HttpRequest, queryset: QuerySet[FHIRServer]) -> None:
        """Have a worker fetch configuration and keys now."""
        server_ids = list(queryset.filter(is_active=True).values_list("pk", flat=True))
        if not server_ids:
            message = gettext("None of the selected servers is active.")
            self.message_user(request, message, messages.WARNING)
            return
        # Only the times are dropped: what is stored serves while the server is away,
        # and after a failure, workers would leave the server alone for minutes.
        ServerState.objects.filter(pk__in=server_ids).update(
            configuration_fetched_at=None, discovery_failed_at=None
        )
        sent = gettext(
            "A worker will fetch the configuration; reload the page to see it."
        )
        unsent = gettext(
            "The message broker cannot be reached. The next launch fetches the "
            "configuration; to fetch it now, run smart_discover."
        )
        self.send_task(request, "refresh_servers", sent=sent, unsent=unsent)

    @admin.display(description=_("paused until"))
    def paused_until(self, obj: FHIRServer) -> str:
        """Whether an operator or an outage keeps workers from refreshing."""
        return _end_of_pause(obj)

    @admin.display(description=_("refresh"))
    def health(self, obj: FHIRServer) -> SafeString:
        """All that is known, as a list."""
        return as_facts(_describe_health(obj))

    @admin.display(description=_("deviations"))
    def report(self, obj: FHIRServer) -> SafeString | str:
        """Each kind of deviation, with how often it was seen."""
        return as_list(map(_describe_observation, read_report(obj).observations))

    @admin.display(description=_("configuration"))
    def configuration(self, obj: FHIRServer) -> SafeString | str:
        """What the server offers, by the names of the specification."""
        state = obj.discovered
        if state.configuration is None:
            return gettext("Not fetched yet.")
        try:
            offer = list(describe_configuration(obj))
        except SMARTError as exc:
            why = gettext("The stored configuration cannot be used: %(why)s")
            return why % {"why": exc}
        fields: list[Any] = [state._meta.get_field(name) for name in _TIMES]
        times = ((each.verbose_name, _at(getattr(state, each.name))) for each in fields)
        return as_facts([*offer, *times])
