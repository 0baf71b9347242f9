"""An EHR with weather, which writes down where each refresh token went."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.wrappers import Request, Response

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.state import (
    AccessToken,
    Grant,
    RefreshToken,
    new_id,
)
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT

__all__ = ["WEATHERS", "Ledger", "Rotation", "make_ehr"]

#: 503 and 429: instead of an answer, before the server has seen the request.  Late:
#: some answers come when the client has given up, after the token was rotated.
WEATHERS = ("fine", "503", "429", "late")

_SCOPES = ["patient/Patient.rs", "offline_access"]


@dataclass(slots=True)
class Rotation:
    """A refresh token that was taken back for a new one."""

    old: str
    new: str
    #: The process that asked.
    pid: int
    asked_at: float
    #: The first refresh token of its grant.
    family: str
    #: When the answer left, by ``time.monotonic``; infinite while it has not.
    answered_at: float = float("inf")


class Ledger:
    """
    What the token endpoint did.

    Attributes:
        weather: one of ``WEATHERS``.
        rotations: by the token that was taken back.
        reuses: tokens that came although they had been taken back, each once.
        reused: how often one came.
        strikes: how often each weather struck.
    """

    def __init__(self, *, limit: float, late_share: float) -> None:
        self.weather = "fine"
        self.rotations: dict[str, Rotation] = {}
        self._families: dict[str, str] = {}
        self.reuses: dict[str, float] = {}
        self.reused = 0
        self.strikes = dict.fromkeys(WEATHERS[1:], 0)
        self._limit, self._late_share = limit, late_share
        self._lock = threading.Lock()
        self._in_flight: dict[int, int] = {}
        self._random = random.Random(18)

    def is_in_flight(self, pids: list[int]) -> bool:
        """Whether a refresh of one of the processes is not answered yet."""
        with self._lock:
            return any(self._in_flight.get(pid) for pid in pids)

    def is_undelivered(self, rotation: Rotation) -> bool:
        """Whether the answer came when the client had given up."""
        return rotation.answered_at - rotation.asked_at >= self._limit

    @contextmanager
    def travelling(self, pid: int) -> Iterator[None]:
        """Count a request of that process."""
        with self._lock:
            self._in_flight[pid] = self._in_flight.get(pid, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[pid] -= 1

    def strike(self) -> Response | None:
        """Answer instead of the server, as the weather is."""
        weather = self.weather
        if weather == "503":
            self.strikes[weather] += 1
            return Response("", status=503)
        if weather == "429" and self._random.random() < 0.2:
            self.strikes[weather] += 1
            return Response("", status=429, headers={"Retry-After": "1"})
        return None

    def note(self, refresh_token: str, response: Response, pid: int) -> Rotation | None:
        """Write down what the server made of *refresh_token*."""
        with self._lock:
            if response.status_code == 200:
                new = json.loads(response.get_data())["refresh_token"]
                family = self._families.pop(refresh_token, refresh_token)
                self._families[new] = family
                asked_at = time.monotonic()
                rotation = Rotation(refresh_token, new, pid, asked_at, family)
                self.rotations[refresh_token] = rotation
                return rotation
            if refresh_token in self.rotations:
                self.reused += 1
                self.reuses.setdefault(refresh_token, time.monotonic())
        return None

    def get_delay(self, *, rotated: bool) -> float:
        """Seconds that the answer takes."""
        if (
            rotated
            and self.weather == "late"
            and self._random.random() < self._late_share
        ):
            self.strikes["late"] += 1
            return self._limit + 0.5
        return self._random.uniform(0.02, 0.12)


def make_ehr(ledger: Ledger, *, access_token_lifetime: int) -> EHRSimulator:
    """An EHR that rotates, and ends the grant whose old token comes again."""
    ehr = EHRSimulator(
        "http://127.0.0.1/fhir", access_token_lifetime=access_token_lifetime
    )
    ehr.register_client(CLIENT_ID, client_secret=CLIENT_SECRET)

    def respond_in_weather(respond: Any, request: Request) -> Any:
        if not request.path.endswith("/auth/token"):
            return respond(request)
        # See tests/chaos/apps.py.
        pid = int(request.headers["User-Agent"].partition("/")[2])
        with ledger.travelling(pid):
            struck = ledger.strike()
            if struck is not None:
                time.sleep(ledger.get_delay(rotated=False))
                return struck
            form = dict(parse_qsl(request.get_data(cache=True).decode()))
            response = respond(request)
            rotation = ledger.note(form["refresh_token"], response, pid)
            time.sleep(ledger.get_delay(rotated=rotation is not None))
            if rotation is not None:
                rotation.answered_at = time.monotonic()
            return response

    ehr.interceptors.append(respond_in_weather)
    ehr.on_request = lambda _: ehr.requests.clear()
    return ehr


def give_tokens(ehr: EHRSimulator, number: int) -> list[tuple[str, str]]:
    """Access and refresh token of *number* grants that people gave earlier."""
    now = ehr.clock()
    given = []
    for _ in range(number):
        grant = Grant(
            client_id=CLIENT_ID,
            user=None,
            patient=PATIENT,
            scopes=_SCOPES,
            context={},
        )
        access = AccessToken(
            value=new_id(),
            grant=grant,
            scopes=_SCOPES,
            issued_at=now,
            expires_at=now + ehr.access_token_lifetime,
        )
        refresh = RefreshToken(value=new_id(), grant=grant, expires_at=None)
        ehr.store.access_tokens[access.value] = access
        ehr.store.refresh_tokens[refresh.value] = refresh
        given.append((access.value, refresh.value))
    return given
