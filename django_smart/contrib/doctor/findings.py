"""How the doctor looks: it asks, and what keeps it from looking is a finding too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from ...diagnoses import Finding, build_finding
from ...redaction import redact
from ...servers.http import send

__all__ = ["ask", "build_unexamined", "collect"]

logger = logging.getLogger(__name__)

#: Sends a request, and waits less long than a launch would: a person may be waiting.
ask = partial(send, within=5.0, max_body=sys.maxsize)


def collect(
    part: str, look: Callable[..., Iterable[Finding]], *args: object, subject: str = ""
) -> list[Finding]:
    """
    What *look* finds; what keeps it from looking is a finding too.

    Args:
        part: name of the examined part, for people.
        subject: the slug of the server that all of it is about; empty otherwise.
    """
    findings: list[Finding] = []
    try:
        findings.extend(look(*args))
    except Exception as exc:  # noqa: BLE001 (whatever is wrong is to be told)
        findings.append(build_unexamined(part, exc))
    return [replace(each, subject=subject or each.subject) for each in findings]


def build_unexamined(part: str, error: Exception) -> Finding:
    """The finding that *error* kept the doctor from examining *part*."""
    logger.debug("The doctor cannot examine the %s", part, exc_info=error)
    text = redact(str(error)).strip().partition("\n")[0][:300].rstrip(".")
    return build_finding(
        "not_examined",
        what=f"The {part} could not be examined: {type(error).__name__}"
        f"{f': {text}' if text else ''}.",
    )
