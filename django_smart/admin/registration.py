"""Admin of client registrations, with errors shown while the form is filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..exceptions import InsecureURLError
from ..grants.stopping import resume_refreshes
from ..models import ClientRegistration, FHIRServer, Launch, SigningKey, TokenGrant
from ..servers.registering import (
    build_client_urls,
    choose_callback,
    get_site_url,
)
from ..servers.signing_keys import ensure_active_key, get_ready_at
from .base import EMPTY, as_copyable, as_list, save_changed, show_client_id
from .doctor import TestConnectionMixin
from .forms import ClientRegistrationForm

__all__ = ["ClientRegistrationAdmin"]


if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

# What is not filled in yet is no fault while somebody types; the secret is not sent.
_NOT_YET = {"required", "scope_required", "null", "blank"}
_NOT_SENT = {"client_secret", "client_secret_env", "clear_client_secret"}

_URL_FIELDS = ("launch_url", "login_url", "redirect_url", "jwks_url")
_STOP = ("refresh_stopped_at", "refresh_stop_reason", "refresh_probe_at")


@admin.register(ClientRegistration)
class ClientRegistrationAdmin(TestConnectionMixin):
    """Who this site is at a server, and what to enter in the vendor's form."""

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
    client_id_briefly = staticmethod(show_client_id)
    readonly_fields = (
        *_URL_FIELDS,
        "next_steps",
        "secret_state",
        *_STOP,
        "created_at",
        "updated_at",
    )

    def get_urls(self) -> list[Any]:
        """Django's, and two that check: a new row, and one that is there."""
        view = self.admin_site.admin_view(self.check_form)
        name = f"{self.opts.app_label}_{self.opts.model_name}_check"
        return [
            path("check/", view, name=name),
            path("<path:object_id>/check/", view, name=name),
            *super().get_urls(),
        ]

    def check_form(
        self, request: HttpRequest, object_id: str | None = None
    ) -> HttpResponse:
        """
        Errors by field as JSON; nothing is stored, and no server is asked.

        ``admin.js`` sends the form as it stands, and shows the answer in it.
        """
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

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What the vendor's form needs, what it gave, and what is asked for."""
        may_edit = obj is None or self.has_change_permission(request, obj)
        # Who may only look gets every field as it is read from the row: no secret.
        secrets = ["client_secret"] if may_edit else []
        steps: list[str] = []
        times: list[Any] = []
        if obj is not None:
            secrets += ["clear_client_secret"] if may_edit else []
            steps = ["next_steps"]
            stopped = [_STOP] if obj.refresh_stopped_at else []
            times = [(None, {"fields": [*stopped, ("created_at", "updated_at")]})]
        return [
            (None, {"fields": ["server", "is_active", *steps]}),
            (_("For the vendor's form"), _VENDOR),
            (
                _("Client"),
                {
                    "fields": [
                        "client_id",
                        "token_endpoint_auth_method",
                        "secret_state",
                        *secrets,
                        "client_secret_env",
                        "client_secret_file",
                        "signing_algorithm",
                    ]
                },
            ),
            (_("Scopes to request"), _SCOPES),
            (_("This site"), _SITE),
            *times,
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
        server_id = str(given.get("server", ""))
        server = (
            FHIRServer.objects.filter(pk=server_id).first()
            if server_id.isdecimal()
            else None
        )
        if server is None:
            # The field would look for whatever the link contains.
            given.pop("server", None)
        planned = ClientRegistration(server=server or FHIRServer())
        initial: dict[str, Any] = {}
        if site_url:
            initial["redirect_uri"] = site_url + choose_callback(planned)
            initial["callback_id"] = planned.callback_id
        if server:
            planned.leave_defaults()
            for name in ("is_ehr_default", "is_standalone_default"):
                initial[name] = getattr(planned, name)
        return {**initial, **given}

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With the address that checks; other URLs follow the form's redirect URI."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_check"
        pks = [context["original"].pk] if context["original"] else []
        context["check_url"] = self.get_admin_url(name, *pks)
        form = context["adminform"].form
        if form.instance._state.adding and not form.is_bound:
            for name in ("redirect_uri", "callback_id"):
                setattr(form.instance, name, form.initial.get(name, ""))
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(
        self, request: HttpRequest, obj: ClientRegistration, form: Any, change: bool
    ) -> None:
        """Store it; with ``private_key_jwt`` there has to be a key to sign with."""
        if change:
            # The server may have been asked for long: refreshes may have been stopped.
            changed = {*form.changed_data}
            if "clear_client_secret" in changed:
                changed.add("client_secret")
            if "redirect_uri" in changed:
                changed.add("callback_id")
            save_changed(obj, changed)
        else:
            super().save_model(request, obj, form, change)
        if form.unasked is not None:
            self.message_user(
                request,
                _(
                    "The server could not be asked whether it supports this "
                    "registration (%(code)s). If it does not, launches fail."
                )
                % {"code": form.unasked.code},
                messages.WARNING,
            )
        if obj.is_service_with_secret:
            self.message_user(
                request,
                _(
                    "Anyone with this secret can read everything the system scope "
                    "covers. Use private_key_jwt if the server supports it."
                ),
                messages.WARNING,
            )
        if obj.uses_private_key:
            own = SigningKey.objects.of(obj).active()
            key = own.filter(algorithm=obj.signing_algorithm).first()
            key = key or ensure_active_key(obj.signing_algorithm)
            self.message_user(
                request,
                _("Token requests are signed with the key %(kid)s.") % {"kid": key.kid},
            )
            # The JWK Set of separate keys contained no shared one.
            is_new = key.registration_id is None and own.exists()
            is_new = is_new or timezone.now() < get_ready_at(key)
            if change and is_new and "signing_algorithm" in form.changed_data:
                self.message_user(
                    request,
                    _(
                        "The EHR may refuse this key until it fetches the JWK Set "
                        "again, for up to an hour. To avoid that, set the previous "
                        "algorithm again, publish a key of the new one, wait two "
                        "hours, activate it if it is a separate key, and change the "
                        "algorithm then."
                    ),
                    messages.WARNING,
                )

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

    @admin.display(description=_("used for"))
    def uses(self, obj: ClientRegistration) -> str:
        """By the scopes that are filled in."""
        names = (
            (obj.ehr_scope, _("EHR launch")),
            (obj.standalone_scope, _("standalone launch")),
            (obj.system_scope, _("backend services")),
        )
        return ", ".join(str(name) for scope, name in names if scope) or EMPTY

    @admin.display(description=_("next steps"))
    def next_steps(self, obj: ClientRegistration) -> SafeString | str:
        """From the vendor's form to the first launch, and what is known to be done."""
        server = obj.server
        is_fetched = bool(server.discovered.configuration_fetched_at)
        steps = [
            _mark(
                bool(obj.is_for_launches or obj.system_scope),
                _("Enter the scopes to request."),
            ),
            _mark(is_fetched, _("Fetch the server's configuration.")),
            # Nothing records that somebody tested.
            _("Choose “Test connection”, and fix what it reports."),
        ]
        if obj.is_for_launches:
            launches = Launch.objects.filter(registration=obj)
            is_launched = launches.filter(completed_at__isnull=False).exists()
            steps = [
                _mark(is_launched, _("Enter the URLs below in the vendor's form.")),
                *steps,
                _mark(
                    is_launched, _("Launch once, from the EHR or with the login URL.")
                ),
            ]
        return as_list(steps)

    @admin.display(description=_("secret"))
    def secret_state(self, obj: ClientRegistration) -> SafeString | str:
        """Where the secret comes from; never the secret."""
        # The ciphertext is enough: a secret that can no longer be decrypted must not
        # break the page.
        stored = obj._meta.get_field("client_secret").value_to_string(obj)
        places = [
            (stored, _("stored here, encrypted")),
            (obj.client_secret_env, _("read from an environment variable")),
            (obj.client_secret_file, _("read from a file")),
        ]
        return as_list(text for value, text in places if value) if obj.pk else EMPTY

    @admin.display(description=_("launch URL"))
    def launch_url(self, obj: ClientRegistration) -> SafeString | str:
        """Where the EHR sends a browser."""
        return _show_url(obj, "launch_url")

    @admin.display(description=_("login URL"))
    def login_url(self, obj: ClientRegistration) -> SafeString | str:
        """Where a person starts without the EHR, if there is a scope for that."""
        return _show_url(obj, "login_url")

    @admin.display(description=_("redirect URI"))
    def redirect_url(self, obj: ClientRegistration) -> SafeString | str:
        """Where the authorization server sends the browser back."""
        return _show_url(obj, "redirect_uri")

    @admin.display(description=_("JWK Set URL"))
    def jwks_url(self, obj: ClientRegistration) -> SafeString | str:
        """Where the EHR finds this site's public keys."""
        return _show_url(obj, "jwks_url")


def _mark(is_done: bool, step: StrOrPromise) -> StrOrPromise:
    return (_("Done: %s") if is_done else _("To do: %s")) % step


_VENDOR: dict[str, Any] = {
    "fields": [each for each in _URL_FIELDS if each != "login_url"],
    "description": _("Copy these values exactly."),
}
_SCOPES: dict[str, Any] = {
    "fields": ["ehr_scope", "standalone_scope", "system_scope"],
    "description": _(
        "Separated by spaces, and requested in this order. An empty field disables "
        "that use. Background access requires offline_access."
    ),
}
_SITE: dict[str, Any] = {
    "fields": [
        "launch_slug",
        ("is_ehr_default", "is_standalone_default"),
        "login_url",
        "redirect_uri",
        ("callback_id", "callback_group"),
        "landing_page",
        ("create_users", "user_switch"),
        "manage_groups",
        "unread_changes",
    ]
}


def _show_url(registration: ClientRegistration, name: str) -> SafeString | str:
    if not registration.pk:
        # A new one: the addresses are wanted before the vendor gives a client id.
        registration = ClientRegistration(
            server=FHIRServer(),
            redirect_uri=registration.redirect_uri,
            callback_id=registration.callback_id,
        )
    try:
        site_url = get_site_url(registration)
        if site_url:
            urls = build_client_urls(registration, site_url=site_url)
            return as_copyable(getattr(urls, name) or "")
    except (ImproperlyConfigured, InsecureURLError):
        pass
    return str(_("Set SMART_SITE_URL, or enter the redirect URI below."))
