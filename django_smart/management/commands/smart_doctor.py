"""Report what is wrong with this site and its servers, and how to fix it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.contrib.doctor import (
    UNUSABLE,
    build_unexamined,
    collect,
    examine,
)
from django_smart.contrib.doctor.report import read_report, render_report
from django_smart.diagnoses import Finding, Severity
from django_smart.exceptions import SMARTError
from django_smart.models import FHIRServer

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_doctor``: exit status 1 if something is wrong."""

    help = (
        "Examine this site and its servers, and report what is wrong, why it matters "
        "and how to fix it. Exits with status 1 if an error was found. No secret is "
        "printed."
    )
    # The doctor runs the system checks and reports them as findings.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "server",
            nargs="*",
            metavar="SLUG|URL",
            help="Slug of a server, or a FHIR base URL, which need not be registered. "
            "Default: every active server.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Print the report as one JSON object."
        )
        parser.add_argument(
            "--launch",
            action="store_true",
            help="Also launch this site at a simulated EHR, through its own middleware "
            "and views, and keep nothing of it. Requires the extra testing.",
        )
        parser.add_argument(
            "--report",
            action="store_true",
            help="Instead, print what the servers did differently from the "
            "specification in the last 30 days, for the EHR's team.",
        )
        parser.add_argument(
            "--fail-level",
            choices=[Severity.ERROR.value, Severity.WARNING.value],
            default=Severity.ERROR.value,
            help="Lowest severity that makes the exit status 1. Default: error.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Examine the site and its servers, and print the findings."""
        servers: list[FHIRServer] = []
        unread: list[Finding] = []
        try:
            servers = _get_servers(options["server"])
        except CommandError:
            raise
        except Exception as exc:  # noqa: BLE001 (whatever is wrong is to be told)
            unread = [build_unexamined("servers", exc)]
        if options["report"]:
            if unread:
                raise CommandError(unread[0].what)
            self._report(servers)
            return
        findings = examine(servers)
        if UNUSABLE.isdisjoint(each.code for each in findings):
            findings += unread
        if options["launch"]:
            findings += self._launch(findings)
        if options["json"]:
            self._print_json(servers, findings)
        else:
            self._print_text(servers, findings)
        failing = dict.fromkeys([Severity.ERROR, Severity(options["fail_level"])])
        counts = [(sum(f.severity == each for f in findings), each) for each in failing]
        found = [f"{n} {each}{'s' if n > 1 else ''}" for n, each in counts if n]
        if found:
            raise CommandError(f"{' and '.join(found)} found.")

    def _report(self, servers: Sequence[FHIRServer]) -> None:
        for server in servers:
            if server.pk is None:
                raise CommandError(f"{server.base_url} is not registered.")
            self.stdout.write(f"{render_report(read_report(server))}\n")

    def _launch(self, findings: Sequence[Finding]) -> list[Finding]:
        try:
            from django_smart.contrib.doctor import launch
        except ImportError as exc:
            raise CommandError(f"--launch is not possible: {exc}") from exc
        is_over = {*UNUSABLE, "database_read_only"}
        if not is_over.isdisjoint(each.code for each in findings):
            return []  # nothing could be stored
        found = collect("launch", launch.try_launch)
        found += collect("scopes of views", launch.find_unrequested_scopes)
        self.stderr.write(launch.NOT_HELD_BACK)
        return found

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
                self.stdout.write(f"{name}: no problems found.")
                continue
            self.stdout.write(f"{name}:")
            for each in found:
                self.stdout.write(f"  {each.severity.upper()} {each.code}")
                self.stdout.write(f"    {each.what}")
                self.stdout.write(f"    Why it matters: {each.why}")
                self.stdout.write(f"    What to do: {each.fix}")
                self.stdout.write(f"    See {each.docs_url}")


def _get_servers(names: Sequence[str]) -> list[FHIRServer]:
    if not names:
        return list(FHIRServer.objects.active())
    return [_get_server(name) for name in dict.fromkeys(names)]


def _get_server(name: str) -> FHIRServer:
    if "://" not in name:
        server = FHIRServer.objects.filter(slug=name).first()
        if server is None:
            raise CommandError(
                f"No server has the slug {name!r}; enter a slug or a FHIR base URL."
            )
        return server
    try:
        known = FHIRServer.objects.with_base_url(name).first()
    except SMARTError as exc:
        raise CommandError(f"{name}: {exc}") from exc
    return known or FHIRServer(slug=name, name=name, base_url=name)
