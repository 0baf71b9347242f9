"""Stored secrets and tokens that no current encryption key decrypts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from ...diagnoses import Finding, build_finding
from ...exceptions import CredentialsError
from ...models import ClientRegistration, FHIRServer, SigningKey, TokenGrant

__all__ = ["find_unreadable_secrets", "has_unreadable_secret"]

# Of the grants that are tried; all of them would take minutes.
_SAMPLE = 20
_SIGNING = (SigningKey.Status.ACTIVE, SigningKey.Status.NEXT)
_ADD_KEY = (
    "Add the key that encrypted it back to SMART_ENCRYPTION_KEYS (or "
    "SECRET_KEY_FALLBACKS), and restart every process. If that key is lost,"
)


def find_unreadable_secrets() -> Iterator[Finding]:
    """Try the secrets of all active servers, and the tokens of some grants."""
    for server in FHIRServer.objects.active().exclude(request_headers=""):
        if not _is_readable(server, "request_headers"):
            yield build_finding(
                "secret_unreadable",
                subject=server.slug,
                what="The request headers (FHIRServer.request_headers) cannot be "
                "decrypted.",
                fix=f"{_ADD_KEY} enter the request headers again on the server's admin "
                "page.",
            )
    for registration in ClientRegistration.objects.active().select_related("server"):
        if not _has_readable_secret(registration):
            yield build_finding(
                "secret_unreadable",
                subject=registration.server.slug,
                what=f"The client secret of registration {registration.pk} "
                "(ClientRegistration.client_secret) cannot be decrypted.",
                fix=f"{_ADD_KEY} enter the client secret again on the registration's "
                "admin page.",
            )
    for key in SigningKey.objects.filter(status__in=_SIGNING).order_by("pk"):
        if not _is_readable(key, "private_key"):
            yield build_finding(
                "secret_unreadable",
                what=f"The {key.status} {key.algorithm} key {key.kid} "
                "(SigningKey.private_key) cannot be decrypted.",
                fix=f"{_ADD_KEY} {_replace_key(key)}.",
            )
    grants = TokenGrant.objects.active().offline().only("access_token", "refresh_token")
    failing = grants.filter(last_error=CredentialsError.code)
    tried = {
        grant.pk: _is_readable(grant, "access_token", "refresh_token")
        for grant in chain(grants.order_by("-pk")[:_SAMPLE], failing[:_SAMPLE])
    }
    if unreadable := sum(not is_readable for is_readable in tried.values()):
        yield build_finding(
            "secret_unreadable",
            what="The tokens (TokenGrant.access_token, refresh_token) of "
            f"{unreadable} of {len(tried)} grants that were tried cannot be decrypted.",
            fix=f"{_ADD_KEY} revoke the grants that smart_reencrypt --check lists, in "
            "the admin, and ask their owners to connect again.",
        )


def has_unreadable_secret(registration: ClientRegistration) -> bool:
    """Whether :func:`find_unreadable_secrets` reports what *registration* sends."""
    if not _is_readable(registration.server, "request_headers"):
        return True
    if not registration.uses_private_key:
        return not _has_readable_secret(registration)
    keys = SigningKey.objects.for_registration(registration).active()
    signing = keys.filter(algorithm=registration.signing_algorithm)
    return not all(_is_readable(key, "private_key") for key in signing)


def _is_readable(row: Any, *names: str) -> bool:
    try:
        for name in names:
            getattr(row, name)
    except CredentialsError:
        return False
    return True


def _has_readable_secret(registration: ClientRegistration) -> bool:
    is_elsewhere = registration.client_secret_env or registration.client_secret_file
    return bool(is_elsewhere) or _is_readable(registration, "client_secret")


def _replace_key(key: SigningKey) -> str:
    which = f"--algorithm {key.algorithm}"
    if key.registration_id is not None:
        which += f" --registration {key.registration_id}"
    if key.status == SigningKey.Status.NEXT:
        return f"run smart_keys retire {key.kid}, then smart_keys generate {which}"
    return (
        f"run smart_keys generate {which} if there is no next key, let the servers "
        f"read the JWK Set, and run smart_keys rotate {which} --now"
    )
