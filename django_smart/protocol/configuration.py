"""A server's SMART configuration as a typed value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit

from django_smart.exceptions import DiscoveryError, InsecureURLError
from django_smart.protocol.deviations import Deviation
from django_smart.protocol.urls import validate_https_url

__all__ = [
    "REQUEST_PARAMETERS",
    "AssociatedEndpoint",
    "Capability",
    "DocumentReader",
    "SMARTConfiguration",
    "check_overrides",
]

_REQUIRED = (
    "token_endpoint",
    "grant_types_supported",
    "capabilities",
    "code_challenge_methods_supported",
)
# Required if "sso-openid-connect" is a capability.
_OF_SIGN_IN = ("issuer", "jwks_uri")
_ENDPOINTS = (
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "registration_endpoint",
    "introspection_endpoint",
    "revocation_endpoint",
)
# Read alike; what no launch needs comes last.
_URLS = (
    *("jwks_uri", "registration_endpoint", "introspection_endpoint"),
    *("revocation_endpoint", "end_session_endpoint"),
)
_LISTS = (
    "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported",
    "introspection_endpoint_auth_methods_supported",
    "id_token_signing_alg_values_supported",
)
_INCIDENTAL_URLS = ("management_endpoint", "user_access_brand_bundle")
_Value = TypeVar("_Value")

_WHITE_SPACE = re.compile(r"[\x00-\x20\x7f]")
# RFC 6749 section 3.1: none may be repeated, so an endpoint cannot include them.
REQUEST_PARAMETERS = frozenset(
    [
        "aud",
        "client_id",
        "code_challenge",
        "code_challenge_method",
        "launch",
        "nonce",
        "redirect_uri",
        "response_type",
        "scope",
        "state",
    ]
)
"""Parameters that this package sets in an authorization request."""


class Capability(StrEnum):
    """
    The capabilities in the specification; a member equals the listed string.

    Spec: SMART App Launch 2.2, "Conformance", Capabilities.
    """

    LAUNCH_EHR = "launch-ehr"
    LAUNCH_STANDALONE = "launch-standalone"
    AUTHORIZE_POST = "authorize-post"
    CLIENT_PUBLIC = "client-public"
    CLIENT_CONFIDENTIAL_SYMMETRIC = "client-confidential-symmetric"
    CLIENT_CONFIDENTIAL_ASYMMETRIC = "client-confidential-asymmetric"
    SSO_OPENID_CONNECT = "sso-openid-connect"
    CONTEXT_BANNER = "context-banner"
    CONTEXT_STYLE = "context-style"
    CONTEXT_EHR_PATIENT = "context-ehr-patient"
    CONTEXT_EHR_ENCOUNTER = "context-ehr-encounter"
    CONTEXT_STANDALONE_PATIENT = "context-standalone-patient"
    CONTEXT_STANDALONE_ENCOUNTER = "context-standalone-encounter"
    PERMISSION_OFFLINE = "permission-offline"
    PERMISSION_ONLINE = "permission-online"
    PERMISSION_PATIENT = "permission-patient"
    PERMISSION_USER = "permission-user"
    PERMISSION_V1 = "permission-v1"
    PERMISSION_V2 = "permission-v2"
    SMART_APP_STATE = "smart-app-state"


@dataclass(frozen=True, kw_only=True, slots=True)
class AssociatedEndpoint:
    """A FHIR endpoint that accepts the same access tokens (experimental, DISC-12)."""

    url: str
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class SMARTConfiguration:
    """
    A server's SMART configuration.

    URLs are absolute and safe to send secrets to. Optional members are ``None`` if
    absent, null or an empty string.

    Attributes:
        capabilities: as listed, including unknown ones; test with :meth:`has`.
        deviations: what differs from the specification: required members that are
            missing, and others that were ignored.
        user_access_brand_identifier: FHIR Identifier with ``value``, maybe ``system``.
        raw: the document, which :meth:`from_json` accepts again.
    """

    token_endpoint: str
    authorization_endpoint: str | None = None
    issuer: str | None = None
    jwks_uri: str | None = None
    registration_endpoint: str | None = None
    management_endpoint: str | None = None
    introspection_endpoint: str | None = None
    revocation_endpoint: str | None = None
    end_session_endpoint: str | None = None
    user_access_brand_bundle: str | None = None
    user_access_brand_identifier: Mapping[str, str] | None = None
    capabilities: frozenset[str] = frozenset()
    grant_types_supported: tuple[str, ...] = ()
    code_challenge_methods_supported: tuple[str, ...] = ()
    scopes_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    token_endpoint_auth_signing_alg_values_supported: tuple[str, ...] | None = None
    introspection_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] | None = None
    associated_endpoints: tuple[AssociatedEndpoint, ...] = ()
    authorization_response_iss_parameter_supported: bool = False
    deviations: tuple[Deviation, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(
        cls,
        document: Mapping[str, Any],
        *,
        base_url: str,
        insecure_hosts: frozenset[str] = frozenset(),
        overrides: Mapping[str, Any] | None = None,
    ) -> SMARTConfiguration:
        """
        Read a parsed document, fresh or stored.

        Args:
            base_url: FHIR base URL as registered; relative URLs are resolved against it
                as in RFC 1808, so the last part of its path counts as a file unless a
                slash follows (DISC-04).
            insecure_hosts: hosts for which http is accepted.
            overrides: members that replace the document's, with ``None`` to remove one;
                ``raw`` does not include them.

        Raises:
            DiscoveryError: ``token_endpoint`` is missing, or a member that a
                launch may need has a wrong type or an unsafe URL; the message names it.
        """
        merged = {**document, **(overrides or {})}
        reader = DocumentReader(
            document=merged, base_url=base_url, insecure_hosts=insecure_hosts
        )
        token_endpoint = reader.url("token_endpoint")
        if token_endpoint is None:
            raise DiscoveryError("token_endpoint is missing.")
        values: dict[str, Any] = {name: reader.url(name) for name in _URLS}
        values |= {name: reader.strings(name) for name in _LISTS}
        for name in _INCIDENTAL_URLS:
            values[name] = reader.optional(reader.url, name)
        return cls(
            token_endpoint=token_endpoint,
            authorization_endpoint=reader.authorization_endpoint(),
            issuer=reader.absolute_url("issuer"),
            user_access_brand_identifier=reader.optional(
                reader.identifier, "user_access_brand_identifier"
            ),
            capabilities=frozenset(reader.strings("capabilities") or ()),
            grant_types_supported=reader.strings("grant_types_supported") or (),
            code_challenge_methods_supported=(
                reader.strings("code_challenge_methods_supported") or ()
            ),
            scopes_supported=reader.optional(reader.strings, "scopes_supported"),
            associated_endpoints=reader.optional(
                lambda name: tuple(reader.associated_endpoints(name)),
                "associated_endpoints",
            )
            or (),
            authorization_response_iss_parameter_supported=reader.boolean(
                "authorization_response_iss_parameter_supported"
            ),
            deviations=(*_find_deviations(document), *reader.deviations),
            raw=dict(document),
            **values,
        )

    def has(self, capability: str) -> bool:
        """Whether the server lists *capability*."""
        return capability in self.capabilities

    @property
    def supports_s256(self) -> bool:
        """Whether PKCE with S256 is advertised (DISC-08)."""
        return "S256" in self.code_challenge_methods_supported


def check_overrides(
    overrides: Mapping[str, Any], *, insecure_hosts: frozenset[str] = frozenset()
) -> None:
    """
    Refuse overrides that :meth:`SMARTConfiguration.from_json` could never use.

    Raises:
        DiscoveryError: a member is unknown, has a wrong type, or must be an
            absolute URL; the message names it.
    """
    known = {each.name for each in fields(SMARTConfiguration)}
    known -= {"deviations", "raw"}
    for name in overrides:
        if name not in known:
            raise DiscoveryError(
                f"{name} is not a member of the SMART configuration that this "
                f"package uses; valid names are: {', '.join(sorted(known))}."
            )
    # Relative URLs stay relative to this base, and are refused.
    configuration = SMARTConfiguration.from_json(
        {"token_endpoint": "https://ehr.invalid/token"},
        base_url="",
        insecure_hosts=insecure_hosts,
        overrides=overrides,
    )
    for each in configuration.deviations:
        if each.code == "discovery_member_ignored":
            raise DiscoveryError(each.evidence)


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentReader:
    """
    Reads members of one document by type; a wrong type raises with the member's name.
    """

    document: Mapping[str, Any] = field(repr=False)
    base_url: str
    insecure_hosts: frozenset[str]
    deviations: list[Deviation] = field(default_factory=list)

    def optional(self, read: Callable[[str], _Value], name: str) -> _Value | None:
        """Read a member that no launch needs; an odd one is ignored."""
        try:
            return read(name)
        except DiscoveryError as exc:
            self.deviations.append(
                Deviation(code="discovery_member_ignored", evidence=str(exc))
            )
            return None

    def _text(self, name: str) -> str | None:
        value = self.document.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise DiscoveryError(f"{name} is not a string.")
        return value

    def _validate(self, url: str, name: str) -> str:
        try:
            return validate_https_url(
                url, insecure_hosts=self.insecure_hosts, what=name
            )
        except InsecureURLError as exc:
            raise DiscoveryError(str(exc)) from exc

    def _resolve(self, url: str, name: str) -> str:
        # urljoin() would silently drop line breaks and tabs.
        if _WHITE_SPACE.search(url):
            raise DiscoveryError(f"{name} contains whitespace.")
        try:
            return self._validate(urljoin(self.base_url, url), name)
        except ValueError as exc:
            raise DiscoveryError(f"{name} is not a URL.") from exc

    def url(self, name: str) -> str | None:
        """Read an endpoint's URL, made absolute."""
        value = self._text(name)
        return None if value is None else self._resolve(value, name)

    def authorization_endpoint(self) -> str | None:
        """Refuse a query with parameters that a request adds."""
        name = "authorization_endpoint"
        url = self.url(name)
        query = "" if url is None else urlsplit(url).query
        for own, _ in parse_qsl(query, keep_blank_values=True):
            if own in REQUEST_PARAMETERS:
                raise DiscoveryError(
                    f"{name} already has the parameter {own!r} in its query."
                )
        return url

    def absolute_url(self, name: str) -> str | None:
        """Read a URL as written, such as an issuer, which is compared exactly."""
        value = self._text(name)
        return None if value is None else self._validate(value, name)

    def boolean(self, name: str) -> bool:
        value = self.document.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise DiscoveryError(f"{name} is not a boolean.")
        return value

    def strings(self, name: str) -> tuple[str, ...] | None:
        value = self.document.get(name)
        return None if value is None else _check_strings(value, name)

    def identifier(self, name: str) -> Mapping[str, str] | None:
        """Read a FHIR Identifier, keeping ``system`` and ``value``."""
        value = self.document.get(name)
        if value is None:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("value"), str):
            raise DiscoveryError(f"{name} is not an object with a value.")
        if not isinstance(value.get("system", ""), str):
            raise DiscoveryError(f"{name}.system is not a string.")
        return {key: value[key] for key in ("system", "value") if key in value}

    def associated_endpoints(self, name: str) -> Iterator[AssociatedEndpoint]:
        value = self.document.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise DiscoveryError(f"{name} is not a list.")
        for item in value:
            if not isinstance(item, dict) or not isinstance(item.get("url"), str):
                raise DiscoveryError(f"{name} has an entry without a url.")
            yield AssociatedEndpoint(
                url=self._resolve(item["url"], name),
                capabilities=frozenset(
                    _check_strings(item.get("capabilities", []), f"{name}.capabilities")
                ),
            )


def _find_deviations(document: Mapping[str, Any]) -> Iterator[Deviation]:
    """Yield what is tolerated in a server's own *document*."""

    def read_list(name: str) -> list[Any]:
        value = document.get(name)
        return value if isinstance(value, list) else []

    capabilities = read_list("capabilities")
    signs_in = "sso-openid-connect" in capabilities
    required = _REQUIRED + (_OF_SIGN_IN if signs_in else ())
    if missing := [each for each in required if document.get(each) is None]:
        yield Deviation(code="discovery_member_missing", evidence=", ".join(missing))
    methods = read_list("code_challenge_methods_supported")
    if "plain" in methods:
        yield Deviation(code="discovery_plain_pkce", evidence="plain is listed")
    relative = [
        each
        for each in _ENDPOINTS
        if isinstance(url := document.get(each), str) and url and "://" not in url
    ]
    if relative:
        yield Deviation(code="discovery_url_relative", evidence=", ".join(relative))


def _check_strings(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DiscoveryError(f"{name} is not a list of strings.")
    return tuple(value)
