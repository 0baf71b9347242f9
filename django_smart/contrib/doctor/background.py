"""What is wrong while nobody is there: keys, beat, workers, grants."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from celery import current_app
from django.db.models import Count, Max, Min
from django.utils import timezone

from ...conf import conf
from ...models import ClientRegistration, SigningKey, TaskRun, TokenGrant
from ...models.task_run import BEAT_TASK, LONGEST_SILENCE
from ...servers.signing_keys import OVERLAP
from .findings import Finding, build_finding

__all__ = ["examine_background"]

# Beat looks for due grants every ten seconds; some minutes late is no hiccup.
_LATE = timedelta(minutes=5)
# Rotation is looked at every fifteen minutes.
_LATE_ROTATION = timedelta(hours=1)
_LATE_REVOCATION = timedelta(days=1)
_MANY_FAILURES = 5
# Seconds for the broker to be reached, and for workers to answer.
_BROKER, _ANSWER = 3, 1.0
_START = (
    "Start “celery beat” and a worker with the schedule django_smart.schedule."
    "BEAT_SCHEDULE"
)


def examine_background() -> list[Finding]:
    """Keys near their end, beat and workers, and grants that nobody looks after."""
    now = timezone.now()
    return [
        *_find_ending_keys(now),
        *_find_silence(now),
        *_find_late_grants(now),
        *_find_failing_grants(),
        *_find_late_revocations(now),
    ]


def _find_ending_keys(now: datetime) -> Iterator[Finding]:
    period = conf.SMART_KEY_ROTATION
    if not period:
        return
    following = set(SigningKey.objects.following().values_list("algorithm", flat=True))
    for key in SigningKey.objects.active().defer("private_key"):
        if key.activated_at is None:
            continue
        ends_at = key.activated_at + period
        what = ""
        if now > ends_at + _LATE_ROTATION:
            what = f"was to be rotated at {_format(ends_at)}"
        elif now > ends_at - OVERLAP and key.algorithm not in following:
            what = f"is to be rotated at {_format(ends_at)}, and no next one is there"
        if what:
            yield build_finding(
                "key_ending",
                what=f"The {key.algorithm} key {key.kid} {what}.",
                fix=f"{_START}, which has rotate_keys.  By hand: smart_keys generate "
                f"--algorithm {key.algorithm}, and smart_keys rotate after "
                f"{OVERLAP} hours.",
            )


def _find_silence(now: datetime) -> Iterator[Finding]:
    last = TaskRun.objects.get_time(BEAT_TASK)
    if (last is not None and now - last < LONGEST_SILENCE) or not _needs_workers():
        return
    since = f"since {_format(last)}" if last else "yet"
    yield build_finding(
        "beat_missing",
        what=f"No worker has run what beat sends {since}: {_ask_workers()}.",
        fix=f"{_START}, under something that starts them again.",
    )


def _needs_workers() -> bool:
    """Whether anything here is left undone without them."""
    registrations = ClientRegistration.objects.filter(is_active=True)
    return (
        bool(conf.SMART_KEY_ROTATION)
        or registrations.filter(ehr_scope__contains="offline_access").exists()
        or registrations.filter(standalone_scope__contains="offline_access").exists()
        or TokenGrant.objects.active().offline().exists()
        or TokenGrant.objects.awaiting_revocation().exists()
    )


def _ask_workers() -> str:
    """What is known of the workers, for a person."""
    try:
        with current_app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=_BROKER)
            answers = current_app.control.ping(timeout=_ANSWER, connection=connection)
    except Exception as exc:  # noqa: BLE001 (any broker, any client library)
        return f"the broker cannot be reached ({type(exc).__name__})"
    if answers:
        return f"{len(answers)} workers answer, so beat does not run or lacks the task"
    return "no worker answers"


def _find_late_grants(now: datetime) -> Iterator[Finding]:
    late = TokenGrant.objects.usable().offline().filter(refresh_due_at__lte=now - _LATE)
    found = late.aggregate(number=Count("pk"), since=Min("refresh_due_at"))
    if found["number"]:
        yield build_finding(
            "refresh_overdue",
            what=f"{found['number']} grants are due for a refresh, the oldest since "
            f"{_format(found['since'])}.",
            fix="Run smart_refresh now; see whether beat and enough workers run, and "
            "whether their logs tell of a server that is down.",
        )


def _find_failing_grants() -> Iterator[Finding]:
    rows = (
        TokenGrant.objects.usable()
        .offline()
        .filter(refresh_failures__gte=_MANY_FAILURES)
        .order_by("registration__server__slug")
        .values("registration__server__slug")
        .annotate(number=Count("pk"), error=Max("last_error"))
    )
    for row in rows:
        yield build_finding(
            "refresh_failing",
            subject=row["registration__server__slug"],
            what=f"Refreshing fails again and again for {row['number']} grants "
            f"({row['error'] or 'unknown'}).",
            fix="Look up the error in the list of errors by code; mend what else is "
            "told of this server here, then run smart_refresh.",
        )


def _find_late_revocations(now: datetime) -> Iterator[Finding]:
    late = TokenGrant.objects.awaiting_revocation().filter(
        ended_at__lte=now - _LATE_REVOCATION
    )
    if count := late.count():
        yield build_finding(
            "revocation_overdue",
            what=f"EHRs have not been told for more than a day that {count} grants "
            "have ended.",
            fix="Run smart_purge, and see in its log whether the server is down.",
        )


def _format(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M %Z")
