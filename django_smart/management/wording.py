"""A server's configuration in words, for people who run commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..protocol.configuration import SMARTConfiguration

__all__ = ["describe_configuration"]

_TOPICS = (
    (
        "launches",
        {
            "launch-ehr": "from the EHR",
            "launch-standalone": "from this site",
            "authorize-post": "requests by POST too",
        },
    ),
    (
        "clients",
        {
            "client-public": "public",
            "client-confidential-symmetric": "with a secret",
            "client-confidential-asymmetric": "with a key",
        },
    ),
    (
        "context",
        {
            "context-ehr-patient": "patient (EHR)",
            "context-ehr-encounter": "encounter (EHR)",
            "context-standalone-patient": "patient (this site)",
            "context-standalone-encounter": "encounter (this site)",
            "context-banner": "banner",
            "context-style": "style",
        },
    ),
    (
        "access",
        {
            "permission-patient": "one patient",
            "permission-user": "all the user may see",
            "permission-offline": "offline",
            "permission-online": "online",
            "permission-v1": "scopes of version 1",
            "permission-v2": "scopes of version 2",
        },
    ),
)
_ENDPOINTS = (
    ("authorization", "authorization_endpoint"),
    ("token", "token_endpoint"),
    ("revocation", "revocation_endpoint"),
    ("introspection", "introspection_endpoint"),
    ("registration", "registration_endpoint"),
)


def describe_configuration(
    configuration: SMARTConfiguration, jwks: Mapping[str, Any] | None
) -> Iterator[str]:
    """
    Lines that say what the server offers, one topic each.

    Args:
        jwks: its JWK Set; ``None`` if it has none.
    """
    for topic, words in _TOPICS:
        offered = [word for name, word in words.items() if configuration.has(name)]
        yield f"{topic}: {_join(offered)}"
    methods = configuration.token_endpoint_auth_methods_supported
    yield f"authentication: {_join(methods or ())}"
    yield f"PKCE: {_join(configuration.code_challenge_methods_supported)}"
    yield f"sign-in: {_describe_sign_in(configuration, jwks)}"
    for name, member in _ENDPOINTS:
        yield f"{name} endpoint: {getattr(configuration, member) or 'none'}"
    yield f"complete sets: {_join(sorted(configuration.capability_sets))}"
    if configuration.missing:
        yield f"required and missing: {_join(sorted(configuration.missing))}"


def _describe_sign_in(
    configuration: SMARTConfiguration, jwks: Mapping[str, Any] | None
) -> str:
    if not configuration.has("sso-openid-connect"):
        return "not said"
    keys = len(jwks["keys"]) if jwks else 0
    plural = "key" if keys == 1 else "keys"
    return (
        f"OpenID Connect, issuer {configuration.issuer or 'not said'}, {keys} {plural}"
    )


def _join(words: Iterable[str]) -> str:
    return ", ".join(words) or "not said"
