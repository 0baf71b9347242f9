"""What is wrong with this site: settings, database, and how the outside sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connections, router, transaction
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode

from ...checks.settings import RULES
from ...conf import DOCS_URL, conf
from ...exceptions import DiscoveryError, ServerTimeoutError, TransportError
from ...models import FHIRServer, SigningKey
from ...protocol.discovery import build_jwks_request, process_jwks_response
from ...protocol.messages import HTTPResponse
from ...protocol.urls import LOOPBACK_HOSTS, is_same_origin
from ...servers.signing_keys import OVERLAP
from ...views.jwks import PROBE_PARAMETER, SEEN_AS_HEADER, build_probe
from .findings import Finding, Severity, ask, build_finding

__all__ = [
    "NO_ANSWER",
    "UNUSABLE",
    "answers_at",
    "find_database_faults",
    "find_setting_faults",
    "find_unknown_staff_servers",
    "probe_site",
]

#: The codes after which nothing that reads the database can be examined.
UNUSABLE = frozenset({"database_unusable", "migrations_missing"})
#: The codes that say that this site does not answer at an address.
NO_ANSWER = frozenset({"jwks_unreachable", "jwks_wrong"})

_APPS = ("django_smart", "django_smart_brands", "auth", "sessions")
_MIGRATE = (
    "Run “manage.py migrate”. If there is nothing to apply, compare "
    "“manage.py showmigrations” with the tables: a migration that stopped "
    "halfway has to be completed or reversed."
)
_SHARED_AGE = re.compile(r"s-maxage\s*=\s*\"?([0-9]{1,9})", re.ASCII)
# What the messages themselves do not say.
_WHY = {
    **dict.fromkeys(
        [*(rule.id for rule in RULES), "django_smart.W021"],
        "Code that reads the setting fails, or ignores it.",
    ),
    "django_smart.E020": "No launch is ever found, so no page has one.",
    "django_smart.E021": "Users have to open the app again on every page.",
    "django_smart.E022": "No one can sign in.",
    "django_smart.E023": "No one can sign in.",
    "django_smart.E024": "Neither the EHR nor people can reach the URLs of this app.",
    "django_smart.E025": "Tokens are refreshed at the wrong time, or never.",
    "django_smart.E026": "Error pages and pages with choices cannot be rendered.",
    "django_smart.W020": "Two charts in two tabs can be mixed up.",
    "django_smart.W033": (
        "When SECRET_KEY changes, every refresh token is lost, and people "
        "have to connect again."
    ),
    "django_smart.W071": "Users open the app, sign in, and have to open it again.",
}
_WHY_OTHERWISE = "“manage.py check --deploy” reports this too."


def find_setting_faults() -> Iterator[Finding]:
    """Report this package's system checks; those for production unless developing."""
    is_public = _is_public(conf.SMART_SITE_URL)
    if settings.DEBUG and is_public:
        yield build_finding(
            "debug_on",
            what=f"DEBUG is on, although this site is {conf.SMART_SITE_URL} "
            "(SMART_SITE_URL).",
            fix="Set DEBUG = False in production. On your own machine, use a "
            "SMART_SITE_URL with localhost.",
        )
    messages = checks.run_checks(
        tags=["django_smart"],
        include_deployment_checks=is_public or not settings.DEBUG,
        databases=list(connections),
    )
    for message in messages:
        if message.level < checks.WARNING or message.is_silenced():
            continue
        code = str(message.id)
        yield Finding(
            code=code,
            severity=(
                Severity.ERROR if message.level >= checks.ERROR else Severity.WARNING
            ),
            subject="",
            what=str(message.msg),
            why=_WHY.get(code, _WHY_OTHERWISE),
            # The finding has the link itself.
            fix=str(message.hint or "").partition(f" See {DOCS_URL}")[0],
        )


def _is_public(site: str) -> bool:
    try:
        parts = urlsplit(site)
    except ValueError:  # reported by a check
        return False
    return parts.scheme == "https" and parts.hostname not in LOOPBACK_HOSTS


def find_database_faults() -> Iterator[Finding]:
    """Missing migrations and columns; a database that only reads."""
    alias = router.db_for_write(FHIRServer)
    try:
        executor = MigrationExecutor(connections[alias])
    except DatabaseError as exc:
        yield build_finding(
            "database_unusable",
            what=f"The database cannot be used: {_describe(exc)}.",
            fix="Check host, name, user and password in DATABASES, and start the "
            "database server if it is down.",
        )
        return
    targets = [each for each in executor.loader.graph.leaf_nodes() if each[0] in _APPS]
    plan = executor.migration_plan(targets)
    missing = [f"{each.app_label}.{each.name}" for each, _ in plan]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    shown = ", ".join(missing[-3:]) + more
    faults = [f"not applied: {shown}"] if missing else []
    for model in (
        apps.get_app_config("django_smart").get_models() if not missing else ()
    ):
        try:
            with transaction.atomic(using=alias):
                list(model._base_manager.using(alias).filter(pk__lt=0).values())
        except DatabaseError as exc:
            faults.append(f"{model._meta.db_table} cannot be read ({_describe(exc)})")
    if faults:
        yield build_finding(
            "migrations_missing",
            what=f"The tables do not match this version: {'; '.join(faults)}.",
            fix=_MIGRATE,
        )
        return
    try:
        with transaction.atomic(using=alias):
            FHIRServer.objects.using(alias).filter(pk__lt=0).update(paused=False)
    except DatabaseError as exc:
        yield build_finding(
            "database_read_only",
            what=f"The database is read-only: {_describe(exc)}.",
            fix="Give the user in DATABASES write permission; for SQLite, make "
            "the file and its folder writable for the site's processes.",
        )


def find_unknown_staff_servers() -> Iterator[Finding]:
    """Slugs in a setting that a server does not have, or no longer."""
    named = conf.SMART_STAFF_SIGN_IN_SERVERS
    unknown = named.difference(FHIRServer.objects.values_list("slug", flat=True))
    if unknown:
        yield build_finding(
            "staff_server_unknown",
            what="SMART_STAFF_SIGN_IN_SERVERS names servers that do not exist: "
            f"{', '.join(sorted(unknown))}.",
            fix="Enter the slug of a server, as on its admin page, or remove it.",
        )


def _describe(error: DatabaseError) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
        return []  # a system check reports that the URLs are not included
    url = origin + path
    try:
        answer = ask(
            build_jwks_request(f"{url}?{urlencode({PROBE_PARAMETER: build_probe()})}"),
            server=None,
        )
    except TransportError as exc:
        return [_build_unreachable(url, exc, signs=signs)]
    seen_as = answer.headers.get(SEEN_AS_HEADER.lower())
    try:
        if seen_as is None:
            raise DiscoveryError("another site responds at this URL")
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
    return NO_ANSWER.isdisjoint(each.code for each in probe_site(origin, signs=False))


def _build_unreachable(url: str, error: TransportError, *, signs: bool) -> Finding:
    fix = (
        "Check that the URL in SMART_SITE_URL is correct, that the site is "
        "running, and that its DNS name, certificate and firewall allow "
        "access from outside."
    )
    if isinstance(error, ServerTimeoutError):
        fix += (
            " A site with a single process cannot respond to its own request: "
            "run smart_doctor on the command line instead."
        )
    return build_finding(
        "jwks_unreachable",
        # Behind many a firewall a site does not reach itself; EHRs and people do.
        severity=None if signs else Severity.NOTE,
        what=f"{url} cannot be reached from here: {error}.",
        fix=fix,
    )


def _build_wrong(
    url: str, answer: HTTPResponse, error: DiscoveryError, *, signs: bool
) -> Finding:
    what = (
        f"the response has status {answer.status_code}"
        if answer.status_code != 200
        else str(error)
    )
    fix = (
        "Configure the proxy to pass requests for this path to this site without "
        "requiring sign-in and without redirecting, and add its host to "
        "ALLOWED_HOSTS."
    )
    if settings.SECURE_SSL_REDIRECT and 300 < answer.status_code < 400:
        fix = (
            "SECURE_SSL_REDIRECT redirects to https. Without TLS, as in "
            "development, set SECURE_SSL_REDIRECT = False. Behind a proxy "
            "that terminates TLS, configure the proxy to set "
            "X-Forwarded-Proto, and set SECURE_PROXY_SSL_HEADER = "
            '("HTTP_X_FORWARDED_PROTO", "https").'
        )
    return build_finding(
        "jwks_wrong",
        severity=None if signs else Severity.WARNING,
        what=f"{url} is not this site's JWK Set: {what}.",
        fix=fix,
    )


def _find_proxy_faults(url: str, seen_as: str) -> Iterator[Finding]:
    asked, seen = urlsplit(url), urlsplit(seen_as)
    if asked.scheme != seen.scheme:
        yield build_finding(
            "proxy_header_missing",
            what=f"This site was requested over {asked.scheme}, but Django sees "
            f"{seen.scheme} and would build the redirect URI as "
            f"{seen.scheme}://….",
            fix="Configure the proxy to set X-Forwarded-Proto on every request, "
            'and set SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", '
            '"https").',
        )
    if not is_same_origin(url, f"{asked.scheme}://{seen.netloc}"):
        yield build_finding(
            "proxy_host_lost",
            what=f"This site was requested as {asked.netloc}, but Django sees "
            f"{seen.netloc}.",
            fix="Configure the proxy to pass on the Host header, or to set "
            "X-Forwarded-Host and set USE_X_FORWARDED_HOST = True.",
        )
    if asked.path != seen.path:
        yield build_finding(
            "proxy_host_lost",
            what=f"This site was requested at {asked.path}, but Django sees "
            f"{seen.path}.",
            fix="Configure the proxy to pass on the complete path, or set "
            "FORCE_SCRIPT_NAME to the part that it removes.",
        )


def _find_key_set_faults(
    url: str, answer: HTTPResponse, kids: set[str]
) -> Iterator[Finding]:
    signing = SigningKey.objects.of(None).active().values_list("kid", flat=True)
    missing = [kid for kid in signing if kid not in kids]
    if missing:
        yield build_finding(
            "jwks_outdated",
            what=f"{url} does not contain the active signing key, {missing[0]}.",
            fix="Make the cache in front of this site respect its Cache-Control, "
            "and clear it. Check that every process uses the same database.",
        )
    cache_control = answer.headers.get("cache-control", "").lower()
    ages = [int(age) for age in _SHARED_AGE.findall(cache_control)]
    if answer.max_age is not None:
        ages.append(answer.max_age)
    longest = timedelta(seconds=max(ages, default=0))
    if longest > OVERLAP:
        yield build_finding(
            "jwks_cached_too_long",
            what=f"{url} may be cached for {longest}, but keys overlap for only "
            f"{OVERLAP}.",
            fix="Configure the proxy or cache in front of this site to leave its "
            "Cache-Control (max-age=3600) unchanged.",
        )
