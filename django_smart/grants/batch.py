"""
A worker's batch: the requests of many grants overlap, and one thread writes.

Threads do HTTP alone.  What the database sees of a grant is one UPDATE, made the moment
its answer arrives; leases are taken by one for all, and held for as long as it takes.
What may take long, receivers of the site's and other servers, comes after all answers
that are there.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from queue import Empty, SimpleQueue

from django.db.models import Exists, OuterRef

from ..conf import conf
from ..exceptions import SMARTError, TokenResponseError
from ..models import FHIRServer, Launch, TokenGrant
from ..models.clock import DatabaseClock, DatabaseNow
from ..protocol.client_auth import ClientAuthentication
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..servers.discovery import get_configuration
from ..servers.http import prepare_client_authentication, send, whole_call_seconds
from .due_times import get_retry_at
from .lease import lease_length, new_owner, note_failure
from .refresh import build_request
from .refresh_response import take_answer, take_refusal
from .server_limits import Pace, is_outage
from .storing import insist

__all__ = ["RefreshResult", "refresh_grants"]

logger = logging.getLogger(__name__)

# A lease has to outlast a call by so much when the call begins.
_MARGIN = 5.0
_Answer = HTTPResponse | Exception


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshResult:
    """Counts of one run: grants refreshed, left to somebody else or later, failed."""

    refreshed: int = 0
    skipped: int = 0
    failed: int = 0


def refresh_grants(grant_ids: Iterable[int]) -> RefreshResult:
    """
    Refresh those of *grant_ids* that are still due.

    Idempotent: a message that is delivered twice finds nothing left to do.
    """
    asked = list(grant_ids)
    wanted = list(dict.fromkeys(asked))
    owner = new_owner()
    taken_at = time.monotonic()
    taken = TokenGrant.objects.take_leases(wanted, owner=owner, length=lease_length())
    refreshed = failed = 0
    if taken:
        grants = list(
            TokenGrant.objects.leased_by(owner)
            .usable()
            .filter(pk__in=wanted, registration__refresh_stopped_at__isnull=True)
            .select_related("registration__server")
            .annotate(
                database_now=DatabaseNow(),
                is_launched=Exists(Launch.objects.open().filter(grant=OuterRef("pk"))),
            )
            .order_by("registration__server_id", "expires_at", "pk")
        )
        if len(grants) < taken:
            # Of deactivated users, or of a registration that is stopped.
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
        now = grants[0].database_now  # type: ignore[attr-defined]  # annotated
        self._pace = Pace(self._server, now=now)
        self._clock = DatabaseClock(now)
        for grant in grants:
            grant.clock = self._clock

    def run(self) -> None:
        """Refresh what can be refreshed now, and give the other leases back."""
        try:
            if not self._pace.is_stopped:
                self._refresh()
                self._pace.finish()
        finally:
            self._give_back([grant.pk for grant in self._todo])
            self._todo.clear()

    def _refresh(self) -> None:
        try:
            token_endpoint = get_configuration(self._server).token_endpoint
        except SMARTError as exc:
            self._pace.note_answer(exc)
            self._postpone(list(self._todo), exc)
            self._todo.clear()
            return
        authentications = self._prepare_authentications(token_endpoint)
        if not self._todo:
            return
        if self._pace.is_probe:
            self._keep_first()
        size = min(conf.SMART_REFRESH_THREADS, len(self._todo))
        with ThreadPoolExecutor(size, "django_smart-refresh") as pool:
            try:
                while self._todo or self._running or self._stored:
                    wait = self._submit(pool, size, token_endpoint, authentications)
                    self._go_on(wait)
            except BaseException:
                self._take_what_is_under_way()
                raise

    def _prepare_authentications(
        self, token_endpoint: str
    ) -> dict[int, Callable[[], ClientAuthentication]]:
        """By registration; grants whose credentials are unusable are postponed."""
        prepared: dict[int, Callable[[], ClientAuthentication]] = {}
        by_registration: dict[int, list[TokenGrant]] = {}
        for grant in self._todo:
            by_registration.setdefault(grant.registration_id, []).append(grant)
        for registration_id, grants in by_registration.items():
            try:
                prepared[registration_id] = prepare_client_authentication(
                    grants[0].registration, token_endpoint=token_endpoint
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
        token_endpoint: str,
        authentications: dict[int, Callable[[], ClientAuthentication]],
    ) -> float | None:
        """Send what may be sent; returns seconds until the next may, if one may."""
        while self._todo and len(self._running) < size:
            # Those that are free, and a few that will be in a moment.
            ready = max(size - len(self._running), size // 4)
            wait = self._pace.get_wait(min(ready, len(self._todo)))
            if self._pace.is_stopped:
                self._give_back([grant.pk for grant in self._todo])
                self._todo.clear()
                return None
            if wait:
                return wait
            if not self._hold_leases():
                continue
            grant = self._todo.popleft()
            if grant.registration_id in self._stopped:
                self._give_back([grant.pk])
                continue
            try:
                request = build_request(
                    grant,
                    token_endpoint=token_endpoint,
                    client_authentication=authentications[grant.registration_id](),
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
            # No thread could be made; the work may wait for one that is there.
            with suppress(IndexError):
                unsent.pop()
                self._todo.appendleft(self._running.pop(grant.pk))
            raise

    def _send(self, grant_id: int, unsent: list[HTTPRequest]) -> None:
        """In a thread: HTTP and nothing else."""
        answer: _Answer
        try:
            request = unsent.pop()
        except IndexError:
            return
        try:
            answer = send(request)
        except Exception as exc:  # noqa: BLE001 (looked at by the thread that writes)
            answer = exc
        self._answers.put((grant_id, answer))

    def _go_on(self, wait: float | None) -> None:
        """Store an answer; if none is there finish one that is stored, or wait."""
        if self._running or (wait and not self._stored):
            with suppress(Empty):
                timeout = 0 if self._stored else wait
                grant_id, answer = self._answers.get(timeout=timeout)
                self._store(self._running.pop(grant_id), answer)
                return
        if self._running:
            self._hold_leases()
        if self._stored:
            self._finish(*self._stored.popleft())

    def _take_what_is_under_way(self) -> None:
        """After an error of ours: the tokens that come are kept, as far as can be."""
        while self._running or self._stored:
            try:
                self._go_on(None)
            except Exception:
                logger.exception("An answer could not be stored")

    def _store(self, grant: TokenGrant, answer: _Answer) -> None:
        with self._noting_failure(grant):
            if isinstance(answer, Exception):
                raise answer
            is_launched = grant.is_launched  # type: ignore[attr-defined]  # annotated
            finish: Callable[[], bool]
            refusal: TokenResponseError | None = None
            try:
                finish = take_answer(grant, answer, is_launched=is_launched)
            except TokenResponseError as exc:
                if not exc.is_final:
                    # Credentials that are refused must not be sent for the others.
                    take_refusal(grant, exc)
                finish, refusal = partial(take_refusal, grant, exc), exc
            self._stored.append((grant, finish))
            self._pace.note_answer(refusal)

    def _finish(self, grant: TokenGrant, finish: Callable[[], bool]) -> None:
        with self._noting_failure(grant):
            if finish():
                self.refreshed += 1

    @contextmanager
    def _noting_failure(self, grant: TokenGrant) -> Iterator[None]:
        try:
            yield
        except SMARTError as exc:
            self._fail(grant, exc)
            self._pace.note_answer(exc)
        except Exception as exc:
            # A receiver of the site's, or a fault of ours: the others go on.
            logger.exception("Grant %s: error in its refresh", grant.pk)
            self._fail(grant, exc)

    def _fail(self, grant: TokenGrant, error: Exception) -> None:
        self.failed += 1
        insist(partial(note_failure, grant, error, owner=self._owner))
        if isinstance(error, TokenResponseError) and error.error == "invalid_client":
            self._stopped.add(grant.registration_id)

    def _postpone(self, grants: Sequence[TokenGrant], error: SMARTError) -> None:
        """Note an error that keeps all of *grants* from being sent."""
        self.failed += len(grants)
        failures = 1 + min(grant.refresh_failures for grant in grants)
        TokenGrant.objects.postpone(
            [grant.pk for grant in grants],
            owner=self._owner,
            error_code=error.code,
            due_at=get_retry_at(failures=failures, now=self._clock()),
        )
        log = logger.warning if is_outage(error) else logger.error
        log("%s grants have no new access token: %s", len(grants), error.code)

    def _hold_leases(self) -> bool:
        """Whether the leases outlast a call; false if some had to be let go."""
        now = time.monotonic()
        if self._held_until - now > whole_call_seconds() + _MARGIN:
            return True
        length = lease_length()
        waiting = [grant.pk for grant in self._todo]
        wanted = waiting + list(self._running)
        held = insist(
            partial(
                TokenGrant.objects.extend_leases,
                wanted,
                owner=self._owner,
                length=length,
            )
        )
        self._held_until = now + length.total_seconds()
        if held == len(wanted):
            return True
        # This process was stopped for so long that others have gone on.
        left = TokenGrant.objects.leased_by(self._owner).filter(pk__in=waiting)
        kept = set(left.values_list("pk", flat=True))
        self._todo = deque(grant for grant in self._todo if grant.pk in kept)
        return False

    def _give_back(self, grant_ids: Sequence[int]) -> None:
        if grant_ids:
            insist(
                partial(
                    TokenGrant.objects.give_back_leases, grant_ids, owner=self._owner
                )
            )
