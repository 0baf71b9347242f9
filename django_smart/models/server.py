"""FHIR servers: what an operator decides about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..exceptions import CredentialsError, SMARTError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.configuration import (
    REQUEST_PARAMETERS,
    Capability,
    SMARTConfiguration,
    check_overrides,
)
from ..protocol.json import parse_json_object
from ..protocol.messages import HiddenText
from ..protocol.quirks import is_header
from ..protocol.urls import get_origin, normalize_base_url, validate_https_url
from .quirks_field import QuirksField

if TYPE_CHECKING:
    from .server_state import ServerState

__all__ = [
    "MAX_URL_LENGTH",
    "FHIRServer",
    "FHIRServerQuerySet",
    "tell_apart",
    "validate_base_url",
    "validate_by",
    "validate_headers",
    "validate_origins",
    "validate_overrides",
    "validate_parameters",
    "validate_request_headers",
    "validate_url",
]

MAX_URL_LENGTH = 1000
"""Characters of every URL that is stored, here and in the other models."""


# The codes below are not "invalid": a field replaces the message of that code with its
# own, which says nothing about the fault.


def validate_by(check: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call *check*; refuse the value if it raises a ``SMARTError``."""
    try:
        check(*args, **kwargs)
    except SMARTError as exc:
        raise ValidationError(str(exc), code=exc.code) from exc


def _validate_https_url(value: str, *, what: str) -> None:
    hosts = conf.SMART_INSECURE_HTTP_HOSTS
    validate_by(validate_https_url, value, insecure_hosts=hosts, what=what)


def validate_url(value: str) -> None:
    """Refuse values that are not an absolute http or https URL."""
    validate_by(get_origin, value)


def validate_base_url(value: str) -> None:
    """Refuse values that are not a FHIR base URL."""
    _validate_https_url(value, what="base_url")
    validate_by(normalize_base_url, value)


def validate_overrides(value: object) -> None:
    """Refuse values that are not valid in a SMART configuration."""
    if not isinstance(value, dict):
        raise ValidationError(_("Enter a JSON object."), code="overrides")
    validate_by(check_overrides, value, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS)


def validate_headers(value: object) -> None:
    """Refuse values that cannot be sent as headers."""
    if not isinstance(value, dict) or not all(map(is_header, value.items())):
        raise ValidationError(
            _("Headers must be a JSON object of printable ASCII strings."),
            code="headers",
        )


def validate_parameters(value: object) -> None:
    """Refuse values that cannot be added to an authorization request."""
    if not isinstance(value, dict) or not all(
        name and isinstance(text, str) and text for name, text in value.items()
    ):
        raise ValidationError(
            _("Parameters must be a JSON object of non-empty strings."),
            code="parameters",
        )
    if taken := sorted(_RESERVED_PARAMETERS.intersection(value)):
        raise ValidationError(
            _("%(names)s cannot be set here because the protocol sets it."),
            code="parameters",
            params={"names": ", ".join(taken)},
        )


def validate_request_headers(value: str) -> None:
    """Refuse values that are not a JSON object of additional request headers."""
    try:
        headers = _parse_headers(value)
    except CredentialsError as exc:
        # The text is not quoted, not even in a traceback, because it contains keys.
        raise ValidationError(str(exc), code="headers") from None
    validate_headers(headers)
    for name in headers:
        if name.lower() in _RESERVED_HEADERS:
            raise ValidationError(
                _(
                    "%(name)s cannot be set here because the protocol sets or "
                    "forbids it."
                ),
                code="headers",
                params={"name": name},
            )


def _parse_headers(text: str) -> dict[str, Any]:
    return parse_json_object(text.encode(), error=CredentialsError, what="headers")


def validate_origins(value: object) -> None:
    """Refuse values that are not a list of origins."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValidationError(
            _("Origins must be a JSON list of strings."), code="origins"
        )
    for origin in value:
        _validate_https_url(origin, what="frame origin")
        if origin.count("/") != 2 or set("?;,").intersection(origin):
            raise ValidationError(
                _(
                    "%(origin)s is not an origin. Enter scheme, host and port "
                    "without a path."
                ),
                code="origins",
                params={"origin": origin},
            )


_RESERVED_HEADERS = frozenset(
    {
        *("accept", "authorization", "connection", "content-encoding", "host"),
        *("content-length", "content-type", "cookie", "cookie2", "expect"),
        *("if-match", "if-none-exist", "if-none-match", "keep-alive", "prefer"),
        *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
        "x-request-id",
    }
)
_RESERVED_PARAMETERS = REQUEST_PARAMETERS | {
    *("client_assertion", "client_assertion_type", "client_secret", "code"),
    *("code_verifier", "error", "iss", "registration", "request", "request_uri"),
    "response_mode",
    # What they ask for is not checked in the ID token.
    *("claims", "max_age"),
}

_CLIENT_ID = "{client_id}"


class FHIRServerQuerySet(models.QuerySet["FHIRServer"]):
    """Select servers by URL, and make changes that only one worker may make."""

    def active(self) -> FHIRServerQuerySet:
        """Return active servers."""
        return self.filter(is_active=True)

    def with_base_url(self, base_url: str) -> FHIRServerQuerySet:
        """Return servers with this base URL, ignoring one trailing slash."""
        return self.filter(base_url_digest=digest(normalize_base_url(base_url)))


class FHIRServer(models.Model):
    """
    One FHIR base URL, whom to trust there, and the server's quirks.

    The base URL is the ``iss`` of EHR launches and the ``aud`` of authorization
    requests; ``issuer`` is the OpenID Connect issuer and can differ.
    """

    class Preset(models.TextChoices):
        """Vendors whose known settings are filled in at registration."""

        GENERIC = "", _("none")
        EPIC = "epic", _("Epic")
        ORACLE_HEALTH = "oracle_health", _("Oracle Health")
        ATHENAHEALTH = "athenahealth", _("athenahealth")
        ECLINICALWORKS = "eclinicalworks", _("eClinicalWorks")
        MEDITECH = "meditech", _("MEDITECH")
        MEDPLUM = "medplum", _("Medplum")
        OPENEMR = "openemr", _("OpenEMR")
        NEXTGEN = "nextgen", _("NextGen")
        VERADIGM = "veradigm", _("Veradigm")
        BLUE_BUTTON = "blue_button", _("CMS Blue Button 2.0")
        VA_LIGHTHOUSE = "va_lighthouse", _("VA Lighthouse")
        KEYCLOAK = "keycloak", _("Keycloak")
        SPRING = "spring", _("Spring Authorization Server")
        ENTRA = "entra", _("Microsoft Entra")
        SMART_LAUNCHER = "smart_launcher", _("SMART launcher")

    slug = models.SlugField(
        _("slug"),
        max_length=100,
        unique=True,
        help_text=_("Names the server in URLs, commands and settings."),
    )
    name = models.CharField(
        _("name"),
        max_length=200,
        help_text=_("Shown to people on this site's pages."),
    )
    base_url = models.CharField(
        _("FHIR base URL"),
        max_length=MAX_URL_LENGTH,
        validators=[validate_base_url],
        help_text=_(
            "The iss of EHR launches and the aud of authorization "
            "requests, exactly as the server documents it."
        ),
    )
    base_url_digest = DigestField(
        verbose_name=_("base URL digest"), sources=("normalized_base_url",)
    )
    is_active = models.BooleanField(
        _("active"),
        default=True,
        help_text=_(
            "If off, no launch starts or completes, and no grant is refreshed."
        ),
    )
    preset = models.CharField(
        _("preset"),
        max_length=20,
        choices=Preset,
        blank=True,
        default=Preset.GENERIC,
        help_text=_("Vendor whose known settings were filled in."),
    )

    overrides = models.JSONField(
        _("overrides"),
        default=dict,
        blank=True,
        validators=[validate_overrides],
        help_text=_(
            "Replaces members of the SMART configuration, for example "
            '{"token_endpoint": "https://…"}; null removes a member.'
        ),
    )

    quirks = QuirksField(
        _("quirks"),
        default=dict,
        blank=True,
        help_text=_("How the server deviates from SMART App Launch."),
    )
    authorization_parameters = models.JSONField(
        _("extra authorization parameters"),
        default=dict,
        blank=True,
        validators=[validate_parameters],
        help_text=_('For example {"acr_values": "urn:example:clinician"}.'),
    )
    request_headers = EncryptedTextField(
        _("extra headers of token and FHIR requests"),
        blank=True,
        default="",
        validators=[validate_request_headers],
        help_text=_(
            'A JSON object, such as {"X-Api-Key": "…"}. Stored encrypted, '
            "because headers can contain keys."
        ),
    )
    login_group = models.SlugField(
        _("login group"),
        max_length=100,
        blank=True,
        default="",
        help_text=_(
            "Only for servers with the same users, such as the old and the new "
            "base URL of one EHR: give all of them the same name. Each server in "
            "a group can sign in the users of all the others."
        ),
    )
    id_token_issuer = models.CharField(
        _("ID token issuer"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        validators=[validate_url],
        help_text=_("Expected iss of ID tokens, if discovery does not provide it."),
    )
    frame_origins = models.JSONField(
        _("frame origins"),
        default=list,
        blank=True,
        validators=[validate_origins],
        help_text=_(
            "Origins of the pages that may show this site in a frame, "
            'such as ["https://ehr.example.org"].'
        ),
    )
    turns = models.PositiveSmallIntegerField(
        _("turns"),
        default=1,
        validators=[MinValueValidator(1)],
        help_text=_(
            "How many worker processes refresh its grants at a time. Raise it only for "
            "a server with so many grants that one process is not enough."
        ),
    )

    paused = models.BooleanField(
        _("paused"),
        default=False,
        help_text=_("Workers refresh no grants of this server while this is on."),
    )

    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    objects = FHIRServerQuerySet.as_manager()

    class Meta:
        verbose_name = _("FHIR server")
        verbose_name_plural = _("FHIR servers")
        ordering = ("name", "pk")
        # They also apply to the registrations and identities of servers.
        permissions = (
            ("operate_fhirserver", "Can operate FHIR servers and registrations"),
            ("trust_fhirserver", "Can decide which FHIR servers to trust with what"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["base_url_digest"],
                name="django_smart_server_base_url",
                violation_error_message=_(
                    "A server with this base URL is already registered."
                ),
            ),
        )

    def __str__(self) -> str:
        return self.name or self.slug

    def save(self, **kwargs: Any) -> None:
        """Save; a new server has a state, which the processes write."""
        is_new = self._state.adding
        super().save(**kwargs)
        if is_new:
            self.discovered.save()

    def clean(self) -> None:
        """Refuse another issuer while identities are stored with the current one."""
        from .identity import Identity  # which imports this module

        super().clean()
        rows = type(self)._default_manager.filter(pk=self.pk)
        stored = rows.first() if self.pk else None
        if stored is None or not isinstance(self.overrides, dict):
            return
        state = stored.discovered
        known = stored.id_token_issuer or state.issuer
        issuer, field = self.id_token_issuer or state.issuer, "id_token_issuer"
        entered = self.overrides.get("issuer")
        if not self.id_token_issuer and entered != stored.overrides.get("issuer"):
            found = {**(state.configuration or {}), **self.overrides}
            issuer, field = found.get("issuer") or issuer, "overrides"
        identities = Identity.objects.known_to(self)
        if issuer != known and identities.filter(issuer=known).exists():
            message = _(
                "Users are known by the issuer %(issuer)s and would all get second "
                "accounts. Carry their identities over first."
            )
            raise ValidationError(
                {field: ValidationError(message, "issuer", {"issuer": known})}
            )

    @property
    def normalized_base_url(self) -> str:
        """The base URL in the form used for lookups: without a trailing slash."""
        return normalize_base_url(self.base_url)

    def get_request_headers(self) -> dict[str, str]:
        """
        Return the headers for requests that carry our credentials or a token.

        Raises:
            CredentialsError: no current key decrypts them.
        """
        if not self.request_headers:
            return {}
        headers = _parse_headers(self.request_headers)
        return {name: HiddenText(value) for name, value in headers.items()}

    @property
    def discovered(self) -> ServerState:
        """Its state, of which nothing is known if it has none yet."""
        if not hasattr(self, "state"):
            from .server_state import ServerState  # which imports this module

            rows = type(self)._base_manager.filter(pk=self.pk)
            if self.pk and not self._state.adding and rows.exists():
                # A bulk import may have created it without.
                ServerState.objects.get_or_create(server=self)
            else:
                self.state = ServerState(server=self)
        return self.state

    @property
    def differs_by_client(self) -> bool:
        """Whether the discovery headers contain the client ID."""
        headers = self.quirks.discovery_headers
        return any(_CLIENT_ID in each for each in headers.values())

    def build_discovery_headers(self, client_id: str = "") -> dict[str, str]:
        """Return the discovery headers of one client, or those of no client."""
        return {
            name: value.replace(_CLIENT_ID, client_id)
            for name, value in self.quirks.discovery_headers.items()
            if client_id or _CLIENT_ID not in value
        }

    def read_configuration(self, client_id: str = "") -> SMARTConfiguration | None:
        """
        Return the discovered configuration with the overrides, however old it is.

        ``None`` if none is stored, or if current settings do not accept it.

        Args:
            client_id: of a registration, if the answer can differ between clients.
        """
        document = self.discovered.configuration
        if client_id and self.differs_by_client:
            document = self.discovered.client_configurations.get(client_id)
        if document is None:
            return None
        try:
            return self.parse_configuration(document)
        except SMARTError:
            return None

    def parse_configuration(self, document: dict[str, Any]) -> SMARTConfiguration:
        """
        Return the SMART configuration in *document* with the overrides.

        Raises:
            DiscoveryError: current settings do not accept it.
        """
        return SMARTConfiguration.from_json(
            document,
            base_url=self.base_url,
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
            overrides=self.overrides,
        )

    def get_capabilities(self) -> frozenset[Capability]:
        """The server's capabilities that the specification defines (DISC-13)."""
        configuration = self.read_configuration()
        named = configuration.capabilities if configuration else frozenset()
        return frozenset(each for each in Capability if each in named)

    def build_log_fields(
        self, event: str, *, error_code: str = ""
    ) -> dict[str, object]:
        """Return ``extra`` for a log line: primary keys and codes, no personal data."""
        return {
            "smart_event": event,
            "smart_server": self.pk,
            "smart_error": error_code,
        }

    def validate_constraints(self, exclude: Any = None) -> None:
        """Check the digest, which save() makes later, also for a form without it."""
        try:
            self.base_url_digest = digest(self.normalized_base_url)
            super().validate_constraints()
        except SMARTError:
            pass  # reported at the field itself
        except ValidationError as exc:
            raise ValidationError({"base_url": exc.messages}) from exc


def tell_apart(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels by the slugs of their servers, with the slug where two are one."""
    times = Counter(labels.values())
    return {
        slug: label if times[label] == 1 else f"{label} ({slug})"
        for slug, label in labels.items()
    }
