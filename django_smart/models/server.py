"""A FHIR server: its endpoint, what it says of itself, its quirks, its health."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..exceptions import SMARTError
from ..fields import DigestField, digest
from ..protocol.capabilities import Capability, CapabilitySet
from ..protocol.configuration import SMARTConfiguration
from ..protocol.urls import get_origin, normalize_base_url, validate_https_url
from .search_words import SearchTextField

__all__ = [
    "MAX_URL_LENGTH",
    "FHIRServer",
    "FHIRServerQuerySet",
    "validate_base_url",
    "validate_endpoint",
    "validate_headers",
    "validate_origins",
]

logger = logging.getLogger(__name__)

MAX_URL_LENGTH = 1000
"""Characters of every URL that is stored, here and in the other models."""


def _validate_url(value: str, *, what: str) -> None:
    try:
        validate_https_url(
            value, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS, what=what
        )
    except SMARTError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


def validate_base_url(value: str) -> None:
    """Refuse what is no FHIR base URL."""
    _validate_url(value, what="base_url")
    try:
        normalize_base_url(value)
    except SMARTError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


def validate_endpoint(value: str) -> None:
    """Refuse what no request may go to."""
    _validate_url(value, what="endpoint")


def validate_headers(value: object) -> None:
    """Refuse what cannot be sent as headers."""
    if not isinstance(value, dict) or not all(
        isinstance(item, str) and item.isascii() and item.isprintable()
        for pair in value.items()
        for item in pair
    ):
        raise ValidationError(
            _("Headers are an object of printable ASCII strings."), code="headers"
        )


def validate_origins(value: object) -> None:
    """Refuse what is no list of origins."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValidationError(_("Origins are a list of strings."), code="origins")
    for origin in value:
        _validate_url(origin, what="frame origin")
        if origin.count("/") != 2 or ";" in origin or "," in origin:
            raise ValidationError(
                _("%(origin)s is not an origin: scheme, host and port, no path."),
                code="origins",
                params={"origin": origin},
            )


def validate_pinned(value: object) -> None:
    """Refuse what is not an object of URLs by the names in ``PINNED``."""
    if not isinstance(value, dict) or not all(
        name in PINNED and isinstance(url, str) for name, url in value.items()
    ):
        raise ValidationError(
            _("Pinned values are an object with the members %(names)s."),
            code="pinned",
            params={"names": ", ".join(PINNED)},
        )


PINNED = ("issuer", "jwks_uri", "token_endpoint")
"""What discovery may change within its origin only."""


_SETTLING = {"is_active", "login_group", "pinned"}


class FHIRServerQuerySet(models.QuerySet["FHIRServer"]):
    """Servers by their URLs, and changes that only one of all workers makes."""

    def active(self) -> FHIRServerQuerySet:
        """Servers that are switched on."""
        return self.filter(is_active=True)

    def with_base_url(self, base_url: str) -> FHIRServerQuerySet:
        """The server with this base URL, compared after removing one trailing slash."""
        return self.filter(base_url_digest=digest(normalize_base_url(base_url)))

    def with_issuer(self, issuer: str) -> FHIRServerQuerySet:
        """Servers whose ID tokens carry this issuer."""
        discovered = models.Q(id_token_issuer="", issuer=issuer)
        return self.filter(discovered | models.Q(id_token_issuer=issuer))

    def review_disputes(self) -> None:
        """
        Note for each active server which others may own its issuer, keys or tokens.

        Servers of one login group may share them.  Otherwise they belong to the server
        they are nearest to; where two are equally near, nobody can tell which is right,
        so both are disputed until an operator decides.
        """
        servers = list(
            self.active()
            .only("slug", "base_url", "login_group", "pinned", "disputed")
            .order_by()
        )
        sharing: dict[tuple[str, str], list[FHIRServer]] = {}
        for server in servers:
            for pair in server.pinned.items():
                sharing.setdefault(pair, []).append(server)
        for server in servers:
            owners = sorted(
                {
                    other.slug
                    for pair in server.pinned.items()
                    for other in sharing[pair]
                    if other.pk != server.pk
                    and not server.shares_logins_with(other)
                    and other.get_nearness(pair[1]) >= server.get_nearness(pair[1])
                }
            )
            if owners == server.disputed.get("owners", []):
                continue
            disputed = {**server.disputed, "owners": owners}
            if not owners:
                del disputed["owners"]
            self.filter(pk=server.pk).update(disputed=disputed)
            if owners:
                logger.error(
                    "Server %s names an issuer, key URL or token endpoint of %s. "
                    "Nobody can sign in there until one of them is switched off or "
                    "both are in one login group.",
                    server.slug,
                    ", ".join(owners),
                )

    def claim_discovery(
        self, server: FHIRServer, *, now: datetime, pause: timedelta
    ) -> bool:
        """
        Whether the caller may ask *server* again now.

        No more than one of all processes may within *pause*, unless it succeeded:
        while a server is down nobody else waits for it.
        """
        return bool(
            self.filter(pk=server.pk)
            .exclude(discovery_failed_at__gt=now - pause)
            # Marked before it is known: the race is between those that wait for it.
            .update(discovery_failed_at=now)
        )

    def claim_probe(self, server: FHIRServer, *, until: datetime) -> bool:
        """
        Whether the caller is the one who tries *server* again after its pause.

        One conditional UPDATE: the pause goes on for everybody else meanwhile.
        """
        return bool(
            self.filter(
                pk=server.pk,
                refresh_failures=server.refresh_failures,
                refresh_paused_until=server.refresh_paused_until,
            ).update(refresh_paused_until=until)
        )

    def reserve_slots(
        self, server: FHIRServer, *, seen: datetime | None, until: datetime
    ) -> bool:
        """
        Whether the requests until *until* are the caller's to send.

        Compare-and-set on the end of what was reserved before, as *seen*.
        """
        return bool(
            self.filter(pk=server.pk, refresh_slot_at=seen).update(
                refresh_slot_at=until
            )
        )

    def note_refresh(self, server: FHIRServer, *, now: datetime) -> None:
        """The server gave out tokens."""
        self.filter(pk=server.pk).update(last_refresh_at=now)

    def note_recovery(self, server: FHIRServer, *, is_probe: bool) -> None:
        """It answers again; only who probed it ends its pause."""
        pause = {"refresh_paused_until": None} if is_probe else {}
        self.filter(pk=server.pk).update(refresh_failures=0, **pause)

    def note_failures(
        self, server: FHIRServer, number: int, *, now: datetime, error_code: str
    ) -> None:
        """*number* requests failed, one after another."""
        self.filter(pk=server.pk).update(
            refresh_failures=F("refresh_failures") + number,
            last_refresh_failure_at=now,
            last_refresh_error=error_code,
        )

    def note_outage(
        self,
        server: FHIRServer,
        *,
        failures: int,
        now: datetime,
        until: datetime,
        error_code: str,
    ) -> None:
        """Ask *server* for nothing until then."""
        self.filter(pk=server.pk).update(
            refresh_failures=failures,
            refresh_paused_until=until,
            last_refresh_failure_at=now,
            last_refresh_error=error_code,
        )


class FHIRServer(models.Model):
    """
    One FHIR base URL, what was discovered there, and how the server is odd.

    The base URL is what an EHR launch sends as ``iss`` and the authorization request
    as ``aud``; ``issuer`` is the OpenID Connect issuer and may be another.
    """

    class Preset(models.TextChoices):
        """Vendors whose known oddities are filled in on registration."""

        GENERIC = "", _("none")
        EPIC = "epic", _("Epic")
        ORACLE_HEALTH = "oracle_health", _("Oracle Health")
        ATHENAHEALTH = "athenahealth", _("athenahealth")
        ECLINICALWORKS = "eclinicalworks", _("eClinicalWorks")
        SMART_LAUNCHER = "smart_launcher", _("SMART launcher")

    class AudRule(models.TextChoices):
        """What is sent as ``aud``."""

        AS_RECEIVED = "as_received", _("the launch's iss, character for character")
        BASE_URL = "base_url", _("the registered base URL")

    class PKCE(models.TextChoices):
        """When a code challenge is sent; it is always S256."""

        ALWAYS = "always", _("always")
        IF_ADVERTISED = "if_advertised", _("if the server advertises S256")
        NEVER = "never", _("never")

    class AuthorizeMethod(models.TextChoices):
        """How the browser is sent to the authorization endpoint."""

        AUTO = "auto", _("GET, and POST for long requests where advertised")
        GET = "get", _("GET")
        POST = "post", _("POST")

    class ScopeSyntax(models.TextChoices):
        """How resource scopes are written."""

        V1 = "v1", _("version 1 (patient/Observation.read)")
        V2 = "v2", _("version 2 (patient/Observation.rs)")

    class BasicCredentials(models.TextChoices):
        """How client id and secret go into ``Authorization: Basic``."""

        RAW = "raw", _("as they are")
        FORM_ENCODED = "form_encoded", _("form-encoded first (RFC 6749)")

    class AssertionAudience(models.TextChoices):
        """What a client assertion names as its audience."""

        ENDPOINT = "endpoint", _("the URL it is posted to")
        TOKEN_ENDPOINT = "token_endpoint", _("the token endpoint's URL")

    class BearerBoundary(models.TextChoices):
        """Where an access token may be sent."""

        BASE = "base", _("the base URL and below it")
        ORIGIN = "origin", _("any path of the base URL's origin")

    class IntrospectionMode(models.TextChoices):
        """How a call to the introspection endpoint is authorized."""

        BEARER = "bearer", _("with an access token")
        CLIENT = "client", _("with the client's credentials")

    slug = models.SlugField(_("slug"), max_length=100, unique=True)
    name = models.CharField(_("name"), max_length=200)
    search_text = SearchTextField(_("words of the name"), source="name")
    base_url = models.CharField(
        _("FHIR base URL"), max_length=MAX_URL_LENGTH, validators=[validate_base_url]
    )
    base_url_digest = DigestField(
        verbose_name=_("digest of the base URL"), sources=("normalized_base_url",)
    )
    is_active = models.BooleanField(_("active"), default=True)
    preset = models.CharField(
        _("preset"), max_length=20, choices=Preset, blank=True, default=Preset.GENERIC
    )

    # Discovered, and shared by every worker.
    configuration = models.JSONField(_("SMART configuration"), null=True, blank=True)
    configuration_fetched_at = models.DateTimeField(
        _("configuration fetched at"), null=True, blank=True
    )
    configuration_max_age = models.PositiveIntegerField(
        _("seconds the configuration may be kept"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("As the server says; empty if it does not."),
    )
    jwks = models.JSONField(_("JWK Set"), null=True, blank=True)
    jwks_fetched_at = models.DateTimeField(
        _("JWK Set fetched at"), null=True, blank=True
    )
    jwks_max_age = models.PositiveIntegerField(
        _("seconds the JWK Set may be kept"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("As the server says; empty if it does not."),
    )
    jwks_missed_at = models.DateTimeField(
        _("JWK Set lacked a key at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When it was last fetched for a key that was not there."),
    )
    discovery_failed_at = models.DateTimeField(
        _("discovery failed at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Empty if the last attempt succeeded."),
    )
    issuer = models.CharField(
        _("discovered issuer"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    jwks_uri = models.CharField(
        _("discovered JWK Set URL"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )

    # Manual overrides: used in place of what discovery says.
    authorization_endpoint = models.CharField(
        _("authorization endpoint"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_endpoint],
    )
    token_endpoint = models.CharField(
        _("token endpoint"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_endpoint],
    )
    revocation_endpoint = models.CharField(
        _("revocation endpoint"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_endpoint],
    )
    introspection_endpoint = models.CharField(
        _("introspection endpoint"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_endpoint],
    )

    # Oddities: typed columns with safe defaults.
    aud_rule = models.CharField(
        _("aud rule"), max_length=20, choices=AudRule, default=AudRule.AS_RECEIVED
    )
    pkce = models.CharField(_("PKCE"), max_length=20, choices=PKCE, default=PKCE.ALWAYS)
    authorize_method = models.CharField(
        _("authorization request"),
        max_length=10,
        choices=AuthorizeMethod,
        default=AuthorizeMethod.AUTO,
    )
    discovery_headers = models.JSONField(
        _("extra discovery headers"),
        default=dict,
        blank=True,
        validators=[validate_headers],
        help_text=_('For example {"Epic-Client-ID": "…"}.'),
    )
    scope_syntax = models.CharField(
        _("scope syntax"), max_length=5, choices=ScopeSyntax, default=ScopeSyntax.V2
    )
    login_group = models.SlugField(
        _("login group"),
        max_length=100,
        blank=True,
        default="",
        help_text=_(
            "Servers of one group may have the same issuer, and then know the same "
            "people: tenants of one vendor, or realms of one login server. Each of "
            "them can sign in the users of all others."
        ),
    )
    pinned = models.JSONField(
        _("pinned values"),
        default=dict,
        blank=True,
        validators=[validate_pinned],
        help_text=_(
            "Issuer, key URL and token endpoint as first discovered. The server may "
            "change them within their origin. To accept what it names now, empty this "
            "and discover the server again."
        ),
    )
    disputed = models.JSONField(_("disputed"), default=dict, blank=True, editable=False)
    id_token_issuer = models.CharField(
        _("ID token issuer"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        help_text=_("Expected iss of ID tokens, if discovery does not tell it."),
    )
    id_token_algorithms = models.CharField(
        _("ID token algorithms"),
        max_length=100,
        blank=True,
        default="",
        help_text=_("Space-separated; empty accepts the package's allow-list."),
    )
    nonce_required = models.BooleanField(_("nonce required"), default=True)
    basic_credentials = models.CharField(
        _("Basic credentials"),
        max_length=20,
        choices=BasicCredentials,
        default=BasicCredentials.RAW,
    )
    assertion_audience = models.CharField(
        _("audience of client assertions"),
        max_length=20,
        choices=AssertionAudience,
        default=AssertionAudience.ENDPOINT,
        help_text=_(
            "The token endpoint's URL is used only at endpoints of the same origin."
        ),
    )
    send_scope_on_refresh = models.BooleanField(
        _("send scope on refresh"), default=False
    )
    introspection_mode = models.CharField(
        _("introspection authorized"),
        max_length=10,
        choices=IntrospectionMode,
        default=IntrospectionMode.BEARER,
    )
    rp_initiated_logout = models.BooleanField(
        _("sign out there too"),
        default=False,
        help_text=_("Sign-out sends the browser to the server's end_session_endpoint."),
    )
    bearer_boundary = models.CharField(
        _("bearer boundary"),
        max_length=10,
        choices=BearerBoundary,
        default=BearerBoundary.BASE,
    )
    allow_embedding = models.BooleanField(
        _("may embed this site in a frame"), default=False
    )
    frame_origins = models.JSONField(
        _("frame origins"), default=list, blank=True, validators=[validate_origins]
    )
    authorize_in_frame = models.BooleanField(
        _("authorization page may be in a frame"),
        default=True,
        help_text=_("If not, launches in a frame go on in a new window."),
    )
    refresh_token_lifetime = models.DurationField(
        _("refresh token lifetime"), null=True, blank=True
    )
    min_refresh_interval = models.DurationField(
        _("least refresh interval"), null=True, blank=True
    )
    rate_limit = models.PositiveIntegerField(
        _("requests per second"), null=True, blank=True
    )

    # Written by the workers that refresh grants.
    refresh_failures = models.PositiveIntegerField(
        _("failed refreshes in a row"), default=0, editable=False
    )
    refresh_paused_until = models.DateTimeField(
        _("refresh paused until"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("After an outage, or as the server asked for."),
    )
    refresh_slot_at = models.DateTimeField(
        _("next free time for a request"), null=True, blank=True, editable=False
    )
    last_refresh_at = models.DateTimeField(
        _("last refresh"), null=True, blank=True, editable=False
    )
    last_refresh_failure_at = models.DateTimeField(
        _("last failed refresh"), null=True, blank=True, editable=False
    )
    last_refresh_error = models.CharField(
        _("error of the last failed refresh"),
        max_length=100,
        blank=True,
        default="",
        editable=False,
    )

    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    objects = FHIRServerQuerySet.as_manager()

    class Meta:
        verbose_name = _("FHIR server")
        verbose_name_plural = _("FHIR servers")
        ordering = ("name", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=["base_url_digest"],
                name="django_smart_server_base_url",
                violation_error_message=_(
                    "A server with this base URL is registered already."
                ),
            ),
        )

    def __str__(self) -> str:
        return self.name or self.slug

    def save(self, **kwargs: Any) -> None:
        """Store, and review disputes if this may settle or begin one."""
        names = kwargs.get("update_fields")
        if not self.pinned:
            self.disputed = {
                name: value for name, value in self.disputed.items() if name != "moved"
            }
        super().save(**kwargs)
        if names is None or not _SETTLING.isdisjoint(names):
            type(self)._default_manager.review_disputes()
            self.refresh_from_db(fields=["disputed"])

    @property
    def normalized_base_url(self) -> str:
        """The base URL as it is looked up: without a trailing slash."""
        return normalize_base_url(self.base_url)

    @property
    def endpoint_overrides(self) -> dict[str, str]:
        """The endpoints that are set by hand, by their name in discovery."""
        names = (
            "authorization_endpoint",
            "token_endpoint",
            "revocation_endpoint",
            "introspection_endpoint",
        )
        return {name: value for name in names if (value := getattr(self, name))}

    def read_configuration(self) -> SMARTConfiguration | None:
        """
        What was discovered, with the overrides, however long ago.

        ``None`` if nothing is stored, or nothing that today's settings accept.
        """
        if self.configuration is None:
            return None
        try:
            return SMARTConfiguration.from_json(
                self.configuration,
                base_url=self.base_url,
                insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
                overrides=self.endpoint_overrides,
            )
        except SMARTError:
            return None

    def get_capabilities(self) -> frozenset[Capability]:
        """What the server says it can, as far as the specification names it."""
        configuration = self.read_configuration()
        return configuration.known_capabilities if configuration else frozenset()

    def get_capability_sets(self) -> frozenset[CapabilitySet]:
        """The purposes that the server serves whole (CAPS-04 to CAPS-07)."""
        configuration = self.read_configuration()
        return configuration.capability_sets if configuration else frozenset()

    def shares_logins_with(self, other: FHIRServer) -> bool:
        """Whether the operator has put both into one login group."""
        return bool(self.login_group) and self.login_group == other.login_group

    def get_nearness(self, url: str) -> int:
        """Path segments that *url* shares with the base URL; -1 at another origin."""
        if get_origin(url) != get_origin(self.base_url):
            return -1
        paths = (urlsplit(each).path.split("/") for each in (url, self.base_url))
        together = takewhile(lambda pair: pair[0] == pair[1], zip(*paths, strict=False))
        return len(list(together))

    def build_log_fields(
        self, event: str, *, error_code: str = ""
    ) -> dict[str, object]:
        """``extra`` of a log line: primary keys and codes, nothing of a person."""
        return {
            "smart_event": event,
            "smart_server": self.pk,
            "smart_error": error_code,
        }

    def validate_constraints(self, exclude: Any = None) -> None:
        # The digest is made by save(); the constraint is checked before it.
        try:
            self.base_url_digest = digest(self.normalized_base_url)
        except SMARTError:
            # Told of at the field itself.
            self.base_url_digest = None
        super().validate_constraints(exclude=exclude)
