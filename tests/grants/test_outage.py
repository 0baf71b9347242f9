"""A server that was away for longer than its tokens live, and what comes after."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, Queue
from typing import Any

import pytest
import requests
from django.db import connection, connections
from django.utils import timezone

from django_smart import transport
from django_smart.grants.engine import run_tick, serve
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.factories import make_grants

_LIMIT = 250  # requests a second
_LIFE = 2.0  # seconds that the last of the access tokens still lives
_WORKERS = 2

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        connection.vendor != "postgresql", reason="runs once, on PostgreSQL"
    ),
]


class _Line(Away):
    """The way to an EHR, which can be cut."""

    def __init__(self, ehr: EHRSimulator) -> None:
        super().__init__()
        self.is_cut = False
        self._adapter = ehr.adapter()

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        if self.is_cut:
            return super().send(*args, **kwargs)
        return self._adapter.send(*args, **kwargs)


@contextmanager
def _engine() -> Iterator[None]:
    """Beat and two workers, as threads, until the block ends."""
    stop = threading.Event()
    messages: Queue[tuple[Any, ...]] = Queue()

    def send(*args: Any) -> None:
        messages.put(args)

    def beat() -> None:
        while not stop.wait(0.5):
            run_tick(send)

    def work() -> None:
        while not stop.is_set():
            try:
                server_id, *token = messages.get(timeout=0.1)
            except Empty:
                continue
            serve(server_id, token="".join(token), send=send)

    def run(function: Any) -> None:
        try:
            function()
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=run, args=[function])
        for function in [beat, *[work] * _WORKERS]
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _wait_until(condition: Any, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _spread_ends(grant_ids: list[int]) -> dict[str, int]:
    """
    Let the tokens end within the next seconds, in an order that is nobody's.

    Returns:
        The place of each refresh token in the order of need.
    """
    now = timezone.now()
    order = random.Random(6).sample(grant_ids, len(grant_ids))
    ends = {
        grant_id: now + timedelta(seconds=_LIFE * place / len(order))
        for place, grant_id in enumerate(order)
    }
    grants = list(TokenGrant.objects.filter(pk__in=grant_ids))
    for grant in grants:
        grant.received_at = grant.refresh_due_at = now
        grant.expires_at = ends[grant.pk]
    TokenGrant.objects.bulk_update(
        grants, ["received_at", "refresh_due_at", "expires_at"], batch_size=1000
    )
    places = {grant_id: place for place, grant_id in enumerate(order)}
    return {grant.refresh_token: places[grant.pk] for grant in grants}


def _check_pace(times: list[float]) -> None:
    """In no second more than the limit, less what a busy machine delays."""
    for number, start in enumerate(times):
        later = times[number : number + 2 * _LIMIT]
        assert sum(each < start + 0.9 for each in later) <= _LIMIT


def _check_order(places: list[int]) -> None:
    """By need, but for what two workers with a batch of a hundred each mix."""
    order = {place: number for number, place in enumerate(sorted(places))}
    assert max(abs(order[each] - at) for at, each in enumerate(places)) <= 300


def _outlast(ehr: EHRSimulator, registration: ClientRegistration, number: int) -> None:
    """An outage of the server of so many grants, and what comes after."""
    FHIRServer.objects.update(quirks={"rate_limit": _LIMIT})
    make_grants(ehr, registration, 1)
    serve(registration.server_id)  # the configuration is known then
    grant_ids = make_grants(ehr, registration, number)
    places = _spread_ends(grant_ids)
    sent: list[tuple[float, str]] = []

    def note(request: Any) -> None:
        sent.append((time.monotonic(), dict(request.form)["refresh_token"]))

    ehr.clear_requests()
    ehr.on_request = note
    line = _Line(ehr)
    line.is_cut = True
    with transport.mounted("https://ehr.example.org", line), _engine():
        time.sleep(_LIFE + 2)
        assert sent == []
        waiting = TokenGrant.objects.active().filter(expires_at__lte=timezone.now())
        assert waiting.exclude(refresh_token="").count() == number
        line.is_cut = False
        tried = TokenGrant.objects.filter(refresh_failures__gt=0)
        tried_tokens = {grant.refresh_token for grant in tried}
        assert 0 < len(tried_tokens) < 50
        _wait_until(lambda: not waiting.exists(), seconds=60 + number / 40)
    assert len(sent) == len({token for _, token in sent}) == number
    assert TokenGrant.objects.active().count() == number + 1
    assert ehr.reused_refresh_tokens == 0
    _check_pace([at for at, _ in sent])
    _check_order([places[token] for _, token in sent if token not in tried_tokens])


def test_backlog_of_an_outage_goes_by_need_and_at_the_pace_of_the_server(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _outlast(ehr, registration, 2_000)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_backlog_of_20_000_grants_goes_by_need_and_at_the_pace_of_the_server(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _outlast(ehr, registration, 20_000)
