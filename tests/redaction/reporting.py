"""Error reports as the documentation sets them up, switched on for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import django
from django.test import override_settings
from django.utils.log import AdminEmailHandler
from django.views.debug import get_default_exception_reporter_filter

from django_smart.redaction import SMARTExceptionReporter

__all__ = ["ADMINS", "redacted_reports"]

# Pairs are deprecated since Django 6.0, and all that earlier ones know.
ADMINS = (
    ["operator@example.org"]
    if django.VERSION >= (6, 0)
    else [("Operator", "operator@example.org")]
)


@contextmanager
def redacted_reports(*, include_html: bool = False) -> Iterator[None]:
    """Django reads these settings once; this makes it read them again."""
    cached: Any = get_default_exception_reporter_filter
    with ExitStack() as stack:
        for handler in logging.getLogger("django").handlers:
            if isinstance(handler, AdminEmailHandler):
                patch = mock.patch.multiple(
                    handler,
                    reporter_class=SMARTExceptionReporter,
                    include_html=include_html,
                )
                stack.enter_context(patch)
        stack.enter_context(
            override_settings(
                DEFAULT_EXCEPTION_REPORTER=(
                    "django_smart.redaction.SMARTExceptionReporter"
                ),
                DEFAULT_EXCEPTION_REPORTER_FILTER=(
                    "django_smart.redaction.SMARTExceptionReporterFilter"
                ),
            )
        )
        cached.cache_clear()
        stack.callback(cached.cache_clear)
        yield
