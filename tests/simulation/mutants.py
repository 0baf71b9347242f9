"""
Faults that only several processes and chance bring out, put back in a simulation.

Each is found by a promise that it breaks.  A fault that a unit test finds is not here;
``tests/mutants.py`` draws others at random.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

from django.db import InterfaceError, OperationalError, connections

from django_smart import tasks
from django_smart.grants import refresh_response, stopping, turn
from django_smart.models import ClientRegistration
from django_smart.models.clock import DatabaseNow
from django_smart.models.grant import TokenGrantQuerySet
from django_smart.models.server_state import ServerStateQuerySet
from tests.simulation.world import Scenario

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """
    One fault.

    Attributes:
        row: its name.
        seed: with which, or with one of the next, it is found.
        finding: part of the violation's text.
        patches: object, attribute, and what replaces it.
        scenario: what differs from the usual one.
    """

    row: str
    seed: int
    finding: str
    patches: tuple[tuple[Any, str, Any], ...]
    scenario: dict[str, Any]

    def __str__(self) -> str:
        return self.row.replace(" ", "-")

    def build_scenario(self, seed: int) -> Scenario:
        """What it is found in."""
        return Scenario(seed=seed, **self.scenario)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the fault back."""
        with ExitStack() as stack:
            for where, name, value in self.patches:
                stack.enter_context(mock.patch.object(where, name, value))
            yield


def _expire_messages() -> tuple[tuple[Any, str, Any], ...]:
    """Messages end at a time by the clock of their sender, as one on its way does."""
    # Its app is looked up as it sends, as the package does.
    task = tasks.refresh_grants
    sender = SimpleNamespace(delay=lambda *args: task.apply_async(args, expires=45))
    return ((tasks, "refresh_grants", sender),)


def _give_up(write: Callable[[], Any], *, grant_id: int | None = None) -> Any:
    """Try for a minute, whether the database can be reached or not."""
    started = time.monotonic()
    while True:
        try:
            return write()
        except (InterfaceError, OperationalError):
            connections["default"].close()
            if time.monotonic() - started > 60:
                raise
        time.sleep(0.5)


class _CountInMemory:
    """Each process counts the refusals that it met itself."""

    def __init__(self) -> None:
        self._refusals: Counter[tuple[int, int]] = Counter()

    def __call__(self, registration: ClientRegistration) -> bool:
        # A thread stands for its process here.
        key = threading.get_ident(), registration.pk
        self._refusals[key] += 1
        if self._refusals[key] <= 20:
            return False
        stopping.stop_refreshes(registration, reason="grants_refused")
        return True


def _end_any_turn(
    states: ServerStateQuerySet, server_id: int, *, token: str, **values: Any
) -> bool:
    """Give back the turn of whoever has it."""
    owner = states.values_list("turn_token", flat=True).get(pk=server_id)
    return _end_turn(states, server_id, token=owner, **values)


_end_turn = ServerStateQuerySet.end_turn


def _take_any_turn(
    states: ServerStateQuerySet, server_id: int, *, token: str, length: timedelta
) -> bool:
    until = DatabaseNow(length)
    rows = states.filter(pk=server_id)
    return rows.update(turn_token=token, turn_until=until) == 1


def _take_expired_leases(
    grants: TokenGrantQuerySet, pks: Sequence[int], *, owner: str, length: timedelta
) -> int:
    expired = grants.filter(pk__in=pks, lease_expires_at__lte=DatabaseNow())
    expired.update(lease_owner="", lease_expires_at=None)
    return _take_leases(grants, pks, owner=owner, length=length)


_take_leases = TokenGrantQuerySet.take_leases
_QUIET: dict[str, Any] = {"seconds": 600.0, "calm": 300.0, "lifetimes": (600,)}
_FAST = ("fast", "fast", "fast", "fast")

MUTANTS = (
    Mutant(
        row="1 messages expire by the clock of a host",
        seed=1,
        finding="is due for",
        patches=_expire_messages(),
        scenario={
            **_QUIET,
            "grants": 40,
            "workers": 2,
            "kinds": _FAST,
            "faults": (),
        },
    ),
    Mutant(
        row="6 tokens in memory are given up",
        seed=7,
        finding="is sent twice",
        patches=((refresh_response, "insist", _give_up),),
        scenario={
            **_QUIET,
            "seconds": 1200.0,
            "grants": 60,
            "kinds": ("slow", "slow"),
            "faults": ("away",),
            "every": 200.0,
        },
    ),
    Mutant(
        row="8 an old token leaves after its lease",
        seed=2,
        finding="is sent twice",
        patches=((turn, "whole_call_seconds", lambda: -1e9),),
        scenario={
            **_QUIET,
            "seconds": 1200.0,
            "grants": 100,
            "kinds": _FAST,
            "backlog": 1.0,
            "faults": ("stop",),
            "every": 15.0,
        },
    ),
    Mutant(
        row="18 a lost turn keeps out the others",
        seed=2,
        finding="is due for",
        patches=((turn, "lease_length", lambda: timedelta(minutes=4)),),
        scenario={
            **_QUIET,
            "seconds": 1200.0,
            "grants": 60,
            "kinds": _FAST,
            "faults": ("kill", "cut"),
            "every": 15.0,
        },
    ),
    Mutant(
        row="20 refusals are counted in memory",
        seed=1,
        finding="are lost",
        patches=((refresh_response, "refuses_nearly_all", _CountInMemory()),),
        scenario={
            **_QUIET,
            "seconds": 2400.0,
            "grants": 160,
            "kinds": ("fast", "storm"),
            "faults": ("kill",),
            "every": 10.0,
        },
    ),
    Mutant(
        row="21 a turn is given back that is another process's",
        seed=3,
        finding="more than its limit",
        patches=((ServerStateQuerySet, "end_turn", _end_any_turn),),
        scenario={
            **_QUIET,
            "grants": 400,
            "kinds": ("fast", "limited"),
            "backlog": 1.0,
            "faults": ("stop",),
            "every": 15.0,
        },
    ),
    Mutant(
        row="23 a turn is taken that is another process's",
        seed=1,
        finding="more than its limit",
        patches=((ServerStateQuerySet, "take_turn", _take_any_turn),),
        scenario={
            **_QUIET,
            "grants": 400,
            "kinds": ("fast", "limited"),
            "backlog": 1.0,
            "faults": ("broker",),
            "every": 15.0,
        },
    ),
    Mutant(
        row="25 an expired lease is taken at once",
        seed=3,
        finding="is sent twice",
        patches=((TokenGrantQuerySet, "take_leases", _take_expired_leases),),
        scenario={
            **_QUIET,
            "seconds": 2400.0,
            "grants": 60,
            "kinds": ("slow", "slow"),
            "faults": ("away",),
            "every": 60.0,
        },
    ),
)
