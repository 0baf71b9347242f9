"""Whether a server reads Basic credentials as they are, or form-encoded."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Iterator
from urllib.parse import quote_plus

from django.utils import timezone

from ...exceptions import SMARTError, TokenResponseError
from ...models import ClientRegistration, FHIRServer
from ...protocol.configuration import SMARTConfiguration
from ...protocol.scopes import ScopeSet
from ...protocol.token import build_token_request, process_token_response
from ...servers.http import build_client_authentication
from ...servers.registering import get_site_url
from .asking import ask
from .findings import Finding, build_finding

__all__ = ["try_other_encoding"]

_Basic = FHIRServer.BasicCredentials


def try_other_encoding(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """
    Send the credentials once in the other encoding, if this one is refused.

    Only an answer about the code that nobody gave (``invalid_grant``) shows that a
    client is accepted; every other answer proves nothing.
    """
    other = copy.copy(registration)
    other.server = copy.copy(registration.server)
    is_raw = other.server.basic_credentials == _Basic.RAW
    other.server.basic_credentials = _Basic.FORM_ENCODED if is_raw else _Basic.RAW
    try:
        if (
            _differs(registration)
            and not _is_accepted(registration, configuration)
            and _is_accepted(other, configuration)
        ):
            yield build_finding(
                "basic_encoding_wrong",
                subject=registration.server.slug,
                what="The token endpoint refuses client ID and secret in the "
                f"current encoding ({registration.server.basic_credentials}) "
                f"and accepts them as {other.server.basic_credentials}.",
                fix="Set basic_credentials on the server's admin page to "
                f"{other.server.basic_credentials}.",
            )
    except SMARTError:
        # Reported where the credentials themselves are tried.
        return


def _differs(registration: ClientRegistration) -> bool:
    method = registration.token_endpoint_auth_method
    if method != ClientRegistration.AuthMethod.CLIENT_SECRET_BASIC:
        return False
    text = registration.client_id + registration.get_client_secret(os.environ)
    return quote_plus(text) != text


def _is_accepted(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> bool:
    url = configuration.token_endpoint
    request = build_token_request(
        token_endpoint=url,
        code="no-code-the-doctor-is-asking",
        redirect_uri=registration.redirect_uri or get_site_url(registration),
        code_verifier=secrets.token_urlsafe(64),
        client_authentication=build_client_authentication(
            registration, token_endpoint=url
        ),
    )
    answer = ask(request, server=registration.server)
    try:
        process_token_response(answer, requested=ScopeSet.parse(""), now=timezone.now())
    except TokenResponseError as exc:
        return exc.error == "invalid_grant"
    except SMARTError:
        return False
    return False
