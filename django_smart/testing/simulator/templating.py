"""Rendering the EHR's pages; needs Django, but no settings."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from django.template import Context, Engine
from werkzeug.wrappers import Response

__all__ = ["render"]

_FOLDER = Path(__file__).parent / "templates"
# No "form-action": a form here ends in a redirect to the app, which it would stop.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-src http: https:; "
    "base-uri 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def _engine() -> Engine:
    return Engine(dirs=[str(_FOLDER)], autoescape=True)


def render(name: str, context: dict[str, Any], *, status: int = 200) -> Response:
    """The page *name* as a response."""
    # Left at None, these two would be looked up in Django's settings.
    values = Context(context, use_l10n=False, use_tz=False)
    page = _engine().get_template(name).render(values)
    return Response(
        page, status=status, content_type="text/html; charset=utf-8", headers=_HEADERS
    )
