"""What is wrong with this site: its settings, and how the outside sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode

from ...exceptions import DiscoveryError, ServerTimeoutError, TransportError
from ...models import SigningKey
from ...protocol.discovery import build_jwks_request, process_jwks_response
from ...protocol.messages import HTTPResponse
from ...servers.signing_keys import OVERLAP
from ...views.jwks import PROBE_PARAMETER, SEEN_AS_HEADER, build_probe
from .asking import ask
from .findings import Finding, Severity, build_finding

__all__ = ["answers_at", "find_setting_faults", "probe_site"]

_SHARED_AGE = re.compile(r"s-maxage\s*=\s*\"?([0-9]{1,9})", re.ASCII)
# What the messages themselves do not say.
_WHY = {
    "django_smart.E020": "No launch is ever found, and every page is without one.",
    "django_smart.E022": "Nobody can be signed in.",
    "django_smart.E023": "Nobody can be signed in.",
    "django_smart.E024": "Neither the EHR nor people find the addresses of this app.",
    "django_smart.E025": "Tokens are refreshed at the wrong time, or never.",
    "django_smart.E026": "Pages for errors and for choosing cannot be shown.",
    "django_smart.W020": "Two charts in two tabs can be taken for each other.",
    "django_smart.W033": (
        "Whoever changes SECRET_KEY loses every refresh token, and people have to "
        "connect again."
    ),
}
_WHY_SETTING = "Whatever reads the setting fails, or does without what was meant."
_WHY_OTHERWISE = "It is told by “manage.py check --deploy” too."


def find_setting_faults() -> Iterator[Finding]:
    """What this package's system checks tell; those for production outside of DEBUG."""
    messages = checks.run_checks(
        tags=["django_smart"], include_deployment_checks=not settings.DEBUG
    )
    for message in messages:
        if message.level < checks.WARNING or message.is_silenced():
            continue
        code = str(message.id)
        is_setting = code < "django_smart.E020" or code == "django_smart.W021"
        yield Finding(
            code=code,
            severity=(
                Severity.ERROR if message.level >= checks.ERROR else Severity.WARNING
            ),
            subject="",
            what=str(message.msg),
            why=_WHY.get(code, _WHY_SETTING if is_setting else _WHY_OTHERWISE),
            fix=str(message.hint or ""),
        )


def probe_site(origin: str, *, signs: bool) -> list[Finding]:
    """
    Ask this site for its JWK Set at its public address, as an EHR does.

    Args:
        origin: scheme and host that people and EHRs reach it at.
        signs: whether a registration authenticates with ``private_key_jwt``, so that
            EHRs need the JWK Set.
    """
    try:
        path = reverse("django_smart:jwks")
    except NoReverseMatch:
        return []  # a system check tells that the URLs are not included
    url = origin + path
    try:
        answer = ask(
            build_jwks_request(f"{url}?{urlencode({PROBE_PARAMETER: build_probe()})}")
        )
    except TransportError as exc:
        return [_build_unreachable(url, exc, signs=signs)]
    seen_as = answer.headers.get(SEEN_AS_HEADER.lower())
    try:
        if seen_as is None:
            raise DiscoveryError("it is not this site that answers")
        jwks = process_jwks_response(answer)
    except DiscoveryError as exc:
        return [_build_wrong(url, answer, exc, signs=signs)]
    findings = list(_find_proxy_faults(url, seen_as))
    if signs:
        kids = {str(key.get("kid")) for key in jwks["keys"]}
        findings += _find_key_set_faults(url, answer, kids)
    return findings


def answers_at(origin: str) -> bool:
    """Whether it is this site that answers at *origin*."""
    codes = {each.code for each in probe_site(origin, signs=False)}
    return not codes & {"jwks_unreachable", "jwks_wrong"}


def _build_unreachable(url: str, error: TransportError, *, signs: bool) -> Finding:
    fix = (
        "See whether the address in SMART_SITE_URL is right, whether the site runs, "
        "and whether its name, certificate and firewall let the outside in."
    )
    if isinstance(error, ServerTimeoutError):
        fix += (
            "  A site of a single process cannot answer itself while it asks: run "
            "smart_doctor on the command line then."
        )
    return build_finding(
        "jwks_unreachable",
        severity=None if signs else Severity.WARNING,
        what=f"{url} cannot be reached from here: {error}.",
        fix=fix,
    )


def _build_wrong(
    url: str, answer: HTTPResponse, error: DiscoveryError, *, signs: bool
) -> Finding:
    what = (
        f"it answers with status {answer.status_code}"
        if answer.status_code != 200
        else str(error)
    )
    return build_finding(
        "jwks_wrong",
        severity=None if signs else Severity.WARNING,
        what=f"{url} is not the JWK Set of this site: {what}.",
        fix="Have the proxy pass this path on to this site without a sign-in and "
        "without a redirect, and add its host to ALLOWED_HOSTS.",
    )


def _find_proxy_faults(url: str, seen_as: str) -> Iterator[Finding]:
    asked, seen = urlsplit(url), urlsplit(seen_as)
    if asked.scheme != seen.scheme:
        yield build_finding(
            "proxy_header_missing",
            what=f"This site is asked by {asked.scheme}, and Django sees "
            f"{seen.scheme}: it would build the redirect URI as {seen.scheme}://….",
            fix="Have the proxy set X-Forwarded-Proto on every request, and set "
            'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https").',
        )
    if asked.netloc != seen.netloc:
        yield build_finding(
            "proxy_host_lost",
            what=f"This site is asked as {asked.netloc}, and Django sees "
            f"{seen.netloc}.",
            fix="Have the proxy pass on the Host header; or have it set "
            "X-Forwarded-Host, and set USE_X_FORWARDED_HOST = True.",
        )
    if asked.path != seen.path:
        yield build_finding(
            "proxy_host_lost",
            what=f"This site is asked for {asked.path}, and Django sees {seen.path}.",
            fix="Have the proxy pass on the whole path, or set FORCE_SCRIPT_NAME to "
            "what it takes off.",
        )


def _find_key_set_faults(
    url: str, answer: HTTPResponse, kids: set[str]
) -> Iterator[Finding]:
    signing = SigningKey.objects.active().values_list("kid", flat=True)
    missing = [kid for kid in signing if kid not in kids]
    if missing:
        yield build_finding(
            "jwks_outdated",
            what=f"{url} lacks the key that signs now, {missing[0]}.",
            fix="Have the cache before this site keep to its Cache-Control, and empty "
            "it; see whether every process uses the same database.",
        )
    ages = [int(age) for age in _SHARED_AGE.findall(_get_cache_control(answer))]
    if answer.max_age is not None:
        ages.append(answer.max_age)
    longest = timedelta(seconds=max(ages, default=0))
    if longest > OVERLAP:
        yield build_finding(
            "jwks_cached_too_long",
            what=f"{url} may be cached for {longest}, and keys overlap for {OVERLAP}.",
            fix="Have the proxy or cache before this site leave its Cache-Control "
            "(max-age=3600) as it is.",
        )


def _get_cache_control(answer: HTTPResponse) -> str:
    return answer.headers.get("cache-control", "").lower()
