"""
Signing keys: made here, so that no private key is ever entered by hand, and rotated.

Each algorithm has one key that signs and, ahead of a rotation, the next one.  EHRs keep
the JWK Set for a while: a key is published well before it signs, and for as long after
it has stopped (JWKS-10).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from ..conf import conf
from ..exceptions import KeyRotationError
from ..models import ClientRegistration, SigningKey
from ..protocol.jwk import generate_private_key_pem, load_private_key, public_jwk

__all__ = [
    "JWKS_MAX_AGE",
    "OVERLAP",
    "KeyChanges",
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

#: How long an EHR may keep the JWK Set: the ``max-age`` it is served with (JWKS-05).
JWKS_MAX_AGE = timedelta(hours=1)
#: How long a key is published before it signs, and after it has stopped.  Twice the
#: cache lifetime: a cache on the way may hand out a set that is nearly as old, and an
#: assertion that was signed last is checked up to five minutes later.
OVERLAP = 2 * JWKS_MAX_AGE

_Status = SigningKey.Status


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyChanges:
    """Counts of one run: keys made, set to sign, and taken out of the JWK Set."""

    generated: int = 0
    rotated: int = 0
    removed: int = 0


def create_signing_key(
    algorithm: str, *, status: str = SigningKey.Status.ACTIVE
) -> SigningKey:
    """
    Make a key pair and store it.

    Its ``kid`` never begins with ``-``, which commands take for an option.

    Raises:
        ValueError: *algorithm* is neither ``RS384`` nor ``ES384``.
        IntegrityError: the algorithm has a key that is active, or next, already.
    """
    kid = "-"
    while kid.startswith("-"):
        pem = generate_private_key_pem(algorithm)
        jwk = public_jwk(load_private_key(pem))
        kid = jwk["kid"]
    now = timezone.now()
    return SigningKey.objects.create(
        kid=kid,
        algorithm=algorithm,
        private_key=pem,
        public_jwk=jwk,
        status=status,
        activated_at=now if status == _Status.ACTIVE else None,
        retired_at=now if status == _Status.RETIRED else None,
    )


def ensure_active_key(algorithm: str) -> SigningKey:
    """The key that signs with *algorithm*, made if there is none."""
    return _ensure_key(algorithm, _Status.ACTIVE)[0]


def ensure_next_key(algorithm: str) -> tuple[SigningKey, bool]:
    """The key that will sign with *algorithm*, and whether it was made just now."""
    return _ensure_key(algorithm, _Status.NEXT)


def generate_key(algorithm: str) -> SigningKey:
    """
    Make the next key of *algorithm*; the first one of all signs at once.

    Raises:
        KeyRotationError: there is a next key already.
    """
    has_active = SigningKey.objects.active().filter(algorithm=algorithm).exists()
    status = _Status.NEXT if has_active else _Status.ACTIVE
    key, created = _ensure_key(algorithm, status)
    if not created:
        raise KeyRotationError(
            f"Another {algorithm} key is {status} already, {key.kid}: rotate to it, or "
            "retire it, first."
        )
    return key


def get_ready_at(key: SigningKey) -> datetime:
    """When every EHR knows the next key *key*, so that it may sign."""
    return key.created_at + OVERLAP


def get_removal_at(key: SigningKey) -> datetime | None:
    """When no EHR needs the retired key *key* any more."""
    return key.retired_at and key.retired_at + OVERLAP


def rotate_key(algorithm: str, *, at_once: bool = False) -> SigningKey:
    """
    Let the next key of *algorithm* sign; the one before it retires.

    Args:
        at_once: also if EHRs may not know the key yet, which they then refuse until
            they fetch the JWK Set again: for a key that got out.

    Returns:
        The key that signs from now on.

    Raises:
        KeyRotationError: there is no next key, it was published too short a while ago,
            or another process is just rotating.
    """
    following = SigningKey.objects.following().filter(algorithm=algorithm).first()
    if following is None:
        raise KeyRotationError(
            f"There is no next {algorithm} key to rotate to: make one with smart_keys "
            f"generate, and rotate {_hours(OVERLAP)} hours later."
        )
    now = timezone.now()
    ready_at = get_ready_at(following)
    if now < ready_at and not at_once:
        raise KeyRotationError(
            f"The next {algorithm} key may sign from {_format(ready_at)}: until then "
            "EHRs may hold a JWK Set without it, and would refuse it."
        )
    active = SigningKey.objects.active().filter(algorithm=algorithm).first()
    with transaction.atomic():
        # The conditional UPDATEs find what was read above, or another rotation won.
        retired = active is None or SigningKey.objects.retire(active, now=now)
        if not retired or not SigningKey.objects.activate(following, now=now):
            raise KeyRotationError(
                f"The {algorithm} keys were changed by somebody else just now."
            )
    logger.info("Signing with the %s key %s from now on", algorithm, following.pk)
    following.refresh_from_db()
    return following


def retire_key(kid: str, *, at_once: bool = False) -> SigningKey:
    """
    Take the key *kid* out of use.

    A next key leaves the JWK Set at once, as it never signed.  An active key retires if
    no registration signs with its algorithm; it leaves the set after ``OVERLAP``.

    Args:
        at_once: take a retired key out of the set now, though EHRs may still be asked
            to check what it signed: for a key that got out.

    Raises:
        KeyRotationError: there is no such key, or it is in use.
    """
    key = SigningKey.objects.with_kid(kid).first()
    if key is None:
        raise KeyRotationError(f"There is no key {kid}.")
    if key.status == _Status.ACTIVE:
        _retire_active(key)
    if key.status == _Status.NEXT or at_once:
        SigningKey.objects.filter(pk=key.pk).remove()
    key.refresh_from_db()
    return key


def rotate_due_keys() -> KeyChanges:
    """
    Do what is due: publish the next keys, rotate to them, remove the retired ones.

    Keys are made and rotated only if ``SMART_KEY_ROTATION`` says how long one signs;
    retired ones are taken out of the JWK Set in any case.  Safe to run twice at once.
    """
    now = timezone.now()
    removed = SigningKey.objects.retired_before(now - OVERLAP).remove()
    generated = rotated = 0
    period = conf.SMART_KEY_ROTATION
    for key in SigningKey.objects.active().defer("private_key") if period else ():
        generated += ensure_next_key(key.algorithm)[1]
        if key.activated_at is not None and now < key.activated_at + period:
            continue
        try:
            rotate_key(key.algorithm)
        except KeyRotationError as exc:
            # The next run finds it ready, or rotated by somebody else.
            logger.info("Signing key %s is not rotated yet: %s", key.pk, exc)
            continue
        rotated += 1
        generated += ensure_next_key(key.algorithm)[1]
    return KeyChanges(generated=generated, rotated=rotated, removed=removed)


def _ensure_key(algorithm: str, status: str) -> tuple[SigningKey, bool]:
    keys = SigningKey.objects.filter(algorithm=algorithm, status=status)
    if key := keys.first():
        return key, False
    try:
        with transaction.atomic():
            return create_signing_key(algorithm, status=status), True
    except IntegrityError:
        # Another process took the slot between our look and our insert.
        return keys.get(), False


def _retire_active(key: SigningKey) -> None:
    users = (
        ClientRegistration.objects.active()
        .filter(
            token_endpoint_auth_method=ClientRegistration.AuthMethod.PRIVATE_KEY_JWT,
            signing_algorithm=key.algorithm,
        )
        .count()
    )
    if users:
        raise KeyRotationError(
            f"{users} active registrations sign with {key.algorithm}: rotate to "
            "another key, or change their signing algorithm first."
        )
    SigningKey.objects.retire(key, now=timezone.now())


def _format(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M %Z")


def _hours(length: timedelta) -> int:
    return int(length / timedelta(hours=1))
