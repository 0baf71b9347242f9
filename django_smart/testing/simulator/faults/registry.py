"""
Define faults: one small function each.

There are three kinds. ``replaces`` responds instead of the server, which then has not
seen the request (the refresh token is still valid). ``edits`` changes the server's own
response. ``redirects`` and ``drafts`` change the parameters of an authorization
response and an ID token before it is signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, MutableSet
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = [
    "FAULTS",
    "Fault",
    "FaultSet",
    "drafts",
    "edits",
    "edits_answer",
    "edits_json",
    "redirects",
    "replaces",
]

Verdict = Literal["refuse", "tolerate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One named fault of the EHR."""

    name: str
    exchange: str
    """The exchange: ``discovery``, ``token``, ``id_token``, ``refresh``, …"""
    verdict: Verdict
    """The correct reaction of an app."""
    description: str
    companions: tuple[str, ...] = ()
    """Faults that are activated together with this one, to lead the app to it."""
    kind: str = field(repr=False)
    function: Callable[..., Any] = field(repr=False, compare=False)


FAULTS: dict[str, Fault] = {}
"""Every fault, by name."""


class FaultSet(MutableSet[str]):
    """
    The names of the active faults.

    Adding an unknown name raises ``ValueError``. A one-time fault occurs again after it
    was removed and added again.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: dict[str, int] = {}
        self.update(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"FaultSet({sorted(self._names)})"

    def add(self, value: str) -> None:
        if value not in FAULTS:
            raise ValueError(
                f"no such fault: {value} (see smart_simulator --list-faults)"
            )
        self._names.setdefault(value, 0)

    def discard(self, value: str) -> None:
        self._names.pop(value, None)

    def update(self, names: Iterable[str]) -> None:
        """Add each of *names*."""
        for name in names:
            self.add(name)

    def strikes(self, name: str) -> int:
        """Return how often the fault has occurred, including this time."""
        self._names[name] = self._names.get(name, 0) + 1
        return self._names[name]

    def active(self, kind: str, exchange: str) -> list[Fault]:
        """Return the active faults for one exchange, by name."""
        names = set(self._names)
        for name in self._names:
            names.update(FAULTS[name].companions)
        on = (FAULTS[name] for name in sorted(names))
        return [one for one in on if (one.kind, one.exchange) == (kind, exchange)]


def _register(
    kind: str,
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
) -> Callable[[Any], Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in FAULTS:
            raise ValueError(f"fault defined twice: {name}")
        FAULTS[name] = Fault(
            name=name,
            exchange=exchange,
            verdict=verdict,
            description=description,
            companions=companions,
            kind=kind,
            function=function,
        )
        return function

    return decorate


replaces = partial(_register, "replaces")
"""Register ``function(exchange)``: a response, or ``None`` for the server's own."""
edits = partial(_register, "edits")
"""Register ``function(exchange, response)``, which returns what is sent instead."""
redirects = partial(_register, "redirects", "authorize")
"""Register ``function(ehr, pairs)``: the parameters sent to the redirect URI."""
drafts = partial(_register, "drafts", "id_token")
"""Register ``function(draft)``, which changes an ID token before it is signed."""


def edits_answer(*fault: Any, status: int = 200) -> Callable[[Any], Any]:
    """Register ``function(exchange, response)``, as ``edits`` for one *status*."""

    def decorate(function: Callable[[Exchange, Response], Response]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            is_meant = response.status_code == status
            return function(one, response) if is_meant else response

        edits(*fault)(edit)
        return function

    return decorate


def edits_json(*fault: Any, status: int = 200) -> Callable[[Any], Any]:
    """
    Register ``function(exchange, answer)``, which changes a JSON response of *status*.

    It changes *answer* in place, or returns a replacement.
    """

    def decorate(function: Callable[[Exchange, Any], Any]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            answer = json.loads(response.get_data())
            result = function(one, answer)
            response.set_data(json.dumps(answer if result is None else result))
            return response

        edits_answer(*fault, status=status)(edit)
        return function

    return decorate
