"""Sign-out at the server: RP-initiated logout of OpenID Connect."""

from __future__ import annotations

from urllib.parse import urlencode

__all__ = ["build_end_session_url"]


def build_end_session_url(
    end_session_endpoint: str, *, client_id: str, post_logout_redirect_uri: str
) -> str:
    """
    Build the URL at which a browser ends its session at the server.

    Without ``id_token_hint``, since ID tokens are not stored: the server may ask the
    user to confirm.

    Args:
        post_logout_redirect_uri: registered at the server, which redirects the browser
            there afterwards.

    Spec: OpenID Connect RP-Initiated Logout 1.0 section 2.
    """
    query = urlencode(
        {"client_id": client_id, "post_logout_redirect_uri": post_logout_redirect_uri}
    )
    separator = "&" if "?" in end_session_endpoint else "?"
    return f"{end_session_endpoint}{separator}{query}"
