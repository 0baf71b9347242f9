"""A logging filter that takes secrets out of whatever anybody logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from typing import Any

from .text import redact

__all__ = ["RedactionFilter"]

# What every record has: names, places and times of our own.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class RedactionFilter(logging.Filter):
    """
    Takes secrets out of each record; none is dropped.

    Put it on handlers: a filter of a logger sees nothing of the loggers below it.
    Message, arguments, traceback and further values that are texts are redacted, with
    :func:`~django_smart.redaction.redact`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact *record* in place."""
        record.args = _redact_arguments(record.args)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 (logging itself would print the arguments)
            message = f"{record.msg!r} with {record.args!r}"
            record.msg, record.args = message, None
        redacted = redact(message)
        if redacted != message:
            # What only becomes a text now, such as an exception or a request.
            record.msg, record.args = redacted, None
        _redact_traceback(record)
        for name, value in vars(record).items():
            if name not in _STANDARD and isinstance(value, str):
                setattr(record, name, redact(value))
        return True


def _redact_arguments(arguments: Any) -> Any:
    """Keep the shape: formatters of access logs look into the arguments."""
    if isinstance(arguments, tuple):
        return tuple(
            redact(value) if type(value) is str else value for value in arguments
        )
    if isinstance(arguments, Mapping):
        redacted: Any = copy(arguments)
        for name, value in arguments.items():
            if type(value) is str:
                redacted[name] = redact(value)
        return redacted
    return arguments


def _redact_traceback(record: logging.LogRecord) -> None:
    text = record.exc_text
    if not text and isinstance(record.exc_info, tuple) and record.exc_info[1]:
        text = logging.Formatter().formatException(record.exc_info)
    if text and (redacted := redact(text)) != text:
        # Formatters take it in place of the exception.
        record.exc_text = redacted
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
