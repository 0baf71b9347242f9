"""Functions shared by faults of several exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.faults import answers

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["fail_with", "leave_out", "put", "shorten"]


def fail_with(error: str, status: int) -> Callable[[Exchange], Response]:
    """Answer with an OAuth error."""
    return lambda _: answers.oauth_error(error, status)


def put(member: str, value: Any) -> Callable[[Exchange, dict[str, Any]], None]:
    """Set *member*."""

    def edit(exchange: Exchange, answer: dict[str, Any]) -> None:
        answer[member] = value

    return edit


def leave_out(member: str) -> Callable[[Exchange, dict[str, Any]], None]:
    """Remove *member*."""

    def edit(exchange: Exchange, answer: dict[str, Any]) -> None:
        answer.pop(member, None)

    return edit


def shorten(value: Any) -> str:
    """*value* for a description."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
