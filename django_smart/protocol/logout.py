"""Sign-out at the server as well: RP-initiated logout of OpenID Connect."""

from __future__ import annotations

from urllib.parse import urlencode

__all__ = ["build_end_session_url"]


def build_end_session_url(
    end_session_endpoint: str, *, client_id: str, post_logout_redirect_uri: str
) -> str:
    """
    Build the address a browser is sent to, to end its session at the server.

    Without ``id_token_hint``, as ID tokens are not kept: the server may ask the person
    whether to sign out.

    Args:
        post_logout_redirect_uri: as registered at the server, which sends the browser
            there afterwards.

    Spec: OpenID Connect RP-Initiated Logout 1.0 section 2.
    """
    query = urlencode(
        {"client_id": client_id, "post_logout_redirect_uri": post_logout_redirect_uri}
    )
    separator = "&" if "?" in end_session_endpoint else "?"
    return f"{end_session_endpoint}{separator}{query}"
