"""
The EHR's response to a refresh: stored first, everything else afterwards.

The response is stored by compare-and-set on the refresh token that was used.  Then it
is checked that the launch still refers to the same patient, encounter and user.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError
from django.db.models import F
from django.db.models.functions import Greatest

from ..conf import conf
from ..exceptions import (
    ContextChangedError,
    MalformedTokenResponseError,
    ReauthorizationRequiredError,
    SMARTError,
    TokenError,
    TokenResponseError,
)
from ..models import ClientRegistration, Launch, TokenGrant
from ..protocol.context import LaunchContext, check_length, merge_parameters
from ..protocol.messages import HTTPResponse
from ..protocol.scopes import parse_stored_scopes
from ..protocol.token import (
    TokenResponse,
    find_refresh_token,
    process_refresh_response,
)
from ..servers.id_tokens import check_id_token
from ..signals import grant_lost, grant_refreshed
from .counting import count_lost
from .due_times import get_refresh_due_at, note_end
from .ending import end_changed_grant, keep_for_revocation
from .lease import get_failure_code
from .separate_connection import unless_locked
from .stopping import (
    refuses_nearly_all,
    refuses_others_too,
    resume_refreshes,
    stop_refreshes,
)
from .storing import insist

__all__ = ["take_answer", "take_refusal"]

logger = logging.getLogger(__name__)

_Stop = ClientRegistration.StopReason
# What a server answers for a while, also after the known end of a grant.
_PASSING = frozenset({"server_error", "temporarily_unavailable"})
# A grant that was refused so often with the same error, and has had no access token for
# so long, has ended if another one of its registration was refreshed meanwhile.
_REFUSALS = 5
_REFUSED_FOR = timedelta(days=1)


def take_answer(
    grant: TokenGrant, response: HTTPResponse, *, is_launched: bool = True
) -> Callable[[], bool]:
    """
    Store the EHR's response immediately (REF-14).

    Args:
        grant: with the refresh token that was sent, by the holder of the lease.
        is_launched: whether there may be an open launch, whose context is updated.

    Returns:
        A function for the rest, which may take long. It returns ``True`` if the
        response's tokens are in use and ``False`` if newer ones were stored in the
        meantime, and raises a ``GrantError`` if the grant has ended, for example
        because the response is about another patient.

    Raises:
        ContextChangedError: it names another patient, encounter or user; the launch was
            ended.
        TokenResponseError: for :func:`take_refusal`.
        TokenError: there are no new tokens for now, and the refresh token is kept; or
            the database refuses to store them, and the registration is stopped, since
            the next response would be lost as well.
    """
    used_digest = grant.refresh_token_digest
    now = grant.clock()
    try:
        tokens = _read(response, grant, now=now)
        changed = _put(tokens, grant, now=now)
    except Exception:
        # Whatever is wrong, a server that rotates knows only the new one.
        if rotated := find_refresh_token(response):
            grant.set_tokens(access_token=grant.access_token, refresh_token=rotated)
            if _keep_rotated(grant, used_digest=used_digest):
                logger.info(
                    "Grant %s: refresh token of an unusable response kept", grant.pk
                )
        raise
    # Before the new access token is used: a crash must not lose the refresh token.
    stored = _store(grant, used_digest=used_digest, changed=changed)
    finish = partial(_finish, grant, tokens, stored=stored, is_launched=is_launched)
    if tokens.context_changed:
        # No wait may keep a chart open with another patient's tokens.
        finish()
    return finish


def take_refusal(grant: TokenGrant, error: TokenResponseError) -> Callable[[], bool]:
    """
    End *grant* if the EHR has.

    Returns:
        A function for the rest, which may take long. It returns ``False`` if newer
        tokens were stored in the meantime, and raises ``ReauthorizationRequiredError``
        if the grant is lost; its tokens are kept for a day.

    Raises:
        TokenError: the error concerns something else, or nearly all grants of the
            registration at once; the refresh token is kept.
    """
    is_over = grant.ends_at is not None and grant.ends_at <= grant.clock()
    is_final = error.is_final or (
        error.error not in _PASSING and (is_over or _is_refused_alone(grant, error))
    )
    if error.error == "invalid_client" and refuses_others_too(grant):
        with unless_locked("Grant %s: its registration is locked", grant.pk):
            stop_refreshes(grant.registration, reason=_Stop.CREDENTIALS_REFUSED)
    if not is_final:
        raise error
    # A restored grant that is refused again is really gone.
    may_be_good = not (is_over or grant.was_restored)
    if may_be_good and refuses_nearly_all(grant.registration):
        raise TokenError(
            "The EHR refuses the refresh tokens of nearly all grants.",
            code="grants_refused",
        ) from error
    # No text that a server made up is stored or logged.
    code = error.error if error.is_final else get_failure_code(error)
    # Only if the refused token is still the stored one (a compare-and-set as above).
    lost = TokenGrant.objects.filter(
        pk=grant.pk, refresh_token_digest=grant.refresh_token_digest
    ).lose(error=code)
    if not lost:
        return lambda: False
    reason = "known_end" if is_over else code
    return partial(_tell_lost, grant, error, code=code, reason=reason)


def _is_refused_alone(grant: TokenGrant, error: TokenResponseError) -> bool:
    """
    Return whether only *grant* has been refused with the same error for a day.

    Some servers do not say ``invalid_grant`` for a refresh token that they no longer
    know (OpenEMR says ``invalid_request``, 2026).
    """
    since = grant.clock() - _REFUSED_FOR
    # Not just connected: a new row's times come from two clocks.
    connected = F("created_at") + timedelta(minutes=1)
    return (
        grant.last_error == get_failure_code(error)
        and grant.refresh_failures >= _REFUSALS - 1
        and grant.expires_at <= since
        and TokenGrant.objects.active()
        .filter(
            registration=grant.registration_id,
            received_at__gt=Greatest(since, connected),
        )
        .exists()
    )


def _tell_lost(
    grant: TokenGrant, error: TokenResponseError, *, code: str, reason: str
) -> bool:
    count_lost(grant, reason)
    grant.status = TokenGrant.Status.NEEDS_REAUTHORIZATION
    fields = grant.build_log_fields("grant_lost", error_code=code)
    logger.warning("Grant %s lost: %s", grant.pk, code, extra=fields)
    grant_lost.send(sender=TokenGrant, grant=grant, error_code=code)
    raise ReauthorizationRequiredError(
        "The EHR has ended this grant; its owner has to connect again."
    ) from error


def _finish(
    grant: TokenGrant, tokens: TokenResponse, *, stored: bool, is_launched: bool
) -> bool:
    if not (stored or TokenGrant.objects.active().filter(pk=grant.pk).exists()):
        # Disconnected while the response was on its way.
        keep = partial(keep_for_revocation, grant.registration, tokens)
        insist(keep, grant_id=grant.pk)
        raise ReauthorizationRequiredError("The grant was ended during its refresh.")
    if tokens.context_changed or (
        stored and _names_another_person(grant, tokens.id_token)
    ):
        end_changed_grant(grant, now=grant.received_at)
        raise ContextChangedError(
            "The EHR's refresh named another patient, encounter or person; the launch "
            "was ended."
        )
    if not stored:
        # The lease ran out, and another holder has rotated the token since.
        return False
    if is_launched:
        _keep_context(grant, tokens.parameters)
    with unless_locked("Grant %s: its registration is locked", grant.pk):
        resume_refreshes(grant.registration)
    logger.info(
        "Grant %s refreshed", grant.pk, extra=grant.build_log_fields("grant_refreshed")
    )
    grant_refreshed.send(sender=TokenGrant, grant=grant)
    return True


def _names_another_person(grant: TokenGrant, id_token: str | None) -> bool:
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


def _keep_context(grant: TokenGrant, parameters: Mapping[str, Any]) -> None:
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
            check_length(merged)
        except MalformedTokenResponseError as exc:
            # Too long together with the earlier context; the tokens are valid.
            logger.warning("Launch %s: context not changed (%s)", launch.pk, exc)
            continue
        if merged != launch.context:
            with unless_locked("Launch %s is locked: context not changed", launch.pk):
                Launch.objects.filter(pk=launch.pk).update(context=merged)


def _store(grant: TokenGrant, *, used_digest: str, changed: Collection[str]) -> bool:
    def store(write: Callable[..., bool]) -> bool:
        values = {"used_digest": used_digest, "changed": changed}
        return insist(lambda: write(grant, **values), grant_id=grant.pk)

    grants = TokenGrant.objects
    is_rotated = grant.refresh_token_digest != used_digest
    may_revive = is_rotated and grant.status == TokenGrant.Status.ACTIVE
    try:
        return (
            store(grants.store_refreshed)
            # While this process was suspended, the EHR refused the old token.
            or (may_revive and store(grants.revive))
            or insist(lambda: _is_stored(grant), grant_id=grant.pk)
        )
    except DatabaseError as exc:
        # A value that does not fit, or a column that a deployment dropped.
        is_kept = _keep_rotated(grant, used_digest=used_digest)
        try:
            stop_refreshes(grant.registration, reason=_Stop.TOKENS_NOT_STORED)
        except DatabaseError:
            registration_id = grant.registration_id
            logger.exception("Registration %s was not stopped", registration_id)
        logger.critical(
            "Grant %s: the database refused its new tokens (%s); the refresh token "
            "was %s.",
            grant.pk,
            type(exc).__name__,
            "stored alone" if is_kept else "lost",
        )
        raise TokenError(
            "The database refused the new tokens.", code="tokens_not_stored"
        ) from exc


def _is_stored(grant: TokenGrant) -> bool:
    # The connection broke after the UPDATE, before its result arrived.
    return TokenGrant.objects.filter(
        pk=grant.pk,
        refresh_token_digest=grant.refresh_token_digest,
        received_at=grant.received_at,
    ).exists()


def _read(response: HTTPResponse, grant: TokenGrant, *, now: datetime) -> TokenResponse:
    return process_refresh_response(
        response,
        granted=parse_stored_scopes(grant.scope_granted),
        now=now,
        previous_context=LaunchContext(
            patient=grant.patient_id or None, encounter=grant.encounter_id or None
        ),
        context_in_access_token=grant.registration.server.quirks.context_in_access_token,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )


def _keep_rotated(grant: TokenGrant, *, used_digest: str) -> bool:
    try:
        return insist(
            lambda: TokenGrant.objects.store_rotated(grant, used_digest=used_digest),
            grant_id=grant.pk,
        )
    except DatabaseError:
        return False


def _put(tokens: TokenResponse, grant: TokenGrant, *, now: datetime) -> list[str]:
    """Put *tokens* into *grant*; return which fields to store beside the usual ones."""
    changed, previous_end = [], grant.ends_at
    note_end(
        grant,
        reported=tokens.refresh_expires_at,
        is_new=tokens.refresh_token not in {None, grant.refresh_token},
        now=now,
    )
    grant.receive(
        access_token=tokens.access_token,
        # If the server does not rotate, the old one remains valid (REF-07).
        refresh_token=tokens.refresh_token or grant.refresh_token,
        expires_at=tokens.expires_at,
        now=now,
    )
    if not tokens.context_changed:
        # Context sent after the launch applies from then on.
        grant.patient_id = tokens.context.patient or ""
        grant.encounter_id = tokens.context.encounter or ""
    grant.scope = str(tokens.scopes)
    grant.refresh_due_at = get_refresh_due_at(grant) if grant.is_offline else None
    if grant.ends_at != previous_end:
        # A new end was not announced, whatever was announced of the old one meanwhile.
        changed.append("end_announced")
    if tokens.context_changed:
        # In the same statement: nobody may use another patient's token in this chart.
        grant.status = TokenGrant.Status.REVOKED
        grant.ended_at, grant.refresh_due_at = now, None
        grant.is_revocation_pending = True
        changed += ["status", "ended_at", "is_revocation_pending"]
    return changed
