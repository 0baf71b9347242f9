"""
The doctor: asks the servers and this site itself, and says what is wrong.

``smart_doctor`` and the admin's "Test connection" show what :func:`examine` finds.
Nothing is changed, but that a server's answer to discovery is stored, and no finding
holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...conf import conf
from ...models import ClientRegistration, FHIRServer
from ...servers.registering import get_site_url
from .background import examine_background
from .findings import KINDS, Finding, Severity, build_finding
from .server import examine_server
from .site import answers_at, find_setting_faults, probe_site

__all__ = [
    "KINDS",
    "Finding",
    "Severity",
    "build_finding",
    "examine",
    "examine_server",
    "examine_site",
]


def examine(servers: Iterable[FHIRServer]) -> list[Finding]:
    """
    Everything: this site, what runs in the background, and each of *servers*.

    A server that is not stored is asked too; of it, only what it says is judged.
    """
    findings = examine_site()
    for server in servers:
        findings += examine_server(server)
    return findings


def examine_site() -> list[Finding]:
    """This site: settings, how it is reached, keys, beat and workers, grants."""
    findings = list(find_setting_faults())
    registrations = list(
        ClientRegistration.objects.filter(is_active=True, server__is_active=True)
    )
    signing = {get_site_url(each) for each in registrations if each.uses_private_key}
    site = conf.SMART_SITE_URL
    origins = {get_site_url(each) for each in registrations} | {site}
    for origin in sorted(origins - {""}):
        # Another address that is not this site's is told of with its registration.
        if not site or origin == site or answers_at(origin):
            findings += probe_site(origin, signs=origin in signing)
    return [*findings, *examine_background()]
