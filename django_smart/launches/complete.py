"""Complete a launch: from the callback to tokens, an identity and a context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from django.db import router
from django.http import HttpRequest
from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    IdentityError,
    IDTokenError,
    InactiveRegistrationError,
    MalformedTokenResponseError,
    SMARTError,
    StateError,
    StateUsedError,
    TokenError,
)
from ..fields import digest
from ..grants.due_times import get_refresh_due_at, note_end
from ..grants.ending import (
    end_idlest_launches,
    keep_for_revocation,
    supersede_grants,
)
from ..grants.storing import insist, store_together
from ..models import ClientRegistration, FHIRServer, Identity, Launch, TokenGrant
from ..models.launch import LaunchQuerySet
from ..protocol.authorization import get_state, process_authorization_response
from ..protocol.configuration import SMARTConfiguration
from ..protocol.context import LaunchContext, fill_in_context
from ..protocol.deviations import Deviation
from ..protocol.id_token import IDTokenClaims
from ..protocol.scopes import LaunchScope, ResourceScope, Scope, ScopeSet
from ..protocol.token import (
    TokenResponse,
    build_token_request,
    find_refresh_token,
    process_token_response,
)
from ..servers.discovery import (
    check_moved,
    get_configuration,
    get_issuer,
    note_token_error,
)
from ..servers.http import build_client_authentication, send
from ..servers.id_tokens import check_id_token, get_access_token_claims
from ..tracing import span
from .browser import Browser, forget_ended, get_browser, make_secret
from .failure import build_used_error, fail_launch
from .held import (
    UndecidedError,
    end_held_launches,
    find_question,
    hold_launch,
    is_protected,
    may_sign_in,
    read_held,
)
from .request_state import get_user

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "UserResolver",
    "check_sign_out",
    "complete_held_launch",
    "complete_launch",
    "look_at_held_launch",
    "refuse_held_launch",
]

logger = logging.getLogger(__name__)

# Less often than a clinician opens charts, whose simultaneous launches would otherwise
# wait for each other.
_SEEN_ANEW = timedelta(hours=1)
# More than the EHR's responses to one callback may take.
_LONGEST_CALLBACK = timedelta(minutes=5)
# Of one launch; a server can make thousands.
_MOST_DEVIATIONS = 20

UserResolver = Callable[
    [
        IDTokenClaims,
        ClientRegistration,
        Callable[["AbstractBaseUser | None", Sequence[Identity]], None],
    ],
    "AbstractBaseUser",
]
"""
Finds or creates the user for verified claims; raises ``IdentityError`` to refuse.

Calls its third argument with the found user, or ``None``, and the identities of the
account, before changing anything.
"""


def complete_launch(
    request: HttpRequest,
    parameters: Sequence[tuple[str, str]],
    *,
    callback_id: str,
    resolve_user: UserResolver,
) -> tuple[Launch, IDTokenClaims | None]:
    """
    Complete a launch with the query of the redirect URI.

    Call it outside any transaction: a failed launch keeps its row. Received tokens that
    are not used are revoked; from a malformed response, only the refresh token.

    Args:
        request: of the user and browser that come back from the EHR.
        parameters: the query, as pairs in order.
        callback_id: of the redirect URI that was requested.
        resolve_user: called for a sign-in with a verified identity.

    Returns:
        The launch, which is held if it has a ``question``, and the EHR's claims about
        the user, if there are any.  Its user must be signed in now.

    Raises:
        AuthorizationResponseError, InactiveRegistrationError, TransportError,
        DiscoveryError, TokenError, IDTokenError, IdentityError, CredentialsError: the
            launch, if one was found, is marked as failed; nobody is signed in, and no
            token is stored.
    """
    launch: Launch | None = None
    browser = get_browser(request)
    try:
        launch = Launch.objects.find_with_state(get_state(parameters))
        if launch is None:
            raise StateError("No launch was started with the state of this callback.")
        _consume(launch, browser)
        _check_callback(launch, callback_id)
        # Whoever has noted the cookie that the launch was started with opens nothing.
        secret = make_secret()
        launch.browser_digest = digest(secret)
        claims = _complete(request, launch, parameters, resolve_user)
    except SMARTError as exc:
        # A used state belongs to a completed launch, which must not change.
        fail_launch(None if isinstance(exc, StateUsedError) else launch, exc)
        raise
    except Exception:
        fail_launch(launch, None)
        raise
    browser.replace(launch, secret)
    return launch, claims


def complete_held_launch(
    request: HttpRequest, launch: Launch, *, resolve_user: UserResolver, answer: str
) -> IDTokenClaims:
    """
    Complete a held *launch* with its stored tokens; return the EHR's claims.

    Call it outside any transaction.

    Args:
        answer: the question that the user answered with yes; empty for no change.

    Raises:
        UndecidedError: there is another question. The launch stays held.
        SMARTError: it failed, and its tokens will be revoked.
    """
    try:
        _check_registration(launch)
        claims, launch.context = read_held(launch)
        grant = cast("TokenGrant", launch.grant)
        _store_together(request, launch, grant, claims, resolve_user, answer=answer)
    except SMARTError as exc:
        refuse_held_launch(request, launch, exc)
    return claims


def refuse_held_launch(
    request: HttpRequest, launch: Launch, error: SMARTError
) -> NoReturn:
    """
    End *launch* because of *error*, which is raised, and have its tokens revoked.

    Only if it is still held: a second answer must not end what the first one opened.
    """
    this = Launch.objects.filter(pk=launch.pk)
    if end_held_launches(this, reason=error.code):
        fail_launch(launch, error)
    forget_ended(get_browser(request))
    raise error


def check_sign_out(launch: Launch) -> None:
    """
    Check that no sign-out in another tab has ended *launch* since it was completed.

    Raises:
        StateError: it was ended, so nobody may be signed in.
    """
    if _get_stored(launch).filter(error_code="signed_out").exists():
        raise StateError(
            "The user signed out while the launch was being completed.",
            code="state_failed",
        )


def look_at_held_launch(
    request: HttpRequest, launch: Launch, *, resolve_user: UserResolver
) -> UndecidedError:
    """
    Return what to ask before a held *launch* continues, and about whom.

    Raises:
        SMARTError: the launch cannot go on at all, and its tokens will be revoked.
    """
    try:
        return _look_at_held_launch(request, launch, resolve_user)
    except SMARTError as exc:
        refuse_held_launch(request, launch, exc)


def _look_at_held_launch(
    request: HttpRequest, launch: Launch, resolve_user: UserResolver
) -> UndecidedError:
    _check_registration(launch)
    claims, _context = read_held(launch)
    user = get_user(request)

    def check(found: AbstractBaseUser | None, known: Sequence[Identity]) -> None:
        question = find_question(
            launch.registration, owner=found, known=known, user=user
        )
        raise UndecidedError(question or launch.question, found)

    try:
        resolve_user(claims, launch.registration, check)
    except UndecidedError as exc:
        asked = exc
    is_owner = user is not None and _is_same(user, asked.owner)
    if asked.question != Launch.Question.SIGN_IN and not is_owner:
        # Only whoever was asked can answer: the question was about them.
        _check_user(request, launch)
    return asked


def _consume(launch: Launch, browser: Browser) -> None:
    if launch.status != Launch.Status.PENDING:
        raise build_used_error(launch)
    if not browser.opens(launch):
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
    if not launch.move(Launch.Status.CONSUMED, expires_at=now + _LONGEST_CALLBACK):
        # Another callback, or a sign-out, came between the read and the write.
        raise build_used_error(launch)


def _check_callback(launch: Launch, callback_id: str) -> None:
    """
    Refuse a code that arrived at another server's redirect URI.

    A hostile server can redirect a browser to an honest one, with the state of its own
    launch. The honest server then redirects to its own callback, and its code must not
    reach the hostile token endpoint (RFC 9700 section 4.4).
    """
    if callback_id != launch.callback_id:
        raise StateError(
            f"The response to launch {launch.pk} of registration "
            f"{launch.registration_id} arrived at the callback "
            f"{callback_id!r}, not {launch.callback_id!r}: another server may "
            "have sent it.",
            code="callback_mismatch",
        )


def _check_registration(launch: Launch) -> None:
    registration = launch.registration
    if not (registration.is_active and registration.server.is_active):
        raise InactiveRegistrationError(
            "The server or its registration was deactivated after the launch began."
        )


def _complete(
    request: HttpRequest,
    launch: Launch,
    parameters: Sequence[tuple[str, str]],
    resolve_user: UserResolver,
) -> IDTokenClaims | None:
    _check_registration(launch)
    registration = launch.registration
    configuration = get_configuration(registration.server, registration.client_id)
    answer = process_authorization_response(
        parameters,
        expected_issuer=_get_expected_issuer(launch, configuration, parameters),
        issuer_promised=configuration.authorization_response_iss_parameter_supported,
    )
    _note(launch, answer.deviations)
    if launch.intent == Launch.Intent.CONNECT:
        _check_user(request, launch)
    tokens = _exchange_code(launch, configuration, code=answer.code)
    try:
        return _use_tokens(request, launch, tokens, resolve_user)
    except Exception:
        # Also for an error in the site's hooks, but not if the launch has its tokens,
        # or had them: a sign-out may have ended it since.
        if not insist(_get_stored(launch).filter(grant__isnull=False).exists):
            insist(partial(keep_for_revocation, registration, tokens))
        raise


def _use_tokens(
    request: HttpRequest,
    launch: Launch,
    tokens: TokenResponse,
    resolve_user: UserResolver,
) -> IDTokenClaims | None:
    if launch.registration.server.quirks.context_in_access_token:
        tokens = _fill_in_context(tokens, registration=launch.registration)
    _note(launch, (*tokens.deviations, *tokens.context.deviations))
    claims = _validate_identity(launch, tokens)
    if claims is not None:
        _note(launch, claims.deviations)
        if "fhirUser" in tokens.scopes and not (
            claims.fhir_user or claims.foreign_fhir_user
        ):
            _note(launch, [Deviation(code="fhir_user_absent")])
    if patient := _find_patient(tokens, claims, launch.registration.server):
        tokens = replace(
            tokens,
            context=replace(tokens.context, patient=patient),
            parameters={**tokens.parameters, "patient": patient},
        )
        _note(launch, [Deviation(code="patient_in_fhir_user")])
    _check_patient(launch, tokens)
    if claims is None:
        # Without an identity, the launch belongs to the user who started it.
        _check_user(request, launch)
    grant = _build_grant(launch, tokens, now=timezone.now())
    launch.context = {**launch.context, **tokens.parameters}
    try:
        _store_together(request, launch, grant, claims, resolve_user)
    except UndecidedError as exc:
        if claims is None:
            raise
        user = get_user(request)
        hold_launch(launch, grant, claims, question=exc.question, user=user)
    return claims


def _note(launch: Launch, deviations: Sequence[Deviation]) -> None:
    """Let *launch* be stored with what its EHR did differently."""
    for each in deviations[: _MOST_DEVIATIONS - len(launch.deviations)]:
        logger.info("Launch %s: %s (%s)", launch.pk, each.code, each.evidence)
        launch.deviations = [*launch.deviations, [each.code, each.evidence]]


def _check_user(request: HttpRequest, launch: Launch) -> None:
    user = get_user(request)
    if not _is_same(user, launch.user):
        raise IdentityError(
            "The signed-in user is not the one whom the launch belongs to.",
            code="user_signed_out" if user is None else "user_changed",
        )


def _store_together(
    request: HttpRequest,
    launch: Launch,
    grant: TokenGrant,
    claims: IDTokenClaims | None,
    resolve_user: UserResolver,
    *,
    answer: str = "",
) -> None:
    user, status = launch.user, launch.status

    def restart() -> None:
        launch.user, launch.status = user, status

    has_too_many = store_together(
        # A copy, because an attempt that failed leaves a primary key.
        lambda: _store(
            request, launch, copy(grant), claims, resolve_user, answer=answer
        ),
        restart=restart,
        # In memory, the launch has the grant of the last attempt.
        is_stored=lambda: (
            _get_stored(launch)
            .open()
            .filter(grant=launch.grant, completed_at=launch.completed_at)
            .exists()
        ),
    )
    if has_too_many:
        forget_ended(get_browser(request))
    logger.info("Launch %s completed", launch.pk)
    if missing := launch.missing_scope:
        logger.warning(
            "Launch %s: server %s did not grant all requested scopes. Missing: %s",
            launch.pk,
            launch.registration.server_id,
            missing,
        )


def _get_stored(launch: Launch) -> LaunchQuerySet:
    # Not from a replica, which may not have the row yet.
    return Launch.objects.using(router.db_for_write(Launch)).filter(pk=launch.pk)


def _get_expected_issuer(
    launch: Launch,
    configuration: SMARTConfiguration,
    parameters: Sequence[tuple[str, str]],
) -> str | None:
    """
    Return the expected ``iss``, discovered now if the response has one (RFC 9207).
    """
    server = launch.registration.server
    received = dict(parameters).get("iss")
    # The operator may have entered another one than the configuration has.
    named = (configuration.issuer, server.id_token_issuer, server.discovered.issuer)
    known = [each for each in named if each]
    if received in known:
        return received
    if known or received is None:
        return next(iter(known), None)
    try:
        return get_issuer(server)
    except SMARTError:
        # It is needed in any case if an identity is requested.
        if "openid" in launch.scopes_asked:
            raise
        return None


def _exchange_code(
    launch: Launch, configuration: SMARTConfiguration, *, code: str
) -> TokenResponse:
    # The token endpoint is the one of this state's server: mix-up defense (CALL-09).
    token_endpoint = configuration.token_endpoint
    request = build_token_request(
        token_endpoint=token_endpoint,
        code=code,
        redirect_uri=launch.registration.redirect_uri,
        code_verifier=launch.code_verifier,
        client_authentication=build_client_authentication(
            launch.registration, token_endpoint=token_endpoint
        ),
    )
    server = launch.registration.server
    with span("smart token request", server=server.slug) as traced:
        response = send(request, server=server)
        traced["status_code"] = response.status_code
    now = timezone.now()
    try:
        return process_token_response(
            response,
            requested=launch.scopes_asked,
            now=now,
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        )
    except MalformedTokenResponseError:
        # Valid at the EHR, perhaps for years, whatever else is wrong.
        if issued := find_refresh_token(response):
            unused = _build_refresh_token_only(issued, now=now)
            insist(partial(keep_for_revocation, launch.registration, unused))
        raise
    except TokenError as exc:
        note_token_error(launch.registration, exc)
        raise


def _build_refresh_token_only(refresh_token: str, *, now: datetime) -> TokenResponse:
    return TokenResponse(
        access_token="",
        expires_at=now,
        refresh_token=refresh_token,
        id_token=None,
        scopes=ScopeSet.parse(""),
        context=LaunchContext(),
        parameters={},
    )


def _fill_in_context(
    tokens: TokenResponse, *, registration: ClientRegistration
) -> TokenResponse:
    """Read context that the response omits from the access token, a signed JWT."""
    try:
        claims = get_access_token_claims(tokens.access_token, registration=registration)
    except IDTokenError as exc:
        raise MalformedTokenResponseError(
            f"The access token's context is unusable: {exc}"
        ) from exc
    parameters = fill_in_context(tokens.parameters, claims)
    context = LaunchContext.from_parameters(
        parameters, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
    )
    names = [each for each in parameters if each not in tokens.parameters]
    found = (
        [Deviation(code="context_in_token", evidence=", ".join(names))] if names else []
    )
    return replace(
        tokens,
        context=context,
        parameters=parameters,
        deviations=(*tokens.deviations, *found),
    )


def _find_patient(
    tokens: TokenResponse, claims: IDTokenClaims | None, server: FHIRServer
) -> str:
    """Return the patient that only ``fhirUser`` names, if the operator allows that."""
    reference = (claims and claims.fhir_user) or ""
    if (
        tokens.context.patient is not None
        or not reference.startswith("Patient/")
        or not server.quirks.patient_from_fhir_user
    ):
        return ""
    return reference.removeprefix("Patient/")


def _check_patient(launch: Launch, tokens: TokenResponse) -> None:
    if tokens.context.patient is None and any(
        _is_for_patient(scope, kind=launch.kind) for scope in tokens.scopes
    ):
        raise TokenError(
            "The server granted scopes for one patient but did not name the patient.",
            code="patient_missing",
        )


def _is_for_patient(scope: Scope, *, kind: str) -> bool:
    match scope:
        case ResourceScope():
            return scope.level == "patient"
        case LaunchScope():
            # The EHR may ignore it in a launch of its own (EHRL-07).
            return scope.type == "patient" and kind == Launch.Kind.STANDALONE
    return scope.name.lower().startswith("patient/")


def _validate_identity(launch: Launch, tokens: TokenResponse) -> IDTokenClaims | None:
    if "openid" not in launch.scopes_asked:
        return None
    if tokens.id_token is None:
        if "openid" in tokens.scopes:
            raise IDTokenError(
                "openid was granted, but the response has no id_token.",
            )
        return None
    claims = check_id_token(
        tokens.id_token,
        registration=launch.registration,
        nonce=launch.nonce,
        nonce_required=launch.registration.server.quirks.nonce_required,
    )
    # The check may have discovered the issuer just now.
    check_moved(launch.registration.server)
    return claims


def _store(
    request: HttpRequest,
    launch: Launch,
    grant: TokenGrant,
    claims: IDTokenClaims | None,
    resolve_user: UserResolver,
    *,
    answer: str,
) -> bool:
    """Open the launch; return whether it ended others, of which there were too many."""
    now, owner = timezone.now(), cast("AbstractBaseUser | None", launch.user)
    if claims is not None:
        owner, known = _get_owner(
            launch, claims, resolve_user, user=get_user(request), answer=answer
        )
        launch.identity = _link_identity(launch, claims, owner, known, now=now)
        launch.fhir_user = claims.fhir_user or claims.foreign_fhir_user
    grant.user, grant.identity = cast("Any", owner), launch.identity
    held = TokenGrant.objects.filter(pk=grant.pk, status=TokenGrant.Status.HELD)
    was_held = grant.status == TokenGrant.Status.HELD
    if not was_held:
        grant.save()
    is_open = launch.move(
        Launch.Status.OPEN,
        user=owner,
        identity=launch.identity,
        grant=grant,
        intent=launch.intent,
        browser_digest=launch.browser_digest,
        fhir_user=launch.fhir_user,
        context=launch.context,
        deviations=launch.deviations,
        completed_at=now,
        last_used_at=now,
        code_verifier="",
        held="",
        question="",
    )
    # Its browser signed out, or it expired, while the tokens were fetched; or staff
    # have ended the grant that was held.
    grant.status = TokenGrant.Status.ACTIVE
    owned = {"status": grant.status, "user": owner, "identity": grant.identity}
    if not is_open or (was_held and not held.update(**owned)):
        raise build_used_error(launch)
    digests = get_browser(request).digests
    has_too_many = end_idlest_launches(launch, digests, now=now)
    supersede_grants(grant, now=now)
    return has_too_many


def _get_owner(
    launch: Launch,
    claims: IDTokenClaims,
    resolve_user: UserResolver,
    *,
    user: AbstractBaseUser | None,
    answer: str,
) -> tuple[AbstractBaseUser, list[Identity]]:
    """Return the owner of the launch, and the identities of the account."""
    registration = launch.registration
    known: list[Identity] = []

    def check(found: AbstractBaseUser | None, identities: Sequence[Identity]) -> None:
        known.extend(identities)
        question = find_question(registration, owner=found, known=known, user=user)
        if question not in {"", answer}:
            raise UndecidedError(question, found)

    if launch.intent == Launch.Intent.CONNECT and launch.user is not None:
        own = Identity.objects.with_subject(
            claims.issuer, claims.subject, server=registration.server
        )
        return launch.user, list(own)
    owner = resolve_user(claims, registration, check)
    if not owner.is_active:
        raise IdentityError(
            "The user of this identity is deactivated.", code="user_inactive"
        )
    if not _is_same(user, owner) and is_protected(owner, registration.server):
        # A hook of the site has just given them staff rights.
        raise IdentityError(
            f"The server {registration.server.slug} may not sign in staff: it "
            "is not in SMART_STAFF_SIGN_IN_SERVERS."
        )
    return owner, known


def _link_identity(
    launch: Launch,
    claims: IDTokenClaims,
    owner: AbstractBaseUser,
    known: Sequence[Identity],
    *,
    now: datetime,
) -> Identity:
    server = launch.registration.server
    if any(each.user_id != owner.pk for each in known):
        raise IdentityError(
            "This account at the EHR is linked to another user of this site.",
            code="identity_in_use",
        )
    identity = next((each for each in known if each.server_id == server.pk), None)
    if identity is None:
        # Connecting lends records, not the account, also within a login group.
        is_connected = (
            any(each.is_connected for each in known)
            if known
            else launch.intent == Launch.Intent.CONNECT
        )
        return Identity.objects.create(
            server=server,
            issuer=claims.issuer,
            subject=claims.subject,
            user=cast("Any", owner),
            fhir_user=claims.fhir_user or claims.foreign_fhir_user,
            is_connected=is_connected,
            may_sign_in=may_sign_in(known, server) if known else not is_connected,
            last_seen_at=now,
        )
    fhir_user = claims.fhir_user or claims.foreign_fhir_user or identity.fhir_user
    seen_at = identity.last_seen_at
    is_old = seen_at is None or abs(now - seen_at) >= _SEEN_ANEW
    if is_old or fhir_user != identity.fhir_user:
        identity.fhir_user, identity.last_seen_at = fhir_user, now
        # No more: the right to sign in may have been withdrawn since it was read.
        identity.save(update_fields=["fhir_user", "last_seen_at"])
    return identity


def _build_grant(launch: Launch, tokens: TokenResponse, *, now: datetime) -> TokenGrant:
    is_offline = (
        "offline_access" in launch.scopes_asked and tokens.refresh_token is not None
    )
    grant = TokenGrant(
        registration=launch.registration,
        kind=launch.kind,
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
    if tokens.refresh_token is not None:
        note_end(grant, reported=tokens.refresh_expires_at, is_new=True, now=now)
    if is_offline:
        grant.refresh_due_at = get_refresh_due_at(grant)
    return grant


def _is_same(one: AbstractBaseUser | None, other: AbstractBaseUser | None) -> bool:
    return (one and one.pk) == (other and other.pk)
