"""The authorization request with its PKCE challenge, and the answer to it."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from django_smart.exceptions import (
    AuthorizationDeniedError,
    AuthorizationResponseError,
    MalformedAuthorizationResponseError,
    MalformedDiscoveryError,
    StateError,
)
from django_smart.protocol.oauth_errors import parse_oauth_error

__all__ = [
    "MAX_CODE_LENGTH",
    "MAX_PARAMETER_LENGTH",
    "AuthorizationRequest",
    "AuthorizationResponse",
    "build_authorization_request",
    "build_code_challenge",
    "get_state",
    "process_authorization_response",
    "validate_code_verifier",
]

_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")


def validate_code_verifier(code_verifier: str) -> str:
    """
    Return *code_verifier* if it is one.

    Raises:
        ValueError: not 43 to 128 unreserved characters.

    Spec: RFC 7636 section 4.1.
    """
    if not _VERIFIER.fullmatch(code_verifier):
        raise ValueError(
            "A code_verifier has 43 to 128 of the characters A-Za-z0-9-._~"
        )
    return code_verifier


def build_code_challenge(code_verifier: str) -> str:
    """
    The ``code_challenge`` of *code_verifier* for ``code_challenge_method=S256``.

    Raises:
        ValueError: *code_verifier* is not valid.

    Spec: RFC 7636 section 4.2; SMART App Launch 2.2, "Obtain authorization code".
    """
    digest = hashlib.sha256(validate_code_verifier(code_verifier).encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


#: Characters of ``code``; the published example has about 800.
MAX_CODE_LENGTH = 16 * 1024
#: Characters of every other parameter.
MAX_PARAMETER_LENGTH = 4 * 1024

# Of an authorization response (RFC 6749 section 4.1.2, RFC 9207).
_RESPONSE_PARAMETERS = frozenset(
    {"code", "error", "error_description", "error_uri", "iss", "state"}
)
# RFC 6749 appendix A.11.
_CODE = re.compile(r"[ -~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationRequest:
    """
    Where to send the browser, and with what.

    Attributes:
        url: for a GET, parameters included.
        endpoint: for a POST; keeps a query of its own.
        parameters: name and value in order, for the inputs of a POST form.
    """

    url: str = field(repr=False)
    endpoint: str
    parameters: tuple[tuple[str, str], ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationResponse:
    """A checked answer; ``code`` is to be exchanged at once (CALL-06)."""

    code: str = field(repr=False)


def build_authorization_request(
    *,
    authorization_endpoint: str,
    client_id: str,
    redirect_uri: str,
    scope: str,
    state: str,
    aud: str,
    code_challenge: str | None = None,
    launch: str | None = None,
    nonce: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> AuthorizationRequest:
    """
    Build the request for an authorization code, for GET and for POST.

    Args:
        authorization_endpoint: as discovered; its own query is kept (AUTH-13).
        scope: wire string, sent as it is.
        aud: FHIR base URL, character for character as received or registered.
        code_challenge: for S256, or ``None`` for a server registered without PKCE.
        launch: opaque value of an EHR launch, echoed unchanged; ``None`` if standalone.
        extra: further parameters, sent last.

    Raises:
        ValueError: a value is empty, or *extra* repeats a parameter.
        MalformedDiscoveryError: the endpoint's query holds one of the parameters.

    Spec: SMART App Launch 2.2, "Obtain authorization code", Request.
    """
    optional = (
        ("code_challenge", code_challenge),
        ("code_challenge_method", None if code_challenge is None else "S256"),
        ("launch", launch),
        ("nonce", nonce),
    )
    parameters = (
        ("response_type", "code"),
        ("client_id", client_id),
        ("scope", scope),
        ("redirect_uri", redirect_uri),
        ("aud", aud),
        ("state", state),
        *((name, value) for name, value in optional if value is not None),
        *extra,
    )
    names = {name for name, _ in parameters}
    if len(names) != len(parameters):
        raise ValueError("A parameter of the authorization request is given twice")
    for name, value in parameters:
        if not value:
            raise ValueError(
                f"The parameter {name} of the authorization request is empty"
            )
    own_query = urlsplit(authorization_endpoint).query
    for name, _ in parse_qsl(own_query, keep_blank_values=True):
        if name in names:
            raise MalformedDiscoveryError(
                f"authorization_endpoint has the parameter {name!r} in its query."
            )
    query = urlencode(parameters, quote_via=quote, safe="")
    base = authorization_endpoint.removesuffix("?")
    return AuthorizationRequest(
        url=f"{base}{'&' if own_query else '?'}{query}",
        endpoint=authorization_endpoint,
        parameters=parameters,
    )


def get_state(parameters: Sequence[tuple[str, str]]) -> str:
    """
    The ``state`` of an authorization response, which leads to the launch it is for.

    Raises:
        StateError: none, an empty or oversized one, or more than one.
    """
    values = [value for name, value in parameters if name == "state"]
    if len(values) != 1 or not 0 < len(values[0]) <= MAX_PARAMETER_LENGTH:
        raise StateError(
            "Expected one parameter state, not empty and of at most "
            f"{MAX_PARAMETER_LENGTH} characters; got {len(values)} of that name.",
            code="state_missing",
        )
    return values[0]


def process_authorization_response(
    parameters: Sequence[tuple[str, str]],
    *,
    expected_issuer: str | None,
    issuer_promised: bool,
) -> AuthorizationResponse:
    """
    Read the parameters that came to the redirect URI; ``state`` was checked before.

    Args:
        parameters: name and value of the query, in order, repeated names included;
            unknown parameters are ignored.
        expected_issuer: issuer of this launch's server; ``None`` if it is not known.
        issuer_promised: the server says that ``iss`` always comes
            (``authorization_response_iss_parameter_supported``).

    Raises:
        AuthorizationDeniedError: the answer is an ``error``.
        AuthorizationResponseError: ``iss`` names another server, was promised and is
            missing, or came and there is nothing to compare it with.
        MalformedAuthorizationResponseError: neither ``code`` nor ``error``, both,
            repeated or oversized parameters.

    Spec: SMART App Launch 2.2, "Obtain authorization code", Response; RFC 6749 sections
    3.1 and 4.1.2; RFC 9207 section 2.4.
    """
    known = [pair for pair in parameters if pair[0] in _RESPONSE_PARAMETERS]
    values = dict(known)
    if len(values) != len(known):
        raise MalformedAuthorizationResponseError("A parameter came more than once.")
    for name, value in parameters:
        limit = MAX_CODE_LENGTH if name == "code" else MAX_PARAMETER_LENGTH
        if len(value) > limit:
            raise MalformedAuthorizationResponseError(
                f"A parameter has {len(value)} characters, more than {limit}."
            )
    _check_issuer(values.get("iss"), expected_issuer, promised=issuer_promised)
    if "code" in values and "error" in values:
        raise MalformedAuthorizationResponseError("Both code and error came.")
    if "error" in values:
        raise _build_error(values)
    code = values.get("code", "")
    if not _CODE.fullmatch(code):
        raise MalformedAuthorizationResponseError(
            "Expected code or error; neither came, or code is not visible ASCII."
        )
    return AuthorizationResponse(code=code)


def _check_issuer(issuer: str | None, expected: str | None, *, promised: bool) -> None:
    """Compare ``iss``, so that no code of one server goes to another (mix-up)."""
    if issuer is None:
        if promised:
            raise AuthorizationResponseError(
                "The server promised the parameter iss; none came.",
                code="issuer_mismatch",
            )
    elif expected is None:
        raise AuthorizationResponseError(
            "The response names its issuer, and the server's issuer is not known to "
            "compare it with: set the server's ID token issuer.",
            code="issuer_not_known",
        )
    elif issuer != expected:
        raise AuthorizationResponseError(
            "The parameter iss does not name the launch's issuer.",
            code="issuer_mismatch",
        )


def _build_error(
    values: dict[str, str],
) -> AuthorizationDeniedError | MalformedAuthorizationResponseError:
    """The exception for an answer that has ``error``."""
    refusal = parse_oauth_error(values)
    if refusal is None:
        return MalformedAuthorizationResponseError(
            "error is empty or has characters that RFC 6749 does not allow."
        )
    return AuthorizationDeniedError(
        f"The authorization server answered with error={refusal.error}.",
        error=refusal.error,
        error_description=refusal.error_description,
        error_uri=refusal.error_uri,
    )
