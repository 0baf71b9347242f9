"""Who people are on the pages that could mix them up: by name, or where and when."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.formats import date_format

from ..models import Launch
from ..protocol.id_token import IDTokenClaims

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from .browser import Browser

__all__ = [
    "describe_arrived",
    "describe_signed_in",
    "get_display_name",
    "get_own_name",
]

_LONGEST_NAME = 100
# Generated usernames, which are not names of people.
_MADE = re.compile(r"smart-[a-z2-7]{26}(@ehr\.invalid)?")


def describe_signed_in(user: AbstractBaseUser, browser: Browser) -> dict[str, str]:
    """Describe the signed-in *user* for ``person.html``."""
    launch = Launch.objects.last_with_user(browser.digests)
    if launch is not None and launch.user_id == user.pk:
        at, fhir_user = launch.completed_at, launch.fhir_user
        server = launch.registration.server.name
    else:
        at, fhir_user, server = user.last_login, "", ""
    return {
        "name": get_own_name(user),
        "fhir_user": fhir_user,
        "origin": _join(server, at),
    }


def describe_arrived(
    owner: AbstractBaseUser | None, claims: IDTokenClaims, launch: Launch
) -> dict[str, str]:
    """Describe the person whom the EHR identified in *launch*, likewise."""
    return {
        "name": get_display_name(owner, claims),
        "fhir_user": claims.fhir_user or claims.foreign_fhir_user,
        "origin": _join(launch.registration.server.name, launch.created_at),
    }


def _join(server: str, at: datetime | None) -> str:
    """Where and when, as far as that is known; the day only if it is not today."""
    if at is None:
        return server
    local = timezone.localtime(at)
    is_today = local.date() == timezone.localdate()
    shown = date_format(local, "TIME_FORMAT" if is_today else "SHORT_DATETIME_FORMAT")
    return ", ".join(filter(None, (server, shown)))


def get_own_name(user: AbstractBaseUser | None) -> str:
    """Return the display name of the signed-in user; empty if it is generated."""
    name = _get_full_name(user)
    if not name and user is not None:
        # Not every USERNAME_FIELD is text.
        username = str(user.get_username() or "")
        name = "" if _MADE.fullmatch(username) else username
    return _shorten(name)


def get_display_name(
    user: AbstractBaseUser | None, claims: IDTokenClaims | None
) -> str:
    """Return the display name of the user whom the EHR identified; empty if unknown."""
    return _shorten(_get_full_name(user)) or _get_claimed_name(claims)


def _get_full_name(user: AbstractBaseUser | None) -> str:
    """Return the name that the user model has; not every model has one."""
    parts = (getattr(user, each, "") for each in ("first_name", "last_name"))
    # With a single field for the name, sites set both to None, and Django's
    # get_full_name() returns "None None".
    if all(isinstance(each, str) for each in parts):
        get_full_name: Any = getattr(user, "get_full_name", str)
        if isinstance(name := get_full_name(), str) and name:
            return name
    name = getattr(user, "name", "")
    return name if isinstance(name, str) else ""


def _get_claimed_name(claims: IDTokenClaims | None) -> str:
    values = claims.claims if claims is not None else {}
    name, *parts = (
        value if isinstance(value := values.get(each), str) else ""
        for each in ("name", "given_name", "family_name")
    )
    return _shorten(name or " ".join(parts))


def _shorten(name: str) -> str:
    return " ".join(name.split())[:_LONGEST_NAME]
