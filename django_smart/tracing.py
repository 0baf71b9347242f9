"""Spans for OpenTelemetry, if its API is installed (extra ``otel``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from . import __version__
from .exceptions import SMARTError

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    _tracer = trace.get_tracer("django_smart", __version__)

__all__ = ["span"]

# A span has no other attribute: no id, URL, parameter or token.
_ATTRIBUTES = {
    "server": "django_smart.server",
    "deviations": "django_smart.deviations",
    "interaction": "fhir.interaction",
    "resource_type": "fhir.resource_type",
    "status_code": "http.response.status_code",
    "error": "error.type",
}
_Value = str | int | Sequence[str]


@contextmanager
def span(
    name: str, *, seconds: float = 0.0, **attributes: _Value | None
) -> Iterator[dict[str, _Value | None]]:
    """
    Trace what happens inside the ``with`` block.

    Args:
        name: of the span; without one, nothing is traced.
        seconds: how long ago it started.
        attributes: ``server`` (slug), ``deviations`` (their codes), ``interaction``,
            ``resource_type``, ``status_code`` and ``error`` (a code). Those without a
            value are left out.

    Yields:
        *attributes*, to complete inside the block; an error that leaves it sets
        ``error``.
    """
    if _tracer is None or not name:
        yield attributes
        return
    with _tracer.start_as_current_span(
        name,
        start_time=time.time_ns() - int(seconds * 1e9),
        # The message of an error of the site may show anything.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield attributes
        except SMARTError as exc:
            attributes["error"] = exc.code
            raise
        except Exception:
            attributes["error"] = "internal_error"
            raise
        finally:
            for key, value in attributes.items():
                if value:
                    current.set_attribute(_ATTRIBUTES[key], value)
            if attributes.get("error"):
                current.set_status(trace.StatusCode.ERROR)
