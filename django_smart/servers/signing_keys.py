"""
Generate and rotate signing keys; private keys are never imported.

Each algorithm has one key that signs and, before a rotation, the next one. All
registrations share them, except those with separate keys. EHRs cache the JWK Set: a key
is published well before it signs, and as long after it has stopped (JWKS-10).
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, router, transaction
from django.utils import timezone

from ..conf import conf
from ..exceptions import CredentialsError, KeyRotationError
from ..models import ClientRegistration, SigningKey, TaskRun
from ..models.clock import DatabaseNow
from ..models.task_run import ROTATE_KEYS
from ..protocol.jwk import generate_private_key_pem, load_private_key, public_jwk

__all__ = [
    "JWKS_MAX_AGE",
    "OVERLAP",
    "create_signing_key",
    "ensure_active_key",
    "ensure_next_key",
    "generate_key",
    "get_ready_at",
    "get_removal_at",
    "retire_key",
    "rotate_due_keys",
    "rotate_key",
]

logger = logging.getLogger(__name__)

#: How long an EHR may cache the JWK Set: its ``max-age`` (JWKS-05).
JWKS_MAX_AGE = timedelta(hours=1)
#: How long a key is published before it signs, and after it has stopped. Twice the
#: cache lifetime: an intermediate cache may return a set that is nearly as old, and the
#: last assertion may be verified up to five minutes later.
OVERLAP = 2 * JWKS_MAX_AGE

_Status = SigningKey.Status


def create_signing_key(
    algorithm: str,
    *,
    status: str = SigningKey.Status.ACTIVE,
    registration: ClientRegistration | None = None,
) -> SigningKey:
    """
    Generate a key pair and store it.

    Its ``kid`` never begins with ``-``, which commands would treat as an option.

    Raises:
        ValueError: *algorithm* is neither ``RS384`` nor ``ES384``.
        IntegrityError: the algorithm already has an active or next key.
    """
    kid = "-"
    while kid.startswith("-"):
        pem = generate_private_key_pem(algorithm)
        jwk = public_jwk(load_private_key(pem))
        kid = jwk["kid"]
    key = SigningKey.objects.create(
        kid=kid,
        algorithm=algorithm,
        registration=registration,
        private_key=pem,
        public_jwk=jwk,
        status=status,
        activated_at=timezone.now() if status == _Status.ACTIVE else None,
    )
    # By the clock that decides when it may sign.
    SigningKey.objects.filter(pk=key.pk).update(created_at=DatabaseNow())
    key.refresh_from_db(fields=["created_at"])
    return key


def ensure_active_key(algorithm: str) -> SigningKey:
    """Return the key that signs with *algorithm*; generate it if there is none."""
    return _ensure_key(algorithm, _Status.ACTIVE)[0]


def ensure_next_key(
    algorithm: str, registration: ClientRegistration | None = None
) -> tuple[SigningKey, bool]:
    """Return the next key for *algorithm*, and whether it was just generated."""
    return _ensure_key(algorithm, _Status.NEXT, registration)


def generate_key(
    algorithm: str, registration: ClientRegistration | None = None
) -> SigningKey:
    """
    Generate the next key of *algorithm*; the very first one signs immediately.

    The first of a *registration* does not: its server must read the JWK Set first.

    Raises:
        KeyRotationError: there already is a next key.
    """
    shared = SigningKey.objects.of(None).active()
    has_active = shared.filter(algorithm=algorithm).exists()
    status = _Status.NEXT if has_active or registration else _Status.ACTIVE
    key, created = _ensure_key(algorithm, status, registration)
    if not created:
        raise KeyRotationError(
            f"Another {algorithm} key, {key.kid}, is already {status}: rotate "
            "to it, or retire it first."
        )
    return key


def get_ready_at(key: SigningKey) -> datetime:
    """Return when every EHR knows the next key *key*, so that it may sign."""
    return key.created_at + OVERLAP


def get_removal_at(key: SigningKey) -> datetime | None:
    """Return when no EHR needs the retired key *key* any longer."""
    return key.retired_at and key.retired_at + OVERLAP


def rotate_key(
    algorithm: str,
    registration: ClientRegistration | None = None,
    *,
    at_once: bool = False,
) -> SigningKey:
    """
    Activate the next key of *algorithm*; the previous one is retired.

    Args:
        registration: whose separate keys; by default, the shared ones.
        at_once: even if EHRs may not know the key yet; they then refuse it until they
            fetch the JWK Set again. For a compromised key.

    Returns:
        The active key.

    Raises:
        KeyRotationError: there is no next key, it cannot be decrypted, it was
            published too recently, or another process is rotating.
    """
    keys = SigningKey.objects.of(registration).filter(algorithm=algorithm)
    following = keys.following().annotate(database_now=DatabaseNow()).first()
    if following is None:
        raise KeyRotationError(
            f"There is no next {algorithm} key to rotate to: run smart_keys "
            f"generate, and rotate {OVERLAP // timedelta(hours=1)} hours later."
        )
    try:
        load_private_key(following.private_key)
    except CredentialsError as exc:
        # With it, no request could be signed from now on.
        logger.warning("Signing key %s cannot be used: %s", following.kid, exc)
        raise KeyRotationError(
            f"The next {algorithm} key, {following.kid}, cannot be used. {exc} If that "
            f"key is lost, run smart_keys retire {following.kid}, then smart_keys "
            "generate."
        ) from exc
    # With the clock of this host, EHRs might not know the key yet.
    now: datetime = following.database_now.astimezone(UTC)  # type: ignore[attr-defined]  # annotated
    ready_at = get_ready_at(following)
    if now < ready_at and not at_once:
        ready = timezone.localtime(ready_at).strftime("%Y-%m-%d %H:%M %Z")
        raise KeyRotationError(
            f"The next {algorithm} key may sign from {ready}. "
            "Until then, EHRs may have a cached JWK Set without it, and would "
            "refuse it."
        )
    active = keys.active().first()
    with transaction.atomic(using=router.db_for_write(SigningKey)):
        # If the conditional UPDATEs find other rows than read above, another rotation
        # won.
        retired = active is None or SigningKey.objects.retire(active, now=now)
        if not retired or not SigningKey.objects.activate(following, now=now):
            raise KeyRotationError(
                f"The {algorithm} keys were just changed by another process."
            )
    logger.info("Signing with the %s key %s from now on", algorithm, following.pk)
    return SigningKey.objects.get(pk=following.pk)


def retire_key(kid: str, *, at_once: bool = False) -> SigningKey:
    """
    Take the key *kid* out of use.

    A next key is removed from the JWK Set immediately, since it never signed. An active
    key is retired if no registration uses its algorithm, and removed after ``OVERLAP``.

    Args:
        at_once: remove a retired key from the set now, although EHRs may still need it
            to verify signatures, or may not know the shared key that replaces a
            separate one. For a compromised key.

    Raises:
        KeyRotationError: there is no such key, or it is in use.
    """
    # Not read, because a key that cannot be decrypted is retired as well.
    key = SigningKey.objects.with_kid(kid).defer("private_key").first()
    if key is None:
        raise KeyRotationError(f"No key has the id {kid}.")
    if key.status == _Status.ACTIVE:
        _retire_active(key, at_once=at_once)
    if key.status == _Status.NEXT or at_once:
        SigningKey.objects.filter(pk=key.pk).remove()
    key.refresh_from_db()
    return key


def rotate_due_keys() -> Counter[str]:
    """
    Do what is due: publish next keys, rotate to them, remove retired ones.

    Keys are generated and rotated only if ``SMART_KEY_ROTATION`` is set; retired ones
    are removed from the JWK Set in any case. Concurrent runs are safe.

    Returns:
        How many keys were ``generated``, ``rotated`` to, and ``removed`` from the set.
    """
    now = TaskRun.objects.note_and_read(ROTATE_KEYS)
    removed = SigningKey.objects.retired_before(now - OVERLAP).remove()
    changes = Counter(generated=0, rotated=0, removed=removed)
    period = conf.SMART_KEY_ROTATION
    signing = SigningKey.objects.active().select_related("registration")
    for key in signing.defer("private_key") if period else ():
        whose = key.algorithm, key.registration
        changes["generated"] += ensure_next_key(*whose)[1]
        if key.activated_at is not None and now < key.activated_at + period:
            continue
        try:
            rotate_key(*whose)
        except KeyRotationError as exc:
            # The next run finds it ready, or already rotated.
            logger.info("Signing key %s is not rotated yet: %s", key.pk, exc)
            continue
        changes["rotated"] += 1
        changes["generated"] += ensure_next_key(*whose)[1]
    return changes


def _ensure_key(
    algorithm: str, status: str, registration: ClientRegistration | None = None
) -> tuple[SigningKey, bool]:
    keys = SigningKey.objects.of(registration).filter(
        algorithm=algorithm, status=status
    )
    if key := keys.first():
        return key, False
    try:
        with transaction.atomic(using=router.db_for_write(SigningKey)):
            key = create_signing_key(
                algorithm, status=status, registration=registration
            )
            return key, True
    except IntegrityError:
        # Another process inserted one between the query and the insert.
        return keys.get(), False


def _retire_active(key: SigningKey, *, at_once: bool) -> None:
    signing = SigningKey.objects.active().filter(algorithm=key.algorithm)
    registrations = ClientRegistration.objects.active().filter(
        token_endpoint_auth_method=ClientRegistration.AuthMethod.PRIVATE_KEY_JWT,
        signing_algorithm=key.algorithm,
    )
    if key.registration_id is None:
        owners = signing.exclude(registration=None).values("registration")
        users = registrations.exclude(pk__in=owners).count()
    else:
        users = registrations.filter(pk=key.registration_id).count()
        if users and signing.of(None).exists():
            # The registration signs with the shared key again.
            if not at_once:
                raise KeyRotationError(
                    f"Registration {key.registration_id} signs with {key.kid}. Its EHR "
                    "may have a cached JWK Set without the shared key, and would "
                    "refuse that one for up to an hour: rotate to another separate "
                    "key, or retire this one with --now when nobody needs the EHR."
                )
            users = 0
    if users:
        raise KeyRotationError(
            f"{users} active registrations sign with {key.algorithm}: rotate "
            "to another key, or change their signing algorithm first."
        )
    SigningKey.objects.retire(key, now=timezone.now())
