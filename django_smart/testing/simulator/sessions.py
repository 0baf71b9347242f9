"""Sessions of the EHR's pages: one cookie, stored in memory."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from werkzeug.wrappers import Request, Response

    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.people import User

__all__ = ["COOKIE", "Session", "end_session", "get_session", "set_cookie"]

COOKIE = "harbour_session"
"""Not the app's name: cookies ignore ports, and both may be on one host."""


@dataclass(slots=True)
class Session:
    """One browser; ``user`` is ``None`` until somebody signs in."""

    user: User | None = None
    session_id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    csrf_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def accepts(self, csrf_token: str | None) -> bool:
        """Return whether a form was created for this session."""
        return hmac.compare_digest(self.csrf_token, csrf_token or "")


def get_session(ehr: EHRSimulator, request: Request) -> Session:
    """Return the browser's session, or a new one without a user."""
    session_id = request.cookies.get(COOKIE, "")
    return ehr.sessions.get(session_id) or Session()


def set_cookie(ehr: EHRSimulator, session: Session, response: Response) -> Response:
    """Store *session*, and set the cookie."""
    ehr.sessions[session.session_id] = session
    response.set_cookie(
        COOKIE,
        session.session_id,
        path="/",
        httponly=True,
        samesite="Lax",
        secure=ehr.origin.startswith("https:"),
    )
    return response


def end_session(ehr: EHRSimulator, session: Session) -> None:
    """
    Sign out.

    Grants from this session with only ``online_access`` end with it, since that scope
    lasts as long as the user is online.
    """
    ehr.sessions.pop(session.session_id, None)
    with ehr.store.lock:
        for grant in ehr.store.grants():
            online_only = "offline_access" not in grant.scopes
            if grant.session == session.session_id and online_only:
                grant.revoked = True
