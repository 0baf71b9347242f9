"""Say what is wrong with this site and its servers, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.contrib.doctor import Finding, Severity, examine
from django_smart.exceptions import SMARTError
from django_smart.models import FHIRServer

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_doctor``: exit status 1 if something is wrong."""

    help = (
        "Ask servers and this site itself, and say what is wrong, why it matters and "
        "how to mend it. Exit status 1 if an error was found. No secret is printed."
    )
    # It looks at them itself, and tells of them in its own way.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "server",
            nargs="*",
            metavar="SLUG|URL",
            help="Servers by slug or FHIR base URL, which need not be registered. "
            "Default: every active server.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Print one JSON object, for programs."
        )
        parser.add_argument(
            "--fail-level",
            choices=[each.value for each in Severity],
            default=Severity.ERROR.value,
            help="What makes the exit status 1: an error, which is the default, or a "
            "warning too.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Examine, and print what was found."""
        servers = _get_servers(options["server"])
        findings = examine(servers)
        if options["json"]:
            self._print_json(servers, findings)
        else:
            self._print_text(servers, findings)
        failing = {Severity.ERROR, Severity(options["fail_level"])}
        count = sum(each.severity in failing for each in findings)
        if count:
            raise CommandError(f"{count} to mend.")

    def _print_json(
        self, servers: Sequence[FHIRServer], findings: Sequence[Finding]
    ) -> None:
        report = {
            "servers": [server.slug for server in servers],
            "findings": [each.to_json() for each in findings],
        }
        self.stdout.write(json.dumps(report, indent=2))

    def _print_text(
        self, servers: Sequence[FHIRServer], findings: Sequence[Finding]
    ) -> None:
        subjects = ["", *(server.slug for server in servers)]
        # Grants fail at servers that were not asked for too.
        subjects += [each.subject for each in findings]
        for subject in dict.fromkeys(subjects):
            found = [each for each in findings if each.subject == subject]
            name = subject or "This site"
            if not found:
                self.stdout.write(f"{name}: nothing is wrong.")
                continue
            self.stdout.write(f"{name}:")
            for each in found:
                self.stdout.write(f"  {each.severity.upper()} {each.code}")
                self.stdout.write(f"    {each.what}")
                self.stdout.write(f"    Why it matters: {each.why}")
                self.stdout.write(f"    What to do: {each.fix}")


def _get_servers(names: Sequence[str]) -> list[FHIRServer]:
    if not names:
        return list(FHIRServer.objects.active())
    return [_get_server(name) for name in dict.fromkeys(names)]


def _get_server(name: str) -> FHIRServer:
    if "://" not in name:
        server = FHIRServer.objects.filter(slug=name).first()
        if server is None:
            raise CommandError(
                f"There is no server {name}; give a slug or a FHIR base URL."
            )
        return server
    try:
        known = FHIRServer.objects.with_base_url(name).first()
    except SMARTError as exc:
        raise CommandError(f"{name}: {exc}") from exc
    return known or FHIRServer(slug=name, name=name, base_url=name)
