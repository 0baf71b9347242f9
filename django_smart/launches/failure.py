"""What is left of a launch that went wrong: a row, a log line and a signal."""

from __future__ import annotations

import logging
import secrets

from django.utils import timezone

from ..exceptions import SMARTError
from ..fields import digest
from ..models import ClientRegistration, Launch
from ..signals import launch_failed

__all__ = ["fail_launch", "refuse_launch"]

logger = logging.getLogger(__name__)


def refuse_launch(
    registration: ClientRegistration | None, error: SMARTError, *, kind: str
) -> None:
    """
    Tell of a launch that was refused before anything was sent.

    Args:
        registration: whose launch it would have been, switched off or not; a failed
            row is kept with it.  ``None`` if the request leads to none.
        kind: ``ehr`` or ``standalone``.
    """
    launch = None
    if registration is not None:
        launch = Launch(
            registration=registration,
            kind=kind,
            # Nobody was given this state; the column wants one of its own.
            state_digest=digest(secrets.token_urlsafe(32)),
            aud=registration.server.base_url,
            redirect_uri=registration.redirect_uri,
            expires_at=timezone.now(),
        )
    fail_launch(launch, error)


def fail_launch(launch: Launch | None, error: SMARTError | None) -> None:
    """
    Mark a pending *launch* as failed with the code of *error*, and tell of it.

    Args:
        launch: ``None`` if no row belongs to the request; an unsaved one is saved.
        error: ``None`` for a fault of our own, reported as ``internal_error``.
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
    logger.warning(
        "Launch %s failed: %s", "unknown" if launch is None else launch.pk, code
    )
    launch_failed.send(sender=Launch, launch=launch, error=error)
