"""The button of an error page: where it leads, and its label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..exceptions import (
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
    "choose_organisation",
    "connect_again",
    "connect_records",
    "get_page",
    "try_again",
]

_PASSING = (
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
    """The same address again."""
    return Retry(url=url, label=_("Try again"))


def connect_again(launch: Launch | None, *, next_url: str = "") -> Retry | None:
    """
    The same organisation again; ``None`` unless the launch began on this site.

    An EHR launch begins in the EHR, where no button of this site leads.
    """
    if launch is None or launch.kind != Launch.Kind.STANDALONE:
        return None
    registration = launch.registration
    standalone = ClientRegistration.objects.standalone().filter(pk=registration.pk)
    if not standalone.exists():
        return None
    return Retry(
        url=build_login_url(server=registration.server.slug, next_url=next_url),
        label=_("Connect again"),
    )


def connect_records(*, next_url: str = "") -> Retry | None:
    """The picker, for somebody without a launch; ``None`` if it would be empty."""
    if not ClientRegistration.objects.standalone().exists():
        return None
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Connect your records")
    )


def choose_organisation(*, next_url: str = "") -> Retry:
    """The picker, for somebody who started on this site."""
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Choose an organisation")
    )


def can_pass(error: SMARTError) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, _PASSING)


def build_login_url(*, server: str = "", next_url: str = "") -> str:
    """The path of ``login/``, for the server with this slug or for the picker."""
    given = {
        name: value for name, value in (("server", server), ("next", next_url)) if value
    }
    path = get_protocol_url("login")
    return f"{path}?{urlencode(given)}" if given else path


def get_page(request: HttpRequest) -> str:
    """The page to come back to; empty unless it can be requested again."""
    return request.get_full_path() if request.method == "GET" else ""
