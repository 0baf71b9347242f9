"""Admin of client registrations: four inputs, and the way to the first launch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..diagnoses import DOCS_URL
from ..exceptions import InsecureURLError
from ..grants.stopping import resume_refreshes
from ..models import ClientRegistration, FHIRServer, Launch, TaskRun, TokenGrant
from ..models.task_run import REFRESH, SILENT_AFTER
from ..protocol.scopes import ScopeSet
from ..servers.registering import (
    build_client_urls,
    choose_callback,
    ensure_key_of,
    get_site_url,
)
from ..servers.requirements import find_problems
from .base import EMPTY
from .forms import ClientRegistrationForm
from .trust import PASSED, TrustAdmin

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["ClientRegistrationAdmin"]

_STOP = ("refresh_stopped_at", "refresh_stop_reason", "refresh_probe_at")


@admin.register(ClientRegistration)
class ClientRegistrationAdmin(TrustAdmin):
    """Who this site is at a server, and what is left to do until the first launch."""

    form = ClientRegistrationForm
    list_display = (
        "id",
        "server",
        "client_id_briefly",
        "token_endpoint_auth_method",
        "uses",
        "is_active",
        "refresh_stopped_at",
    )
    list_display_links = ("id", "server", "client_id_briefly")
    list_filter = ("is_active", "token_endpoint_auth_method")
    list_select_related = ("server",)
    search_fields = ("server__name", "server__slug", "client_id")
    search_help_text = _("Server or client ID")
    autocomplete_fields = ("server",)
    actions = ("resume",)
    readonly_fields = (*_STOP, "created_at", "updated_at")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Server, client ID, authentication and scopes; all else is closed."""
        may_edit = obj is None or self.has_change_permission(request, obj)
        # Who may only look gets every field as it is read from the row: no secret.
        secret = ("secret_source", "client_secret") if may_edit else ()
        stopped = [(_("Refreshes are stopped"), {"fields": _STOP})]
        return [
            (
                None,
                {
                    "fields": (
                        "server",
                        "client_id",
                        "token_endpoint_auth_method",
                        *secret,
                        "client_secret_env",
                        "client_secret_file",
                        "signing_algorithm",
                    )
                },
            ),
            (_("Scopes to request"), _SCOPES),
            *(stopped if obj and obj.refresh_stopped_at else ()),
            (_("More options"), _MORE),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """A client belongs to its server, and its tokens belong to the client."""
        fields = super().get_readonly_fields(request, obj)
        if obj is None:
            return fields
        # Its secret is not sent to another server.
        bound = ("client_id",) if obj.has_bound_grants() else ()
        return (*fields, "server", *bound)

    def get_obstacle(self, obj: ClientRegistration) -> StrOrPromise:
        """Its grants and launches, of which there may be very many."""
        grants = TokenGrant.objects.filter(registration=obj)
        if grants.exists() or Launch.objects.filter(registration=obj).exists():
            return _("it has grants or launches; deactivate it instead")
        return ""

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """The redirect URI that this site answers at."""
        site_url = conf.SMART_SITE_URL
        if not site_url and settings.DEBUG:
            site_url = request.build_absolute_uri("/").rstrip("/")
        given = super().get_changeform_initial_data(request)
        pk = str(given.pop("server", ""))
        # The field would look for whatever the link contains.
        found = FHIRServer.objects.filter(pk=int(pk)) if pk.isdecimal() else None
        server = (found.first() if found else None) or FHIRServer()
        planned = ClientRegistration(server=server)
        initial: dict[str, Any] = {}
        if site_url:
            initial["redirect_uri"] = site_url + choose_callback(planned)
            initial["callback_id"] = planned.callback_id
        if server.pk:
            planned.leave_defaults()
            for name in ("is_ehr_default", "is_standalone_default"):
                initial[name] = getattr(planned, name)
            initial["server"] = server.pk
            initial["launch_slug"] = planned.make_launch_slug()
        return {**initial, **given}

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With what to enter in the EHR's form, and what is left to do."""
        form = context["adminform"].form
        if context["original"]:
            context["steps"] = _find_steps(context["original"])
        else:
            new = ClientRegistration(server=FHIRServer())
            for name in ("redirect_uri", "callback_id", "launch_slug"):
                setattr(new, name, form[name].value() or "")
            if new.launch_slug:
                new.is_ehr_default = bool(form["is_ehr_default"].value())
            context["steps"] = {"urls": _list_urls(new)}
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(
        self, request: HttpRequest, obj: ClientRegistration, form: Any, change: bool
    ) -> None:
        """Store it; with ``private_key_jwt`` there has to be a key to sign with."""
        super().save_model(request, obj, form, change)
        ensure_key_of(obj)

    def get_row_actions(self, obj: ClientRegistration) -> dict[str, StrOrPromise]:
        """Resume its refreshes, if they were stopped."""
        return {"resume": _("Resume refreshing")} if obj.refresh_stopped_at else {}

    @admin.action(
        description=_("Resume refreshing the selected registrations"),
        permissions=["operate"],
    )
    def resume(
        self, request: HttpRequest, queryset: QuerySet[ClientRegistration]
    ) -> None:
        """Let the worker refresh the grants of registrations that were stopped."""
        resumed = [
            each for each in queryset if resume_refreshes(each, by_operator=True)
        ]
        self.log_action(request, resumed, "refresh stopped at")
        done = ngettext(
            "The grants of %(count)d registration are refreshed again.",
            "The grants of %(count)d registrations are refreshed again.",
            len(resumed),
        )
        nothing = gettext("None of the selected registrations was stopped.")
        self.tell_result(request, len(resumed), done=done, nothing=nothing)

    @admin.display(description=_("client ID"), ordering="client_id")
    def client_id_briefly(self, obj: ClientRegistration) -> str:
        """Its beginning: some client ids are whole JWTs."""
        return Truncator(obj.client_id).chars(48)

    @admin.display(description=_("used for"))
    def uses(self, obj: ClientRegistration) -> str:
        """By the scopes that are filled in."""
        names = (
            (obj.ehr_scope, _("EHR launch")),
            (obj.standalone_scope, _("standalone launch")),
            (obj.system_scope, _("backend services")),
        )
        return ", ".join(str(name) for scope, name in names if scope) or EMPTY


_SCOPES: dict[str, Any] = {
    "fields": ("ehr_scope", "standalone_scope", "system_scope"),
    "description": _(
        "Fill in one, or several. Scopes are separated by spaces. Background access "
        "requires offline_access."
    ),
}
_MORE: dict[str, Any] = {
    "classes": ("collapse",),
    "fields": (
        "is_active",
        "landing_page",
        ("create_users", "user_switch"),
        "manage_groups",
        "unread_changes",
        "redirect_uri",
        ("callback_id", "callback_group"),
        "launch_slug",
        ("is_ehr_default", "is_standalone_default"),
        ("created_at", "updated_at"),
    ),
}


def _list_urls(registration: ClientRegistration) -> list[tuple[StrOrPromise, str]]:
    """What the EHR's form asks for; nothing while this site's URL is unknown."""
    try:
        site_url = get_site_url(registration)
        if not site_url:
            return []
        urls = build_client_urls(registration, site_url=site_url)
    except (ImproperlyConfigured, InsecureURLError):
        return []
    is_new = registration.pk is None
    signs = is_new or registration.uses_private_key
    launches = is_new or registration.is_for_launches
    shown = (
        (_("Redirect URI"), urls.redirect_uri if launches else None),
        (_("Launch URL"), urls.launch_url if is_new or registration.ehr_scope else ""),
        (_("Login URL"), urls.login_url),
        (_("JWK Set URL"), urls.jwks_url if signs else ""),
    )
    return [(label, url) for label, url in shown if url]


def _find_steps(registration: ClientRegistration) -> dict[str, Any]:
    """What is done and what is open until people can use the registration."""
    server = registration.server
    known = server.read_configuration(registration.client_id)
    launches = Launch.objects.filter(
        registration=registration, completed_at__isnull=False
    )
    grants = TokenGrant.objects.filter(registration=registration)
    is_used = launches.exists() or grants.exists()
    tests = LogEntry.objects.filter(
        content_type=ContentType.objects.get_for_model(registration),
        object_id=registration.pk,
        change_message=json.dumps(PASSED),
        action_time__gte=registration.updated_at,
    )
    scopes = ScopeSet.parse(f"{registration.ehr_scope} {registration.standalone_scope}")
    ran_at, longest = TaskRun.objects.get_time(REFRESH), SILENT_AFTER[REFRESH]
    return {
        "urls": _list_urls(registration),
        "problems": find_problems(registration, known) if known else [],
        "is_used": is_used,
        "is_tested": is_used or tests.exists(),
        "wants_worker": "offline_access" in scopes,
        "has_worker": ran_at is not None and timezone.now() - ran_at < longest,
        "docs_url": DOCS_URL,
    }
