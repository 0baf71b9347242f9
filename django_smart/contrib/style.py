"""The look of the EHR: fetched once for each URL, and never waited for long."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.cache import cache

from .. import transport
from ..conf import conf
from ..exceptions import SMARTError
from ..fields import digest
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..protocol.style import SMARTStyle, parse_style

__all__ = ["get_style"]

logger = logging.getLogger(__name__)

_TIMEOUTS = transport.Timeouts(connect=2, read=2, total=2)
_MAX_BODY = 64 * 1024
# A changed style has a new URL (RESP-16).
_LIFETIME = timedelta(days=1)
# After a failure: a page must not wait for a broken server each time it is shown.
_PAUSE = timedelta(minutes=5)
# Longer than a fetch; who asks meanwhile goes without.
_FETCHING = timedelta(seconds=5)


def get_style(url: str, *, launch_id: Any) -> SMARTStyle | None:
    """
    The style at *url*, from the cache, or fetched if it was never seen.

    Fetched without any token and by one caller at a time.  Nothing raises: a style that
    cannot be had or is wrong is a line in the log, and asked for again later.

    Args:
        url: ``smart_style_url`` of a launch.
        launch_id: for the log.

    Returns:
        ``None`` if there is none yet.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Styling (RESP-15).
    """
    try:
        values = _get_values(url, launch_id=launch_id)
    except Exception as exc:  # noqa: BLE001 (any cache, any client library)
        logger.warning("Launch %s: no style (%s)", launch_id, type(exc).__name__)
        return None
    return SMARTStyle(**values) if values else None


def _get_values(url: str, *, launch_id: Any) -> dict[str, Any]:
    """The properties that are set; empty if there is no style to be had now."""
    key = f"django_smart.style.1.{digest(url)}"
    known: dict[str, Any] | None = cache.get(key)
    if known is not None:
        return known
    # The first of all processes to get here asks the server.
    if not cache.add(f"{key}.fetching", 1, _FETCHING.total_seconds()):
        return {}
    values = _fetch(url, launch_id=launch_id)
    lifetime = _LIFETIME if values else _PAUSE
    cache.set(key, values, lifetime.total_seconds())
    return values


def _fetch(url: str, *, launch_id: Any) -> dict[str, Any]:
    try:
        response = transport.send(
            HTTPRequest(
                method="GET", url=url, headers={"Accept": "application/json"}, body=None
            ),
            timeouts=_TIMEOUTS,
            max_body=_MAX_BODY,
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
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
    """Why the answer is no style, without a word of its own; empty if it may be."""
    if response.status_code != 200:
        return f"status {response.status_code}"
    kind = response.media_type
    if kind in {"application/json", "text/json"} or kind.endswith("+json"):
        return ""
    return "its media type is not JSON"
