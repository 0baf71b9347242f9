"""What is wrong with this site: settings, database, and how the outside sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, connections, router, transaction
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode

from ...checks import settings as checks
from ...checks.deployment import find_deployment_faults, is_public_site
from ...checks.structure import find_structure_faults
from ...conf import conf
from ...diagnoses import Finding, Severity, build_finding
from ...exceptions import DiscoveryError, SMARTError, TransportError
from ...models import ClientRegistration, FHIRServer, SigningKey
from ...protocol.discovery import build_jwks_request, process_jwks_response
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...protocol.urls import is_same_origin
from ...servers.registering import get_site_url
from ...servers.signing_keys import OVERLAP
from ...views.jwks import PROBE_PARAMETER, SEEN_AS_HEADER, build_probe
from .findings import ask

__all__ = [
    "NO_ANSWER",
    "UNUSABLE",
    "answers_at",
    "ask_views",
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
_SHARED_AGE = re.compile(r"s-maxage\s*=\s*\"?([0-9]{1,9})", re.ASCII)


def find_setting_faults() -> Iterator[Finding]:
    """Report this package's system checks; those for production unless developing."""
    findings = [*checks.find_setting_faults(), *find_structure_faults()]
    if not settings.DEBUG or is_public_site():
        findings += find_deployment_faults()
    for each in findings:
        is_silenced = each.code in settings.SILENCED_SYSTEM_CHECKS
        if each.severity != Severity.NOTE and not is_silenced:
            yield each


def find_database_faults() -> Iterator[Finding]:
    """Missing migrations and columns; a database that only reads."""
    alias = router.db_for_write(FHIRServer)
    try:
        executor = MigrationExecutor(connections[alias])
    except DatabaseError as exc:
        yield build_finding(
            "database_unusable",
            what=f"The database cannot be used: {_describe(exc)}.",
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
        )
        return
    try:
        with transaction.atomic(using=alias):
            FHIRServer.objects.using(alias).filter(pk__lt=0).update(paused=False)
    except DatabaseError as exc:
        yield build_finding(
            "database_read_only",
            what=f"The database is read-only: {_describe(exc)}.",
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
        return [
            build_finding(
                "jwks_unreachable",
                # Behind many a firewall a site does not reach itself; EHRs and people
                # do.
                severity=None if signs else Severity.NOTE,
                what=f"{url} cannot be reached from here: {exc}.",
            )
        ]
    seen_as = answer.headers.get(SEEN_AS_HEADER.lower())
    try:
        if seen_as is None:
            raise DiscoveryError("another site responds at this URL")
        jwks = process_jwks_response(answer)
    except DiscoveryError as exc:
        status = answer.status_code
        reason = str(exc) if status == 200 else f"the response has status {status}"
        return [
            build_finding(
                "jwks_wrong",
                severity=None if signs else Severity.WARNING,
                what=f"{url} is not this site's JWK Set: {reason}.",
            )
        ]
    findings = list(_find_proxy_faults(url, seen_as))
    if signs:
        kids = {str(key.get("kid")) for key in jwks["keys"]}
        findings += _find_key_set_faults(url, answer, kids)
    return findings


# What a proxy answers that does not pass on OPTIONS proves nothing of the view.
_NOT_PASSED_ON = {403, 405, 501}


def ask_views(
    origin: str, registrations: Iterable[ClientRegistration]
) -> Iterator[Finding]:
    """Ask for the URLs of a launch at *origin*; no launch starts."""
    try:
        paths = [reverse("django_smart:launch"), reverse("django_smart:login")]
    except NoReverseMatch:
        return  # a system check reports that the URLs are not included
    own = [each for each in registrations if get_site_url(each) == origin]
    paths += [urlsplit(each.redirect_uri).path for each in own if each.redirect_uri]
    for path in dict.fromkeys(paths):
        url = origin + path
        try:
            answer = ask(HTTPRequest(method="OPTIONS", url=url), server=None)
        except SMARTError:
            return  # The address itself has been asked for the JWK Set.
        status, headers = answer.status_code, answer.headers
        if status in _NOT_PASSED_ON or (status < 300 and "allow" in headers):
            continue
        where = headers.get("location", "").partition("?")[0]
        yield build_finding(
            "url_blocked",
            what=f"Requests for {url} do not reach this app: the response has status "
            f"{status}{f' and redirects to {where}' if where else ''}.",
        )


def answers_at(origin: str) -> bool:
    """Whether it is this site that answers at *origin*."""
    return NO_ANSWER.isdisjoint(each.code for each in probe_site(origin, signs=False))


def _find_proxy_faults(url: str, seen_as: str) -> Iterator[Finding]:
    asked, seen = urlsplit(url), urlsplit(seen_as)
    if asked.scheme != seen.scheme:
        yield build_finding(
            "proxy_header_missing",
            what=f"This site was requested over {asked.scheme}, but Django sees "
            f"{seen.scheme} and would build the redirect URI as "
            f"{seen.scheme}://….",
        )
    seen_url = f"{asked.scheme}://{seen.netloc}{seen.path}"
    if not is_same_origin(url, seen_url) or asked.path != seen.path:
        yield build_finding(
            "proxy_host_lost",
            what=f"This site was requested as {asked.netloc}{asked.path}, but Django "
            f"sees {seen.netloc}{seen.path}.",
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
        )
