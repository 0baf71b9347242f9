"""The button of an error page: its URL and label."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import Max, Q
from django.http import HttpRequest
from django.shortcuts import resolve_url
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..diagnoses import DIAGNOSES
from ..exceptions import SMARTError
from ..launches.held import is_protected
from ..launches.prefix import find_route, get_protocol_url, leave_launch
from ..models import ClientRegistration, Identity, Launch, TokenGrant

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django_stubs_ext import StrOrPromise

__all__ = [
    "Retry",
    "build_login_url",
    "build_sign_in_url",
    "can_pass",
    "choose_organization",
    "connect_again",
    "connect_records",
    "find_ehr_sign_in",
    "find_site_sign_in",
    "get_page",
    "has_login_page",
    "open_again",
    "reconnect",
    "sign_in_again",
    "signs_in_through_ehr",
    "try_again",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """A button, and a link to the site's own sign-in beside it, if that may help."""

    url: str = field(repr=False)  # may hold the EHR's launch value
    label: StrOrPromise
    site_url: str = field(default="", repr=False)


def try_again(url: str) -> Retry:
    """Return a button that requests *url* again."""
    return Retry(url=url, label=_("Try again"))


def connect_again(launch: Launch | None, *, next_url: str = "") -> Retry | None:
    """
    Return a button that connects to the same organization again.

    Returns ``None`` for an EHR launch, which can only be started in the EHR.
    """
    if launch is None or launch.kind == Launch.Kind.EHR:
        return None
    return reconnect(launch.registration, next_url=next_url)


def reconnect(
    registration: ClientRegistration | None, *, next_url: str = ""
) -> Retry | None:
    """Return a button that connects with *registration*, if that is possible."""
    startable = ClientRegistration.objects.startable()
    if registration is None or not startable.filter(pk=registration.pk).exists():
        return None
    return Retry(
        url=build_login_url(**registration.login_parameters, next_url=next_url),
        label=_("Connect again"),
    )


def open_again(launch: Launch, *, next_url: str) -> Retry | None:
    """Return a button to the page without a launch, if *launch*'s connection lasts."""
    grant = launch.grant
    is_left = grant is not None and grant.status == TokenGrant.Status.ACTIVE
    if launch.kind != Launch.Kind.CONNECTION or not is_left:
        return None
    landing = launch.registration.landing_page or conf.SMART_LAUNCH_REDIRECT_URL
    url = leave_launch(next_url or resolve_url(landing))
    return Retry(url=url, label=_("Open the record again"))


def connect_records(*, next_url: str = "", has_some: bool = False) -> Retry | None:
    """Return a button to the picker, or ``None`` if the picker would be empty."""
    if not ClientRegistration.objects.standalone().exists():
        return None
    label = _("Connect another record") if has_some else _("Connect your records")
    return Retry(url=build_login_url(next_url=next_url), label=label)


def choose_organization(*, next_url: str = "") -> Retry:
    """Return a button to the picker, for a user who started on this site."""
    return Retry(
        url=build_login_url(next_url=next_url), label=_("Choose an organization")
    )


def sign_in_again(
    request: HttpRequest, user: AbstractBaseUser | None, *, next_url: str
) -> Retry | None:
    """Return a button to a sign-in that *user* can use: the site's, or at an EHR."""
    site_url = find_site_sign_in(request, next_url)
    if url := find_ehr_sign_in(user, next_url=next_url):
        at_ehr = _("Sign in with the organization that keeps your records")
        label = at_ehr if site_url else _("Sign in")
        return Retry(url=url, label=label, site_url=site_url)
    return Retry(url=site_url, label=_("Sign in")) if site_url else None


def find_site_sign_in(request: HttpRequest, next_url: str) -> str:
    """Return the URL of the site's own sign-in, or "" if it has none."""
    if signs_in_through_ehr(request) or not has_login_page():
        return ""
    return build_sign_in_url(request, next_url)


def find_ehr_sign_in(user: AbstractBaseUser | None, *, next_url: str = "") -> str:
    """
    Return where an EHR signs *user* in, if they have no password here; or "".

    ``LOGIN_URL`` is often a password form, which such a user cannot get past.
    """
    if user is None or user.has_usable_password():
        return ""
    own = Identity.objects.filter(user_id=user.pk, may_sign_in=True)
    # Read first and by themselves: joined, they would be found among the launches of
    # everyone at the server.
    sign_ins = Launch.objects.filter(
        identity__in=own, intent=Launch.Intent.SIGN_IN, completed_at__isnull=False
    )
    used_at = dict(sign_ins.values_list("registration").annotate(Max("completed_at")))
    registrations = list(
        ClientRegistration.objects.startable()
        .filter(server__in=own.values("server"))
        .filter(Q(pk__in=used_at) | Q(standalone_slot__isnull=False))
        .order_by("server__name")
    )
    # The latest first: another client of the server may know them by another subject.
    never = datetime.min.replace(tzinfo=UTC)
    registrations.sort(key=lambda each: used_at.get(each.pk, never), reverse=True)
    for each in registrations:
        if "openid" in each.standalone_scope.split() and not is_protected(
            user, each.server
        ):
            return build_login_url(**each.login_parameters, next_url=next_url)
    return ""


def can_pass(error: SMARTError) -> bool:
    """Return whether the same request may succeed a little later."""
    known = DIAGNOSES.get(error.code)
    return known is not None and known.passes


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


def build_sign_in_url(request: HttpRequest, next_url: str) -> str:
    """``LOGIN_URL``, which leads back to *next_url*."""
    # Importable only when all models are loaded.
    from django.contrib.auth.views import redirect_to_login

    login_url = resolve_url(settings.LOGIN_URL)
    # As login_required: from another host, a path would not lead back here.
    if not _is_own_host(request, urlsplit(login_url).netloc):
        next_url = request.build_absolute_uri(next_url)
    return redirect_to_login(next_url, login_url).url


def has_login_page() -> bool:
    """Return whether ``LOGIN_URL`` is a page of this site, or at another host."""
    url = urlsplit(resolve_url(settings.LOGIN_URL))
    return bool(url.netloc) or find_route(url.path, follow=True) is not None


def signs_in_through_ehr(request: HttpRequest) -> bool:
    """Return whether ``LOGIN_URL`` is this package's, which starts another launch."""
    url = urlsplit(resolve_url(settings.LOGIN_URL))
    if not _is_own_host(request, url.netloc):
        return False
    match = find_route(url.path, follow=True)
    return match is not None and "django_smart" in match.app_names


def _is_own_host(request: HttpRequest, host: str) -> bool:
    # A proxy may change the request's.
    return host in {"", request.get_host(), urlsplit(conf.SMART_SITE_URL).netloc}
