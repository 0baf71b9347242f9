"""Style of the EHR: fetched once per URL, with a short timeout."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.cache import cache

from ..exceptions import SMARTError
from ..fields import digest
from ..models import FHIRServer
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..protocol.style import SMARTStyle, parse_style
from ..servers.http import send

__all__ = ["get_style"]

logger = logging.getLogger(__name__)

_SECONDS = 2.0
_MAX_BODY = 64 * 1024
# A changed style has a new URL (RESP-16).
_LIFETIME = timedelta(days=1)
# After a failure, pages must not wait for a broken server each time.
_PAUSE = timedelta(minutes=5)
# Longer than a fetch; other requests do without the style meanwhile.
_FETCHING = timedelta(seconds=5)


def get_style(url: str, *, server: FHIRServer, launch_id: Any) -> SMARTStyle | None:
    """
    Return the style at *url* from the cache, or fetch it.

    It is fetched without a token and by one caller at a time.  Nothing raises: if a
    style is unavailable or invalid, this is logged, and it is fetched again later.

    Args:
        url: ``smart_style_url`` of a launch.
        server: of the launch.
        launch_id: for the log.

    Returns:
        ``None`` if there is none yet.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Styling (RESP-15).
    """
    try:
        values = _get_values(url, server=server, launch_id=launch_id)
    except Exception as exc:  # noqa: BLE001 (any cache, any client library)
        logger.warning("Launch %s: no style (%s)", launch_id, type(exc).__name__)
        return None
    return SMARTStyle(**values) if values else None


def _get_values(url: str, *, server: FHIRServer, launch_id: Any) -> dict[str, Any]:
    """Return the properties, or an empty mapping without a style."""
    key = f"django_smart.style.1.{digest(url)}"
    known: dict[str, Any] | None = cache.get(key)
    if known is not None:
        return known
    # Of all processes, the first one fetches it.
    if not cache.add(f"{key}.fetching", 1, _FETCHING.total_seconds()):
        return {}
    values = _fetch(url, server=server, launch_id=launch_id)
    lifetime = _LIFETIME if values else _PAUSE
    cache.set(key, values, lifetime.total_seconds())
    return values


def _fetch(url: str, *, server: FHIRServer, launch_id: Any) -> dict[str, Any]:
    try:
        response = send(
            HTTPRequest(method="GET", url=url, headers={"Accept": "application/json"}),
            server=server,
            within=_SECONDS,
            max_body=_MAX_BODY,
        )
    except SMARTError as exc:
        logger.warning("Launch %s: style not fetched (%s)", launch_id, exc.code)
        return {}
    if problem := _find_problem(response):
        logger.warning("Launch %s: style not used: %s", launch_id, problem)
        return {}
    style = parse_style(response.body)
    for problem in style.problems:
        logger.warning("Launch %s: style: %s", launch_id, problem)
    values = asdict(style)
    return {name: values[name] for name in values if isinstance(values[name], str)}


def _find_problem(response: HTTPResponse) -> str:
    """Return why the response is not a style, or ""."""
    if response.status_code != 200:
        return f"status {response.status_code}"
    kind = response.media_type
    if kind in {"application/json", "text/json"} or kind.endswith("+json"):
        return ""
    return "its media type is not JSON"
