"""Spans that are recorded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

__all__ = ["recording_spans"]


@cache
def _get_provider() -> TracerProvider:
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@contextmanager
def recording_spans() -> Iterator[list[ReadableSpan]]:
    """The spans that end inside the ``with`` block, once it has ended."""
    exporter, spans = InMemorySpanExporter(), list[ReadableSpan]()
    _get_provider().add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield spans
    finally:
        spans += exporter.get_finished_spans()
        exporter.shutdown()
