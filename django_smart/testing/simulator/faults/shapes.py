"""Functions shared by faults of several exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import Verdict, edits_json

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["fail_with", "leave_out", "leave_out_each", "put", "put_each"]


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


def put_each(exchange: str, values: Mapping[str, tuple[Verdict, str, Any]]) -> None:
    """Register a fault for each name: verdict, member, and what that is set to."""
    for name, (verdict, member, value) in values.items():
        text = repr(value)
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        edits_json(exchange, f"{exchange}_{name}", verdict, f"{member} is {shown}")(
            put(member, value)
        )


def leave_out_each(exchange: str, members: Mapping[str, Verdict]) -> None:
    """Register a fault for each of *members*."""
    for member, verdict in members.items():
        edits_json(exchange, f"{exchange}_missing_{member}", verdict, f"no {member}")(
            leave_out(member)
        )
