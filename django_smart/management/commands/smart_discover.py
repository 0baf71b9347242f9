"""Show what a server says of itself, and store it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.exceptions import SMARTError
from django_smart.models import FHIRServer
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.servers.discovery import (
    accept_moved,
    describe_configuration,
    describe_moved,
    fetch_configuration,
    fetch_jwks,
)

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_discover``: exit status 1 if a server could not be read."""

    help = (
        "Fetch and store the SMART configuration and keys of servers now, and "
        "print what they support. If a server cannot be read, its stored "
        "values are kept."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("slug", nargs="*", help="Slug of a server.")
        parser.add_argument("--all", action="store_true", help="All active servers.")
        parser.add_argument(
            "--accept",
            action="store_true",
            help="Show which issuer, key URL and token endpoint the named servers have "
            "now, and accept these. Check with their operators first.",
        )
        parser.add_argument(
            "--no-input",
            "--noinput",
            action="store_false",
            dest="interactive",
            help="Accept them without asking you.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Read one server after the other."""
        servers = _get_servers(options["slug"], everything=options["all"])
        if options["accept"] and options["all"]:
            raise CommandError("--accept requires the slugs of the servers.")
        failures = 0
        for server in servers:
            if options["accept"]:
                self._accept(server, asks=options["interactive"])
            try:
                self._discover(server)
            except SMARTError as exc:
                failures += 1
                self.stderr.write(f"{server.slug}: {exc} ({exc.code})")
        if failures:
            raise CommandError(f"{failures} of {len(servers)} servers failed.")

    def _accept(self, server: FHIRServer, *, asks: bool) -> None:
        shown = server.discovered.moved
        for line in describe_moved(server):
            self.stdout.write(f"{server.slug}: {line}")
        if shown and asks and input("Accept these values? [yes/no] ") != "yes":
            raise CommandError("Nothing was accepted.")
        if shown and not accept_moved(server, shown):
            raise CommandError(
                f"{server.slug}: the values changed in the meantime; run this again."
            )

    def _discover(self, server: FHIRServer) -> None:
        configuration = fetch_configuration(server)
        if _has_keys(server, configuration):
            fetch_jwks(server)
        self.stdout.write(f"{server.slug}: {server.name}, {server.base_url}")
        for name, value in describe_configuration(server):
            self.stdout.write(f"  {name}: {value}")


def _get_servers(slugs: list[str], *, everything: bool) -> list[FHIRServer]:
    if bool(slugs) == everything:
        raise CommandError("Name servers by slug, or use --all.")
    if everything:
        return list(FHIRServer.objects.active())
    known = FHIRServer.objects.in_bulk(slugs, field_name="slug")
    unknown = [slug for slug in slugs if slug not in known]
    if unknown:
        raise CommandError(f"No server has the slug {', '.join(unknown)}.")
    return [known[slug] for slug in dict.fromkeys(slugs)]


def _has_keys(server: FHIRServer, configuration: SMARTConfiguration) -> bool:
    """Old servers give ID tokens without saying so; their state has the issuer."""
    return configuration.has("sso-openid-connect") or bool(
        server.discovered.jwks_uri or server.id_token_issuer
    )
