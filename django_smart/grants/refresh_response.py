"""
What an EHR answers to a refresh: stored first, and all else after that.

The answer is written by compare-and-set on the refresh token that was used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    ContextChangedError,
    MalformedTokenResponseError,
    ReauthorizationRequiredError,
    SMARTError,
    TokenResponseError,
)
from ..models import TokenGrant
from ..protocol.context import LaunchContext
from ..protocol.messages import HTTPResponse
from ..protocol.scopes import ScopeSet
from ..protocol.token import (
    TokenResponse,
    find_refresh_token,
    process_refresh_response,
)
from ..signals import grant_lost, grant_refreshed
from .due_times import get_refresh_due_at
from .ending import revoke_tokens
from .same_context import end_changed_grant, keep_context, names_another_person
from .separate_connection import unless_locked
from .server_limits import resume_refreshes, stop_refreshes
from .storing import insist

__all__ = ["take_answer", "take_refusal"]

logger = logging.getLogger(__name__)


def take_answer(
    grant: TokenGrant, response: HTTPResponse, *, is_launched: bool = True
) -> Callable[[], bool]:
    """
    Store what the EHR answered, at once (REF-14).

    Args:
        grant: with the refresh token that was sent, by the holder of the lease.
        is_launched: whether there may be an open launch, whose context goes along.

    Returns:
        What is left to do, and may take long.  It returns whether the tokens are those
        of the answer, ``False`` if newer ones were stored while it came, and raises a
        ``GrantError`` if the grant has ended, perhaps as it is about somebody else.

    Raises:
        ContextChangedError: it names another patient, encounter or person; the launch
            was ended.
        TokenResponseError: for :func:`take_refusal`.
        TokenError: there are no new tokens for now; the refresh token is kept.
    """
    used_digest = grant.refresh_token_digest
    now = grant.clock()
    tokens = _read(response, grant, now=now)
    _put(tokens, grant, now=now)
    # Before the new access token is used: a crash must not lose the refresh token.
    stored = insist(
        lambda: TokenGrant.objects.store_refreshed(grant, used_digest=used_digest)
    ) or _is_stored(grant)
    finish = partial(_finish, grant, tokens, stored=stored, is_launched=is_launched)
    if tokens.context_changed:
        # Nothing that waits may keep a chart open for another patient's tokens.
        finish()
    return finish


def take_refusal(grant: TokenGrant, error: TokenResponseError) -> bool:
    """
    End *grant* if the EHR has; returns ``False`` if newer tokens were stored meanwhile.

    Raises:
        ReauthorizationRequiredError: the EHR has ended the grant; it is lost.
        TokenResponseError: it is about something else; the refresh token is kept.
    """
    if error.error == "invalid_client":
        with unless_locked("Grant %s: its registration is locked", grant.pk):
            stop_refreshes(grant.registration)
    if not error.is_final:
        raise error
    if not _lose(grant, error_code=error.error):
        # The lease ran out, and another holder has rotated the token since.
        return False
    raise ReauthorizationRequiredError(
        "The EHR has ended this grant; its owner has to connect again."
    ) from error


def _finish(
    grant: TokenGrant, tokens: TokenResponse, *, stored: bool, is_launched: bool
) -> bool:
    if tokens.context_changed or (
        stored and names_another_person(grant, tokens.id_token)
    ):
        end_changed_grant(grant, now=grant.received_at)
        raise ContextChangedError(
            "The EHR's refresh named another patient, encounter or person; the launch "
            "was ended."
        )
    if not stored:
        if TokenGrant.objects.active().filter(pk=grant.pk).exists():
            # The lease ran out, and another holder has rotated the token since.
            return False
        _drop_unwanted(grant)
        raise ReauthorizationRequiredError("The grant was ended during its refresh.")
    if is_launched:
        keep_context(grant, tokens.parameters)
    with unless_locked("Grant %s: its registration is locked", grant.pk):
        resume_refreshes(grant.registration)
    logger.info(
        "Grant %s refreshed", grant.pk, extra=grant.build_log_fields("grant_refreshed")
    )
    grant_refreshed.send(sender=TokenGrant, grant=grant)
    return True


def _is_stored(grant: TokenGrant) -> bool:
    # The connection broke after the UPDATE and before its result came.
    return (
        TokenGrant.objects.active()
        .filter(
            pk=grant.pk,
            refresh_token_digest=grant.refresh_token_digest,
            received_at=grant.received_at,
        )
        .exists()
    )


def _read(response: HTTPResponse, grant: TokenGrant, *, now: datetime) -> TokenResponse:
    try:
        return process_refresh_response(
            response,
            granted=ScopeSet.parse(grant.scope_granted),
            now=now,
            previous_context=LaunchContext(
                patient=grant.patient_id or None, encounter=grant.encounter_id or None
            ),
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        )
    except MalformedTokenResponseError:
        if rotated := find_refresh_token(response):
            _keep_rotated(grant, rotated)
        raise


def _keep_rotated(grant: TokenGrant, refresh_token: str) -> None:
    used_digest = grant.refresh_token_digest
    grant.set_tokens(access_token=grant.access_token, refresh_token=refresh_token)
    if insist(lambda: TokenGrant.objects.store_rotated(grant, used_digest=used_digest)):
        logger.info("Grant %s: refresh token kept of a bad answer", grant.pk)


def _put(tokens: TokenResponse, grant: TokenGrant, *, now: datetime) -> None:
    grant.set_tokens(
        access_token=tokens.access_token,
        # A server that does not rotate leaves the old one in force (REF-07).
        refresh_token=tokens.refresh_token or grant.refresh_token,
    )
    if not tokens.context_changed:
        # Context that comes later than the launch holds from then on.
        grant.patient_id = tokens.context.patient or ""
        grant.encounter_id = tokens.context.encounter or ""
    grant.scope = str(tokens.scopes)
    grant.received_at = now
    grant.expires_at = tokens.expires_at
    grant.refresh_due_at = get_refresh_due_at(grant) if grant.is_offline else None
    grant.refresh_failures = 0
    grant.last_error = ""
    grant.lease_owner = ""
    grant.lease_expires_at = None


def _lose(grant: TokenGrant, *, error_code: str) -> bool:
    # Only if the refused token is still the stored one (a compare-and-set as above).
    ended = TokenGrant.objects.filter(
        pk=grant.pk, refresh_token_digest=grant.refresh_token_digest
    ).end(TokenGrant.Status.NEEDS_REAUTHORIZATION, now=timezone.now(), error=error_code)
    if ended:
        grant.status = TokenGrant.Status.NEEDS_REAUTHORIZATION
        fields = grant.build_log_fields("grant_lost", error_code=error_code)
        logger.warning("Grant %s lost: %s", grant.pk, error_code, extra=fields)
        grant_lost.send(sender=TokenGrant, grant=grant, error_code=error_code)
    return bool(ended)


def _drop_unwanted(grant: TokenGrant) -> None:
    # Disconnected while the answer was under way: its tokens are not ours to keep.  The
    # row's own, which the answer may have outdated, are told of as for any other end.
    try:
        revoke_tokens(grant)
    except SMARTError as exc:
        logger.warning("Grant %s: unwanted tokens not revoked (%s)", grant.pk, exc.code)
