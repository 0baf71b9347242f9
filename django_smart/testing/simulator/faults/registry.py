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
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.id_tokens import IDTokenDraft

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

Pairs = list[tuple[str, str]]
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
    companions: tuple[str, ...] = (),
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


def replaces(
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
) -> Callable[
    [Callable[[Exchange], Response | None]], Callable[[Exchange], Response | None]
]:
    """Register ``function(exchange)``: a response, or ``None`` for the server's own."""
    return _register("replaces", exchange, name, verdict, description, companions)


def edits(
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
) -> Callable[
    [Callable[[Exchange, Response], Response]],
    Callable[[Exchange, Response], Response],
]:
    """Register ``function(exchange, response)``, which returns what is sent instead."""
    return _register("edits", exchange, name, verdict, description, companions)


def edits_answer(
    exchange: str, name: str, verdict: Verdict, description: str
) -> Callable[[Callable[[Exchange, Response], Response]], Any]:
    """Register ``function(exchange, response)``, as ``edits`` for a status of 200."""

    def decorate(function: Callable[[Exchange, Response], Response]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            return function(one, response) if response.status_code == 200 else response

        edits(exchange, name, verdict, description)(edit)
        return function

    return decorate


def edits_json(
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
    status: int = 200,
) -> Callable[[Callable[[Exchange, Any], Any]], Callable[[Exchange, Any], Any]]:
    """
    Register ``function(exchange, answer)``, which changes a JSON response of *status*.

    It changes *answer* in place, or returns a replacement.
    """

    def decorate(
        function: Callable[[Exchange, Any], Any],
    ) -> Callable[[Exchange, Any], Any]:
        def edit(one: Exchange, response: Response) -> Response:
            if response.status_code == status:
                answer = json.loads(response.get_data())
                result = function(one, answer)
                response.set_data(json.dumps(answer if result is None else result))
            return response

        edits(exchange, name, verdict, description, *companions)(edit)
        return function

    return decorate


def redirects(
    name: str, verdict: Verdict, description: str
) -> Callable[
    [Callable[[EHRSimulator, Pairs], Pairs]], Callable[[EHRSimulator, Pairs], Pairs]
]:
    """Register ``function(ehr, pairs)``: the parameters sent to the redirect URI."""
    return _register("redirects", "authorize", name, verdict, description)


def drafts(
    name: str, verdict: Verdict, description: str, *companions: str
) -> Callable[[Callable[[IDTokenDraft], None]], Callable[[IDTokenDraft], None]]:
    """Register ``function(draft)``, which changes an ID token before it is signed."""
    return _register("drafts", "id_token", name, verdict, description, companions)
