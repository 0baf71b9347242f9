"""Complete a launch: from the callback to tokens, an identity and a context."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    IdentityError,
    IdentityInUseError,
    IDTokenError,
    InactiveRegistrationError,
    SMARTError,
    StateError,
    StateUsedError,
    TokenError,
    UserInactiveError,
)
from ..grants.due_times import get_refresh_due_at
from ..grants.ending import end_idlest_launches, end_launches, supersede_grants
from ..grants.storing import store_together
from ..models import ClientRegistration, Identity, Launch, TokenGrant
from ..models.launch import LaunchQuerySet
from ..protocol.authorization import get_state, process_authorization_response
from ..protocol.discovery import SMARTConfiguration
from ..protocol.id_token import IDTokenClaims
from ..protocol.scopes import ScopeSet
from ..protocol.token import (
    TokenResponse,
    build_token_request,
    process_token_response,
)
from ..servers.discovery import check_dispute, get_configuration, get_issuer
from ..servers.http import build_client_authentication, send
from ..servers.id_tokens import check_id_token
from .failure import fail_launch

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = ["Completion", "UserResolver", "complete_launch"]

logger = logging.getLogger(__name__)

UserResolver = Callable[[IDTokenClaims, ClientRegistration], "AbstractBaseUser"]
"""Finds or creates the user of proven claims; raises ``IdentityError`` to refuse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """
    A completed launch.

    Attributes:
        launch: with its grant and registration.
        user: who has to be signed in now, or ``None`` if nobody changes.
        claims: who the EHR says it is, or ``None`` if it was not asked or did not say.
        ended_earlier: whether another user's launches in this browser were ended, so
            that the browser cookie has to be replaced by the new one.
        grants_to_revoke: primary keys of grants the EHR has to be told of.
    """

    launch: Launch
    user: AbstractBaseUser | None
    claims: IDTokenClaims | None
    ended_earlier: bool
    grants_to_revoke: Sequence[int]


def complete_launch(
    parameters: Sequence[tuple[str, str]],
    *,
    callback_id: str,
    browser_digests: Sequence[str],
    digests_at_start: Collection[str],
    new_browser_digest: str,
    user: AbstractBaseUser | None,
    resolve_user: UserResolver,
) -> Completion:
    """
    Use what the browser brought to the redirect URI.

    Call it outside any transaction: a failed launch keeps its row.

    Args:
        parameters: the query, as pairs in order.
        callback_id: of the redirect URI that the browser was sent to.
        browser_digests: of the browser's cookie, and of others it got when it made
            several first requests at one moment; empty without one.
        digests_at_start: those, and of one that was replaced a short while ago.
        new_browser_digest: of the cookie that replaces it if the user changes.
        user: who is signed in, or ``None``.
        resolve_user: called for a sign-in whose identity is proven.

    Raises:
        AuthorizationResponseError, InactiveRegistrationError, TransportError,
        DiscoveryError, TokenError, IDTokenError, IdentityError, CredentialsError: the
            launch, if one was found, is marked as failed; nobody is to be signed in,
            and no token is stored.
    """
    launch: Launch | None = None
    try:
        launch = _find_launch(get_state(parameters))
        _consume(launch, digests=digests_at_start)
        _check_callback(launch, callback_id)
        launch.browser_digest = browser_digests[0]
        completion = _complete(
            launch,
            parameters,
            browser_digests=browser_digests,
            new_browser_digest=new_browser_digest,
            user=user,
            resolve_user=resolve_user,
        )
    except SMARTError as exc:
        # A state that was used leads to somebody's finished launch: leave it alone.
        fail_launch(None if isinstance(exc, StateUsedError) else launch, exc)
        raise
    except Exception:
        fail_launch(launch, None)
        raise
    logger.info("Launch %s completed", launch.pk)
    return completion


def _find_launch(state: str) -> Launch:
    launch = Launch.objects.find_with_state(state)
    if launch is None:
        raise StateError(
            "No launch was started with the state of this callback.",
            code="state_unknown",
        )
    return launch


def _consume(launch: Launch, *, digests: Collection[str]) -> None:
    if launch.status != Launch.Status.PENDING or launch.consumed_at is not None:
        raise StateUsedError("The state of this callback was used before.")
    if not any(secrets.compare_digest(launch.browser_digest, each) for each in digests):
        raise StateError(
            "The launch of this callback was started by another browser.",
            code="state_foreign",
        )
    now = timezone.now()
    if now >= launch.expires_at:
        raise StateError(
            "The launch of this callback was started too long ago.",
            code="state_expired",
        )
    if not Launch.objects.consume(launch, now=now):
        # Another callback with this state came between our read and our write.
        raise StateUsedError("The state of this callback was used before.")
    launch.consumed_at = now


def _check_callback(launch: Launch, callback_id: str) -> None:
    """
    Refuse a code that another server's redirect URI brought.

    A hostile server can send a browser on to an honest one, with the state of its own
    launch.  The honest server then redirects to the callback that belongs to it, and
    its code must not reach the hostile token endpoint (RFC 9700 section 4.4).
    """
    if callback_id != launch.callback_id:
        raise StateError(
            f"The response to launch {launch.pk} of registration "
            f"{launch.registration_id} came to the callback {callback_id!r}, not to "
            f"{launch.callback_id!r}: another server may have sent it.",
            code="callback_mismatch",
        )


def _complete(
    launch: Launch,
    parameters: Sequence[tuple[str, str]],
    *,
    browser_digests: Sequence[str],
    new_browser_digest: str,
    user: AbstractBaseUser | None,
    resolve_user: UserResolver,
) -> Completion:
    registration = launch.registration
    if not (registration.is_active and registration.server.is_active):
        raise InactiveRegistrationError(
            "The server or its registration was switched off after the launch began."
        )
    configuration = get_configuration(registration.server)
    answer = process_authorization_response(
        parameters,
        expected_issuer=_get_expected_issuer(launch, configuration, parameters),
        issuer_promised=configuration.authorization_response_iss_parameter_supported,
    )
    if launch.intent == Launch.Intent.CONNECT and not _is_same(user, launch.user):
        raise IdentityError(
            "Another user is signed in than the one who started to connect.",
            code="user_changed",
        )
    tokens = _exchange_code(launch, configuration, code=answer.code)
    _check_patient(tokens)
    claims = _validate_identity(launch, tokens)
    if claims is None and not _is_same(user, launch.user):
        # Without an identity the launch belongs to whoever was there at its start.
        raise IdentityError(
            "The signed-in user changed while the launch was under way.",
            code="user_changed",
        )
    store = partial(
        _store,
        launch,
        tokens,
        claims,
        browser_digests=browser_digests,
        new_browser_digest=new_browser_digest,
        user=user,
        resolve_user=resolve_user,
    )
    start = launch.user, launch.browser_digest

    def restart() -> None:
        launch.user, launch.browser_digest = start

    return store_together(store, restart=restart)


def _get_expected_issuer(
    launch: Launch,
    configuration: SMARTConfiguration,
    parameters: Sequence[tuple[str, str]],
) -> str | None:
    """What an ``iss`` has to be, learned now if the response has one (RFC 9207)."""
    server = launch.registration.server
    issuer = configuration.issuer or server.id_token_issuer or server.issuer
    if issuer or "iss" not in dict(parameters):
        return issuer or None
    try:
        return get_issuer(server)
    except SMARTError:
        # Where an identity is asked for, it is needed in any case.
        if "openid" in launch.scope_asked.split():
            raise
        return None


def _exchange_code(
    launch: Launch, configuration: SMARTConfiguration, *, code: str
) -> TokenResponse:
    # The token endpoint is the one of this state's server: mix-up defence (CALL-09).
    token_endpoint = configuration.token_endpoint
    request = build_token_request(
        token_endpoint=token_endpoint,
        code=code,
        redirect_uri=launch.redirect_uri,
        code_verifier=launch.code_verifier or None,
        client_authentication=build_client_authentication(
            launch.registration, token_endpoint=token_endpoint
        ),
    )
    response = send(request)
    return process_token_response(
        response,
        requested=ScopeSet.parse(launch.scope_asked),
        now=timezone.now(),
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )


def _check_patient(tokens: TokenResponse) -> None:
    if tokens.context.patient is None and any(
        scope.startswith(("patient/", "launch/patient"))
        for scope in str(tokens.scopes).split()
    ):
        raise TokenError(
            "The server granted scopes for one patient and did not name the patient.",
            code="patient_missing",
        )


def _validate_identity(launch: Launch, tokens: TokenResponse) -> IDTokenClaims | None:
    if "openid" not in launch.scope_asked.split():
        return None
    if tokens.id_token is None:
        if "openid" in tokens.scopes:
            raise IDTokenError(
                "openid was granted, and no id_token came.", code="id_token_missing"
            )
        return None
    claims = check_id_token(
        tokens.id_token,
        registration=launch.registration,
        nonce=launch.nonce,
        nonce_required=launch.registration.server.nonce_required,
    )
    # Checking it may have learned the issuer just now.
    check_dispute(launch.registration.server)
    return claims


def _store(
    launch: Launch,
    tokens: TokenResponse,
    claims: IDTokenClaims | None,
    *,
    browser_digests: Sequence[str],
    new_browser_digest: str,
    user: AbstractBaseUser | None,
    resolve_user: UserResolver,
) -> Completion:
    now = timezone.now()
    owner: AbstractBaseUser | None = launch.user
    if claims is not None:
        owner = _get_owner(launch, claims, resolve_user)
        launch.identity = _link_identity(launch, claims, owner, now=now)
        launch.fhir_user = claims.fhir_user or ""
    launches = Launch.objects.of_browser(browser_digests)
    open_users = list(launches.open().values_list("user_id", flat=True))
    others = _find_launches_of_others(launches, open_users, user=user, owner=owner)
    ended_earlier = others is not None
    to_revoke: list[int] = []
    if others is not None:
        to_revoke += end_launches(others, reason="user_changed", now=now)
        launch.browser_digest = new_browser_digest
    launch.user = cast("Any", owner)
    launch.grant = _create_grant(launch, tokens, now=now)
    launch.status = Launch.Status.COMPLETED
    launch.completed_at = launch.last_used_at = now
    launch.scope_granted = str(tokens.scopes)
    launch.context = dict(tokens.parameters)
    launch.code_verifier = ""
    if not Launch.objects.complete(launch):
        # Its browser signed out, or it ran out of time, while the tokens came.
        raise StateUsedError("The launch was ended before it could be finished.")
    if len(open_users) >= conf.SMART_LAUNCHES_PER_BROWSER:
        digests = [launch.browser_digest, *browser_digests]
        to_revoke += end_idlest_launches(launch, digests, now=now)
    to_revoke += supersede_grants(launch.grant, now=now)
    changes = owner is not None and not _is_same(user, owner)
    return Completion(
        launch=launch,
        user=owner if changes else None,
        claims=claims,
        ended_earlier=ended_earlier,
        grants_to_revoke=to_revoke,
    )


def _find_launches_of_others(
    launches: LaunchQuerySet,
    open_users: Sequence[Any],
    *,
    user: AbstractBaseUser | None,
    owner: AbstractBaseUser | None,
) -> LaunchQuerySet | None:
    """
    What ends because *owner* takes the browser over; ``None`` if nobody else had it.

    *open_users* are whose the open ones of its *launches* are.

    Also without a signed-in *user*: a session that ran out ends no launch.
    """
    if user is not None and not _is_same(user, owner):
        return launches
    if owner is None or set(open_users) <= {None, owner.pk}:
        return None
    return launches.filter(user__isnull=False).exclude(user_id=owner.pk)


def _get_owner(
    launch: Launch, claims: IDTokenClaims, resolve_user: UserResolver
) -> AbstractBaseUser:
    if launch.intent == Launch.Intent.SIGN_IN or launch.user is None:
        owner = resolve_user(claims, launch.registration)
        if not owner.is_active:
            raise UserInactiveError("The user of this identity is deactivated.")
        return owner
    return launch.user


def _link_identity(
    launch: Launch, claims: IDTokenClaims, owner: AbstractBaseUser, *, now: datetime
) -> Identity:
    server = launch.registration.server
    known = list(
        Identity.objects.with_subject(claims.issuer, claims.subject, server=server)
    )
    if any(each.user_id != owner.pk for each in known):
        raise IdentityInUseError(
            "This account at the EHR is linked to another user of this site."
        )
    identity = next((each for each in known if each.server_id == server.pk), None)
    if identity is None:
        return Identity.objects.create(
            server=server,
            issuer=claims.issuer,
            subject=claims.subject,
            user=cast("Any", owner),
            fhir_user=claims.fhir_user or "",
            last_seen_at=now,
        )
    identity.fhir_user = claims.fhir_user or identity.fhir_user
    identity.last_seen_at = now
    identity.save(update_fields=["fhir_user", "last_seen_at"])
    return identity


def _create_grant(
    launch: Launch, tokens: TokenResponse, *, now: datetime
) -> TokenGrant:
    asked = launch.scope_asked.split()
    is_offline = "offline_access" in asked and tokens.refresh_token is not None
    grant = TokenGrant(
        registration=launch.registration,
        user=launch.user,
        identity=launch.identity,
        scope_asked=launch.scope_asked,
        scope_granted=str(tokens.scopes),
        scope=str(tokens.scopes),
        patient_id=tokens.context.patient or "",
        encounter_id=tokens.context.encounter or "",
        is_offline=is_offline,
        received_at=now,
        expires_at=tokens.expires_at,
        last_used_at=now,
    )
    grant.set_tokens(
        access_token=tokens.access_token, refresh_token=tokens.refresh_token or ""
    )
    if is_offline:
        grant.refresh_due_at = get_refresh_due_at(grant)
    grant.save()
    return grant


def _is_same(one: AbstractBaseUser | None, other: AbstractBaseUser | None) -> bool:
    return (one and one.pk) == (other and other.pk)
