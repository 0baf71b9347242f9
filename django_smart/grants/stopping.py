"""
Stop the refreshes of a registration for a reason that is common to all its grants.

The state is in its row, where pages and workers find it; its times come from the
database's clock.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import router, transaction

from ..models import ClientRegistration, TokenGrant
from ..models.clock import DatabaseNow
from .storing import can_store

__all__ = [
    "may_refresh",
    "refuses_nearly_all",
    "refuses_others_too",
    "resume_refreshes",
    "stop_refreshes",
]

logger = logging.getLogger(__name__)

_Stop = ClientRegistration.StopReason
# Why, and what resumes it beside an operator.
_STOPPED = {
    _Stop.CREDENTIALS_REFUSED: (
        "the server refused our credentials (invalid_client)",
        ", or its credentials are changed",
    ),
    _Stop.GRANTS_REFUSED: (
        "the server refuses the refresh tokens of nearly all grants",
        "",
    ),
    _Stop.TOKENS_NOT_STORED: (
        "the database refused to store new tokens",
        ", or the database stores them again",
    ),
}
# So many refusals with hardly a success in between are no coincidence.
_LOST_AT_ONCE = 20
_LOST_WITHIN = timedelta(hours=1)
# Time between two attempts for a stopped registration.
_PROBE_PAUSE = timedelta(minutes=5)


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
    # Credentials are tried again immediately: the grants may have been refused instead.
    is_tried_now = reason == _Stop.CREDENTIALS_REFUSED
    stopped = rows.update(
        refresh_stopped_at=DatabaseNow(),
        refresh_stop_reason=reason,
        refresh_probe_at=DatabaseNow() if is_tried_now else DatabaseNow(_PROBE_PAUSE),
    )
    if stopped:
        why, resumed_by = _STOPPED[_Stop(reason)]
        logger.error(
            "Registration %s: %s. Its grants are kept and not refreshed until the "
            "registration is resumed in the admin or by smart_refresh --resume%s.",
            registration.pk,
            why,
            resumed_by,
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
    lost = grants.lost(within=_LOST_WITHIN).filter(was_restored=False)
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
