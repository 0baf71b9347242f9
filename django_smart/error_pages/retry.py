"""The button of an error page: its URL and label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..exceptions import (
    DiscoveryBusyError,
    DiscoveryStatusError,
    FHIRUnavailableError,
    RefreshBusyError,
    ServerTimeoutError,
    ServerUnreachableError,
    SMARTError,
    TokenServerError,
    UnknownSigningKeyError,
)
from ..launches.prefix import get_protocol_url
from ..models import ClientRegistration, Launch

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
    "Retry",
    "build_login_url",
    "can_pass",
    "choose_organization",
    "connect_again",
    "connect_records",
    "get_page",
    "try_again",
]

_PASSING = (
    DiscoveryBusyError,
    DiscoveryStatusError,
    FHIRUnavailableError,
    RefreshBusyError,
    ServerTimeoutError,
    ServerUnreachableError,
    TokenServerError,
    UnknownSigningKeyError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """A button."""

    url: str = field(repr=False)  # may hold the EHR's launch value
    label: StrOrPromise


def try_again(url: str) -> Retry:
    """Return a button that requests *url* again."""
    return Retry(url=url, label=_("Try again"))


def connect_again(launch: Launch | None, *, next_url: str = "") -> Retry | None:
    """
    Return a button that connects to the same organization again.

    Returns ``None`` for an EHR launch, which can only be started in the EHR.
    """
    if launch is None or launch.kind != Launch.Kind.STANDALONE:
        return None
    registration = launch.registration
    startable = ClientRegistration.objects.startable().filter(pk=registration.pk)
    if not startable.exists():
        return None
    return Retry(
        url=build_login_url(**registration.login_parameters, next_url=next_url),
        label=_("Connect again"),
    )


def connect_records(*, next_url: str = "") -> Retry | None:
    """Return a button to the picker, or ``None`` if the picker would be empty."""
    if not ClientRegistration.objects.standalone().exists():
        return None
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Connect your records")
    )


def choose_organization(*, next_url: str = "") -> Retry:
    """Return a button to the picker, for a user who started on this site."""
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Choose an organization")
    )


def can_pass(error: SMARTError) -> bool:
    """Return whether the same request may succeed a little later."""
    return isinstance(error, _PASSING)


def build_login_url(
    *, server: str = "", registration: str = "", next_url: str = ""
) -> str:
    """Return the path of ``login/`` for these slugs, or of the picker."""
    values = {"server": server, "registration": registration, "next": next_url}
    given = {name: value for name, value in values.items() if value}
    path = get_protocol_url("login")
    return f"{path}?{urlencode(given)}" if given else path


def get_page(request: HttpRequest) -> str:
    """Return the current page's URL, or "" if it was not requested with GET."""
    return request.get_full_path() if request.method == "GET" else ""
