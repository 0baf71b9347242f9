"""Problems in the background: keys, beat, workers and grants."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from celery import current_app
from django.utils import timezone, translation

from ...conf import conf
from ...diagnoses import Finding, Severity, build_finding
from ...grants.deployment import is_owner
from ...models import ClientRegistration, SigningKey, TaskRun, TokenGrant
from ...models.task_run import REFRESH, ROTATE_KEYS, SILENT_AFTER
from ...servers.signing_keys import OVERLAP
from ..monitoring import read_health
from .findings import collect

__all__ = ["examine_background"]

# Beat looks for due grants every ten seconds; some minutes late is no hiccup.
_LATE = timedelta(minutes=5)
# Rotation is checked every fifteen minutes.
_LATE_ROTATION = timedelta(hours=1)
_LATE_REVOCATION = timedelta(minutes=15)
# Seconds for the broker to be reached, and for workers to answer.
_BROKER, _ANSWER = 3, 1.0
_START = (
    "Start “celery beat” and a worker with the schedule django_smart.schedule."
    "BEAT_SCHEDULE"
)


def examine_background() -> list[Finding]:
    """Examine expiring keys, beat and workers, and overdue grants."""
    now = timezone.now()
    return [
        *collect("signing keys", _find_ending_keys, now),
        *collect("workers", _find_silence, now),
        *collect("stopped registrations", _find_stopped_registrations),
        *collect("due grants", _find_late_grants),
        *collect("revocations", _find_late_revocations, now),
    ]


def _find_ending_keys(now: datetime) -> Iterator[Finding]:
    period = conf.SMART_KEY_ROTATION
    if not period:
        return
    following = set(
        SigningKey.objects.following().values_list("algorithm", "registration")
    )
    for key in SigningKey.objects.active().defer("private_key"):
        if key.activated_at is None:
            continue
        has_next = (key.algorithm, key.registration_id) in following
        ends_at = key.activated_at + period
        what = ""
        if now > ends_at + _LATE_ROTATION:
            what = f"was due for rotation at {_format(ends_at)}"
        elif now > ends_at - OVERLAP and not has_next:
            what = (
                f"is due for rotation at {_format(ends_at)}, and there is no next key"
            )
        if what:
            which = f"--algorithm {key.algorithm}"
            if key.registration_id is not None:
                which += f" --registration {key.registration_id}"
            rotate = f"smart_keys rotate {which}"
            if not has_next:
                hours = OVERLAP // timedelta(hours=1)
                rotate = (
                    f"smart_keys generate {which}, and {hours} hours later {rotate}"
                )
            yield build_finding(
                "key_ending",
                what=f"The {key.algorithm} key {key.kid} {what}.",
                fix=f"{_START}, which includes rotate_keys. To rotate manually, run "
                f"{rotate}.",
            )


def _find_silence(now: datetime) -> Iterator[Finding]:
    needed = [REFRESH] if _has_offline_access() else []
    if conf.SMART_KEY_ROTATION:
        needed.append(ROTATE_KEYS)
    if not needed:
        return
    broker = _examine_broker()
    yield from broker
    last = {task: TaskRun.objects.get_time(task) for task in needed}
    silent = [
        task
        for task in needed
        if (ran_at := last[task]) is None or now - ran_at > SILENT_AFTER[task]
    ]
    is_new = all(last[task] is None for task in silent)
    # Cron may not have had its turn yet; what is late has findings of its own.
    if not silent or (is_new and len(silent) < len(needed)):
        return
    has_broker = current_app.conf.broker_url and not broker
    workers = (current_app.control.ping(timeout=_ANSWER) if has_broker else None) or []
    yield _build_silence(
        ", ".join(
            f"{task} (since {_format(ran_at)})" if (ran_at := last[task]) else task
            for task in silent
        ),
        workers=len(workers),
        is_new=is_new and bool(workers),
    )


def _build_silence(tasks: str, *, workers: int, is_new: bool) -> Finding:
    responds = {0: "No Celery worker responds", 1: "1 Celery worker responds"}
    what = responds.get(workers, f"{workers} Celery workers respond")
    if is_new:
        return build_finding(
            "beat_missing",
            severity=Severity.NOTE,
            what=f"{what}, but beat has just been started, is not running or lacks "
            f"these tasks; scheduled tasks that have not run: {tasks}.",
            fix="If beat has just been started, run smart_doctor again in a "
            f"minute. If not: {_START}.",
        )
    if workers:
        what += ", but beat is not running or lacks these tasks"
    return build_finding(
        "beat_missing",
        what=f"{what}; scheduled tasks that have not run: {tasks}.",
    )


def _has_offline_access() -> bool:
    registrations = ClientRegistration.objects.filter(is_active=True)
    return is_owner() and (
        registrations.filter(ehr_scope__contains="offline_access").exists()
        or registrations.filter(standalone_scope__contains="offline_access").exists()
        or TokenGrant.objects.active().offline().exists()
    )


def _examine_broker() -> list[Finding]:
    """Whether the site's broker can be reached; a site with cron has none."""
    if not current_app.conf.broker_url or current_app.conf.task_always_eager:
        return []
    url, fix = "", ""
    try:
        with current_app.connection_for_write() as connection:
            url = f" at {connection.as_uri()}"  # without its password
            connection.ensure_connection(max_retries=1, timeout=_BROKER)
    except ImportError as exc:
        reason = f"{url} cannot be loaded: {exc}"
        fix = (
            "Install the package that Celery needs for this broker in the "
            "environment of web processes and workers; for Redis: pip install "
            "'celery[redis]'."
        )
    except Exception as exc:  # noqa: BLE001 (any broker, any client library)
        reason = f"{url} cannot be reached: {type(exc.__cause__ or exc).__name__}"
    else:
        return []
    return [build_finding("broker_unusable", what=f"The broker{reason}.", fix=fix)]


def _find_stopped_registrations() -> Iterator[Finding]:
    for registration in ClientRegistration.objects.stopped().select_related("server"):
        since = registration.refresh_stopped_at or timezone.now()
        with translation.override(None):  # Findings are in English.
            reason = registration.get_refresh_stop_reason_display()
        yield build_finding(
            "refresh_stopped",
            subject=registration.server.slug,
            what=f"The refreshes of registration {registration.pk} were stopped at "
            f"{_format(since)}: {reason}.",
            fix="Fix the cause, then run smart_refresh --resume "
            f"{registration.server.slug}.",
        )


def _find_late_grants() -> Iterator[Finding]:
    if not is_owner():
        yield build_finding("deployment_not_adopted")
        return
    for one in read_health(active_only=True).values():
        if one.overdue > _LATE and one.oldest_due_at:
            yield build_finding(
                "refresh_overdue",
                subject=one.slug,
                what=f"{one.due} grants are due for a refresh, the oldest since "
                f"{_format(one.oldest_due_at)}.",
            )
        if one.many_failing:
            yield build_finding(
                "refresh_failing",
                subject=one.slug,
                what=f"Refreshing keeps failing for {one.offline_failing} grants "
                f"({one.last_error or 'unknown'}).",
            )


def _find_late_revocations(now: datetime) -> Iterator[Finding]:
    late = TokenGrant.objects.awaiting_revocation().filter(
        ended_at__lte=now - _LATE_REVOCATION
    )
    if count := late.count():
        yield build_finding(
            "revocation_overdue",
            what=f"{count} grants ended more than 15 minutes ago and are not yet "
            "revoked at the EHR.",
        )


def _format(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M %Z")
