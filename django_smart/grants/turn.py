"""
A turn: for about ten seconds, one process refreshes the due grants of one server.

Its threads only do HTTP.  The database gets one UPDATE for each grant, as soon as its
response arrives.  Grants are leased in slices that can be sent within seconds, so that
a page seldom waits for one that is leased and not sent yet.  Anything that may take
long (the site's signal receivers) follows after all responses.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from statistics import fmean
from typing import Any

from django.db.models import Exists, F, OuterRef
from django.db.models.functions import Greatest, Least

from ..conf import conf
from ..exceptions import SMARTError, TokenResponseError
from ..models import ClientRegistration, FHIRServer, Launch, ServerState, TokenGrant
from ..models.clock import DatabaseClock, DatabaseNow
from ..protocol.client_auth import ClientAuthentication
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..servers.discovery import get_configuration, note_token_error
from ..servers.http import prepare_client_authentication, send, whole_call_seconds
from .counting import SUCCESS, Outcomes
from .deployment import find_owner, is_owner, note_owned_elsewhere
from .due_times import get_retry_at
from .lease import get_failure_code, lease_length, new_owner, note_failure
from .pacing import (
    FEW_FAILURES,
    Breaker,
    Pace,
    find_outage_codes,
    is_outage,
    is_to_blame,
)
from .refresh import build_request
from .refresh_response import take_answer, take_refusal
from .separate_connection import refuse_in_transaction
from .stopping import may_refresh
from .storing import insist
from .uninterrupted import is_asked_to_stop, uninterrupted

__all__ = ["RefreshResult", "serve"]

logger = logging.getLogger(__name__)

# Seconds after which a turn starts no more requests: others wait for the process.
_LONGEST = 10.0
# Seconds after which the turn of a process that died ends, and how long before that one
# that lives extends it.
_HELD, _HELD_ANEW = 15.0, 5.0
# Seconds of work to lease at a time, and at most so many grants.  A process waits as
# long for the pace of a server; slower ones are left to the tick.
_SLICE, _MOST_LEASED = 5.0, 250
# Due grants of a registration that are looked at together, to find those that end first
# and put those last that always fail.
_MOST_READ = 4000
# A server whose requests take longer rests after a turn, if others wait.
_SLOW = 2.5
# Failures that count for grants for which nothing can be sent: at most about five
# minutes until the next attempt, since nothing tells when it would work.
_MOST_FAILURES = 5
#: ``None`` if nothing was sent.
_Answer = HTTPResponse | Exception | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshResult:
    """
    Counts of one run: grants refreshed, left for another process or later, failed.
    """

    refreshed: int = 0
    skipped: int = 0
    failed: int = 0


def serve(
    server_id: int, *, token: str = "", send: Callable[..., object] | None = None
) -> RefreshResult:
    """
    Refresh due grants of a server, unless its turn is another process's.

    Idempotent: what a message that is delivered twice finds is not due any more.

    Args:
        token: of the turn to share, for a server with several ``turns``.
        send: sends a message with these arguments but itself, to go on later.

    Raises:
        RefreshInTransactionError: called inside ``atomic()``, which could roll back the
            tokens of all of them; nothing was sent.
    """
    refuse_in_transaction()
    is_guest, token = bool(token), token or new_owner()
    take = partial(ServerState.objects.take_turn, length=timedelta(seconds=_HELD))
    if not (is_guest or take(server_id, token=token)):
        return RefreshResult()
    turn = _Turn(server_id, token=token, is_guest=is_guest, send=send)
    turn.run()
    return RefreshResult(
        refreshed=turn.refreshed, skipped=turn.skipped, failed=turn.failed
    )


class _Turn:
    """The turn *token* at one server, which this process has taken, or shares."""

    def __init__(
        self,
        server_id: int,
        *,
        token: str,
        is_guest: bool,
        send: Callable[..., object] | None,
    ) -> None:
        self.refreshed = self.failed = self.skipped = 0
        self._server_id, self._token, self._is_guest = server_id, token, is_guest
        self._send_message = send
        # Of leases: two processes that share a turn hold different grants.
        self._owner = new_owner()
        self._server: FHIRServer
        self._clock: DatabaseClock
        self._breaker = Breaker()
        self._pace = Pace(None)
        self._registrations: dict[int, ClientRegistration] = {}
        self._stopped: set[int] = set()
        # Token endpoint and authentication, by registration.
        self._clients: dict[int, tuple[str, Callable[[], ClientAuthentication]]] = {}
        # Primary keys of grants and of their registrations.
        self._due: deque[tuple[int, int]] = deque()
        self._may_be_more = self._is_first = True
        # Each with the end of its lease, by ``monotonic()``.
        self._todo: deque[tuple[TokenGrant, float]] = deque()
        self._running: dict[int, TokenGrant] = {}
        self._answers: SimpleQueue[tuple[int, _Answer, float]] = SimpleQueue()
        self._stored: deque[tuple[TokenGrant, Callable[[], bool]]] = deque()
        self._outcomes = Outcomes(server_id)
        self._seconds: dict[int, float] = {}
        self._latest: deque[float] = deque(maxlen=100)
        self._has_succeeded, self._sent = False, 0
        # Whether nothing more is leased, and whether more was due then.
        self._is_over = self._has_more = False
        self._threads = conf.SMART_REFRESH_THREADS
        now = time.monotonic()
        self._ends_at, self._held_until = now + _LONGEST, now + _HELD

    def run(self) -> None:
        """Refresh what can be refreshed now, and give the turn back."""
        with uninterrupted():
            try:
                if self._read():
                    self._prepare()
                    self._refresh()
            finally:
                self._give_back_todo()
                self._outcomes.write()
                if not self._is_guest:
                    self._end()

    def _refresh(self) -> None:
        with ThreadPoolExecutor(self._threads, "django_smart-refresh") as pool:
            try:
                while not self._is_over or self._todo or self._has_requests():
                    self._fill()
                    self._go_on(self._submit(pool))
                self._pause(self._breaker.note_end())
            except BaseException:
                self._take_what_is_under_way()
                raise

    def _has_requests(self) -> bool:
        return bool(self._running or self._stored)

    # What there is to do

    def _read(self) -> bool:
        """
        Read the server as it is now; return whether this process may ask it.

        An operator may have paused it, another process may have stopped a registration,
        or has the turn now, because this one was suspended.
        """
        self._registrations = (
            ClientRegistration.objects.refreshable()
            .filter(server_id=self._server_id)
            .select_related("server__state")
            .annotate(database_now=DatabaseNow(), deployment=find_owner())
            .in_bulk()
        )
        if not self._registrations:
            return False
        first: Any = next(iter(self._registrations.values()))
        self._server = first.server
        self._clock = DatabaseClock(first.database_now)
        if not is_owner(first.deployment or ""):
            # The message may be another deployment's, at a broker that both use.
            note_owned_elsewhere()
            return False
        state = self._server.state
        return state.turn_token == self._token and not state.is_paused(self._clock())

    def _prepare(self) -> None:
        server = self._server
        self._breaker = Breaker(is_probe=server.state.paused_until is not None)
        rate = server.quirks.rate_limit
        self._pace = Pace(rate / server.turns if rate else None)

    def _fill(self) -> None:
        """Lease the next grants, unless enough are leased or none may be."""
        if self._is_over or (number := self._count_wanted()) <= 0:
            return
        has_more = bool(self._due) or self._may_be_more
        if self._is_time_up() or self._pace.get_wait() > _SLICE:
            self._is_over, self._has_more = True, has_more
        elif has_more and self._may_go_on() and (self._due or self._find_due()):
            self._is_first = False
            self._lease(number)
        else:
            self._is_over = True

    def _may_go_on(self) -> bool:
        """Whether the turn is still this process's, and the server may be asked."""
        return not self._breaker.is_open and (self._is_first or self._read())

    def _is_time_up(self) -> bool:
        return time.monotonic() >= self._ends_at or is_asked_to_stop()

    def _count_wanted(self) -> int:
        """Return how many more grants can be sent within a slice, if it is worth it."""
        busy = len(self._running) + len(self._todo)
        if self._breaker.is_probe:
            return 0 if busy or self._stored else 1
        if len(self._todo) >= self._threads:
            return 0
        most = self._threads
        if self._latest:
            seconds = max(fmean(self._latest), 0.001)
            left = self._ends_at - time.monotonic()
            # What a slow host does not manage until the end would be given back.
            usual = self._sent / max(_LONGEST - left, 0.001) * left
            most = max(most, int(min(self._threads * _SLICE / seconds, usual)))
        most = min(most, _MOST_LEASED, self._pace.count_within(_SLICE))
        number = most - busy
        return number if not busy or number >= self._threads // 2 else 0

    def _find_due(self) -> bool:
        """Find due grants, those first that are needed first; return if there are."""
        self._may_be_more = False
        found: list[tuple[int, datetime, int, int]] = []
        for each in self._registrations.values():
            if each.pk in self._stopped:
                continue
            rows = TokenGrant.objects.read_due(each, limit=_MOST_READ)
            self._may_be_more |= len(rows) == _MOST_READ
            if each.refresh_stopped_at is not None:
                # The grant that failed least shows whether it works again.
                rows = sorted(rows)[:1]
            # What failed comes last: a grant that its server never renews has the token
            # that expired first, and enough of them pause the server for the others.
            found += [(*row, each.pk) for row in rows]
        found.sort()
        self._due = deque((pk, registration_id) for _, _, pk, registration_id in found)
        if len(found) > _MOST_LEASED:
            self._share()
        return bool(found)

    def _share(self) -> None:
        """Let other processes take part, at a server with several turns."""
        if self._is_guest:
            # The first process begins at the front.
            self._due.rotate(-len(self._due) // 2)
        elif self._is_first and self._send_message is not None:
            for _ in range(self._server.turns - 1):
                self._send_message(self._server_id, self._token)

    def _lease(self, number: int) -> None:
        may_be_sent = self._registrations.keys() - self._stopped
        wanted: list[int] = []
        while self._due and len(wanted) < number:
            pk, registration_id = self._due.popleft()
            if registration_id in may_be_sent:
                wanted.append(pk)
        if not wanted:
            return
        held_until = time.monotonic() + lease_length().total_seconds()
        taken = TokenGrant.objects.take_leases(
            wanted, owner=self._owner, length=lease_length()
        )
        if not taken:
            return
        is_launched = Exists(Launch.objects.open().filter(grant=OuterRef("pk")))
        grants = (
            TokenGrant.objects.leased_by(self._owner)
            .usable()
            .filter(registration__in=list(self._registrations))
            .annotate(is_launched=is_launched)
            .in_bulk(wanted)
        )
        if len(grants) < taken:
            # Of users who were deactivated meanwhile.
            self._give_back([pk for pk in wanted if pk not in grants])
        for pk in wanted:
            if grant := grants.get(pk):
                grant.registration = self._registrations[grant.registration_id]
                grant.clock = self._clock
                self._todo.append((grant, held_until))
        self._make_ready()

    def _make_ready(self) -> None:
        """Find token endpoint and credentials; postpone grants without them."""
        grants = [grant for grant, _ in self._todo]
        for pk in {grant.registration_id for grant in grants} - self._clients.keys():
            registration = self._registrations[pk]
            try:
                endpoint = get_configuration(
                    self._server, registration.client_id
                ).token_endpoint
                authenticate = prepare_client_authentication(
                    registration, token_endpoint=endpoint, clock=self._clock
                )
                self._clients[pk] = endpoint, authenticate
            except SMARTError as exc:
                if is_outage(exc):
                    self._note_failure(exc)
                own = [each for each in grants if each.registration_id == pk]
                self._postpone(own, exc)
                self._stopped.add(pk)
        self._todo = deque(
            each for each in self._todo if each[0].registration_id in self._clients
        )

    # Requests

    def _submit(self, pool: ThreadPoolExecutor) -> float | None:
        """
        Send what may be sent; return the seconds until the next request may be, if any.
        """
        while self._todo and len(self._running) < self._threads:
            wait = self._pace.get_wait()
            if self._is_time_up() or time.monotonic() + wait > self._ends_at:
                self._is_over = self._has_more = True
            elif self._breaker.is_open:
                self._is_over = True
            elif wait:
                return wait
            else:
                self._send_next(pool)
                continue
            self._give_back_todo()
        return None

    def _send_next(self, pool: ThreadPoolExecutor) -> None:
        grant, held_until = self._todo.popleft()
        registration = grant.registration
        if registration.pk in self._stopped or not may_refresh(registration):
            self._stopped.add(registration.pk)
            self._give_back([grant.pk])
            return
        token_endpoint, authenticate = self._clients[registration.pk]
        try:
            request = build_request(
                grant,
                token_endpoint=token_endpoint,
                client_authentication=authenticate(),
            )
        except SMARTError as exc:
            # A token that cannot be decrypted.
            self._fail(grant, exc)
            return
        self._running[grant.pk] = grant
        self._sent += 1
        self._pace.note_sent()
        unsent = [request]
        try:
            pool.submit(self._send, grant.pk, unsent, held_until)
        except RuntimeError:
            # No thread could be started; the work may wait for an existing one.
            with suppress(IndexError):
                unsent.pop()
                self._todo.appendleft((self._running.pop(grant.pk), held_until))
            raise

    def _send(
        self, grant_id: int, unsent: list[HTTPRequest], held_until: float
    ) -> None:
        """Send the request; runs in a thread and does nothing but HTTP."""
        answer: _Answer
        try:
            request = unsent.pop()
        except IndexError:
            return
        started = time.monotonic()
        if started + whole_call_seconds() > held_until:
            # This process was suspended for a while: another one may hold the lease.
            self._answers.put((grant_id, None, 0.0))
            return
        try:
            answer = send(request, server=self._server)
        except Exception as exc:  # noqa: BLE001 (raised again by the thread that writes)
            answer = exc
        self._answers.put((grant_id, answer, time.monotonic() - started))

    def _go_on(self, wait: float | None) -> None:
        """Store a response; if none is on its way, finish what is stored, or wait."""
        if not self._running and self._stored:
            self._finish(*self._stored.popleft())
            return
        if not (self._running or wait):
            return
        patience = self._hold()
        if wait is not None:
            patience = min(wait, patience)
        with suppress(Empty):
            grant_id, answer, seconds = self._answers.get(timeout=patience)
            grant = self._running.pop(grant_id)
            if answer is None:
                self._give_back([grant.pk])
            else:
                self._seconds[grant_id] = seconds
                self._latest.append(seconds)
                self._store(grant, answer)

    def _hold(self) -> float:
        """Keep the turn while answers are on their way; return for how long it is."""
        left = self._held_until - time.monotonic() - _HELD_ANEW
        if left <= 0:
            left = _HELD - _HELD_ANEW
            self._held_until = time.monotonic() + _HELD
            hold = ServerState.objects.hold_turn
            length = timedelta(seconds=_HELD)
            if not (
                self._is_guest
                or insist(
                    partial(hold, self._server_id, token=self._token, length=length)
                )
            ):
                # This process was suspended.
                self._is_over = True
        return left

    def _take_what_is_under_way(self) -> None:
        """After an internal error, store as many of the arriving tokens as possible."""
        self._give_back_todo()
        while self._has_requests():
            try:
                self._go_on(None)
            except Exception:
                logger.exception("A response could not be stored")

    # Responses

    def _store(self, grant: TokenGrant, answer: HTTPResponse | Exception) -> None:
        with self._noting_failure(grant):
            if isinstance(answer, Exception):
                raise answer
            is_launched = grant.is_launched  # type: ignore[attr-defined]  # annotated
            try:
                finish = take_answer(grant, answer, is_launched=is_launched)
                self._has_succeeded = True
            except TokenResponseError as exc:
                finish = take_refusal(grant, exc)
            self._stored.append((grant, finish))
            self._note_response()

    def _finish(self, grant: TokenGrant, finish: Callable[[], bool]) -> None:
        with self._noting_failure(grant):
            if finish():
                self.refreshed += 1
            self._count(grant, SUCCESS)

    @contextmanager
    def _noting_failure(self, grant: TokenGrant) -> Iterator[None]:
        try:
            yield
        except SMARTError as exc:
            note_token_error(grant.registration, exc)
            self._fail(grant, exc)
            self._note_failure(exc, of_grant=is_to_blame(grant, exc))
        except Exception as exc:
            # An error in a signal receiver or in this package: the others continue.
            logger.exception("Grant %s: error during its refresh", grant.pk)
            self._fail(grant, exc)

    def _count(self, grant: TokenGrant, code: str) -> None:
        seconds = self._seconds.pop(grant.pk, None)
        self._outcomes.add_refresh(grant, code, seconds=seconds)

    def _fail(self, grant: TokenGrant, error: Exception) -> None:
        self.failed += 1
        self._count(grant, get_failure_code(error))
        insist(partial(note_failure, grant, error, owner=self._owner))
        if get_failure_code(error) in ClientRegistration.StopReason:
            stopped = ClientRegistration.objects.stopped()
            stopped = stopped.filter(pk=grant.registration_id)
            self._stopped.update(stopped.values_list("pk", flat=True))

    def _postpone(self, grants: Sequence[TokenGrant], error: SMARTError) -> None:
        """Record an error that prevents sending all of *grants*."""
        self.failed += len(grants)
        self._outcomes.add(error.code, number=len(grants))
        failures = 1 + min(grant.refresh_failures for grant in grants)
        failures = min(failures, _MOST_FAILURES)
        before = F("refresh_failures")
        TokenGrant.objects.give_back(
            [grant.pk for grant in grants],
            owner=self._owner,
            refresh_failures=Greatest(before, Least(before + 1, _MOST_FAILURES)),
            last_error=error.code,
            refresh_due_at=get_retry_at(failures=failures, now=self._clock()),
        )
        log = logger.warning if is_outage(error) else logger.error
        number = len(grants)
        log("%s grants have no new access token: %s (%s)", number, error.code, error)

    def _give_back(self, grant_ids: Sequence[int]) -> None:
        if grant_ids:
            self.skipped += len(grant_ids)
            give_back = TokenGrant.objects.give_back
            insist(partial(give_back, grant_ids, owner=self._owner))

    def _give_back_todo(self) -> None:
        self._give_back([grant.pk for grant, _ in self._todo])
        self._todo.clear()

    # The server

    def _note_response(self) -> None:
        if self._breaker.note_response():
            self._wake()

    def _note_failure(self, error: SMARTError, *, of_grant: bool = False) -> None:
        if is_outage(error):
            self._pause(self._breaker.note_outage(error, of_grant=of_grant))
        else:
            # A refusal is also a response.
            self._note_response()

    def _pause(self, seconds: float | None) -> None:
        """Write a pause as soon as it is learned, since a process may be killed."""
        if seconds is None:
            return
        now, error_code = self._clock(), self._breaker.error_code
        ServerState.objects.pause(
            self._server_id,
            now=now,
            until=now + timedelta(seconds=seconds),
            error_code=error_code,
        )
        logger.warning(
            "Server %s: refreshes paused for %.0f s (%s)",
            self._server_id,
            seconds,
            error_code,
            extra=self._server.build_log_fields("server_paused", error_code=error_code),
        )

    def _wake(self) -> None:
        ServerState.objects.resume(self._server_id)
        # Grants that failed because of the server wait no longer than it does. Those
        # that may have failed for a reason of their own still come last.
        registrations = ClientRegistration.objects.filter(server_id=self._server_id)
        TokenGrant.objects.wake(
            list(registrations.values_list("pk", flat=True)),
            error_codes=find_outage_codes(),
            most_failures=FEW_FAILURES + 1,
        )
        self._due.clear()
        self._may_be_more = True
        fields = self._server.build_log_fields("server_resumed")
        logger.info("Server %s: refreshes resumed", self._server_id, extra=fields)

    def _end(self) -> None:
        """
        Give the turn back; if more is due, send the message for the next one.

        No turn begins before the pace of the server allows its first request.
        """
        wait = self._pace.get_wait()
        end = partial(
            ServerState.objects.end_turn,
            self._server_id,
            token=self._token,
            changes=self._describe(),
        )
        message = self._send_message
        if message is None or not self._goes_on(wait):
            insist(partial(end, after=timedelta(seconds=wait)))
            return
        time.sleep(wait)
        if insist(partial(end, is_announced=True)):
            message(self._server_id)

    def _goes_on(self, wait: float) -> bool:
        if not self._has_more or wait > _SLICE or is_asked_to_stop():
            return False
        is_slow = bool(self._latest) and fmean(self._latest) > _SLOW
        # A slow server is left to the next tick while others wait for a process.
        return not (is_slow and ServerState.objects.announced().exists())

    def _describe(self) -> dict[str, object]:
        """Return what operators see of the turn."""
        changes: dict[str, object] = {}
        if self._has_succeeded:
            changes["last_success_at"] = DatabaseNow()
        # With a pause, it was written when it was learned.
        if self._breaker.error_code and not self._breaker.is_open:
            changes["last_failure_at"] = DatabaseNow()
            changes["last_error"] = self._breaker.error_code
        return changes
