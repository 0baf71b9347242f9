"""Admin of FHIR servers: what one offers, and how its grants are doing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import date
from django.urls import path
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..contrib.doctor import BASE_URL_WRONG, discover
from ..contrib.monitoring import ServerHealth, read_health
from ..diagnoses import DOCS_URL, Finding
from ..exceptions import SMARTError
from ..models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from ..protocol.quirks import QUIRKS
from ..servers.discovery import (
    DISCOVERED_COLUMNS,
    accept_moved,
    describe_moved,
    fetch_configuration,
)
from ..servers.registering import apply_preset
from .base import (
    EMPTY,
    TabularInline,
    as_code,
    as_list,
    has_trust,
    save_changed,
    show_client_id,
)
from .doctor import TestConnectionMixin
from .forms import FHIRServerForm
from .quirk_fields import get_quirk_label

if TYPE_CHECKING:
    from datetime import datetime

    from django_stubs_ext import StrOrPromise


__all__ = ["FHIRServerAdmin"]

_ENDPOINTS: dict[str, StrOrPromise] = {
    "authorization_endpoint": _("authorization"),
    "token_endpoint": _("token"),
    "revocation_endpoint": _("revocation"),
    "introspection_endpoint": _("introspection"),
    "registration_endpoint": _("registration"),
    "jwks_uri": _("JWK Set"),
}
# SMART App Launch 2.2, "Conformance", Capabilities.
_CAPABILITIES: dict[str, StrOrPromise] = {
    "launch-ehr": _("launches from the EHR"),
    "launch-standalone": _("launches from this site"),
    "authorize-post": _("authorization requests by POST"),
    "client-public": _("clients without a secret"),
    "client-confidential-symmetric": _("clients with a secret"),
    "client-confidential-asymmetric": _("clients with a signing key"),
    "sso-openid-connect": _("sign-in with its accounts"),
    "context-banner": _("says whether to show the patient"),
    "context-style": _("provides its style"),
    "context-ehr-patient": _("names the patient of an EHR launch"),
    "context-ehr-encounter": _("names the encounter of an EHR launch"),
    "context-standalone-patient": _("lets the user choose a patient"),
    "context-standalone-encounter": _("lets the user choose an encounter"),
    "permission-offline": _("access in the background (offline_access)"),
    "permission-online": _("access until sign-out (online_access)"),
    "permission-patient": _("access to one patient's data"),
    "permission-user": _("access to everything the user can see"),
    "permission-v1": _("scopes of version 1"),
    "permission-v2": _("scopes of version 2"),
    "smart-app-state": _("stores app state"),
}


class _HealthChangeList(ChangeList):
    """Reads the health of all servers of a page at once."""

    def get_results(self, request: HttpRequest) -> None:
        """Django's, each row with its health."""
        super().get_results(request)
        servers: Any = self.result_list
        health = read_health([server.pk for server in servers], active_only=True)
        for server in servers:
            # One that was deleted between the two looks has no grants.
            server.health = health.get(server.pk) or _nothing(server)


def _describe(server: FHIRServer) -> Iterator[tuple[StrOrPromise, object]]:
    health = read_health([server.pk]).get(server.pk) or _nothing(server)
    for status in TokenGrant.Status:
        yield status.label, health.grants[status]
    yield _("due"), health.due
    yield _("longest wait"), _ago(health.oldest_due_at)
    yield _("failing"), health.failing
    yield _("last success"), _at(health.last_success_at)
    yield _("last failure"), _at(health.last_failure_at)
    yield _("last error"), as_code(health.last_error)
    yield _("paused until"), _end_of_pause(health)
    yield _("stopped registrations"), health.stopped_registrations


def _nothing(server: FHIRServer) -> ServerHealth:
    return ServerHealth(slug=server.slug, is_active=server.is_active)


def _end_of_pause(health: ServerHealth) -> str:
    if health.paused:
        return gettext("somebody resumes it")
    return _at(health.paused_until)


def _ago(moment: datetime | None) -> str:
    return timesince(moment) if moment else EMPTY


def _at(moment: datetime | None) -> str:
    return date(timezone.localtime(moment), "DATETIME_FORMAT") if moment else EMPTY


_OFFER = _("Server configuration")
# Of what was discovered, shown as it is.
_STATE = (
    "issuer",
    "configuration_fetched_at",
    "jwks_fetched_at",
    "discovery_failed_at",
)


def _has_tokens(server: FHIRServer | None) -> bool:
    grants = TokenGrant.objects.filter(registration__server=server)
    return server is not None and grants.exists()


def _without(fieldset: Any, names: Collection[str]) -> Any:
    title, options = fieldset
    fields = [each for each in options["fields"] if each not in names]
    return title, {**options, "fields": fields}


class _RegistrationInline(TabularInline):
    """Links to a server's registrations."""

    model = ClientRegistration
    fields = readonly_fields = (
        "client_id_briefly",
        "token_endpoint_auth_method",
        "is_active",
    )
    extra = 0
    can_delete = False
    show_change_link = True
    client_id_briefly = staticmethod(show_client_id)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ClientRegistration]:
        """With the server, which each row's name begins with."""
        return super().get_queryset(request).select_related("server")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Registrations have a page of their own."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Registrations have a page of their own."""
        return False


@admin.register(FHIRServer)
class FHIRServerAdmin(TestConnectionMixin):
    """Where launches come from: its address, what it offers, and how it is odd."""

    form = FHIRServerForm
    operational_fields = (
        "paused",
        "turns",
        *(name for name, quirk in QUIRKS.items() if quirk.is_operational),
    )
    list_display = (
        "name",
        "slug",
        "is_active",
        "paused_until",
        "registration_count",
        "active_grants",
        "due_grants",
        "overdue",
    )
    list_filter = ("is_active", "paused", "preset")
    # Said again: the count below takes the model's own ordering away.
    ordering = ("name", "pk")
    search_fields = ("name", "slug", "base_url")
    search_help_text = _("Name, slug or base URL")
    prepopulated_fields = {"slug": ("name",)}
    inlines = (_RegistrationInline,)
    actions = ("rediscover", "pause", "unpause")
    readonly_fields = (
        "endpoints",
        "offers",
        "methods",
        *_STATE,
        "moved_values",
        "quirk_values",
        "health",
        "request_headers_state",
        "created_at",
        "updated_at",
    )
    fieldsets = (
        (
            None,
            {"fields": ("base_url", "preset", "name", "slug", "is_active", "paused")},
        ),
        (
            _OFFER,
            {
                "fields": (
                    "endpoints",
                    "offers",
                    "methods",
                    *_STATE,
                    "moved_values",
                )
            },
        ),
        (_("Grants"), {"fields": ("health",)}),
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
                    "request_headers_state",
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
        """Django's, and the one that accepts what the server names now."""
        view = self.admin_site.admin_view(self.accept)
        name = "django_smart_fhirserver_accept"
        return [path("<path:object_id>/accept/", view, name=name), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[FHIRServer]:
        """With the number of registrations, in the same query."""
        servers: QuerySet[FHIRServer] = super().get_queryset(request)
        return servers.annotate(registration_count=Count("registrations"))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """A list that knows the health of its rows."""
        return _HealthChangeList

    @admin.display(description=_("extra headers"))
    def request_headers_state(self, obj: FHIRServer) -> str:
        """Whether there are some; never which."""
        stored = obj._meta.get_field("request_headers").value_to_string(obj)
        return str(_("stored here, encrypted")) if stored else EMPTY

    @admin.display(description=_("discovered issuer"))
    def issuer(self, obj: FHIRServer) -> str:
        """Of the SMART or OpenID configuration."""
        return obj.discovered.issuer or EMPTY

    @admin.display(description=_("configuration fetched at"))
    def configuration_fetched_at(self, obj: FHIRServer) -> str:
        """When it was last read."""
        return _at(obj.discovered.configuration_fetched_at)

    @admin.display(description=_("JWK Set fetched at"))
    def jwks_fetched_at(self, obj: FHIRServer) -> str:
        """When the keys were last read."""
        return _at(obj.discovered.jwks_fetched_at)

    @admin.display(description=_("discovery failed at"))
    def discovery_failed_at(self, obj: FHIRServer) -> str:
        """When it was last tried without success."""
        return _at(obj.discovered.discovery_failed_at)

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
        """Of a new server nothing is known that could be shown."""
        fieldsets = list(super().get_fieldsets(request, obj))
        if obj is None:
            return [each for each in fieldsets[:-1] if each[0] != _OFFER]
        may_change = self.has_change_permission(request, obj)
        if not (has_trust(request) and may_change):
            # Read from the row, the headers would be shown; quirks are no columns.
            kept = self.operational_fields if may_change else ()
            hidden = {"request_headers", *QUIRKS}.difference(kept)
            fieldsets = [_without(each, hidden) for each in fieldsets]
        return fieldsets

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        """A new server has no registrations."""
        return super().get_inlines(request, obj) if obj else ()

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With the way to the next step."""
        server = context["original"]
        if server and server.discovered.moved and has_trust(request):
            context["shown"] = json.dumps(server.discovered.moved)
        site = self.admin_site
        if (
            server
            and site.is_registered(ClientRegistration)
            and site.get_model_admin(ClientRegistration).has_add_permission(request)
        ):
            url = self.get_admin_url("django_smart_clientregistration_add")
            context["register_url"] = f"{url}?server={server.pk}"
        return super().render_change_form(request, context, *args, **kwargs)

    def response_add(
        self, request: HttpRequest, obj: FHIRServer, post_url_continue: Any = None
    ) -> HttpResponse:
        """Stay with the new server, for those who may: its page shows its offer."""
        stays = not {"_addanother", IS_POPUP_VAR}.intersection(request.POST)
        if stays and self.has_view_or_change_permission(request, obj):
            post = request.POST.copy()
            post["_continue"] = "1"
            request.POST = post  # type: ignore[assignment]  # as Django's own UserAdmin
        return super().response_add(request, obj, post_url_continue)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Tokens never go to another address than the one that gave them."""
        fields = super().get_readonly_fields(request, obj)
        return (*fields, "base_url") if _has_tokens(obj) else fields

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """With what to do if the EHR moves, where the base URL cannot be changed."""
        if _has_tokens(obj):
            # A link within the sentence would be told by its color alone.
            text = format_html(
                '{}<br><a href="{}how-to/migrate.html#new-base-url">{}</a>',
                gettext("It cannot be changed, because tokens belong to it."),
                DOCS_URL,
                gettext("When an EHR moves its base URL"),
            )
            texts = FHIRServerForm.Meta.help_texts
            kwargs["help_texts"] = {**texts, "base_url": text}
        return super().get_form(request, obj, change, **kwargs)

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Only for a new server: vendors have links that contain the slug."""
        return {} if obj else super().get_prepopulated_fields(request, obj)

    def save_model(
        self, request: HttpRequest, obj: FHIRServer, form: Any, change: bool
    ) -> None:
        """Fill in the preset, forget what belongs to an old address, and ask."""
        if "preset" in form.changed_data:
            before = form.initial.get("preset", "")
            apply_preset(obj, before=before, keep=form.changed_quirks)
        if change:
            save_changed(obj, {"quirks", *form.changed_data})
        else:
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

    @admin.display(description=_("registrations"), ordering="registration_count")
    def registration_count(self, obj: Any) -> int:
        """How many clients are registered there."""
        return int(obj.registration_count)

    @admin.display(description=_("paused until"))
    def paused_until(self, obj: Any) -> str:
        """Whether an operator or an outage keeps workers from refreshing."""
        return _end_of_pause(obj.health)

    @admin.display(description=_("active grants"))
    def active_grants(self, obj: Any) -> int:
        """How many are in force."""
        return int(obj.health.grants[TokenGrant.Status.ACTIVE])

    @admin.display(description=_("due"))
    def due_grants(self, obj: Any) -> int:
        """How many wait for a worker."""
        return int(obj.health.due)

    @admin.display(description=_("longest wait"))
    def overdue(self, obj: Any) -> str:
        """How long the one that is due longest has waited."""
        return _ago(obj.health.oldest_due_at)

    @admin.display(description=_("refresh"))
    def health(self, obj: Any) -> SafeString | str:
        """All that is known, as a list."""
        if obj.pk is None:
            return EMPTY
        rows = format_html_join("", "<dt>{}</dt><dd>{}</dd>", _describe(obj))
        return format_html('<dl class="smart-facts">{}</dl>', rows)

    @admin.display(description=_("endpoints"))
    def endpoints(self, obj: FHIRServer) -> SafeString | str:
        """With the overrides applied, which are marked; or why there are none."""
        if obj.discovered.configuration is None:
            return gettext("Not fetched yet.")
        overrides = obj.overrides or {}
        try:
            found = obj.parse_configuration(obj.discovered.configuration)
        except SMARTError as exc:
            return gettext("The stored configuration cannot be used: %(why)s") % {
                "why": exc
            }
        rows = []
        for name, words in _ENDPOINTS.items():
            # The column of the JWK Set's URL holds what was discovered, there or in
            # the OpenID configuration.
            url = (obj.discovered.jwks_uri if name == "jwks_uri" else "") or getattr(
                found, name
            )
            if url:
                mark = gettext("(set manually)") if name in overrides else ""
                rows.append((words, url, mark))
        return format_html(
            '<dl class="smart-facts">{}</dl>',
            format_html_join("", "<dt>{}</dt><dd><code>{}</code> {}</dd>", rows),
        )

    @admin.display(description=_("offers"))
    def offers(self, obj: FHIRServer) -> SafeString | str:
        """Its capabilities: known ones in words and in the specification's order."""
        found = obj.read_configuration()
        if found is None:
            return EMPTY
        known = (words for name, words in _CAPABILITIES.items() if found.has(name))
        return as_list([*known, *sorted(found.capabilities - _CAPABILITIES.keys())])

    @admin.display(description=_("authentication"))
    def methods(self, obj: FHIRServer) -> SafeString | str:
        """How clients authenticate there, with which algorithms, and PKCE."""
        found = obj.read_configuration()
        if found is None:
            return EMPTY
        methods = found.token_endpoint_auth_methods_supported
        algorithms = found.token_endpoint_auth_signing_alg_values_supported
        lines = [
            gettext("PKCE with S256")
            if found.supports_s256
            else gettext("PKCE with S256 is not advertised")
        ]
        if methods:
            lines.append(", ".join(methods))
        if algorithms:
            lines.append(
                gettext("signed with %(names)s") % {"names": ", ".join(algorithms)}
            )
        if found.missing:
            lines.append(
                gettext("required but missing: %(names)s")
                % {"names": ", ".join(sorted(found.missing))}
            )
        return as_list(lines)
