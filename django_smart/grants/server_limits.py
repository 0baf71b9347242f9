"""
How fast a server is asked for tokens, by all workers together.

After failures in a row it is left alone for a while, and then tried with one grant.
The state is in the server's row, and its times are of the database's clock.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import datetime, timedelta

from django.utils import timezone

from ..exceptions import (
    DiscoveryError,
    MalformedTokenResponseError,
    SMARTError,
    TokenServerError,
    TransportError,
)
from ..models import ClientRegistration, FHIRServer, TokenGrant
from ..models.clock import DatabaseClock, DatabaseNow
from ..servers.http import whole_call_seconds

__all__ = [
    "BATCH_SIZE",
    "Pace",
    "get_batch_size",
    "get_claim_limit",
    "is_outage",
    "resume_refreshes",
    "stop_refreshes",
]

logger = logging.getLogger(__name__)

BATCH_SIZE = 100
"""Grants in one message to a worker, at most."""

# Failures in a row after which a server is left alone.
_THRESHOLD = 5
_FIRST_PAUSE = 2.0
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# What a server may ask for by Retry-After.
_LONGEST_RETRY_AFTER = 3600.0

# Grants of one server that are on their way to workers, at most.
_MOST_CLAIMED = 100 * BATCH_SIZE
# Seconds of work that a server with a rate limit is given at a time: beat comes back.
_CLAIM_SECONDS = 10.0
_BATCH_SECONDS = 3.0
# Requests leave evenly, at nine tenths of the limit and no more than this late: in no
# second are there more than the limit allows.
_SHARE = 0.9
_LATEST = 0.05
# Turns are taken for no longer ahead, as those that are missed are lost to everybody.
_TURNS_SECONDS = 1.0
# A worker waits no longer for its turn.
_LONGEST_WAIT = 15.0

_OUTAGES = (
    DiscoveryError,
    MalformedTokenResponseError,
    TokenServerError,
    TransportError,
)
_TOO_MANY = 429


def is_outage(error: SMARTError) -> bool:
    """Whether *error* says something of the server, and nothing of the grant."""
    return isinstance(error, _OUTAGES)


def get_claim_limit(server: FHIRServer, *, claimed: int, now: datetime) -> int:
    """
    How many more grants of *server* may be sent to workers now.

    Args:
        claimed: those on their way.
        now: by the database's clock.
    """
    if _is_paused(server, now):
        return 0
    if server.refresh_failures >= _THRESHOLD:
        return 1
    limit = _MOST_CLAIMED
    if server.rate_limit:
        slot_at = server.refresh_slot_at or now
        reserved = max((slot_at - now).total_seconds(), 0.0)
        limit = int(_SHARE * server.rate_limit * (_CLAIM_SECONDS - reserved))
    return max(limit - claimed, 0)


def get_batch_size(server: FHIRServer) -> int:
    """Grants that go into one message."""
    if not server.rate_limit:
        return BATCH_SIZE
    return max(1, min(BATCH_SIZE, int(_SHARE * server.rate_limit * _BATCH_SECONDS)))


class Pace:
    """
    One batch's way through the pauses and the rate limit of its server.

    Attributes:
        is_stopped: nothing more may be sent.
        is_probe: the server was away, and one request finds out whether it still is.
    """

    def __init__(self, server: FHIRServer, *, now: datetime) -> None:
        self._server = server
        self._now = DatabaseClock(now)
        self._next, self._turns = 0.0, 0
        self._streak = 0
        self._failure: SMARTError | None = None
        self._is_there = self._has_succeeded = False
        self.is_probe = server.refresh_failures >= _THRESHOLD
        self.is_stopped = _is_paused(server, now) or (
            self.is_probe and not self._claim_probe()
        )

    def get_wait(self, ready: int) -> float:
        """
        Seconds until the next request may leave.

        Stops if its turn comes too late to wait for.

        Args:
            ready: requests that can leave soon.  While threads wait for slow answers
                there are few, and turns for more would be missed.
        """
        rate = self._server.rate_limit
        if self.is_stopped or not rate:
            return 0.0
        if not self._turns or self._next - time.monotonic() < -_LATEST:
            most = max(1, int(_SHARE * rate * _TURNS_SECONDS))
            self._reserve(min(ready, most), spacing=1 / (_SHARE * rate))
        return max(self._next - time.monotonic(), 0.0)

    def note_sent(self) -> None:
        """One turn was used."""
        if self._server.rate_limit:
            self._next += 1 / (_SHARE * self._server.rate_limit)
            self._turns -= 1

    def _reserve(self, number: int, *, spacing: float) -> None:
        length = timedelta(seconds=number * spacing)
        while True:
            row = (
                FHIRServer.objects.filter(pk=self._server.pk)
                .annotate(now=DatabaseNow())
                .values_list("refresh_slot_at", "now")
                .first()
            )
            if row is None:
                self.is_stopped = True
                return
            seen, now = row
            start = max(seen or now, now)
            wait = (start - now).total_seconds()
            if wait > _LONGEST_WAIT:
                self.is_stopped = True
                return
            if FHIRServer.objects.reserve_slots(
                self._server, seen=seen, until=start + length
            ):
                self._next, self._turns = time.monotonic() + wait, number
                return

    def note_answer(self, error: SMARTError | None = None) -> None:
        """Count what came; stops the batch if the server is away or asks for rest."""
        if error is None or not is_outage(error):
            # A refusal is an answer as well.
            self._streak = 0
            self._is_there = True
            self._has_succeeded = self._has_succeeded or error is None
            return
        self._streak += 1
        self._failure = error
        if self.is_stopped:
            return
        failures = self._server.refresh_failures + self._streak
        rest = _get_rest(error)
        if rest is not None or self.is_probe or failures >= _THRESHOLD:
            self._stop(failures, rest)

    def finish(self) -> None:
        """Write down how it went, for the other workers."""
        servers, now = FHIRServer.objects, self._now()
        if self._has_succeeded:
            servers.note_refresh(self._server, now=now)
        is_over = self._is_there and self._streak == 0 and not self.is_stopped
        if is_over and self._server.refresh_failures:
            servers.note_recovery(self._server, is_probe=self.is_probe)
            self._wake()
        if self._failure is not None and not self.is_stopped:
            servers.note_failures(
                self._server,
                self._streak,
                now=now,
                error_code=self._failure.code,
            )

    def _stop(self, failures: int, rest: float | None) -> None:
        # At once: the other workers are asking as well.
        self.is_stopped = True
        failures = max(failures, _THRESHOLD)
        limit = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - _THRESHOLD, 10))
        jitter = random.uniform(0, limit)  # noqa: S311 (spreads load, no secret)
        pause = max(jitter, _SHORTEST_PAUSE, rest or 0.0)
        now = self._now()
        error_code = self._failure.code if self._failure else ""
        FHIRServer.objects.note_outage(
            self._server,
            failures=failures,
            now=now,
            until=now + timedelta(seconds=pause),
            error_code=error_code,
        )
        logger.warning(
            "Server %s: refreshes paused for %.0f s (%s)",
            self._server.pk,
            pause,
            error_code,
            extra=self._server.build_log_fields("server_paused", error_code=error_code),
        )

    def _wake(self) -> None:
        # What failed with the server waits no longer than the server.
        registrations = ClientRegistration.objects.filter(server_id=self._server.pk)
        codes = sorted({code for error in _OUTAGES for code in _find_codes(error)})
        TokenGrant.objects.wake(
            list(registrations.values_list("pk", flat=True)), error_codes=codes
        )
        fields = self._server.build_log_fields("server_resumed")
        logger.info("Server %s: refreshes go on", self._server.pk, extra=fields)

    def _claim_probe(self) -> bool:
        until = self._now() + timedelta(seconds=whole_call_seconds() + 10)
        return FHIRServer.objects.claim_probe(self._server, until=until)


def _is_paused(server: FHIRServer, now: datetime) -> bool:
    until: datetime | None = server.refresh_paused_until
    return until is not None and until > now


def _get_rest(error: SMARTError) -> float | None:
    """Seconds that the server wants to be left alone for, if it says so."""
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


_ERROR = "invalid_client"


def stop_refreshes(registration: ClientRegistration) -> None:
    """
    Stop the worker's refreshes of *registration*, whose credentials were refused.

    Its grants are kept: they are as good as before once the server knows us again.
    """
    stopped = ClientRegistration.objects.filter(
        pk=registration.pk, refresh_stopped_at__isnull=True
    ).update(refresh_stopped_at=timezone.now())
    if stopped:
        logger.error(
            "Registration %s: the server refused our credentials (%s). Its grants are "
            "not refreshed until the credentials are changed, or the registration is "
            "resumed in the admin or by smart_refresh --resume.",
            registration.pk,
            _ERROR,
        )


def resume_refreshes(registration: ClientRegistration) -> bool:
    """
    Let the worker refresh again, if it was stopped; what had failed is due at once.

    Returns:
        Whether it was stopped.
    """
    if registration.refresh_stopped_at is None:
        return False
    ClientRegistration.objects.filter(pk=registration.pk).update(
        refresh_stopped_at=None
    )
    registration.refresh_stopped_at = None
    TokenGrant.objects.wake([registration.pk], error_codes=[_ERROR])
    logger.info("Registration %s: refreshes go on", registration.pk)
    return True
