"""What the exchanges with OAuth's endpoints have in common."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from django_smart.exceptions import (
    MalformedTokenResponseError,
    SMARTError,
    TokenResponseError,
    TokenServerError,
    TransportError,
)
from django_smart.protocol.client_auth import ClientAuthentication
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.urls import is_https_url

__all__ = [
    "MAX_PARAMETER_LENGTH",
    "VISIBLE",
    "build_form_request",
    "find_oauth_error",
    "get_scope",
    "get_text",
    "parse_oauth_error",
    "parse_token_body",
]

#: Maximum length of every parameter but ``code``.
MAX_PARAMETER_LENGTH = 4 * 1024
#: RFC 6749 appendix A.
VISIBLE = re.compile(r"[ -~]+")
_ERROR = re.compile(r"[ !#-\[\]-~]{1,200}")
_MAX_DESCRIPTION = 500


def build_form_request(
    endpoint: str,
    parameters: list[tuple[str, str]],
    *,
    client_authentication: ClientAuthentication | None,
    headers: Mapping[str, str] | None = None,
) -> HTTPRequest:
    """Build the POST of a form with the client's authentication."""
    all_headers = {
        "Accept": "application/json",
        "Content-Type": "application/x-www-form-urlencoded",
        **(headers or {}),
    }
    form = list(parameters)
    if client_authentication is not None:
        client_authentication.apply(form, all_headers, endpoint=endpoint)
    return HTTPRequest(
        method="POST", url=endpoint, headers=all_headers, body=urlencode(form).encode()
    )


def parse_token_body(response: HTTPResponse) -> dict[str, Any]:
    """
    Return the JSON object of a 200 response; any other response raises.

    Raises:
        TokenResponseError: 4xx with an OAuth error.
        TokenServerError: 429, 5xx, or 4xx without an OAuth error.
        TransportError: a redirect (``redirect_refused``).
        MalformedTokenResponseError: any other status, or not a JSON object.
    """
    status = response.status_code
    if status == 200:
        # A new refresh token must not be lost because of another member's text.
        return parse_json_object(
            response.body,
            error=MalformedTokenResponseError,
            what="token response",
            replace_unstorable=True,
        )
    if 300 <= status < 400:
        raise TransportError(
            f"The token endpoint responded with a redirect (status {status}), "
            "which is not followed because it would send codes and secrets "
            "elsewhere.",
            code="redirect_refused",
        )
    is_refusal = 400 <= status < 500 and status != 429
    if is_refusal and (refusal := find_oauth_error(response)):
        raise TokenResponseError(
            f"The token endpoint responded with error={refusal['error']}.",
            **refusal,
            status_code=status,
        )
    if status >= 400:
        raise TokenServerError(
            f"The token endpoint responded with status {status} and no OAuth error.",
            status_code=status,
            retry_after=response.retry_after,
        )
    raise MalformedTokenResponseError(
        f"Expected a token response with status 200, got {status}."
    )


def find_oauth_error(response: HTTPResponse) -> dict[str, str]:
    """:func:`parse_oauth_error` of a JSON body; nothing of any other."""
    with suppress(SMARTError):
        return parse_oauth_error(
            parse_json_object(
                response.body,
                error=SMARTError,
                what="error response",
                replace_unstorable=True,
            )
        )
    return {}


def parse_oauth_error(members: Mapping[str, object]) -> dict[str, str]:
    """
    Read the error from query parameters or a JSON object, safe to display.

    Returns:
        ``error``, visible ASCII; ``error_description``, one line without control
        characters, at most 500 long, or empty; and ``error_uri``, an https URL, or
        empty. Nothing if there is no error.

    Spec: RFC 6749 sections 4.1.2.1 and 5.2.
    """
    error = members.get("error")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return {}
    uri = members.get("error_uri")
    is_short = isinstance(uri, str) and len(uri) <= MAX_PARAMETER_LENGTH
    is_link = is_short and is_https_url(str(uri))
    return {
        "error": error,
        "error_description": _clean(members.get("error_description")),
        "error_uri": str(uri) if is_link else "",
    }


def _clean(text: object) -> str:
    """
    Return *text* as one bounded line without control, format or private characters.
    """
    if not isinstance(text, str):
        return ""
    # Cut first: the text may have megabytes.
    line = " ".join(text[: 4 * _MAX_DESCRIPTION].split())
    return "".join(
        char for char in line if not unicodedata.category(char).startswith("C")
    )[:_MAX_DESCRIPTION]


def get_text(
    members: Mapping[str, Any],
    name: str,
    pattern: re.Pattern[str] = VISIBLE,
    *,
    error: Callable[[str], SMARTError] = MalformedTokenResponseError,
) -> str | None:
    """Read a string; null and the empty string count as absent."""
    value = members.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise error(f"{name} is not a string of visible ASCII.")
    return value


def get_scope(members: Mapping[str, Any]) -> str | None:
    """
    Read ``scope``, which some servers send as a list.

    Raises:
        MalformedTokenResponseError: it is something else.
    """
    value = members.get("scope")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = " ".join(value)
    if not isinstance(value, str | None):
        raise MalformedTokenResponseError("scope is not a string.")
    return value
