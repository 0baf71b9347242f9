"""Record a failed launch, and tell a later callback why it cannot be completed."""

from __future__ import annotations

import logging

from django.db import Error, router
from django.utils import timezone

from ..exceptions import SMARTError, StateError, StateUsedError
from ..models import Launch
from ..signals import launch_failed

__all__ = ["build_used_error", "fail_launch"]

logger = logging.getLogger(__name__)


def fail_launch(launch: Launch | None, error: SMARTError | None) -> None:
    """
    Mark a *launch* without tokens as failed with the code of *error*, and report it.

    Args:
        launch: ``None`` if no row belongs to the request; an unsaved one is saved.
        error: ``None`` for an internal error, reported as ``internal_error``.
    """
    code = "internal_error" if error is None else error.code
    now = timezone.now()
    try:
        if launch is not None and launch._state.adding:
            launch.code_verifier = ""
            launch.save()
            launch.move(Launch.Status.FAILED, error_code=code, ended_at=now)
        elif launch is not None:
            failed = Launch.objects.filter(pk=launch.pk)
            failed.fail(error_code=code, now=now, deviations=launch.deviations)
    except Error:
        # It may be the reason, too.
        logger.exception("Launch %s: its failure was not stored", launch and launch.pk)
    name = "unknown" if launch is None else launch.pk
    reason = "" if error is None else f" ({error})"
    logger.warning("Launch %s failed: %s%s", name, code, reason)
    launch_failed.send(sender=Launch, launch=launch, error=error)


def build_used_error(launch: Launch) -> StateError:
    """Return the error for a callback whose *launch* another has used or ended."""
    # Not from a replica, which may not have the change yet.
    stored = Launch.objects.using(router.db_for_write(Launch)).filter(pk=launch.pk)
    found = stored.values_list("status", "error_code").first()
    status, reason = found or ("", "")
    if status == Launch.Status.CONSUMED:
        # Another request is waiting for the EHR, or its process was killed.
        return StateUsedError("Another request is using it.")
    if status != Launch.Status.FAILED:
        return StateUsedError("The state of this callback was already used.")
    message = f"The launch of this callback has failed ({reason})."
    if reason == "state_expired":
        # By the purge, or by an earlier callback that was late as well.
        return StateError(message, code=reason)
    return StateUsedError(message, code="state_failed")
