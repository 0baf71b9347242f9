"""
Held launches, which wait until the user has signed in here or decided.

The EHR has identified the user, but that alone must neither replace a signed-in user
nor sign in one who only connected records or has staff rights. The tokens are a grant
that is held, and that nobody can use, until somebody decides, or a task finds after
five minutes that nobody did.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import router, transaction
from django.utils import timezone

from ..conf import conf
from ..grants.ending import end_launches
from ..models import ClientRegistration, FHIRServer, Identity, Launch, TokenGrant
from ..models.clock import DatabaseNow
from ..models.launch import LaunchQuerySet
from ..protocol.id_token import IDTokenClaims
from .failure import build_used_error

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "UndecidedError",
    "end_at_any_stage",
    "end_expired_launches",
    "end_held_launches",
    "find_question",
    "has_account",
    "hold_launch",
    "is_protected",
    "may_sign_in",
    "read_held",
    "signs_in",
]

logger = logging.getLogger(__name__)

# How long a decision may take. The tokens are held until the next task after it.
_LIFETIME = timedelta(minutes=5)


class UndecidedError(Exception):
    """
    The user must decide, or sign in here, before the launch continues.

    Attributes:
        question: a ``Launch.Question``.
        owner: the user whom the EHR has proven, or ``None`` if the account is unknown.
    """

    def __init__(self, question: str, owner: AbstractBaseUser | None) -> None:
        super().__init__(question)
        self.question = question
        self.owner = owner


def find_question(
    registration: ClientRegistration,
    *,
    owner: AbstractBaseUser | None,
    known: Sequence[Identity],
    user: AbstractBaseUser | None,
) -> str:
    """
    Return the question to ask before a launch signs in *owner*; empty if none.

    Args:
        owner: the user whom the EHR has proven, or ``None`` if the account is unknown.
        known: the identities of the account.
        user: who is signed in, or ``None``.
    """
    is_free = user is None or registration.user_switch == registration.UserSwitch.SWITCH
    if owner is None:
        return "" if is_free else Launch.Question.LINK
    if user is not None and user.pk == owner.pk:
        return ""
    server = registration.server
    if not signs_in(known, owner, server):
        return Launch.Question.SIGN_IN
    return "" if is_free else Launch.Question.SWITCH


def signs_in(
    known: Sequence[Identity], owner: AbstractBaseUser, server: FHIRServer
) -> bool:
    """
    Return whether an account with the identities *known* signs in *owner*.

    Only such an account changes its user: connecting lends records, not the user.
    """
    return may_sign_in(known, server) and not is_protected(owner, server)


def may_sign_in(known: Sequence[Identity], server: FHIRServer) -> bool:
    """Return whether an account with the identities *known* signs its user in."""
    own = [each for each in known if each.server_id == server.pk]
    return all(each.may_sign_in for each in own or known)


def has_account(user: AbstractBaseUser | None, server: FHIRServer) -> bool:
    """Return whether *user* has an account of *server*, to sign in or connected."""
    known = Identity.objects.known_to(server)
    return user is not None and known.filter(user_id=user.pk).exists()


def is_protected(user: AbstractBaseUser, server: FHIRServer) -> bool:
    """Return whether *user* has staff rights and *server* may not sign in staff."""
    is_staff = getattr(user, "is_staff", False) or getattr(user, "is_superuser", False)
    return is_staff and server.slug not in conf.SMART_STAFF_SIGN_IN_SERVERS


def hold_launch(
    launch: Launch,
    grant: TokenGrant,
    claims: IDTokenClaims,
    *,
    question: str,
    user: AbstractBaseUser | None,
) -> None:
    """
    Hold *grant* until the question is answered, which must be within five minutes.

    Args:
        user: who is signed in; only they can answer, unless the question is to sign in.

    Raises:
        StateError: the launch was ended in the meantime.
    """
    grant.status = TokenGrant.Status.HELD
    with transaction.atomic(using=router.db_for_write(Launch)):
        grant.save()
        is_held = launch.move(
            Launch.Status.HELD,
            question=question,
            grant=grant,
            held=json.dumps(
                {
                    "claims": asdict(replace(claims, deviations=())),
                    "context": launch.context,
                }
            ),
            context={},
            deviations=launch.deviations,
            code_verifier="",
            user=user,
            browser_digest=launch.browser_digest,
            expires_at=timezone.now() + _LIFETIME,
        )
        if not is_held:
            raise build_used_error(launch)
    logger.info("Launch %s is waiting: %s", launch.pk, question)


def read_held(launch: Launch) -> tuple[IDTokenClaims, dict[str, Any]]:
    """
    Return the EHR's claims about the user of a held launch, and its context.

    Raises:
        CredentialsError: no current key decrypts them.
    """
    held = json.loads(launch.held)
    return IDTokenClaims(**held["claims"]), held["context"]


def end_at_any_stage(launches: LaunchQuerySet, *, reason: str) -> None:
    """End *launches*, whether under way, held or open, and grants with them."""
    now = timezone.now()
    # Earlier stages first: a launch that advances is then found at its next one.
    launches.fail(error_code=reason, now=now)
    end_held_launches(launches, reason=reason)
    end_launches(launches, reason=reason, now=now)


def end_held_launches(launches: LaunchQuerySet, *, reason: str) -> int:
    """End those of *launches* that are held; return how many were."""
    number = 0
    for launch in launches.held():
        grants = TokenGrant.objects.filter(launches=launch)
        now = timezone.now()
        with transaction.atomic(using=router.db_for_write(Launch)):
            # One by one: a simultaneous decision may have used the tokens.
            if Launch.objects.filter(pk=launch.pk).transition(
                Launch.Status.HELD,
                Launch.Status.FAILED,
                error_code=reason,
                ended_at=now,
                held="",
                question="",
            ):
                grants.end_pending_revocation(now=now)
                number += 1
    return number


def end_expired_launches() -> int:
    """Like :func:`end_held_launches`, for launches that nobody decided in time."""
    expired = Launch.objects.filter(expires_at__lte=DatabaseNow())
    return end_held_launches(expired, reason="decision_expired")
