"""The button of an error page: it leads somewhere useful, and says where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..exceptions import (
    DiscoveryStatusError,
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
    ServerTimeoutError,
    ServerUnreachableError,
    TokenServerError,
    UnknownSigningKeyError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """Where a button leads, and what it says."""

    url: str = field(repr=False)  # may hold the EHR's launch value
    label: StrOrPromise


def build_login_url(*, server: str = "", next_url: str = "") -> str:
    """The path of ``login/``, for the server with this slug or for the picker."""
    given = {
        name: value for name, value in (("server", server), ("next", next_url)) if value
    }
    path = get_protocol_url("login")
    return f"{path}?{urlencode(given)}" if given else path


def get_page(request: HttpRequest) -> str:
    """The page to come back to; empty if it is none that can be asked for again."""
    return request.get_full_path() if request.method == "GET" else ""


def can_pass(error: SMARTError) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, _PASSING)


def try_again(url: str) -> Retry:
    """The same once more."""
    return Retry(url=url, label=_("Try again"))


def choose_organisation(*, next_url: str = "") -> Retry:
    """The picker, for those who were on their way from this site."""
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Choose an organisation")
    )


def connect_records(*, next_url: str = "") -> Retry | None:
    """The picker, for those without a launch; ``None`` if there is nothing to pick."""
    if not ClientRegistration.objects.standalone().exists():
        return None
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Connect your records")
    )


def connect_again(launch: Launch | None, *, next_url: str = "") -> Retry | None:
    """
    The same organisation once more, if the launch began on this site.

    An EHR launch begins in the EHR: no button of ours can start it.
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
