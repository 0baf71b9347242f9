"""Fetch what servers say of themselves, now, and show it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.exceptions import SMARTError
from django_smart.management.wording import describe_configuration
from django_smart.models import FHIRServer
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.servers.discovery import fetch_configuration, fetch_jwks

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_discover``: exit status 1 if a server could not be read."""

    help = (
        "Fetch and store the SMART configuration and keys of servers now, and print "
        "what they offer. What is stored stays if a server cannot be read."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("slug", nargs="*", help="Servers by slug.")
        parser.add_argument(
            "--all", action="store_true", help="Every active server instead."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Read one server after the other."""
        servers = _get_servers(options["slug"], everything=options["all"])
        failures = 0
        for server in servers:
            try:
                self._discover(server)
            except SMARTError as exc:
                failures += 1
                self.stderr.write(f"{server.slug}: {exc} ({exc.code})")
        if failures:
            raise CommandError(f"{failures} of {len(servers)} servers failed.")

    def _discover(self, server: FHIRServer) -> None:
        configuration = fetch_configuration(server)
        jwks = fetch_jwks(server) if _has_keys(server, configuration) else None
        self.stdout.write(f"{server.slug}: {server.name}, {server.base_url}")
        for line in describe_configuration(configuration, jwks):
            self.stdout.write(f"  {line}")


def _get_servers(slugs: list[str], *, everything: bool) -> list[FHIRServer]:
    if bool(slugs) == everything:
        raise CommandError("Name servers by slug, or give --all.")
    if everything:
        return list(FHIRServer.objects.active())
    known = {
        server.slug: server for server in FHIRServer.objects.filter(slug__in=slugs)
    }
    unknown = [slug for slug in slugs if slug not in known]
    if unknown:
        raise CommandError(f"There is no server {', '.join(unknown)}.")
    return [known[slug] for slug in dict.fromkeys(slugs)]


def _has_keys(server: FHIRServer, configuration: SMARTConfiguration) -> bool:
    """Old servers give ID tokens without saying so; their row has the issuer."""
    return configuration.has("sso-openid-connect") or bool(
        server.jwks_uri or server.id_token_issuer
    )
