"""
Keeping secrets and patient data out of logs and error reports.

Nothing here needs settings when it is imported: servers configure their logs before
Django is there.
"""

from __future__ import annotations

from .logs import RedactionFilter
from .reports import (
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
    hide_parameters,
)
from .text import HIDDEN, redact

__all__ = [
    "HIDDEN",
    "RedactionFilter",
    "SMARTExceptionReporter",
    "SMARTExceptionReporterFilter",
    "hide_parameters",
    "redact",
]
