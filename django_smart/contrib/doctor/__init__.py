"""
The doctor: asks the servers and this site itself, and says what is wrong.

``smart_doctor`` and the admin's "Test connection" show what :func:`examine` finds.
Nothing is changed, except that a server's answer to discovery is stored, and that this
deployment owns the grants if none did. No finding holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...conf import conf
from ...diagnoses import Finding
from ...models import ClientRegistration, FHIRServer
from ...servers.registering import get_site_url
from .background import examine_background
from .findings import build_unexamined, collect
from .server import BASE_URL_WRONG, discover, examine_server
from .site import (
    NO_ANSWER,
    UNUSABLE,
    answers_at,
    ask_views,
    find_database_faults,
    find_setting_faults,
    find_unknown_staff_servers,
    probe_site,
)
from .stored_secrets import find_unreadable_secrets

__all__ = [
    "BASE_URL_WRONG",
    "UNUSABLE",
    "build_unexamined",
    "collect",
    "discover",
    "examine",
    "examine_server",
]


def examine(servers: Iterable[FHIRServer]) -> list[Finding]:
    """
    Everything: this site, what runs in the background, and each of *servers*.

    A server that is not stored is asked too; of it, only what it says is judged.  What
    cannot be examined is a finding with its reason: nothing is raised.
    """
    findings = collect("settings", find_setting_faults)
    findings += collect("database", find_database_faults)
    if UNUSABLE.isdisjoint(each.code for each in findings):
        findings += collect("stored secrets", find_unreadable_secrets)
        findings += collect("staff sign-in", find_unknown_staff_servers)
        findings += collect("public address", _probe_addresses)
        findings += examine_background()
    for server in servers:
        findings += examine_server(server)
    return findings


def _probe_addresses() -> Iterator[Finding]:
    registrations = list(
        ClientRegistration.objects.filter(is_active=True, server__is_active=True)
    )
    signing = {get_site_url(each) for each in registrations if each.uses_private_key}
    site = conf.SMART_SITE_URL
    origins = {get_site_url(each) for each in registrations} | {site}
    launching = [each for each in registrations if each.is_for_launches]
    for origin in sorted(origins - {""}):
        # Other origins are reported with their registration.
        if not site or origin == site or answers_at(origin):
            found = probe_site(origin, signs=origin in signing)
            yield from found
            if launching and NO_ANSWER.isdisjoint(each.code for each in found):
                yield from ask_views(origin, launching)
