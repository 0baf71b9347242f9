"""
A worker's batch: requests for many grants overlap, and one thread writes.

The threads only do HTTP. The database gets one UPDATE for each grant, as soon as its
response arrives; one statement takes all leases. A batch sends for a few seconds and
releases what it did not start, so its leases outlast each of its calls. Anything that
may take long (the site's signal receivers, other servers) follows after all responses.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from queue import Empty, SimpleQueue

from django.db.models import Exists, OuterRef

from ..conf import conf
from ..exceptions import SMARTError, TokenResponseError
from ..models import ClientRegistration, FHIRServer, Launch, TokenGrant
from ..models.clock import DatabaseClock, DatabaseNow
from ..protocol.client_auth import ClientAuthentication
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..servers.discovery import get_configuration, note_token_error
from ..servers.http import prepare_client_authentication, send, whole_call_seconds
from .counting import SUCCESS, Outcomes
from .deployment import find_owner, is_owner, note_owned_elsewhere
from .due_times import get_retry_at
from .lease import get_failure_code, lease_length, new_owner, note_failure
from .refresh import build_request
from .refresh_response import take_answer, take_refusal
from .separate_connection import refuse_in_transaction
from .server_limits import Pace, get_rank, is_outage, is_to_blame, may_refresh
from .storing import insist
from .uninterrupted import is_asked_to_stop, uninterrupted

__all__ = ["RefreshResult", "refresh_grants"]

logger = logging.getLogger(__name__)

# Seconds after which a batch starts no more requests: a slow server must not keep a
# process from the others, and a lease must outlast the last call (lease_length).
_LONGEST_BATCH = 5.0
# Failures that count for grants for which nothing can be sent: at most about five
# minutes until the next attempt, or as long as for others if the server is down.
_MOST_FAILURES = 5
_MANY_FAILURES = 1000
#: ``None`` if nothing was sent.
_Answer = HTTPResponse | Exception | None
#: Token endpoint and authentication, by registration.
_Clients = dict[int, tuple[str, Callable[[], ClientAuthentication]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshResult:
    """
    Counts of one run: grants refreshed, left for another process or later, failed.
    """

    refreshed: int = 0
    skipped: int = 0
    failed: int = 0


def refresh_grants(grant_ids: Iterable[int]) -> RefreshResult:
    """
    Refresh those of *grant_ids* that are still due.

    Idempotent: a message that is delivered twice finds nothing to do the second time.

    Raises:
        RefreshInTransactionError: called inside ``atomic()``, which could roll back the
            tokens of all of them; nothing was sent.
    """
    refuse_in_transaction()
    asked = list(grant_ids)
    wanted = list(dict.fromkeys(asked))
    owner = new_owner()
    taken_at = time.monotonic()
    taken = TokenGrant.objects.take_leases(wanted, owner=owner, length=lease_length())
    if taken < len(wanted):
        TokenGrant.objects.release_expired_leases(wanted)
    refreshed = failed = 0
    if taken:
        grants = _read(wanted, owner=owner)
        if len(grants) < taken:
            # Grants of deactivated users, of a stopped server or registration, or of
            # another deployment.
            others = set(wanted) - {grant.pk for grant in grants}
            TokenGrant.objects.give_back_leases(sorted(others), owner=owner)
        for _, group in groupby(grants, lambda each: each.registration.server_id):
            batch = _Batch(list(group), owner=owner, taken_at=taken_at)
            batch.run()
            refreshed += batch.refreshed
            failed += batch.failed
    return RefreshResult(
        refreshed=refreshed, failed=failed, skipped=len(asked) - refreshed - failed
    )


def _read(grant_ids: Sequence[int], *, owner: str) -> list[TokenGrant]:
    """Return the grants that may be refreshed, of those whose leases *owner* holds."""
    grants = list(
        TokenGrant.objects.leased_by(owner)
        .refreshable(with_probes=True)
        .filter(pk__in=grant_ids)
        .annotate(
            is_launched=Exists(Launch.objects.open().filter(grant=OuterRef("pk")))
        )
    )
    if not grants:
        return []
    # With each grant, the same few rows would be read and decoded hundreds of times.
    registrations = (
        ClientRegistration.objects.select_related("server__state")
        .annotate(database_now=DatabaseNow(), deployment=find_owner())
        .in_bulk({grant.registration_id for grant in grants})
    )
    first = registrations[grants[0].registration_id]
    if not is_owner(first.deployment or ""):  # type: ignore[attr-defined]  # annotated
        # The message may be another deployment's, at a broker that both use.
        note_owned_elsewhere()
        return []
    for grant in grants:
        grant.registration = registrations[grant.registration_id]
    return sorted(grants, key=_get_turn)


def _get_turn(grant: TokenGrant) -> tuple[int, int, datetime, int]:
    server = grant.registration.server
    rank = get_rank(grant.refresh_failures, server)
    return server.pk, rank, grant.expires_at, grant.pk


class _Batch:
    """Grants of one server, whose leases *owner* has taken."""

    def __init__(
        self, grants: list[TokenGrant], *, owner: str, taken_at: float
    ) -> None:
        self.refreshed = self.failed = 0
        self._owner = owner
        self._server: FHIRServer = grants[0].registration.server
        self._todo = deque(grants)
        self._running: dict[int, TokenGrant] = {}
        self._answers: SimpleQueue[tuple[int, _Answer]] = SimpleQueue()
        self._stored: deque[tuple[TokenGrant, Callable[[], bool]]] = deque()
        self._held_until = taken_at + lease_length().total_seconds()
        self._stopped: set[int] = set()
        self._outcomes = Outcomes(self._server.pk)
        self._seconds: dict[int, float] = {}
        now = grants[0].registration.database_now  # type: ignore[attr-defined]  # annotated
        self._pace = Pace(self._server, now=now)
        self._clock = DatabaseClock(now)
        self._ends_at = time.monotonic() + _LONGEST_BATCH
        for grant in grants:
            grant.clock = self._clock

    def run(self) -> None:
        """Refresh what can be refreshed now, and release the other leases."""
        with uninterrupted():
            try:
                if not self._pace.is_stopped:
                    self._refresh()
                    self._pace.finish()
            finally:
                self._give_back([grant.pk for grant in self._todo])
                self._todo.clear()
                self._outcomes.write()

    def _refresh(self) -> None:
        try:
            get_configuration(self._server)
        except SMARTError as exc:
            self._pace.note_answer(exc)
            self._postpone(list(self._todo), exc)
            self._todo.clear()
            return
        clients = self._prepare_clients()
        if not self._todo:
            return
        if self._pace.is_probe:
            self._keep_first()
        size = min(conf.SMART_REFRESH_THREADS, len(self._todo))
        with ThreadPoolExecutor(size, "django_smart-refresh") as pool:
            try:
                while self._todo or self._running or self._stored:
                    wait = self._submit(pool, size, clients)
                    self._go_on(wait)
            except BaseException:
                self._take_what_is_under_way()
                raise

    def _prepare_clients(self) -> _Clients:
        """Group grants by registration; postpone those with unusable credentials."""
        prepared: _Clients = {}
        by_registration: dict[int, list[TokenGrant]] = {}
        for grant in self._todo:
            by_registration.setdefault(grant.registration_id, []).append(grant)
        for registration_id, grants in by_registration.items():
            registration = grants[0].registration
            try:
                endpoint = get_configuration(
                    self._server, registration.client_id
                ).token_endpoint
                prepared[registration_id] = (
                    endpoint,
                    prepare_client_authentication(
                        registration, token_endpoint=endpoint, clock=self._clock
                    ),
                )
            except SMARTError as exc:
                self._postpone(grants, exc)
        self._todo = deque(
            grant for grant in self._todo if grant.registration_id in prepared
        )
        return prepared

    def _keep_first(self) -> None:
        first, *others = self._todo
        self._give_back([grant.pk for grant in others])
        self._todo = deque([first])

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        size: int,
        clients: _Clients,
    ) -> float | None:
        """
        Send what may be sent; return the seconds until the next request may be, if any.
        """
        while self._todo and len(self._running) < size:
            # Free threads, and a few that will be free in a moment.
            ready = max(size - len(self._running), size // 4)
            wait = self._pace.get_wait(min(ready, len(self._todo)))
            is_over = time.monotonic() > self._ends_at or is_asked_to_stop()
            if self._pace.is_stopped or is_over:
                self._give_back([grant.pk for grant in self._todo])
                self._todo.clear()
                return None
            if wait:
                return wait
            grant = self._todo.popleft()
            registration = grant.registration
            if registration.pk in self._stopped or not may_refresh(registration):
                self._stopped.add(registration.pk)
                self._give_back([grant.pk])
                continue
            token_endpoint, authenticate = clients[registration.pk]
            try:
                request = build_request(
                    grant,
                    token_endpoint=token_endpoint,
                    client_authentication=authenticate(),
                )
            except SMARTError as exc:
                # A token that cannot be decrypted.
                self._fail(grant, exc)
                continue
            self._start(pool, grant, request)
        return None

    def _start(
        self, pool: ThreadPoolExecutor, grant: TokenGrant, request: HTTPRequest
    ) -> None:
        self._running[grant.pk] = grant
        self._pace.note_sent()
        unsent = [request]
        try:
            pool.submit(self._send, grant.pk, unsent)
        except RuntimeError:
            # No thread could be started; the work may wait for an existing one.
            with suppress(IndexError):
                unsent.pop()
                self._todo.appendleft(self._running.pop(grant.pk))
            raise

    def _send(self, grant_id: int, unsent: list[HTTPRequest]) -> None:
        """Send the request; runs in a thread and does nothing but HTTP."""
        answer: _Answer
        try:
            request = unsent.pop()
        except IndexError:
            return
        started = time.monotonic()
        if started + whole_call_seconds() > self._held_until:
            # This process was suspended for a while: another one may hold the lease.
            self._answers.put((grant_id, None))
            return
        try:
            answer = send(request, server=self._server)
        except Exception as exc:  # noqa: BLE001 (raised again by the thread that writes)
            answer = exc
        self._seconds[grant_id] = time.monotonic() - started
        self._pace.note_seconds(self._seconds[grant_id])
        self._answers.put((grant_id, answer))

    def _go_on(self, wait: float | None) -> None:
        """Store a response; if none is on its way, finish what is stored, or wait."""
        if not self._running and self._stored:
            self._finish(*self._stored.popleft())
            return
        if not (self._running or wait):
            return
        with suppress(Empty):
            grant_id, answer = self._answers.get(timeout=wait)
            grant = self._running.pop(grant_id)
            if answer is None:
                self._give_back([grant.pk])
            else:
                self._store(grant, answer)

    def _take_what_is_under_way(self) -> None:
        """After an internal error, store as many of the arriving tokens as possible."""
        while self._running or self._stored:
            try:
                self._go_on(None)
            except Exception:
                logger.exception("A response could not be stored")

    def _store(self, grant: TokenGrant, answer: HTTPResponse | Exception) -> None:
        with self._noting_failure(grant):
            if isinstance(answer, Exception):
                raise answer
            is_launched = grant.is_launched  # type: ignore[attr-defined]  # annotated
            refusal: TokenResponseError | None = None
            try:
                finish = take_answer(grant, answer, is_launched=is_launched)
            except TokenResponseError as exc:
                finish, refusal = take_refusal(grant, exc), exc
            self._stored.append((grant, finish))
            self._pace.note_answer(refusal)

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
            self._pace.note_answer(exc, of_grant=is_to_blame(grant, exc))
        except Exception as exc:
            # An error in a signal receiver or in this package: the others continue.
            logger.exception("Grant %s: error during its refresh", grant.pk)
            self._fail(grant, exc)

    def _count(self, grant: TokenGrant, code: str) -> None:
        self._outcomes.add(code, seconds=self._seconds.pop(grant.pk, None))

    def _fail(self, grant: TokenGrant, error: Exception) -> None:
        self.failed += 1
        self._count(grant, get_failure_code(error))
        insist(partial(note_failure, grant, error, owner=self._owner))
        if get_failure_code(error) in ClientRegistration.StopReason:
            stopped = ClientRegistration.objects.filter(
                pk=grant.registration_id, refresh_stopped_at__isnull=False
            )
            self._stopped.update(stopped.values_list("pk", flat=True))

    def _postpone(self, grants: Sequence[TokenGrant], error: SMARTError) -> None:
        """Record an error that prevents sending all of *grants*."""
        self.failed += len(grants)
        self._outcomes.add(error.code, number=len(grants))
        failures = 1 + min(grant.refresh_failures for grant in grants)
        # Without an outage, nothing tells when an attempt would work again.
        most = _MANY_FAILURES if is_outage(error) else _MOST_FAILURES
        TokenGrant.objects.postpone(
            [grant.pk for grant in grants],
            owner=self._owner,
            error_code=error.code,
            due_at=get_retry_at(failures=min(failures, most), now=self._clock()),
            most_failures=most,
        )
        log = logger.warning if is_outage(error) else logger.error
        number = len(grants)
        log("%s grants have no new access token: %s (%s)", number, error.code, error)

    def _give_back(self, grant_ids: Sequence[int]) -> None:
        if grant_ids:
            insist(
                partial(
                    TokenGrant.objects.give_back_leases, grant_ids, owner=self._owner
                )
            )
