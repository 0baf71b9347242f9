"""
Check that a refreshed launch still refers to the same patient, encounter and user.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..conf import conf
from ..exceptions import (
    ContextChangedError,
    MalformedTokenResponseError,
    SMARTError,
)
from ..models import Launch, TokenGrant
from ..protocol.context import merge_parameters
from ..servers.id_tokens import check_id_token
from ..signals import grant_lost
from .counting import count_lost
from .separate_connection import unless_locked

__all__ = ["end_changed_grant", "keep_context", "names_another_person"]

logger = logging.getLogger(__name__)


def keep_context(grant: TokenGrant, parameters: Mapping[str, Any]) -> None:
    """
    Update the open launches of *grant* with the EHR's current context (REF-06).

    Only the holder of the grant's lease calls this, so nothing is overwritten. Locked
    launches are left for the next refresh, since the tokens are stored.

    Args:
        parameters: a token response without its tokens, for the same patient and
            encounter as the grant.
    """
    launches = Launch.objects.open().filter(grant=grant)
    for launch in launches.only("context"):
        try:
            merged = merge_parameters(
                launch.context,
                parameters,
                insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
            )
        except MalformedTokenResponseError as exc:
            # Too long together with the earlier context; the tokens are valid.
            logger.warning("Launch %s: context not changed (%s)", launch.pk, exc)
            continue
        if merged != launch.context:
            with unless_locked("Launch %s is locked: context not changed", launch.pk):
                Launch.objects.filter(pk=launch.pk).update(context=merged)


def names_another_person(grant: TokenGrant, id_token: str | None) -> bool:
    """
    Return whether an ID token in a refresh response identifies another user.

    An invalid one is only logged: some servers' refreshed ID tokens have no ``aud``
    (SMART launcher, 2026), which must not end the grant.

    Spec: OpenID Connect Core 1.0 section 12.2.
    """
    # The token first: most responses have none, and the identity needs a query.
    if id_token is None or (identity := grant.identity) is None:
        return False
    nonce = grant.launches.order_by("pk").values_list("nonce", flat=True).first()
    try:
        claims = check_id_token(
            id_token,
            registration=grant.registration,
            nonce=nonce,
            nonce_required=False,
            issuer=identity.issuer,
        )
    except SMARTError as exc:
        logger.warning("Grant %s: refreshed ID token ignored (%s)", grant.pk, exc.code)
        return False
    return claims.subject != identity.subject


def end_changed_grant(grant: TokenGrant, *, now: datetime) -> None:
    """End *grant* and its launches; a worker revokes its tokens at the EHR."""
    # The grant first: without it, a launch that stays locked is useless.
    TokenGrant.objects.filter(pk=grant.pk).end_pending_revocation(now=now)
    with unless_locked("Grant %s: its launch is locked and not ended", grant.pk):
        Launch.objects.filter(grant=grant).end(reason=ContextChangedError.code, now=now)
    grant.status = TokenGrant.Status.REVOKED
    error_code = ContextChangedError.code
    count_lost(grant, error_code)
    fields = grant.build_log_fields("grant_lost", error_code=error_code)
    logger.warning("Grant %s ended: %s", grant.pk, error_code, extra=fields)
    grant_lost.send(sender=TokenGrant, grant=grant, error_code=error_code)
