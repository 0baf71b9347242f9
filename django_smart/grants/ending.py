"""
End launches and the grants that are no longer needed, and revoke their tokens.

The row is the outbox: what ends is marked in the transaction that ends it, and
:func:`revoke_pending` revokes it at the EHR later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from functools import partial

from django.db import router, transaction
from django.db.models import Count, Exists, Max, OuterRef
from django.utils import timezone

from ..conf import conf
from ..exceptions import ContextChangedError, SMARTError, TokenResponseError
from ..models import ClientRegistration, Launch, TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import can_be_deactivated
from ..models.launch import LaunchQuerySet
from ..protocol.token import TokenResponse
from ..protocol.token_management import (
    build_revocation_request,
    process_revocation_response,
)
from ..servers.discovery import get_configuration
from ..servers.http import build_client_authentication, send
from ..signals import grant_ending, grant_lost, grant_revoked
from .counting import count_lost
from .deployment import is_owner
from .lease import lease_length, new_owner
from .pacing import is_outage
from .separate_connection import unless_locked

__all__ = [
    "announce_ends",
    "disconnect_grant",
    "end_changed_grant",
    "end_idlest_launches",
    "end_launches",
    "end_unused_grants",
    "keep_for_revocation",
    "revoke_pending",
    "revoke_tokens",
    "supersede_all",
    "supersede_grants",
]

logger = logging.getLogger(__name__)

# The error in RFC 6749 section 5.2 that does not concern the token: the same request
# may succeed with another secret or key.
_CLIENT_REFUSED = "invalid_client"
# How long tokens wait after a failed attempt, and the others of a server that did not
# respond.  Those of a server that took longer than these seconds wait for a while, too.
_WAIT = timedelta(minutes=15)
_SLOW, _WAIT_OF_SLOW = 5.0, timedelta(minutes=1)


def end_launches(launches: LaunchQuerySet, *, reason: str, now: datetime) -> None:
    """End *launches*, and the grants that do not outlive them."""
    grant_ids = list(
        launches.open()
        .filter(grant__isnull=False, grant__is_offline=False)
        .values_list("grant_id", flat=True)
    )
    launches.end(reason=reason, now=now)
    grants = TokenGrant.objects.filter(pk__in=grant_ids).exclude(_is_in_use(now))
    _end_grants(grants.values_list("pk", flat=True), now=now)


def end_idlest_launches(
    launch: Launch, browser_digests: Collection[str], *, now: datetime
) -> bool:
    """
    Keep a browser to ``SMART_LAUNCHES_PER_BROWSER``, of which *launch* is the newest.

    Two launches that complete at the same moment do not see each other; the next one
    sees both.

    Returns:
        Whether any was ended.
    """
    if len(browser_digests) < conf.SMART_LAUNCHES_PER_BROWSER:
        return False  # Each launch has a cookie of its own.
    others = (
        Launch.objects.of_browser(browser_digests)
        .live(now)
        .exclude(pk=launch.pk)
        .order_by("-last_used_at", "-pk")
        .values_list("pk", flat=True)
    )
    if surplus := list(others[conf.SMART_LAUNCHES_PER_BROWSER - 1 :]):
        launches = Launch.objects.filter(pk__in=surplus)
        end_launches(launches, reason="too_many_open", now=now)
    return bool(surplus)


def disconnect_grant(grant: TokenGrant) -> None:
    """
    End one grant, and the launches that use it, at its owner's request.

    This includes a grant that the EHR has rejected, because an operator could restore
    it.  A grant that ended because of another patient is no longer listed.
    """
    now = timezone.now()
    changed = TokenGrant.objects.filter(
        status=TokenGrant.Status.REVOKED, last_error=ContextChangedError.code
    )
    changed.filter(pk=grant.pk).update(last_error="")
    Launch.objects.filter(grant=grant).end(reason="disconnected", now=now)
    _end_grants([grant.pk], now=now)


def supersede_grants(grant: TokenGrant, *, now: datetime) -> None:
    """End the older offline grants that *grant* replaces and no live launch uses."""
    if not grant.is_offline or grant.user_id is None:
        return
    older = (
        TokenGrant.objects.active()
        .offline()
        .filter(
            user_id=grant.user_id,
            registration_id=grant.registration_id,
            patient_id=grant.patient_id,
            pk__lt=grant.pk,
        )
        .exclude(_is_in_use(now))
        .only("user", "registration", "patient_id", "identity")
    )
    # Patient ids differ in case; not every database's comparison does.
    same = [each.pk for each in older if each.is_same_connection_as(grant)]
    _end_grants(same, now=now)


def end_changed_grant(grant: TokenGrant, *, now: datetime) -> None:
    """End *grant* and its launches, and have its tokens revoked at the EHR."""
    error_code = ContextChangedError.code
    # The grant first: without it, a launch that stays locked is useless.
    row = TokenGrant.objects.filter(pk=grant.pk)
    row.end_pending_revocation(now=now)
    # For its owner's list: the grant may have ended when a worker refreshed it.
    row.update(last_error=error_code)
    with unless_locked("Grant %s: its launch is locked and not ended", grant.pk):
        Launch.objects.filter(grant=grant).end(reason=error_code, now=now)
    grant.status = TokenGrant.Status.REVOKED
    count_lost(grant, error_code)
    fields = grant.build_log_fields("grant_lost", error_code=error_code)
    logger.warning("Grant %s ended: %s", grant.pk, error_code, extra=fields)
    grant_lost.send(sender=TokenGrant, grant=grant, error_code=error_code)


def supersede_all(*, now: datetime) -> None:
    """
    End offline grants that a newer one has replaced, once no launch uses them.

    The newest of several counts for each user, client and patient, and also for each
    EHR account of the user, because none replaces another's grants without a patient
    (:meth:`TokenGrant.is_same_connection_as`).
    """
    grants = TokenGrant.objects.active().offline().filter(user__isnull=False)
    columns = ("user_id", "registration_id", "patient_id")
    newest: set[int] = set()
    for names in (columns, (*columns, "identity_id")):
        several = (
            grants.order_by()
            .values(*names)
            .annotate(newest=Max("pk"), number=Count("pk"))
            .filter(number__gt=1)
        )
        newest.update(row["newest"] for row in several)
    for grant in TokenGrant.objects.filter(pk__in=newest).iterator():
        supersede_grants(grant, now=now)


def end_unused_grants(*, now: datetime) -> None:
    """End grants of deactivated users, and those that outlive their launch."""
    active = TokenGrant.objects.active()
    launched = active.exclude(kind=TokenGrant.Kind.CLIENT_CREDENTIALS)
    unused = [launched.filter(is_offline=False).exclude(_is_in_use(now))]
    if can_be_deactivated():
        unused.append(active.filter(user__is_active=False))
    for grants in unused:
        for grant in grants.iterator():
            disconnect_grant(grant)


def announce_ends() -> int:
    """
    Send ``grant_ending`` once for each grant whose known end is near.

    Returns:
        How many were announced.
    """
    if not is_owner():
        # A copy of the database must not notify anybody.
        return 0
    waiting = TokenGrant.objects.ending().filter(end_announced=False)
    announced = 0
    for grant_id in list(waiting.values_list("pk", flat=True)):
        # If two runs coincide, only one changes the row.
        if not waiting.filter(pk=grant_id).update(end_announced=True):
            continue
        grants = TokenGrant.objects.select_related("registration__server", "user")
        if (grant := grants.filter(pk=grant_id).first()) is None:
            continue
        fields = grant.build_log_fields("grant_ending")
        logger.info("Grant %s ends at %s", grant.pk, grant.ends_at, extra=fields)
        # Robust: a failing receiver must not keep other owners from being notified.
        grant_ending.send_robust(sender=TokenGrant, grant=grant)
        announced += 1
    return announced


def keep_for_revocation(
    registration: ClientRegistration, tokens: TokenResponse
) -> None:
    """Keep *tokens* that nobody may use here until the EHR has revoked them."""
    now = timezone.now()
    grant = TokenGrant(
        registration=registration,
        status=TokenGrant.Status.REVOKED,
        is_revocation_pending=True,
        scope=str(tokens.scopes),
        received_at=now,
        expires_at=tokens.expires_at,
        ended_at=now,
    )
    grant.set_tokens(
        access_token=tokens.access_token, refresh_token=tokens.refresh_token or ""
    )
    grant.save()


def revoke_pending(*, seconds: float = 10.0) -> int:
    """
    Revoke the tokens of ended grants at their EHRs, then delete them here (SEC-12).

    One process at a time does so, whoever calls it.  A request that was lost with its
    process, or failed, is repeated later.  What was tried before comes last, so that no
    EHR can keep others waiting.

    Args:
        seconds: after which nothing more is begun; the next run goes on.

    Returns:
        How many grants were revoked.
    """
    # In a copy of the database, grants in use elsewhere look unused.
    leased = TokenGrant.objects.awaiting_revocation().exclude(lease_owner="")
    is_served = leased.filter(lease_expires_at__gt=DatabaseNow())
    if not is_owner() or is_served.exists():
        return 0
    owner, number, ends_at = new_owner(), 0, time.monotonic() + seconds
    while time.monotonic() < ends_at:
        take = TokenGrant.objects.take_revocation
        if (grant := take(owner=owner, length=lease_length())) is None:
            break
        number += _revoke(grant)
    return number


def _revoke(grant: TokenGrant) -> bool:
    started = time.monotonic()
    postpone = TokenGrant.objects.postpone_revocations
    try:
        revoke_tokens(grant)
    except SMARTError as exc:
        logger.warning("Grant %s: not revoked yet (%s)", grant.pk, exc.code)
        postpone(grant, length=_WAIT, with_others=is_outage(exc))
        return False
    TokenGrant.objects.filter(pk=grant.pk).forget_tokens()
    fields = grant.build_log_fields("grant_revoked")
    logger.info("Grant %s revoked", grant.pk, extra=fields)
    if time.monotonic() - started > _SLOW:
        postpone(grant, length=_WAIT_OF_SLOW, with_others=True)
    return True


def revoke_tokens(grant: TokenGrant) -> None:
    """
    Revoke the tokens of *grant* at the EHR; its row does not change.

    Also returns if the EHR does not support revocation, or if another grant needs the
    same refresh token: some servers issue it again at a second launch.

    Raises:
        TransportError, DiscoveryError, TokenError, CredentialsError: the EHR could not
            be reached, or did not confirm.
    """
    if not (grant.refresh_token or grant.access_token) or _is_shared(grant):
        return
    registration = grant.registration
    configuration = get_configuration(registration.server, registration.client_id)
    endpoint = configuration.revocation_endpoint
    if endpoint is None:
        return
    # The refresh token first: most servers revoke its access tokens with it.
    tokens = (
        (grant.refresh_token, "refresh_token"),
        (grant.access_token, "access_token"),
    )
    for token, hint in tokens:
        if not token:
            continue
        response = send(
            build_revocation_request(
                revocation_endpoint=endpoint,
                token=token,
                token_type_hint=hint,
                client_authentication=build_client_authentication(
                    grant.registration, token_endpoint=configuration.token_endpoint
                ),
            ),
            server=grant.registration.server,
        )
        try:
            process_revocation_response(response)
        except TokenResponseError as exc:
            if exc.error == _CLIENT_REFUSED:
                raise
            # The token itself was refused, and would be again.
            logger.warning("Grant %s: its revocation was refused", grant.pk)


def _is_shared(grant: TokenGrant) -> bool:
    if not grant.refresh_token_digest:
        return False
    # Whoever its user is: a grant that is held, or was refused, has none yet.
    same = TokenGrant.objects.filter(
        status__in=(TokenGrant.Status.ACTIVE, TokenGrant.Status.HELD),
        registration_id=grant.registration_id,
        refresh_token_digest=grant.refresh_token_digest,
    )
    return same.exclude(pk=grant.pk).exists()


def _end_grants(grant_ids: Iterable[int], *, now: datetime) -> None:
    for grant in TokenGrant.objects.endable().filter(pk__in=list(grant_ids)):
        # One by one: a grant that ended elsewhere in the meantime is not revoked twice.
        if TokenGrant.objects.filter(pk=grant.pk).end_pending_revocation(now=now):
            grant.status = TokenGrant.Status.REVOKED
            # Robust: the others end as well if a receiver of the site fails.
            transaction.on_commit(
                partial(grant_revoked.send_robust, sender=TokenGrant, grant=grant),
                using=router.db_for_write(TokenGrant),
            )


def _is_in_use(now: datetime) -> Exists:
    # Asked for each grant, which has an index: a list of all that are in use would need
    # every launch.
    return Exists(Launch.objects.live(now).filter(grant=OuterRef("pk")))
