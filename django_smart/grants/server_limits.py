"""
Limit how fast all workers together request tokens from a server.

After several failures in a row, it is left alone for a while and then tried with one
grant. The state is in the server's row; its times come from the database's clock.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import datetime, timedelta
from statistics import mean

from django.db import router, transaction

from ..conf import conf
from ..exceptions import (
    DiscoveryError,
    MalformedTokenResponseError,
    ServerTimeoutError,
    SMARTError,
    TokenServerError,
    TransportError,
)
from ..models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from ..models.clock import DatabaseClock, DatabaseNow
from .lease import lease_length
from .storing import can_store

__all__ = [
    "BATCH_SIZE",
    "MOST_CLAIMED",
    "Pace",
    "get_batch_size",
    "get_claim_limit",
    "get_rank",
    "is_hanging",
    "is_outage",
    "is_to_blame",
    "may_refresh",
    "refuses_nearly_all",
    "refuses_others_too",
    "resume_refreshes",
    "stop_refreshes",
]

logger = logging.getLogger(__name__)

BATCH_SIZE = 250
"""
Maximum number of grants in one message to a worker.

Celery opens a connection to the database for each message.
"""
MOST_CLAIMED = 8 * BATCH_SIZE
"""
Maximum number of grants that are on their way to workers or being processed.

One busy process can refresh them before the claims expire; several processes, which are
done sooner, immediately get more.
"""

# Consecutive failures after which a server is left alone.
_THRESHOLD = 5
# A grant that has failed more often is likely to fail again.
_FEW_FAILURES = 2
# When a server is up again, they are tried within this time.
_SOON = timedelta(minutes=3)
# A server that issued tokens so recently is taken to be up.
_RECENT = timedelta(minutes=1)
_FIRST_PAUSE = 2.0
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# The longest accepted Retry-After.
_LONGEST_RETRY_AFTER = 3600.0

# Seconds until beat runs again, and of work to claim for a server at a time: a little
# more, so that no process waits for beat.
_BEAT_SECONDS = 10.0
_CLAIM_SECONDS = 12.0
# Assumed duration of a refresh at a server without measurements.
_USUAL_SECONDS = 0.5
_BATCH_SECONDS = 3.0
# Smaller messages of a slow server would occupy a second process.
_SLOW_BATCH_SIZE = 125
# Requests are spaced evenly, at nine tenths of the limit and at most this late, so
# that no second exceeds the limit.
_SHARE = 0.9
_LATEST = 0.05
# Turns are reserved no further ahead, since missed turns are lost for everybody.
_TURNS_SECONDS = 1.0
_FARTHEST = timedelta(minutes=5)
# The longest time that a worker waits for its turn.
_LONGEST_WAIT = 4.0

_OUTAGES = (
    DiscoveryError,
    MalformedTokenResponseError,
    TokenServerError,
    TransportError,
)
_TOO_MANY = 429


def is_outage(error: SMARTError) -> bool:
    """Return whether *error* concerns the server rather than the grant."""
    return isinstance(error, _OUTAGES)


def get_claim_limit(server: FHIRServer, *, busy: int, now: datetime) -> int:
    """
    Return how many more grants of *server* may be sent to workers now.

    As many as one process can refresh until beat runs again, and a few more, so that
    other servers do not wait for long; after each batch of a server with more due
    grants, another tick runs.

    Args:
        busy: number of grants on their way to or with a worker.
        now: by the database's clock.
    """
    if _is_paused(server, now):
        return 0
    if _is_down(server):
        return 1
    threads = conf.SMART_REFRESH_THREADS
    drained = int(threads * _CLAIM_SECONDS / _get_seconds(server))
    limit = min(max(drained, threads), MOST_CLAIMED)
    if limit < _SLOW_BATCH_SIZE and busy > limit // 4:
        # The rest of one message would occupy a second process.
        return 0
    if server.rate_limit:
        reserved = (_get_slot(server.state.slot_at, now) - now).total_seconds()
        limit = min(limit, int(_SHARE * server.rate_limit * (_BEAT_SECONDS - reserved)))
    return max(limit - busy, 0)


def get_rank(grant_failures: int, server: FHIRServer) -> int:
    """
    Return which grants of *server* go first: those with the lowest rank.

    A grant that its server never renews has the token that expired first, and would
    always go first. What tests a server that was down is the grant that failed least.
    """
    if _is_down(server):
        return grant_failures
    return max(grant_failures - _FEW_FAILURES, 0)


def is_to_blame(grant: TokenGrant, error: SMARTError) -> bool:
    """
    Return whether another failure of *grant* says little about its server.

    A server that does not respond in time may be down whatever the grant.
    """
    is_answer = not isinstance(error, TransportError)
    return is_answer and grant.refresh_failures > _FEW_FAILURES


def get_batch_size(server: FHIRServer) -> int:
    """Return the number of grants for one message, which takes a few seconds."""
    refreshed = int(conf.SMART_REFRESH_THREADS * _BATCH_SECONDS / _get_seconds(server))
    if server.rate_limit:
        accepted = int(_SHARE * server.rate_limit * _BATCH_SECONDS)
        if accepted < refreshed:
            return max(1, min(accepted, _SLOW_BATCH_SIZE))
    return max(_SLOW_BATCH_SIZE, min(refreshed, BATCH_SIZE))


def _get_seconds(server: FHIRServer) -> float:
    """Return how long a refresh takes."""
    return max(server.state.refresh_seconds or _USUAL_SECONDS, 0.01)


class Pace:
    """
    Guides one batch through the pauses and the rate limit of its server.

    Attributes:
        is_stopped: nothing more may be sent.
        is_probe: the server was down, and one request tests whether it still is.
    """

    def __init__(self, server: FHIRServer, *, now: datetime) -> None:
        self._server = server
        self._now = DatabaseClock(now)
        self._next, self._turns = 0.0, 0
        self._streak = 0
        self._failure: SMARTError | None = None
        self._is_there = self._has_succeeded = False
        self._seconds: list[float] = []
        self._claimed: datetime | None = None
        self.is_probe = _is_down(server)
        last = server.state.last_success_at
        self._was_there = not self.is_probe and bool(last and now - last < _RECENT)
        self._has_paused = False
        self.is_stopped = _is_paused(server, now) or (
            self.is_probe and not self._claim_probe()
        )

    def get_wait(self, ready: int) -> float:
        """
        Return the seconds until the next request may be sent.

        Stops if the next turn is too late to wait for.

        Args:
            ready: number of requests that can be sent soon. While threads wait for slow
                responses, there are few, and turns for more would be missed.
        """
        rate = self._server.rate_limit
        if self.is_stopped or not rate:
            return 0.0
        if not self._turns or self._next - time.monotonic() < -_LATEST:
            most = max(1, int(_SHARE * rate * _TURNS_SECONDS))
            self._reserve(min(ready, most), spacing=1 / (_SHARE * rate))
        return max(self._next - time.monotonic(), 0.0)

    def note_sent(self) -> None:
        """Count a used turn."""
        if self._server.rate_limit:
            self._next += 1 / (_SHARE * self._server.rate_limit)
            self._turns -= 1

    def _reserve(self, number: int, *, spacing: float) -> None:
        length = timedelta(seconds=number * spacing)
        while True:
            row = (
                ServerState.objects.filter(pk=self._server.pk)
                .annotate(now=DatabaseNow())
                .values_list("slot_at", "now")
                .first()
            )
            if row is None:
                self.is_stopped = True
                return
            seen, now = row
            start = _get_slot(seen, now)
            wait = (start - now).total_seconds()
            if wait > _LONGEST_WAIT:
                self.is_stopped = True
                return
            if ServerState.objects.reserve_slots(
                self._server.state, seen=seen, until=start + length
            ):
                self._next, self._turns = time.monotonic() + wait, number
                return

    def note_seconds(self, seconds: float) -> None:
        """Record how long a request took, with or without a response."""
        self._seconds.append(seconds)

    def note_answer(
        self, error: SMARTError | None = None, *, of_grant: bool = False
    ) -> None:
        """
        Count an outcome; stop the batch if the server is down or asks for a pause.

        Args:
            of_grant: the grant is likely to blame (:func:`is_to_blame`). The error
                does not count if the server has just responded to others.
        """
        if error is None or not is_outage(error):
            # A refusal is also a response.
            self._streak = 0
            self._is_there = True
            self._has_succeeded = self._has_succeeded or error is None
            return
        rest = _get_rest(error)
        if of_grant and rest is None and (self._is_there or self._was_there):
            return
        self._streak += 1
        self._failure = error
        # A later response may ask for a longer pause.
        if self._has_paused and not rest:
            return
        before = 0 if self._is_there else self._server.state.failures
        failures = before + self._streak
        if rest is not None or self.is_probe or failures >= _THRESHOLD:
            self._stop(failures, rest)

    def finish(self) -> None:
        """Store the outcome for the other workers."""
        states, now = ServerState.objects, self._now()
        own = states.filter(pk=self._server.pk)
        if self._claimed and not self._seconds and self._failure is None:
            until = now + timedelta(seconds=_FIRST_PAUSE)
            # A probe that sent nothing: another follows soon.
            own.filter(paused_until=self._claimed).update(paused_until=until)
        if self._has_succeeded:
            own.update(last_success_at=now, refresh_seconds=mean(self._seconds))
        is_over = self._is_there and self._streak == 0 and not self._has_paused
        if self._failure is not None and not self._has_paused:
            states.note_failures(
                self._server.state,
                self._streak,
                in_a_row=not self._is_there,
                now=now,
                error_code=self._failure.code,
            )
        elif is_over and self._server.state.failures:
            states.note_recovery(self._server.state, claimed=self._claimed)
        if is_over and self.is_probe:
            self._wake()

    def _stop(self, failures: int, rest: float | None) -> None:
        # Immediately: the other workers send requests as well.
        self.is_stopped = self._has_paused = True
        failures = max(failures, _THRESHOLD)
        limit = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - _THRESHOLD, 10))
        jitter = random.uniform(0, limit)  # noqa: S311 (spreads load, no secret)
        pause = max(jitter, _SHORTEST_PAUSE, rest or 0.0)
        now = self._now()
        error_code = self._failure.code if self._failure else ""
        ServerState.objects.note_outage(
            self._server.state,
            failures=failures,
            now=now,
            until=now + timedelta(seconds=pause),
            error_code=error_code,
            claimed=self._claimed,
        )
        self._claimed = None
        logger.warning(
            "Server %s: refreshes paused for %.0f s (%s)",
            self._server.pk,
            pause,
            error_code,
            extra=self._server.build_log_fields("server_paused", error_code=error_code),
        )

    def _wake(self) -> None:
        # Grants that failed because of the server wait no longer than it does. Those
        # that may have failed for a reason of their own come a little later.
        registrations = ClientRegistration.objects.filter(server_id=self._server.pk)
        codes = sorted({code for error in _OUTAGES for code in _find_codes(error)})
        waiting = TokenGrant.objects.waiting_after(
            list(registrations.values_list("pk", flat=True)), error_codes=codes
        )
        few = {"refresh_failures__lte": _FEW_FAILURES}
        waiting.exclude(**few).wake(most_failures=_FEW_FAILURES + 1, within=_SOON)
        waiting.filter(**few).wake(most_failures=_FEW_FAILURES)
        fields = self._server.build_log_fields("server_resumed")
        logger.info("Server %s: refreshes resumed", self._server.pk, extra=fields)

    def _claim_probe(self) -> bool:
        until = self._now() + lease_length()
        if not ServerState.objects.claim_probe(self._server.state, until=until):
            return False
        self._claimed = until
        return True


def _get_slot(slot_at: datetime | None, now: datetime) -> datetime:
    """Return when the next request may be sent, unless the clock was set back since."""
    return slot_at if slot_at and now < slot_at < now + _FARTHEST else now


def _is_down(server: FHIRServer) -> bool:
    failures: int = server.state.failures
    return failures >= _THRESHOLD


def is_hanging(server: FHIRServer) -> bool:
    """Return whether *server* is down and lets requests wait until they time out."""
    return _is_down(server) and server.state.last_error == ServerTimeoutError.code


def _is_paused(server: FHIRServer, now: datetime) -> bool:
    until: datetime | None = server.state.paused_until
    return until is not None and until > now


def _get_rest(error: SMARTError) -> float | None:
    """Return the seconds for which the server asks to be left alone, if any."""
    if not isinstance(error, TokenServerError):
        return None
    if error.retry_after is not None:
        return min(error.retry_after, _LONGEST_RETRY_AFTER)
    return 0.0 if error.status_code == _TOO_MANY else None


def _find_codes(error: type[SMARTError]) -> list[str]:
    return [
        error.code,
        *error.codes,
        *(c for sub in error.__subclasses__() for c in _find_codes(sub)),
    ]


_Stop = ClientRegistration.StopReason
_STOPPED = {
    _Stop.CREDENTIALS_REFUSED: "the server refused our credentials (invalid_client)",
    _Stop.GRANTS_REFUSED: "the server refuses the refresh tokens of nearly all grants",
    _Stop.TOKENS_NOT_STORED: "the database refused to store new tokens",
}
# So many refusals with hardly a success in between are no coincidence.
_LOST_AT_ONCE = 20
_LOST_WITHIN = timedelta(hours=1)
# Time between two attempts for a stopped registration.
_PROBE_PAUSE = timedelta(minutes=5)
_FIRST_PROBES = {
    # Immediately: the grants themselves may have been refused.
    _Stop.CREDENTIALS_REFUSED: DatabaseNow(),
    _Stop.GRANTS_REFUSED: DatabaseNow(_PROBE_PAUSE),
    _Stop.TOKENS_NOT_STORED: DatabaseNow(_PROBE_PAUSE),
}
_RESUMED_BY = {
    _Stop.CREDENTIALS_REFUSED: ", or its credentials are changed",
    _Stop.GRANTS_REFUSED: "",
    _Stop.TOKENS_NOT_STORED: ", or the database stores them again",
}


def stop_refreshes(registration: ClientRegistration, *, reason: str) -> None:
    """
    Stop refreshing the grants of *registration*, for a reason common to all.

    Its grants are kept, and work again once the cause is fixed.
    """
    rows = ClientRegistration.objects.filter(pk=registration.pk)
    if reason == _Stop.TOKENS_NOT_STORED:
        # Attempts, which other reasons allow, would lose tokens.
        refused = rows.filter(refresh_stop_reason=_Stop.GRANTS_REFUSED)
        refused.update(refresh_probe_at=None)
        rows = rows.exclude(refresh_stop_reason__in=[reason, _Stop.GRANTS_REFUSED])
    else:
        rows = rows.filter(refresh_stopped_at__isnull=True)
    stopped = rows.update(
        refresh_stopped_at=DatabaseNow(),
        refresh_stop_reason=reason,
        refresh_probe_at=_FIRST_PROBES[_Stop(reason)],
    )
    if stopped:
        logger.error(
            "Registration %s: %s. Its grants are kept and not refreshed until the "
            "registration is resumed in the admin or by smart_refresh --resume%s.",
            registration.pk,
            _STOPPED[_Stop(reason)],
            _RESUMED_BY[_Stop(reason)],
        )


def may_refresh(registration: ClientRegistration) -> bool:
    """
    Return whether a refresh token of *registration* may be sent.

    While it is stopped, one request every few minutes tests whether it works again.
    No request is sent for tokens that could not be stored.
    """
    return registration.refresh_stopped_at is None or (
        ClientRegistration.objects.claim_probe(registration.pk, pause=_PROBE_PAUSE)
        and (
            registration.refresh_stop_reason != _Stop.TOKENS_NOT_STORED
            or can_store(registration)
        )
    )


def refuses_others_too(grant: TokenGrant) -> bool:
    """
    Return whether ``invalid_client`` for *grant* is about the credentials.

    Some servers also say so of a refresh token that they no longer know
    (athenahealth, 2025). It is about the credentials if another grant was refused in
    the same way, and neither was before.
    """
    code = ClientRegistration.StopReason.CREDENTIALS_REFUSED
    others = TokenGrant.objects.active().filter(
        registration=grant.registration_id,
        last_error=code,
        refresh_failures__lte=grant.refresh_failures + 1,
    )
    return grant.last_error != code and others.exclude(pk=grant.pk).exists()


def refuses_nearly_all(registration: ClientRegistration) -> bool:
    """
    Return whether the server is at fault, and stop the registration if so.

    It is if twenty grants were lost within an hour, and no more than twenty were
    refreshed since the first of them: for example, a server restored from a backup
    knows no tokens. Grants past their known end do not count, nor do those that were
    refused, restored by an operator, and refused again.
    """
    grants = TokenGrant.objects.filter(registration=registration)
    is_stopped = ClientRegistration.objects.filter(
        pk=registration.pk, refresh_stop_reason=_Stop.GRANTS_REFUSED
    )
    if is_stopped.exists():
        return True
    lost = grants.lost_early(within=_LOST_WITHIN).filter(was_restored=False)
    lost = lost.order_by("-ended_at")
    times = list(lost.values_list("ended_at", flat=True)[:_LOST_AT_ONCE])
    if len(times) < _LOST_AT_ONCE:
        return False
    if grants.active().filter(received_at__gte=times[-1]).count() > _LOST_AT_ONCE:
        return False
    stop_refreshes(registration, reason=_Stop.GRANTS_REFUSED)
    return True


def resume_refreshes(
    registration: ClientRegistration,
    *,
    by_operator: bool = False,
    accept_losses: bool = False,
) -> bool:
    """
    Resume stopped refreshes; grants that had failed are due immediately.

    A successful refresh resumes them as well, unless the server had refused the tokens
    of nearly all grants. If an operator resumes them, these grants are restored if
    their tokens are still stored and their owner has not connected again.

    Args:
        accept_losses: of the other grants, too, a refusal is final and does not stop
            the registration again, until they have been refreshed once.

    Returns:
        ``True`` if refreshes continue now.
    """
    reason = registration.refresh_stop_reason
    if registration.refresh_stopped_at is None:
        return False
    # Another reason may have replaced it since it was read.
    rows = ClientRegistration.objects.filter(
        pk=registration.pk, refresh_stop_reason=reason
    )
    if reason == _Stop.GRANTS_REFUSED and not by_operator:
        # This grant was valid; the next attempt shows whether the others are.
        rows.update(refresh_probe_at=DatabaseNow())
        return False
    with transaction.atomic(using=router.db_for_write(ClientRegistration)):
        if not rows.update(
            refresh_stopped_at=None, refresh_stop_reason="", refresh_probe_at=None
        ):
            return False
        if reason == _Stop.GRANTS_REFUSED:
            grants = TokenGrant.objects.filter(registration=registration)
            number = grants.restore_lost()
            logger.info("Registration %s: %s grants restored", registration.pk, number)
            if accept_losses:
                grants.active().offline().update(was_restored=True)
    registration.refresh_stopped_at, registration.refresh_stop_reason = None, ""
    registration.wake_grants()
    logger.info("Registration %s: refreshes resumed", registration.pk)
    return True
