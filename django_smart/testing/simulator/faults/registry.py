"""
Define faults: a function each, often one that a row of a table makes.

There are three kinds. ``replaces`` responds instead of the server, which then has not
seen the request (the refresh token is still valid). ``edits`` changes the server's own
response. ``redirects`` and ``drafts`` change the parameters of an authorization
response and an ID token before it is signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSet
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from django_smart.testing.simulator.faults import answers

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = [
    "FAULTS",
    "Fault",
    "FaultSet",
    "drafts",
    "edits",
    "edits_json",
    "fail_each",
    "leave_out",
    "leave_out_each",
    "name_another_patient",
    "narrow_scope",
    "put",
    "put_each",
    "redirects",
    "replaces",
    "send",
    "widen_scope",
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


# A fault's name begins with one of them.
_EXCHANGES = (
    "authorize",
    "client_credentials",
    "discovery",
    "fhir",
    "id_token",
    "introspect",
    "jwks",
    "openid",
    "refresh",
    "register",
    "revoke",
    "token",
)


def _register(
    kind: str,
    name: str,
    verdict: Verdict,
    description: str,
    *companions: str,
    exchange: str = "",
) -> Callable[[Any], Any]:
    """Register a fault of *exchange*, by default the one that its name begins with."""
    begins = (each for each in _EXCHANGES if name.startswith(f"{each}_"))
    exchange = exchange or next(begins)

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
redirects = partial(_register, "redirects")
"""Register ``function(ehr, pairs)``: the parameters sent to the redirect URI."""
drafts = partial(_register, "drafts")
"""Register ``function(draft)``, which changes an ID token before it is signed."""


def edits(*fault: Any, status: int = 200, exchange: str = "") -> Callable[[Any], Any]:
    """
    Register ``function(exchange, response)`` for responses with *status*.

    It returns what is sent instead.
    """

    def decorate(function: Callable[[Exchange, Response], Response]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            is_meant = response.status_code == status
            return function(one, response) if is_meant else response

        _register("edits", *fault, exchange=exchange)(edit)
        return function

    return decorate


def edits_json(*fault: Any, **options: Any) -> Callable[[Any], Any]:
    """
    Register ``function(exchange, answer)``, as ``edits`` does for JSON responses.

    It changes *answer* in place, or returns a replacement.
    """

    def decorate(function: Callable[[Exchange, Any], Any]) -> Any:
        def edit(one: Exchange, response: Response) -> Response:
            answer = json.loads(response.get_data())
            result = function(one, answer)
            response.set_data(json.dumps(answer if result is None else result))
            return response

        edits(*fault, **options)(edit)
        return function

    return decorate


def send(
    build: Callable[..., Response], *arguments: Any
) -> Callable[[Exchange], Response]:
    """Answer with what *build* makes of *arguments*, whatever the request is."""
    return lambda _: build(*arguments)


def fail_each(exchange: str, errors: Mapping[str, int]) -> None:
    """Register a fault for each OAuth error and its status."""
    for error, status in errors.items():
        replaces(f"{exchange}_{error}", "refuse", f"the error {error}")(
            send(answers.oauth_error, error, status)
        )


def put(member: str, value: Any) -> Callable[[Exchange, dict[str, Any]], None]:
    """Set *member*."""
    return lambda _, answer: answer.update({member: value})


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
        edits_json(f"{exchange}_{name}", verdict, f"{member} is {shown}")(
            put(member, value)
        )


def leave_out_each(exchange: str, members: Mapping[str, Verdict]) -> None:
    """Register a fault for each of *members*."""
    for member, verdict in members.items():
        edits_json(f"{exchange}_missing_{member}", verdict, f"no {member}")(
            leave_out(member)
        )


def name_another_patient(exchange: Exchange, answer: dict[str, Any]) -> None:
    """Set ``patient`` to another one of the EHR's."""
    patients = exchange.ehr.data["Patient"]
    answer["patient"] = next(one for one in patients if one != answer["patient"])


def narrow_scope(exchange: Exchange, answer: dict[str, Any]) -> None:
    """Leave out the last scope."""
    answer["scope"] = " ".join(answer["scope"].split()[:-1])


def widen_scope(exchange: Exchange, answer: dict[str, Any]) -> None:
    """Add scopes that nobody requested."""
    answer["scope"] += " patient/*.cruds user/*.rs"
