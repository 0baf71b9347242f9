"""Compare what a registration needs with what its server supports."""

from __future__ import annotations

from collections.abc import Iterator

from ..diagnoses import Finding, build_finding
from ..exceptions import UnsupportedServerError
from ..models import ClientRegistration, FHIRServer, Launch
from ..protocol.configuration import Capability, SMARTConfiguration
from ..protocol.scopes import ScopeSet

__all__ = [
    "check_backend_service",
    "check_launch",
    "check_registration",
    "find_problems",
]

_AuthMethod = ClientRegistration.AuthMethod
# The methods of a server that lists none.
_CLIENT_TYPES = {
    _AuthMethod.NONE: Capability.CLIENT_PUBLIC,
    _AuthMethod.CLIENT_SECRET_BASIC: Capability.CLIENT_CONFIDENTIAL_SYMMETRIC,
    _AuthMethod.CLIENT_SECRET_POST: Capability.CLIENT_CONFIDENTIAL_SYMMETRIC,
    _AuthMethod.PRIVATE_KEY_JWT: Capability.CLIENT_CONFIDENTIAL_ASYMMETRIC,
}


def check_registration(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> None:
    """
    Refuse *registration* if any of its purposes is bound to fail.

    A member that the server omits, as old servers do, does not count against it.

    Raises:
        UnsupportedServerError: says all that is lacking, and what to do about each.
    """
    _refuse(find_problems(registration, configuration))


def find_problems(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> list[Finding]:
    """Return why :func:`check_registration` refuses *registration*, if it does."""
    problems = list(_find_client_problems(registration, configuration))
    if registration.is_for_launches:
        problems += _find_authorization_problems(configuration)
    if registration.ehr_scope:
        problems += _find_mode_problems(Launch.Kind.EHR, configuration)
    if registration.standalone_scope:
        problems += _find_mode_problems(Launch.Kind.STANDALONE, configuration)
    if registration.system_scope:
        problems += _find_grant_type_problems("client_credentials", configuration)
    problems += _find_scope_problems(
        registration.server,
        configuration,
        f"{registration.ehr_scope} {registration.standalone_scope} "
        f"{registration.system_scope}",
    )
    return problems


def check_launch(launch: Launch, configuration: SMARTConfiguration) -> None:
    """
    Refuse *launch* before the redirect if it is bound to fail.

    Raises:
        UnsupportedServerError: says all that is lacking, and what to do about each.
    """
    registration = launch.registration
    _refuse(
        [
            *_find_client_problems(registration, configuration),
            *_find_authorization_problems(configuration),
            *_find_mode_problems(launch.kind, configuration),
            *_find_scope_problems(
                registration.server, configuration, launch.scope_asked
            ),
        ]
    )


def check_backend_service(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> None:
    """
    Refuse a backend service's token request that is bound to fail.

    Raises:
        UnsupportedServerError: says all that is lacking, and what to do about each.
    """
    _refuse(
        [
            *_find_client_problems(registration, configuration),
            *_find_grant_type_problems("client_credentials", configuration),
            *_find_scope_problems(
                registration.server, configuration, registration.system_scope
            ),
        ]
    )


def _refuse(problems: list[Finding]) -> None:
    if problems:
        text = (f"{each.what} {each.fix}" for each in problems)
        raise UnsupportedServerError(" ".join(text))


def _find_client_problems(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    method = registration.token_endpoint_auth_method
    methods = configuration.token_endpoint_auth_methods_supported
    types = [each for each in set(_CLIENT_TYPES.values()) if configuration.has(each)]
    # A public client does not authenticate, so servers need not list "none".
    if methods:
        if method not in (_AuthMethod.NONE, *methods):
            yield build_finding(
                "method_not_offered",
                what="The server does not support the authentication method "
                f"{method}; it supports {', '.join(methods)}.",
            )
    elif types and _CLIENT_TYPES[_AuthMethod(method)] not in types:
        yield build_finding(
            "method_not_offered",
            what=f"The server does not support the authentication method {method}: "
            "its capabilities do not include "
            f"{_CLIENT_TYPES[_AuthMethod(method)]}, only "
            f"{', '.join(sorted(types))}.",
        )
    algorithms = configuration.token_endpoint_auth_signing_alg_values_supported
    algorithm = registration.signing_algorithm
    if registration.uses_private_key and algorithms and algorithm not in algorithms:
        yield build_finding(
            "algorithm_not_offered",
            what=f"The server does not accept {algorithm} signatures; it accepts "
            f"{', '.join(algorithms)}.",
        )


def _find_authorization_problems(
    configuration: SMARTConfiguration,
) -> Iterator[Finding]:
    if not configuration.authorization_endpoint:
        yield build_finding(
            "authorization_endpoint_missing",
            what="The server does not name the authorization_endpoint that "
            "launches require.",
        )
    methods = configuration.code_challenge_methods_supported
    # An old server that lists nothing is sent S256; "plain" is never used.
    if methods and not configuration.supports_s256:
        yield build_finding(
            "s256_not_offered",
            what=f"The server supports the code challenge {', '.join(methods)} but "
            "not S256.",
        )
    yield from _find_grant_type_problems("authorization_code", configuration)


def _find_grant_type_problems(
    grant_type: str, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    offered = configuration.grant_types_supported
    if offered and grant_type not in offered:
        yield build_finding(
            "grant_type_not_offered",
            what=f"The server does not support the grant type {grant_type}; it "
            f"supports {', '.join(offered)}.",
        )


def _find_mode_problems(
    kind: str, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    modes = {
        Launch.Kind.EHR: (Capability.LAUNCH_EHR, "EHR"),
        Launch.Kind.STANDALONE: (Capability.LAUNCH_STANDALONE, "standalone"),
    }
    capability, name = modes[Launch.Kind(kind)]
    if configuration.capabilities and not configuration.has(capability):
        yield build_finding(
            f"{name.lower()}_launch_not_offered",
            what=f"The server does not support {name} launches: its capabilities do "
            f"not include {capability}.",
            fix=f"Clear the registration's scope for {name} launch, or ask the "
            "server's operator to enable it.",
        )


def _find_scope_problems(
    server: FHIRServer, configuration: SMARTConfiguration, scope: str
) -> Iterator[Finding]:
    scopes = ScopeSet.parse(scope)
    v1 = [each.text for each in scopes.resource_scopes if each.is_v1]
    v2 = [each.text for each in scopes.resource_scopes if not each.is_v1]
    takes_v1 = configuration.has(Capability.PERMISSION_V1)
    takes_v2 = configuration.has(Capability.PERMISSION_V2)
    if v2 and server.quirks.scope_syntax == "v1":
        yield build_finding(
            "v2_scopes_not_offered",
            what=f"The server is set to version 1 scopes, but {v2[0]} is a version "
            "2 scope.",
            fix="End it in .read, .write or .* in the scopes of the registration, or "
            "set the server's scope syntax to v2.",
        )
    elif v2 and takes_v1 and not takes_v2:
        yield build_finding(
            "v2_scopes_not_offered",
            what="The server supports only version 1 scopes (permission-v1), but "
            f"{v2[0]} is a version 2 scope.",
            fix="End it in .read, .write or .* in the scopes of the registration.",
        )
    if v1 and takes_v2 and not takes_v1:
        yield build_finding(
            "v1_scopes_not_offered",
            what="The server supports only version 2 scopes (permission-v2), but "
            f"{v1[0]} is a version 1 scope.",
            fix=f"Use {ScopeSet.parse(v1[0]).to_v2()} instead in the scopes of the "
            "registration.",
        )
    if (
        "online_access" in scopes
        and configuration.has(Capability.PERMISSION_OFFLINE)
        and not configuration.has(Capability.PERMISSION_ONLINE)
    ):
        yield build_finding(
            "online_access_not_offered",
            what="The server does not support online_access: its capabilities "
            "include only permission-offline.",
        )
