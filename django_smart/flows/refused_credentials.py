"""A server that does not know us any more: ask for nothing until that is mended."""

from __future__ import annotations

import logging

from django.utils import timezone

from ..models import ClientRegistration, TokenGrant

__all__ = ["resume_refreshes", "stop_refreshes"]

logger = logging.getLogger(__name__)

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
