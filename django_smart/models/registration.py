"""Client registrations: this site's identity at a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import ValidationError
from django.core.validators import validate_slug
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ..exceptions import CredentialsError, ScopeSyntaxError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import ScopeSet, is_for_service
from ..protocol.urls import normalize_base_url
from .clock import DatabaseNow
from .joined_row import JoinedRow
from .server import MAX_URL_LENGTH, FHIRServer, validate_by, validate_url

__all__ = ["ClientRegistration", "ClientRegistrationQuerySet"]

# The end of a URL's path; also of one that is not valid.
_CALLBACK = re.compile(r"\w+://[^?#]*/callback/([A-Za-z0-9_-]+)/(?:[?#]|\Z)")
_CREDENTIALS = (
    "client_id",
    "token_endpoint_auth_method",
    "client_secret",
    "client_secret_env",
    "client_secret_file",
    "signing_algorithm",
)
_SCOPES = ("ehr_scope", "standalone_scope", "system_scope")


class ClientRegistrationQuerySet(models.QuerySet["ClientRegistration"]):
    """Select registrations by their use."""

    def active(self) -> ClientRegistrationQuerySet:
        """Return active registrations at active servers."""
        return self.filter(is_active=True, server__is_active=True)

    def refreshable(self) -> ClientRegistrationQuerySet:
        """Registrations whose grants workers may refresh, if only one to try it."""
        return self.active().filter(
            Q(refresh_stopped_at__isnull=True) | _is_probe_due(), server__paused=False
        )

    def claim_probe(self, pk: int, *, pause: timedelta) -> bool:
        """
        Become the one whose request shows whether a stopped registration works again.

        One conditional UPDATE, so no other process sends a probe during *pause*.
        """
        due = self.stopped().filter(_is_probe_due(), pk=pk)
        return due.update(refresh_probe_at=DatabaseNow(pause)) == 1

    def stopped(self) -> ClientRegistrationQuerySet:
        """Return registrations whose refreshes are stopped until they are resumed."""
        return self.filter(refresh_stopped_at__isnull=False)

    @staticmethod
    def find_ehr(iss: str, launch_slug: str = "") -> ClientRegistration | None:
        """
        Return the registration for a launch from the server with the base URL *iss*.

        Args:
            launch_slug: of the registration itself, instead of the server's default.

        Raises:
            InsecureURLError: *iss* is not a base URL.
        """
        at_server = digest(normalize_base_url(iss))
        if launch_slug:
            return _EHR_BY_SLUG.find(at_server, launch_slug)
        return _EHR_DEFAULT.find(at_server)

    @staticmethod
    def find_standalone(slug: str, launch_slug: str = "") -> ClientRegistration | None:
        """
        Return the registration for a launch from this site.

        Args:
            slug: of the server, for its default registration.
            launch_slug: of the registration itself, instead of *slug*.
        """
        if launch_slug:
            found = _STANDALONE_BY_SLUG.find(launch_slug)
        else:
            found = _STANDALONE_DEFAULT.find(slug)
        if found is None:
            return None
        # Not every database compares exactly.
        is_exact = found.launch_slug == launch_slug or (
            not launch_slug and found.server.slug == slug
        )
        return found if is_exact else None

    def for_ehr_launch(self, base_url_digest: str) -> ClientRegistrationQuerySet:
        """Return registrations for launches from the EHR with this base URL."""
        found = self.active().filter(server__base_url_digest=base_url_digest)
        return found.exclude(ehr_scope="")

    def startable(self) -> ClientRegistrationQuerySet:
        """Return registrations for launches from this site."""
        found = self.active().exclude(standalone_scope="")
        return found.select_related("server")

    def standalone(self) -> ClientRegistrationQuerySet:
        """Return those that are their server's default."""
        return self.startable().filter(standalone_slot__isnull=False)


def _is_probe_due() -> Q:
    return Q(refresh_probe_at__lte=DatabaseNow())


def _validate_scope(value: str) -> None:
    validate_by(ScopeSet.parse, value, strict=True)


class ClientRegistration(models.Model):
    """
    One client ID at one server, with its credentials and scopes.

    A server can have several, each with its own launch URLs: ``launch/<launch slug>/``
    and ``login/?registration=<launch slug>``.  At most one of them is the default for
    EHR launches, which ``launch/`` uses, and one for standalone launches, which
    ``login/?server=…`` and the picker use.  ``ehr_slot`` and ``standalone_slot``
    contain the server's number for the default and are NULL otherwise, so that a unique
    column enforces the rule on every database.
    """

    class AuthMethod(models.TextChoices):
        """How the client authenticates at the token endpoint."""

        NONE = "none", _("none (public client)")
        CLIENT_SECRET_BASIC = "client_secret_basic", "client_secret_basic"
        CLIENT_SECRET_POST = "client_secret_post", "client_secret_post"
        PRIVATE_KEY_JWT = "private_key_jwt", "private_key_jwt"

    class SigningAlgorithm(models.TextChoices):
        """The algorithms that SMART requires every client to support (JWKS-08)."""

        RS384 = "RS384", "RS384"
        ES384 = "ES384", "ES384"

    class StopReason(models.TextChoices):
        """Why the registration's grants are not refreshed."""

        CREDENTIALS_REFUSED = "invalid_client", _("the server refused our credentials")
        GRANTS_REFUSED = "grants_refused", _("the server refused nearly all grants")
        TOKENS_NOT_STORED = "tokens_not_stored", _("the database refused new tokens")

    class UserSwitch(models.TextChoices):
        """What to do when a launch proves a different user than the one signed in."""

        ASK = "ask", _("ask which user continues")
        SWITCH = "switch", _("switch immediately (shared workstations)")

    server = models.ForeignKey(
        FHIRServer,
        models.PROTECT,
        verbose_name=_("FHIR server"),
        related_name="registrations",
        help_text=_("The server where this client is registered."),
    )
    client_id = models.TextField(
        _("client ID"),
        help_text=_("Client ID that the EHR's vendor assigned."),
    )
    client_id_digest = DigestField(
        verbose_name=_("client ID digest"), sources=("client_id",)
    )
    token_endpoint_auth_method = models.CharField(
        _("authentication method"),
        max_length=30,
        choices=AuthMethod,
        default=AuthMethod.CLIENT_SECRET_BASIC,
        help_text=_(
            "How this client authenticates at the token endpoint; must "
            "match the vendor's form."
        ),
    )
    client_secret = EncryptedTextField(
        _("client secret"),
        blank=True,
        default="",
        help_text=_("Stored encrypted, and never shown again."),
    )
    client_secret_env = models.CharField(
        _("environment variable with the secret"),
        max_length=200,
        blank=True,
        default="",
        help_text=_(
            "Name of the environment variable; web processes and workers need it."
        ),
    )
    client_secret_file = models.CharField(
        _("file with the secret"),
        max_length=500,
        blank=True,
        default="",
        help_text=_(
            "Path of a file that contains only the secret; web processes "
            "and workers read it."
        ),
    )
    signing_algorithm = models.CharField(
        _("signing algorithm"),
        max_length=10,
        choices=SigningAlgorithm,
        default="RS384",
        help_text=_("Algorithm of client assertions, for private_key_jwt."),
    )
    ehr_scope = models.TextField(
        _("scope for EHR launch"),
        blank=True,
        default="",
        validators=[_validate_scope],
        help_text=_(
            "Scopes to request in EHR launches, separated by spaces. "
            "Empty disables EHR launches."
        ),
    )
    standalone_scope = models.TextField(
        _("scope for standalone launch"),
        blank=True,
        default="",
        validators=[_validate_scope],
        help_text=_(
            "Scopes to request in launches from this site, separated by "
            "spaces. Empty disables them."
        ),
    )
    system_scope = models.TextField(
        _("scope for backend services"),
        blank=True,
        default="",
        validators=[_validate_scope],
        help_text=_(
            "system/ scopes to request for backend services, separated by"
            " spaces. Empty disables them."
        ),
    )
    launch_slug = models.SlugField(
        _("launch slug"),
        max_length=120,
        unique=True,
        blank=True,
        help_text=_(
            "Identifies the registration in its own launch URLs. If empty, it "
            "is derived from the server's slug."
        ),
    )
    is_ehr_default = models.BooleanField(
        _("default for EHR launches"),
        default=True,
        help_text=_("launch/ uses this registration for launches from this server."),
    )
    is_standalone_default = models.BooleanField(
        _("default for standalone launches"),
        default=True,
        help_text=_("The picker and login/?server=… use this registration."),
    )
    redirect_uri = models.CharField(
        _("redirect URI"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_url],
        help_text=_("Exactly as registered at the EHR."),
    )
    callback_id = models.CharField(
        _("callback ID"),
        max_length=100,
        blank=True,
        default="",
        validators=[validate_slug],
        help_text=_(
            "Identifies the registration in its redirect URI, "
            "callback/<callback ID>/. Empty for callback/."
        ),
    )
    callback_group = models.CharField(
        _("callback group"),
        max_length=100,
        blank=True,
        default="",
        validators=[validate_slug],
        help_text=_(
            "Only for registrations that must share a redirect URI, such as "
            "one vendor client ID for many hospitals: give all of them the "
            "same name. A hostile server in a group can take over sign-ins at "
            "the others."
        ),
    )
    landing_page = models.CharField(
        _("landing page"),
        max_length=500,
        blank=True,
        default="",
        help_text=_(
            "Path of the page that opens after a launch. Empty for "
            "SMART_LAUNCH_REDIRECT_URL."
        ),
    )
    create_users = models.BooleanField(
        _("create users"),
        default=True,
        help_text=_("Create a user when someone unknown to this site signs in."),
    )
    user_switch = models.CharField(
        _("user switching"),
        max_length=10,
        choices=UserSwitch,
        default=UserSwitch.ASK,
        help_text=_(
            "What to do when the EHR identifies a different user than the one signed "
            "in. Switch immediately only for shared workstations: any link to a launch "
            "can then replace the user."
        ),
    )
    unread_changes = models.BooleanField(
        _("write without reading first"),
        default=False,
        help_text=_(
            "Send writes under patient/ scopes even if no granted scope allows "
            "checking whose record they belong to."
        ),
    )
    manage_groups = models.BooleanField(
        _("manage groups"),
        default=False,
        help_text=_(
            "Set the user's groups by the type of fhirUser, according to the "
            "backend's groups_by_type."
        ),
    )
    is_active = models.BooleanField(
        _("active"),
        default=True,
        help_text=_(
            "If off, no launch starts or completes with this client, and "
            "no grant is refreshed."
        ),
    )
    refresh_stopped_at = models.DateTimeField(
        _("refresh stopped at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "Grants are kept but not refreshed until an operator resumes refreshing."
        ),
    )
    refresh_stop_reason = models.CharField(
        _("refresh stop reason"),
        max_length=40,
        choices=StopReason,
        blank=True,
        default="",
        editable=False,
        help_text=_("Why refreshes were stopped."),
    )
    refresh_probe_at = models.DateTimeField(
        _("next attempt to refresh at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Of one grant, while refreshing is stopped."),
    )
    ehr_slot = DigestField(
        verbose_name=_("EHR launch slot"), sources=("_ehr_slot",), null=True
    )
    standalone_slot = DigestField(
        verbose_name=_("standalone launch slot"),
        sources=("_standalone_slot",),
        null=True,
    )
    callback_slot = DigestField(
        verbose_name=_("callback slot"), sources=("_callback_slot",), null=True
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    objects = ClientRegistrationQuerySet.as_manager()

    class Meta:
        verbose_name = _("client registration")
        verbose_name_plural = _("client registrations")
        ordering = ("server__name", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=["server", "client_id_digest"],
                name="django_smart_registration_client_id",
                violation_error_message=_(
                    "This client ID is already registered at this server."
                ),
            ),
            models.UniqueConstraint(
                fields=["ehr_slot"],
                name="django_smart_registration_ehr_slot",
                violation_error_message=_(
                    "Another registration is this server's default for EHR "
                    "launches. Uncheck this one and register its own launch "
                    "URL at the EHR, or change the other one first."
                ),
            ),
            models.UniqueConstraint(
                fields=["standalone_slot"],
                name="django_smart_registration_standalone_slot",
                violation_error_message=_(
                    "Another registration is this server's default for "
                    "standalone launches. Uncheck this one, which keeps its "
                    "own login URL, or change the other one first."
                ),
            ),
            models.UniqueConstraint(
                fields=["callback_slot"],
                name="django_smart_registration_callback",
                violation_error_message=_(
                    "Another registration uses this callback. Give this one "
                    "its own callback ID, or put both into one callback "
                    "group."
                ),
            ),
        )

    def __str__(self) -> str:
        return f"{self.server} ({self.get_token_endpoint_auth_method_display()})"

    def save(self, **kwargs: Any) -> None:
        """Save; resume refreshes that the old credentials stopped."""
        for name in _SCOPES:
            # They are sent as stored, but may have been entered on several lines.
            setattr(self, name, " ".join(getattr(self, name).split()))
        self._read_callback_id()
        if not self.launch_slug:
            self.launch_slug = self.make_launch_slug()
        is_changed = bool(self.pk and self._has_new_credentials())
        super().save(**kwargs)
        if is_changed:
            self._lift_stop()
            self.wake_grants()

    def _lift_stop(self) -> None:
        blank: dict[str, Any] = {
            "refresh_stopped_at": None,
            "refresh_stop_reason": "",
            "refresh_probe_at": None,
        }
        reason = self.StopReason.CREDENTIALS_REFUSED
        rows = type(self)._base_manager.filter(pk=self.pk, refresh_stop_reason=reason)
        if rows.update(**blank):
            for name, value in blank.items():
                setattr(self, name, value)

    def wake_grants(self) -> None:
        """
        Make grants due that failed because of a stop; their next failure is the first.
        """
        grants: Any = self.grants
        grants.wake([self.pk], error_codes=self.StopReason.values)

    def has_bound_grants(self) -> bool:
        """Return whether tokens are kept that belong to the stored client ID."""
        grants: Any = self.grants
        lost = Q(status=grants.model.Status.NEEDS_REAUTHORIZATION)
        endable = (
            Q(status__in=grants.model.ENDABLE)
            & ~Q(kind=grants.model.Kind.CLIENT_CREDENTIALS)
            & ~(lost & Q(refresh_token_digest=""))
        )
        return bool(grants.filter(endable | Q(is_revocation_pending=True)).exists())

    @property
    def is_for_launches(self) -> bool:
        """Whether it is used for launches."""
        return bool(self.ehr_scope or self.standalone_scope)

    @property
    def is_for_patients(self) -> bool:
        """Whether its users are patients: it is not for launches from an EHR."""
        return bool(self.standalone_scope) and not self.ehr_scope

    @property
    def uses_private_key(self) -> bool:
        """Whether it authenticates with a signing key."""
        return self.token_endpoint_auth_method == self.AuthMethod.PRIVATE_KEY_JWT

    @property
    def is_service_with_secret(self) -> bool:
        """Whether a secret opens a whole system, which SMART does not foresee."""
        return bool(self.system_scope) and not self.uses_private_key

    @property
    def login_parameters(self) -> dict[str, str]:
        """The query parameters of ``login/`` that select it."""
        if self.is_standalone_default:
            return {"server": self.server.slug}
        return {"registration": self.launch_slug}

    @property
    def login_query(self) -> str:
        """The same as a query string."""
        return urlencode(self.login_parameters)

    def leave_defaults(self) -> None:
        """Unset the defaults that another registration of the server already has."""
        others = type(self)._base_manager.exclude(pk=self.pk)
        slot = digest(str(self.server_id))
        for kind in ("ehr", "standalone"):
            if others.filter(**{f"{kind}_slot": slot}).exists():
                setattr(self, f"is_{kind}_default", False)

    def make_launch_slug(self) -> str:
        """Return an unused launch slug from the server's slug."""
        others = type(self)._base_manager.exclude(pk=self.pk)
        slug, number = self.server.slug, 1
        while others.filter(launch_slug=slug).exists():
            number += 1
            slug = f"{self.server.slug}-{number}"
        return slug

    @property
    def _ehr_slot(self) -> str | None:
        is_default = self.is_active and self.ehr_scope and self.is_ehr_default
        return str(self.server_id) if is_default else None

    @property
    def _standalone_slot(self) -> str | None:
        is_default = (
            self.is_active and self.standalone_scope and self.is_standalone_default
        )
        return str(self.server_id) if is_default else None

    @property
    def _callback_slot(self) -> str | None:
        # A code that arrives at a shared callback could come from any of its servers
        # (RFC 9700 section 4.4), so a callback is one registration's, or a group's.
        if self.callback_group or not (self.is_active and self.is_for_launches):
            return None
        return self.callback_id

    def _read_callback_id(self) -> None:
        """Take the callback ID from the redirect URI, if it contains one."""
        found = _CALLBACK.match(self.redirect_uri)
        if found and not self.callback_id:
            self.callback_id = found[1]

    def _has_new_credentials(self) -> bool:
        stored = type(self)._base_manager.filter(pk=self.pk).first()
        try:
            return stored is not None and any(
                getattr(stored, name) != getattr(self, name) for name in _CREDENTIALS
            )
        except CredentialsError:
            # A secret that cannot be decrypted was useless before, too.
            return True

    def clean(self) -> None:
        """
        Refuse errors that are visible in the row itself (REG-04).

        Raises:
            ValidationError: the method does not match the credentials, the scopes or
                the redirect URI do not match the use, or tokens are kept that belong to
                another client ID.
        """
        errors: dict[str, list[Any]] = {}
        self._read_callback_id()
        self._clean_client_id(errors)
        self._clean_credentials(errors)
        self._clean_callback(errors)
        self._clean_scopes(errors)
        if self.is_for_launches and not self.redirect_uri:
            errors["redirect_uri"] = [
                _("A registration for launches requires a redirect URI.")
            ]
        if self.is_active and not (self.is_for_launches or self.system_scope):
            # Not an error while the form is still being filled in, hence the code; for
            # "required", a form would show Django's own words.
            missing = ValidationError(
                _(
                    "Enter scopes for at least one use: EHR launches, here, "
                    "such as “%(ehr)s”; standalone launches, such as "
                    "“%(standalone)s”; or backend services, such as "
                    "“%(system)s”."
                ),
                code="invalid",
                params={
                    "ehr": "launch openid fhirUser patient/*.rs",
                    "standalone": "launch/patient openid fhirUser patient/*.rs",
                    "system": "system/*.rs",
                },
            )
            errors.setdefault("ehr_scope", []).append(missing)
        if errors:
            raise ValidationError(errors)

    def _clean_client_id(self, errors: dict[str, list[Any]]) -> None:
        if not self.pk or digest(self.client_id) == self.client_id_digest:
            return  # Only a change costs statements.
        if self.has_bound_grants():
            errors["client_id"] = [
                _(
                    "This registration has grants, which the EHR issued to its "
                    "client ID. Add a second registration for the new client ID."
                )
            ]

    def _clean_callback(self, errors: dict[str, list[Any]]) -> None:
        found = _CALLBACK.match(self.redirect_uri)
        if found and found[1] != self.callback_id:
            errors["callback_id"] = [
                _("The redirect URI ends with %(found)s. Use that as the callback ID.")
                % {"found": found[1]}
            ]
        sharing = (
            type(self)
            ._base_manager.filter(callback_id=self.callback_id, is_active=True)
            .exclude(ehr_scope="", standalone_scope="")
            .exclude(callback_group=self.callback_group)
            .exclude(pk=self.pk)
        )
        if self.is_active and self.is_for_launches and sharing.exists():
            errors["callback_group"] = [
                _(
                    "A registration outside this callback group already has this "
                    "callback ID."
                )
            ]

    def _clean_credentials(self, errors: dict[str, list[Any]]) -> None:
        given = [
            name
            for name in ("client_secret", "client_secret_env", "client_secret_file")
            if getattr(self, name)
        ]
        needs_secret = self.token_endpoint_auth_method.startswith("client_secret_")
        if needs_secret and not given:
            errors["client_secret"] = [
                _(
                    "%(method)s requires a client secret, or the variable or file "
                    "that contains it."
                )
                % {"method": self.token_endpoint_auth_method}
            ]
        elif given and not needs_secret:
            errors[given[0]] = [
                _(
                    "%(method)s uses no client secret. Remove the secret, or "
                    "choose another authentication method."
                )
                % {"method": self.get_token_endpoint_auth_method_display()}
            ]
        elif len(given) > 1:
            errors[given[1]] = [
                _("Enter the secret in only one place: value, variable or file.")
            ]
        if self.system_scope and not (self.uses_private_key or needs_secret):
            errors.setdefault("token_endpoint_auth_method", []).append(
                _(
                    "A backend service must authenticate: with "
                    "private_key_jwt, or with a client secret if the server "
                    "does not support keys."
                )
            )

    def _clean_scopes(self, errors: dict[str, list[Any]]) -> None:
        for name in ("ehr_scope", "standalone_scope"):
            scopes = ScopeSet.parse(getattr(self, name))
            if "fhirUser" in scopes and "openid" not in scopes:
                errors[name] = [_("fhirUser requires openid.")]
            if "offline_access" in scopes and "online_access" in scopes:
                errors[name] = [_("Request offline_access or online_access, not both.")]
        for scope in ScopeSet.parse(self.system_scope):
            if not is_for_service(scope):
                errors["system_scope"] = [
                    _(
                        "A backend service has no user: use a system/ scope "
                        "instead of %(scope)s."
                    )
                    % {"scope": scope.text}
                ]
        if "launch" in ScopeSet.parse(self.standalone_scope):
            errors["standalone_scope"] = [
                _("The scope launch is only for EHR launches. Use launch/patient here.")
            ]
        # A form without a server already reports that.
        if self.server_id and self.server.quirks.scope_syntax == "v1":
            self._clean_scope_syntax(errors)

    def _clean_scope_syntax(self, errors: dict[str, list[Any]]) -> None:
        for name in _SCOPES:
            newer = [
                scope
                for scope in ScopeSet.parse(getattr(self, name)).resource_scopes
                if not scope.is_v1
            ]
            for scope in newer[:1]:
                words = {"scope": scope.text}
                try:
                    words["fix"] = scope.to_v1().text
                except ScopeSyntaxError:
                    message = _(
                        "This server uses version 1 scopes, which cannot "
                        "express %(scope)s. Remove its parameters, or set the "
                        "server's scope syntax to v2."
                    )
                else:
                    message = _(
                        "This server uses version 1 scopes. Use %(fix)s "
                        "instead of %(scope)s, or set the server's scope "
                        "syntax to v2."
                    )
                errors.setdefault(name, []).append(message % words)

    def validate_constraints(self, exclude: Any = None) -> None:
        """Check the digests, which save() makes later, also for a form without them."""
        for field in self._meta.concrete_fields:
            if isinstance(field, DigestField):
                field.pre_save(self, add=False)
        super().validate_constraints()

    def get_client_secret(self, environ: Any) -> str:
        """
        Return the secret from the row, from *environ* or from the named file.

        Raises:
            CredentialsError: the variable is not set, or the file cannot be read.
        """
        if self.client_secret_env:
            if secret := environ.get(self.client_secret_env):
                return str(secret)
            raise CredentialsError(
                f"The environment variable {self.client_secret_env} is not set."
            )
        if self.client_secret_file:
            try:
                content = Path(self.client_secret_file).read_text(encoding="utf-8")
            except (OSError, UnicodeError) as exc:
                raise CredentialsError(
                    f"The secret file {self.client_secret_file} cannot be read."
                ) from exc
            if secret := content.strip():
                return secret
            raise CredentialsError(
                f"The secret file {self.client_secret_file} is empty."
            )
        if not self.client_secret:
            raise CredentialsError("The registration has no client secret.")
        return self.client_secret


def _read(
    select: Callable[..., ClientRegistrationQuerySet],
) -> JoinedRow[ClientRegistration]:
    return JoinedRow(ClientRegistration, select, "server", "server__state")


_EHR_DEFAULT = _read(
    lambda at_server: ClientRegistration.objects.for_ehr_launch(at_server).filter(
        ehr_slot__isnull=False
    )
)
_EHR_BY_SLUG = _read(
    lambda at_server, slug: ClientRegistration.objects.for_ehr_launch(at_server).filter(
        launch_slug=slug
    )
)
_STANDALONE_DEFAULT = _read(
    lambda slug: ClientRegistration.objects.standalone().filter(server__slug=slug)
)
_STANDALONE_BY_SLUG = _read(
    lambda slug: ClientRegistration.objects.startable().filter(launch_slug=slug)
)
