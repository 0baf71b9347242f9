"""
How a misbehaviour is written down: one small function each.

Three kinds exist. ``replaces`` answers instead of the server, which then has not
seen the request (its refresh token is still good). ``edits`` changes an answer that
the server itself has given. ``redirects`` and ``drafts`` change the parameters of an
authorization response and an ID token before it is signed.
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
    """One named misbehaviour of the EHR."""

    name: str
    exchange: str
    """Where it strikes: ``discovery``, ``token``, ``id_token``, ``refresh``, …"""
    verdict: Verdict
    """What a correct app does with it."""
    description: str
    companions: tuple[str, ...] = ()
    """Faults that are on as well while this one is, to lead the app to it."""
    kind: str = field(repr=False)
    function: Callable[..., Any] = field(repr=False, compare=False)


FAULTS: dict[str, Fault] = {}
"""Every fault, by name."""


class FaultSet(MutableSet[str]):
    """
    The names of the faults that are on.

    Adding an unknown name raises ``ValueError``. A fault that strikes once strikes
    again after it was taken out and added anew.
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
            raise ValueError(f"no such fault: {value}")
        self._names.setdefault(value, 0)

    def discard(self, value: str) -> None:
        self._names.pop(value, None)

    def update(self, names: Iterable[str]) -> None:
        """Add each of *names*."""
        for name in names:
            self.add(name)

    def strikes(self, name: str) -> int:
        """How often the fault has struck, this time included."""
        self._names[name] = self._names.get(name, 0) + 1
        return self._names[name]

    def active(self, kind: str, exchange: str) -> list[Fault]:
        """The faults that are on for one exchange, by name."""
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
    """Register ``function(exchange)``: an answer, or None for the server's own."""
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
    """Register ``function(exchange, response)``: what is sent for *response*."""
    return _register("edits", exchange, name, verdict, description, companions)


def edits_answer(
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
) -> Callable[[Callable[[Exchange, Response], Response]], Any]:
    """Register ``function(exchange, response)``, as ``edits`` for a status of 200."""

    def decorate(function: Callable[[Exchange, Response], Response]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            return function(one, response) if response.status_code == 200 else response

        edits(exchange, name, verdict, description, *companions)(edit)
        return function

    return decorate


def edits_json(
    exchange: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
) -> Callable[[Callable[[Exchange, Any], Any]], Callable[[Exchange, Any], Any]]:
    """
    Register ``function(exchange, answer)``: changes a successful JSON answer.

    It changes *answer* in place, or returns what is sent instead.
    """

    def decorate(
        function: Callable[[Exchange, Any], Any],
    ) -> Callable[[Exchange, Any], Any]:
        def edit(one: Exchange, response: Response) -> Response:
            if response.status_code == 200:
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
