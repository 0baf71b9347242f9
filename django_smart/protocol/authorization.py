"""The authorization request with its PKCE challenge, and the response."""

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
    DiscoveryError,
    StateError,
)
from django_smart.protocol.deviations import Deviation
from django_smart.protocol.oauth import (
    MAX_PARAMETER_LENGTH,
    VISIBLE,
    parse_oauth_error,
)

__all__ = [
    "MAX_CODE_LENGTH",
    "AuthorizationRequest",
    "AuthorizationResponse",
    "build_authorization_request",
    "build_code_challenge",
    "get_state",
    "process_authorization_response",
]

_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")


def build_code_challenge(code_verifier: str) -> str:
    """
    Return the ``code_challenge`` of *code_verifier* for the method ``S256``.

    Raises:
        ValueError: *code_verifier* is not 43 to 128 unreserved characters.

    Spec: RFC 7636 sections 4.1 and 4.2; SMART App Launch 2.2, "Obtain authorization
    code".
    """
    if not _VERIFIER.fullmatch(code_verifier):
        raise ValueError("A code_verifier has 43 to 128 characters of A-Za-z0-9-._~")
    digest = hashlib.sha256(code_verifier.encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


#: Maximum length of ``code``; the published example has about 800 characters.
MAX_CODE_LENGTH = 16 * 1024

# Parameters of an authorization response (RFC 6749 section 4.1.2, RFC 9207).
_RESPONSE_PARAMETERS = frozenset(
    {"code", "error", "error_description", "error_uri", "iss", "state"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationRequest:
    """
    Where to send the browser, and with what.

    Attributes:
        url: for a GET, parameters included.
        endpoint: for a POST; keeps its own query.
        parameters: name and value in order, for the inputs of a POST form.
    """

    url: str = field(repr=False)
    endpoint: str
    parameters: tuple[tuple[str, str], ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationResponse:
    """
    A validated response; exchange ``code`` immediately (CALL-06).

    Attributes:
        deviations: what differs from the specification.
    """

    code: str = field(repr=False)
    deviations: tuple[Deviation, ...] = ()


def build_authorization_request(
    *,
    authorization_endpoint: str,
    client_id: str,
    redirect_uri: str,
    scope: str,
    state: str,
    aud: str,
    code_challenge: str,
    launch: str | None = None,
    nonce: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> AuthorizationRequest:
    """
    Build the request for an authorization code, for GET and for POST.

    Args:
        authorization_endpoint: as discovered; its own query is kept (AUTH-13).
        scope: wire string, sent unchanged.
        aud: FHIR base URL, character for character as received or registered.
        code_challenge: for S256.
        launch: opaque value of an EHR launch, sent unchanged; ``None`` if standalone.
        extra: further parameters, sent last.

    Raises:
        ValueError: a value is empty, or *extra* repeats a parameter.
        DiscoveryError: the endpoint's query contains one of the parameters.

    Spec: SMART App Launch 2.2, "Obtain authorization code", Request.
    """
    optional = (
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
        ("code_challenge", code_challenge),
        ("code_challenge_method", "S256"),
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
            raise DiscoveryError(
                f"authorization_endpoint already has the parameter {name!r} in "
                "its query."
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
    Return the ``state`` of an authorization response, which identifies the launch.

    Raises:
        StateError: it is missing, empty, oversized or repeated.
    """
    values = [value for name, value in parameters if name == "state"]
    if len(values) != 1 or not 0 < len(values[0]) <= MAX_PARAMETER_LENGTH:
        raise StateError(
            "Expected exactly one state parameter of 1 to "
            f"{MAX_PARAMETER_LENGTH} characters; got {len(values)}.",
        )
    return values[0]


def process_authorization_response(
    parameters: Sequence[tuple[str, str]],
    *,
    expected_issuer: str | None,
    issuer_promised: bool,
) -> AuthorizationResponse:
    """
    Read the parameters of the redirect URI, after ``state`` was checked.

    Args:
        parameters: name and value of the query, in order, repeated names included;
            unknown parameters are ignored.
        expected_issuer: issuer of this launch's server; ``None`` if unknown.
        issuer_promised: the server says that it always sends ``iss``
            (``authorization_response_iss_parameter_supported``).

    Raises:
        AuthorizationDeniedError: the response is an ``error``.
        AuthorizationResponseError: ``iss`` names another server, is missing although
            promised, or cannot be compared with anything.
        AuthorizationResponseError: neither ``code`` nor ``error``, both,
            repeated or oversized parameters.

    Spec: SMART App Launch 2.2, "Obtain authorization code", Response; RFC 6749 sections
    3.1 and 4.1.2; RFC 9207 section 2.4.
    """
    known = [pair for pair in parameters if pair[0] in _RESPONSE_PARAMETERS]
    values = dict(known)
    if len(values) != len(known):
        raise AuthorizationResponseError("A parameter occurs more than once.")
    for name, value in parameters:
        limit = MAX_CODE_LENGTH if name == "code" else MAX_PARAMETER_LENGTH
        if len(value) > limit:
            raise AuthorizationResponseError(
                f"A parameter has {len(value)} characters; the limit is {limit}."
            )
    _check_issuer(values.get("iss"), expected_issuer, promised=issuer_promised)
    if "code" in values and "error" in values:
        raise AuthorizationResponseError("The response has both code and error.")
    if "error" in values:
        raise _build_error(values)
    code = values.get("code", "")
    if not VISIBLE.fullmatch(code):
        raise AuthorizationResponseError(
            "Expected code or error; neither is present, or code is not visible ASCII."
        )
    is_announced = issuer_promised or "iss" not in values
    return AuthorizationResponse(
        code=code,
        deviations=() if is_announced else (Deviation(code="iss_not_announced"),),
    )


def _check_issuer(issuer: str | None, expected: str | None, *, promised: bool) -> None:
    """Compare ``iss``, so that no server gets another server's code (mix-up attack)."""
    if issuer is None:
        if promised:
            raise AuthorizationResponseError(
                "The server announced the parameter iss, but the response has none.",
                code="issuer_mismatch",
            )
    elif expected is None:
        raise AuthorizationResponseError(
            "The response has an iss, but the server's issuer is unknown, so "
            "they cannot be compared: set the server's ID token issuer.",
            code="issuer_not_known",
        )
    elif issuer != expected:
        raise AuthorizationResponseError(
            "The parameter iss is not the issuer of the launch.",
            code="issuer_mismatch",
        )


def _build_error(
    values: dict[str, str],
) -> AuthorizationDeniedError | AuthorizationResponseError:
    """Return the exception for a response with ``error``."""
    refusal = parse_oauth_error(values)
    if not refusal:
        return AuthorizationResponseError(
            "error is empty or has characters that RFC 6749 does not allow."
        )
    return AuthorizationDeniedError(
        f"The authorization server responded with error={refusal['error']}.", **refusal
    )
