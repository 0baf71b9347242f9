"""Common parts of exchanges with the token endpoint and similar endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from django_smart.exceptions import (
    MalformedTokenResponseError,
    RedirectRefusedError,
    TokenResponseError,
    TokenServerError,
)
from django_smart.protocol.client_auth import ClientAuthentication
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.oauth_errors import parse_oauth_error

__all__ = ["build_form_request", "parse_token_body"]


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
        RedirectRefusedError: a redirect.
        MalformedTokenResponseError: any other status, or not a JSON object.
    """
    status = response.status_code
    if status == 200:
        return parse_json_object(
            response.body, error=MalformedTokenResponseError, what="token response"
        )
    if 300 <= status < 400:
        raise RedirectRefusedError(
            f"The token endpoint responded with a redirect (status {status}), "
            "which is not followed because it would send codes and secrets "
            "elsewhere."
        )
    if 400 <= status < 500 and status != 429:
        _raise_oauth_error(response)
    if status >= 400:
        raise TokenServerError(
            f"The token endpoint responded with status {status} and no OAuth error.",
            status_code=status,
            retry_after=response.retry_after,
        )
    raise MalformedTokenResponseError(
        f"Expected a token response with status 200, got {status}."
    )


def _raise_oauth_error(response: HTTPResponse) -> None:
    """Raise the OAuth error in a 4xx response, if there is one."""
    try:
        members = parse_json_object(
            response.body, error=MalformedTokenResponseError, what="error response"
        )
    except MalformedTokenResponseError:
        return
    refusal = parse_oauth_error(members)
    if refusal:
        raise TokenResponseError(
            f"The token endpoint responded with error={refusal['error']}.",
            **refusal,
            status_code=response.status_code,
        )
