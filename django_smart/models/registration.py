"""Client registrations: who this site is at a server."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_slug
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..exceptions import CredentialsError, ScopeSyntaxError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import ScopeSet
from .server import MAX_URL_LENGTH, FHIRServer

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["ClientRegistration", "ClientRegistrationQuerySet"]

_CALLBACK = re.compile(r"/callback/([A-Za-z0-9_-]+)/\Z")
_CREDENTIALS = (
    "client_id",
    "token_endpoint_auth_method",
    "client_secret",
    "client_secret_env",
    "client_secret_file",
    "signing_algorithm",
)


class ClientRegistrationQuerySet(models.QuerySet["ClientRegistration"]):
    """Registrations by what they may be used for."""

    def active(self) -> ClientRegistrationQuerySet:
        """Registrations that are switched on, at servers that are."""
        return self.filter(is_active=True, server__is_active=True)

    def launchable(self) -> ClientRegistrationQuerySet:
        """Active registrations for launches, not for backend services alone."""
        return self.active().filter(launch_slot__isnull=False).select_related("server")

    def refused(self) -> ClientRegistrationQuerySet:
        """Registrations whose credentials a server has refused."""
        return self.filter(refresh_stopped_at__isnull=False)

    @staticmethod
    def find_standalone(slug: str) -> ClientRegistration | None:
        """The one that a person can start at the server with this *slug*."""
        try:
            found = _get_standalone().get(server__slug=slug)
        except ClientRegistration.DoesNotExist:
            return None
        # Not every database compares exactly.
        return found if found.server.slug == slug else None

    def standalone(self) -> ClientRegistrationQuerySet:
        """Those a person can start from this site."""
        return self.launchable().exclude(standalone_scope="")


def _validate_scope(value: str) -> None:
    try:
        ScopeSet.parse(value, strict=True)
    except ScopeSyntaxError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


class ClientRegistration(models.Model):
    """
    One client id at one server, with its credentials and the scopes it asks for.

    A server has at most one active registration for launches: an EHR launch carries
    only ``iss``.  ``launch_slot`` holds the server's number for it and NULL otherwise,
    which makes the rule a unique column on every database.
    """

    class AuthMethod(models.TextChoices):
        """How the client authenticates at the token endpoint."""

        NONE = "none", _("none (public client)")
        CLIENT_SECRET_BASIC = "client_secret_basic", "client_secret_basic"
        CLIENT_SECRET_POST = "client_secret_post", "client_secret_post"
        PRIVATE_KEY_JWT = "private_key_jwt", "private_key_jwt"

    server = models.ForeignKey(
        FHIRServer,
        models.PROTECT,
        verbose_name=_("FHIR server"),
        related_name="registrations",
    )
    client_id = models.TextField(_("client id"))
    client_id_digest = DigestField(
        verbose_name=_("digest of the client id"), sources=("client_id",)
    )
    token_endpoint_auth_method = models.CharField(
        _("authentication method"),
        max_length=30,
        choices=AuthMethod,
        default=AuthMethod.CLIENT_SECRET_BASIC,
    )
    client_secret = EncryptedTextField(_("client secret"), blank=True, default="")
    client_secret_env = models.CharField(
        _("environment variable with the secret"),
        max_length=200,
        blank=True,
        default="",
    )
    client_secret_file = models.CharField(
        _("file with the secret"), max_length=500, blank=True, default=""
    )
    signing_algorithm = models.CharField(
        _("signing algorithm"),
        max_length=10,
        choices=(("RS384", "RS384"), ("ES384", "ES384")),
        default="RS384",
    )
    ehr_scope = models.TextField(
        _("scope for EHR launch"), blank=True, default="", validators=[_validate_scope]
    )
    standalone_scope = models.TextField(
        _("scope for standalone launch"),
        blank=True,
        default="",
        validators=[_validate_scope],
    )
    system_scope = models.TextField(
        _("scope for backend services"),
        blank=True,
        default="",
        validators=[_validate_scope],
    )
    redirect_uri = models.CharField(
        _("redirect URI"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        help_text=_("Exactly as registered at the EHR."),
    )
    callback_id = models.CharField(
        _("callback id"),
        max_length=100,
        blank=True,
        default="",
        validators=[validate_slug],
        help_text=_(
            "The part of the redirect URI that tells registrations apart: "
            "callback/<callback id>/. Empty for callback/ itself."
        ),
    )
    callback_group = models.CharField(
        _("callback group"),
        max_length=100,
        blank=True,
        default="",
        validators=[validate_slug],
        help_text=_(
            "Only for registrations that must share a redirect URI, such as one "
            "vendor client id for many hospitals: give all of them the same name. "
            "A hostile server in a group can take over sign-ins at the others."
        ),
    )
    landing_page = models.CharField(
        _("landing page"),
        max_length=500,
        blank=True,
        default="",
        help_text=_("Path a launch goes to; empty for SMART_LAUNCH_REDIRECT_URL."),
    )
    create_users = models.BooleanField(
        _("create users"),
        default=True,
        help_text=_("Create a user of this site when an unknown identity signs in."),
    )
    manage_groups = models.BooleanField(
        _("manage groups"),
        default=False,
        help_text=_(
            "Let the type of fhirUser decide about the user's groups, as the backend's "
            "groups_by_type says."
        ),
    )
    is_active = models.BooleanField(_("active"), default=True)
    refresh_stopped_at = models.DateTimeField(
        _("refresh stopped at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "The server refused our credentials; grants wait until they are mended."
        ),
    )
    launch_slot = DigestField(
        verbose_name=_("launch slot"), sources=("_launch_slot",), null=True
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
                    "This client id is registered at this server already."
                ),
            ),
            models.UniqueConstraint(
                fields=["launch_slot"],
                name="django_smart_registration_launch_slot",
                violation_error_message=_(
                    "This server has an active registration for launches already: an "
                    "EHR launch names the server only, so there can be one."
                ),
            ),
            models.UniqueConstraint(
                fields=["callback_slot"],
                name="django_smart_registration_callback",
                violation_error_message=_(
                    "Another registration uses this callback: give this one a "
                    "callback id of its own, or put both into one callback group."
                ),
            ),
        )

    def __str__(self) -> str:
        return f"{self.server} ({self.get_token_endpoint_auth_method_display()})"

    def save(self, **kwargs: Any) -> None:
        """Store; new credentials are tried, although the server refused others."""
        self._read_callback_id()
        if self.pk and self.refresh_stopped_at and self._has_new_credentials():
            self.refresh_stopped_at = None
            if (names := kwargs.get("update_fields")) is not None:
                kwargs["update_fields"] = {*names, "refresh_stopped_at"}
        super().save(**kwargs)

    @property
    def is_for_launches(self) -> bool:
        """Whether a person can launch with it."""
        return bool(self.ehr_scope or self.standalone_scope)

    @property
    def uses_private_key(self) -> bool:
        """Whether it authenticates with one of the signing keys."""
        return self.token_endpoint_auth_method == self.AuthMethod.PRIVATE_KEY_JWT

    @property
    def _launch_slot(self) -> str | None:
        return str(self.server_id) if self.is_active and self.is_for_launches else None

    @property
    def _callback_slot(self) -> str | None:
        # A code that arrives at a shared callback could come from any of its servers
        # (RFC 9700 section 4.4), so a callback is one registration's, or a group's.
        if self.callback_group or not (self.is_active and self.is_for_launches):
            return None
        return self.callback_id

    def _read_callback_id(self) -> None:
        """Take the callback id from the redirect URI, if that has one."""
        found = _CALLBACK.search(urlsplit(self.redirect_uri).path)
        if found and not self.callback_id:
            self.callback_id = found[1]

    def _has_new_credentials(self) -> bool:
        stored = type(self)._base_manager.filter(pk=self.pk).first()
        try:
            return stored is not None and any(
                getattr(stored, name) != getattr(self, name) for name in _CREDENTIALS
            )
        except CredentialsError:
            # A secret that cannot be decrypted any more was no use either.
            return True

    def clean(self) -> None:
        """
        Refuse what is visibly wrong in the row itself (REG-04).

        Raises:
            ValidationError: the method does not fit the credentials, or the scopes or
                the redirect URI do not fit the use.
        """
        errors: dict[str, list[StrOrPromise]] = {}
        self._read_callback_id()
        self._clean_credentials(errors)
        self._clean_callback(errors)
        self._clean_scopes(errors)
        if self.is_for_launches and not self.redirect_uri:
            errors["redirect_uri"] = [
                _("A registration for launches needs its redirect URI.")
            ]
        if errors:
            raise ValidationError(errors)

    def _clean_callback(self, errors: dict[str, list[StrOrPromise]]) -> None:
        found = _CALLBACK.search(urlsplit(self.redirect_uri).path)
        if found and found[1] != self.callback_id:
            errors["callback_id"] = [
                _("The redirect URI ends with %(found)s: use that as callback id.")
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
                _("A registration of another group, or of none, has this callback id.")
            ]

    def _clean_credentials(self, errors: dict[str, list[StrOrPromise]]) -> None:
        given = [
            name
            for name in ("client_secret", "client_secret_env", "client_secret_file")
            if getattr(self, name)
        ]
        needs_secret = self.token_endpoint_auth_method.startswith("client_secret_")
        if needs_secret and not given:
            errors["client_secret"] = [
                _("%(method)s needs a client secret, or where to read it from.")
                % {"method": self.token_endpoint_auth_method}
            ]
        elif given and not needs_secret:
            errors[given[0]] = [
                _("%(method)s takes no client secret; remove it.")
                % {"method": self.token_endpoint_auth_method}
            ]
        elif len(given) > 1:
            errors[given[1]] = [
                _("Give the secret in one place: value, variable or file.")
            ]
        if self.system_scope and not self.uses_private_key:
            errors.setdefault("token_endpoint_auth_method", []).append(
                _("Backend services authenticate with private_key_jwt only.")
            )

    def _clean_scopes(self, errors: dict[str, list[StrOrPromise]]) -> None:
        for name in ("ehr_scope", "standalone_scope"):
            words = getattr(self, name).split()
            if "fhirUser" in words and "openid" not in words:
                errors[name] = [_("fhirUser is only given together with openid.")]
            if "offline_access" in words and "online_access" in words:
                errors[name] = [_("Ask for offline_access or online_access, not both.")]
        for scope in ScopeSet.parse(self.system_scope).resource_scopes:
            if scope.level != "system":
                errors["system_scope"] = [
                    _(
                        "Nobody is signed in to a backend service: write system/ for "
                        "%(scope)s."
                    )
                    % {"scope": scope.text}
                ]
        if "launch" in self.standalone_scope.split():
            errors["standalone_scope"] = [
                _("The scope launch belongs to an EHR launch; use launch/patient here.")
            ]
        # A form in which no server was chosen has its error for that already.
        if self.server_id and (self.server.scope_syntax == FHIRServer.ScopeSyntax.V1):
            self._clean_scope_syntax(errors)

    def _clean_scope_syntax(self, errors: dict[str, list[StrOrPromise]]) -> None:
        for name in ("ehr_scope", "standalone_scope", "system_scope"):
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
                        "This server is set to scopes of version 1, which cannot say "
                        "%(scope)s: leave its parameters out, or set the server's "
                        "scope syntax to v2."
                    )
                else:
                    message = _(
                        "This server is set to scopes of version 1: write %(fix)s for "
                        "%(scope)s, or set the server's scope syntax to v2."
                    )
                errors.setdefault(name, []).append(message % words)

    def validate_constraints(self, exclude: Any = None) -> None:
        # The digests are made by save(); the constraints are checked before it.
        self.client_id_digest = digest(self.client_id)
        for name in ("launch_slot", "callback_slot"):
            slot = getattr(self, f"_{name}")
            setattr(self, name, None if slot is None else digest(slot))
        super().validate_constraints(exclude=exclude)

    def get_client_secret(self, environ: Any) -> str:
        """
        The secret, from the row, from *environ* or from the named file.

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


@cache
def _get_standalone() -> ClientRegistrationQuerySet:
    # Each login starts with it, and to build its filters takes as long as to run it.
    return ClientRegistration.objects.standalone()
