"""The simulated EHR's state: launches, codes, grants and tokens."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["AccessToken", "Code", "Grant", "Launch", "RefreshToken", "Store", "new_id"]


def new_id() -> str:
    """Return a value that cannot be guessed."""
    return secrets.token_urlsafe(32)


@dataclass(slots=True, kw_only=True)
class Launch:
    """One EHR launch, identified by ``launch``. Used once."""

    launch_id: str
    client_id: str
    patient: str | None
    encounter: str | None
    user: str
    context: dict[str, Any]
    """Members of the token response besides ``patient`` and ``encounter``."""
    expires_at: float
    used: bool = False


@dataclass(slots=True, kw_only=True)
class Grant:
    """A user's consent for an app; codes and tokens are issued for it."""

    client_id: str
    user: str | None
    """Reference such as ``Practitioner/1``; None for a backend service."""
    patient: str | None
    scopes: list[str]
    context: dict[str, Any]
    nonce: str | None = None
    session: str | None = None
    """The EHR session it was given in, if any."""
    id_token_issued: bool = False
    revoked: bool = False


@dataclass(slots=True, kw_only=True)
class Code:
    """An authorization code. Used once."""

    grant: Grant
    redirect_uri: str
    code_challenge: str
    expires_at: float
    used: bool = False


@dataclass(slots=True, kw_only=True)
class AccessToken:
    """A bearer token; ``scopes`` can be narrower than the grant's after a refresh."""

    value: str
    grant: Grant
    scopes: list[str]
    issued_at: float
    expires_at: float
    revoked: bool = False


@dataclass(slots=True, kw_only=True)
class RefreshToken:
    """A refresh token; with rotation it is used once."""

    value: str
    grant: Grant
    expires_at: float | None
    used: bool = False


class Store:
    """
    All state of one simulator, behind one lock.

    Hold ``lock`` while reading and then writing: the server is threaded, and two
    requests with the same code or refresh token must not both succeed.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.launches: dict[str, Launch] = {}
        self.codes: dict[str, Code] = {}
        self.access_tokens: dict[str, AccessToken] = {}
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self._jtis: dict[tuple[str, str], float] = {}

    def use_jti(
        self, client_id: str, jti: str, *, now: float, expires_at: float
    ) -> bool:
        """Record a client's ``jti``; return ``False`` if it was used before."""
        with self.lock:
            self._jtis = {key: end for key, end in self._jtis.items() if end > now}
            if (client_id, jti) in self._jtis:
                return False
            self._jtis[client_id, jti] = expires_at
            return True

    def grant_of(self, token: str) -> Grant | None:
        """The grant behind an access or refresh token, dead or alive."""
        if token in self.access_tokens:
            return self.access_tokens[token].grant
        if token in self.refresh_tokens:
            return self.refresh_tokens[token].grant
        return None

    def live_access_token(self, value: str, *, now: float) -> AccessToken | None:
        """The access token, if it can be used at *now*."""
        token = self.access_tokens.get(value)
        if token is None or token.revoked or token.grant.revoked:
            return None
        return token if token.expires_at > now else None

    def live_refresh_token(self, value: str, *, now: float) -> RefreshToken | None:
        """The refresh token, if it can be used at *now*."""
        token = self.refresh_tokens.get(value)
        if token is None or token.used or token.grant.revoked:
            return None
        if token.expires_at is not None and token.expires_at <= now:
            return None
        return token

    def grants(self) -> list[Grant]:
        """Each grant that a code was exchanged for, once."""
        held = [token.grant for token in self.access_tokens.values()]
        return list({id(grant): grant for grant in held}.values())
