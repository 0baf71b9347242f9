"""Record a failed launch: a row, a log line and a signal."""

from __future__ import annotations

import logging

from django.utils import timezone

from ..exceptions import SMARTError
from ..models import Launch
from ..signals import launch_failed

__all__ = ["fail_launch"]

logger = logging.getLogger(__name__)


def fail_launch(launch: Launch | None, error: SMARTError | None) -> None:
    """
    Mark a pending *launch* as failed with the code of *error*, and report it.

    Args:
        launch: ``None`` if no row belongs to the request; an unsaved one is saved.
        error: ``None`` for an internal error, reported as ``internal_error``.
    """
    code = "internal_error" if error is None else error.code
    if launch is not None:
        now = timezone.now()
        if launch._state.adding:
            launch.status = Launch.Status.FAILED
            launch.error_code = code
            launch.code_verifier = ""
            launch.consumed_at = launch.ended_at = now
            launch.save()
        else:
            Launch.objects.filter(pk=launch.pk).fail(error_code=code, now=now)
    name = "unknown" if launch is None else launch.pk
    reason = "" if error is None else f" ({error})"
    logger.warning("Launch %s failed: %s%s", name, code, reason)
    launch_failed.send(sender=Launch, launch=launch, error=error)
