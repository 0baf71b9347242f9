"""Register this site's client at a FHIR server, or bring a registration up to date."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from django.core.exceptions import (
    NON_FIELD_ERRORS,
    ImproperlyConfigured,
    ValidationError,
)
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, router, transaction

from django_smart.contrib.doctor import BASE_URL_WRONG, discover
from django_smart.diagnoses import Finding
from django_smart.exceptions import SMARTError
from django_smart.models import ClientRegistration, FHIRServer
from django_smart.protocol.json import parse_json
from django_smart.protocol.quirks import QUIRKS
from django_smart.servers.registering import (
    ClientURLs,
    build_client_urls,
    get_settable_fields,
    get_site_url,
    plan_client,
    register_client,
    register_dynamically,
)
from django_smart.servers.requirements import find_problems

__all__ = ["Command"]

# Options with the names of the fields; all others are set with --set.
_OPTIONS: dict[str, dict[str, Any]] = {
    "base_url": {"metavar": "URL", "help": "FHIR base URL."},
    "client_id": {"metavar": "ID", "help": "Client ID from the server."},
    "token_endpoint_auth_method": {
        "choices": ClientRegistration.AuthMethod.values,
        "help": "Default: client_secret_basic, or private_key_jwt with only a "
        "--system-scope.",
    },
    "client_secret": {
        "metavar": "SECRET",
        "help": "Client secret; stored encrypted. Other users of this machine can see "
        "it on the command line; --client-secret-env and --from - avoid that.",
    },
    "client_secret_env": {
        "metavar": "VAR",
        "help": "Environment variable from which the secret is read at run time.",
    },
    "ehr_scope": {"metavar": "SCOPE", "help": "Scopes for EHR launches."},
    "standalone_scope": {"metavar": "SCOPE", "help": "Scopes for standalone launches."},
    "system_scope": {"metavar": "SCOPE", "help": "Scopes for backend services."},
    "slug": {"help": "Name of the server in URLs. Default: derived from the host."},
    "name": {"help": "Display name of the server. Default: the host."},
    "preset": {
        "choices": FHIRServer.Preset.values,
        "help": "Vendor whose known settings are used.",
    },
    "site_url": {
        "metavar": "URL",
        "help": "Scheme and host of this site. Default: SMART_SITE_URL.",
    },
}
# They mean nothing without --dynamic, and these nothing with it.
_DYNAMIC_OPTIONS = ("client_name", "initial_access_token_env")
_REFUSED = ("client_id", "client_secret", "client_secret_env", "from")


class Command(BaseCommand):
    """
    ``smart_register``: prints the URLs for the vendor's form, as JSON.

    Standard output is that JSON and nothing else; remarks go to standard error.
    """

    help = (
        "Register this site's client at a FHIR server. Running it again with "
        "the same base URL and client ID updates the registration; options "
        "you leave out are not changed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        for name, declared in _OPTIONS.items():
            parser.add_argument(_as_option(name), **declared)
        names = ", ".join(sorted({*get_settable_fields(), *QUIRKS} - {*_OPTIONS}))
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="Set any other field or quirk; durations in seconds, objects and "
            f"lists as JSON; can be repeated. Fields: {names}.",
        )
        parser.add_argument(
            "--from",
            metavar="FILE",
            help="JSON list of objects with the names of options and fields as keys; "
            "- reads standard input. Either all entries are stored or none.",
        )
        parser.add_argument(
            "--offline",
            action="store_true",
            help="Do not check the base URL of a new server.",
        )
        by_server = parser.add_argument_group("dynamic registration")
        by_server.add_argument(
            "--dynamic",
            action="store_true",
            help="Let the server create the client ID (RFC 7591) instead of "
            "passing --client-id.",
        )
        by_server.add_argument(
            "--initial-access-token-env",
            metavar="VAR",
            help="Environment variable with the initial access token from the "
            "server's operator.",
        )
        by_server.add_argument(
            "--client-name",
            metavar="NAME",
            help="Name shown to people when they approve access. Default: the "
            "site's host.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Store what was given and print the URLs."""
        try:
            if options["dynamic"]:
                answer: Any = self._register_dynamically(options)
            else:
                answer = self._register(options)
        except (ImproperlyConfigured, ValueError) as exc:
            raise CommandError(str(exc)) from exc
        except ValidationError as exc:
            raise CommandError(_explain(exc)) from exc
        except DatabaseError as exc:
            raise CommandError(
                f"The database cannot be used: {exc}. If a table is missing, "
                "run “manage.py migrate” first; smart_doctor reports details."
            ) from exc
        self.stdout.write(json.dumps(answer, indent=2))

    def _register(self, options: dict[str, Any]) -> Any:
        for name in _DYNAMIC_OPTIONS:
            if options[name] is not None:
                raise CommandError(f"{_as_option(name)} requires --dynamic.")
        if options["from"] is not None:
            entries = _read_file(options)
            return [self._describe(each, entry) for each, entry in _store_all(entries)]
        entry = _read_options(options)
        if not options["offline"]:
            self._ask_new_server(entry)
        return self._describe(register_client(entry), entry)

    def _register_dynamically(self, options: dict[str, Any]) -> dict[str, str | None]:
        given = [name for name in _REFUSED if options[name] is not None]
        if given:
            raise CommandError(
                f"{_as_option(given[0])} cannot be combined with --dynamic: the server "
                "creates the client ID and secret, one client at a time."
            )
        entry = _read_options(options)
        try:
            registration, remarks = register_dynamically(
                entry,
                client_name=options["client_name"] or "",
                initial_access_token=_read_token(options["initial_access_token_env"]),
            )
        except SMARTError as exc:
            said = getattr(exc, "error_description", "")
            said = f' The server says: "{said}"' if said else ""
            raise CommandError(f"{exc} ({exc.code}){said}") from exc
        answer = self._describe(registration, entry)
        for remark in remarks:
            self.stderr.write(f"{registration.server.slug}: {remark}")
        return {**answer, "client_id": registration.client_id}

    def _ask_new_server(self, entry: Mapping[str, Any]) -> None:
        """Refuse a new server whose base URL is wrong; one that is down is stored."""
        registration = plan_client(entry)
        server = registration.server
        if FHIRServer.objects.filter(pk=server.pk).exists():
            return
        found = discover(server, registration.client_id)
        problems = [found] if isinstance(found, Finding) else []
        if isinstance(found, Finding) and found.code in BASE_URL_WRONG:
            raise CommandError(
                f"{found.what} {found.fix} Use --offline to register it anyway."
            )
        if not isinstance(found, Finding):
            problems = find_problems(registration, found)
        for problem in problems:
            self.stderr.write(f"{server.slug}: {problem.what} {problem.fix}")
        if problems:
            self.stderr.write(f"Then run: smart_doctor {server.slug}")

    def _describe(
        self, registration: ClientRegistration, entry: Mapping[str, Any]
    ) -> dict[str, str | None]:
        """Return the URLs, and warn of settings that are valid but hardly intended."""
        slug = registration.server.slug
        if registration.is_service_with_secret:
            self.stderr.write(
                f"{slug}: anyone with this secret can read everything the system "
                "scope covers. Use private_key_jwt if the server supports it."
            )
        variable = registration.client_secret_env
        if variable and not os.environ.get(variable):
            self.stderr.write(
                f"{slug}: {variable} is not set here; web processes and "
                "workers need it."
            )
        site_url = (entry.get("site_url") or "").removesuffix("/")
        if site_url := site_url or get_site_url(registration):
            urls = asdict(build_client_urls(registration, site_url=site_url))
            return {"slug": slug, **urls}
        # Backend services alone: nobody is ever sent here.
        self.stderr.write(
            f"{slug}: the URL of this site is unknown, so its URLs cannot be printed. "
            "Use --site-url, or set SMART_SITE_URL."
        )
        return {"slug": slug, **{field.name: None for field in fields(ClientURLs)}}


def _store_all(
    entries: list[dict[str, Any]],
) -> list[tuple[ClientRegistration, dict[str, Any]]]:
    stored = []
    with transaction.atomic(using=router.db_for_write(ClientRegistration)):
        for number, entry in enumerate(entries, start=1):
            try:
                stored.append((register_client(entry), entry))
            except ValidationError as exc:
                raise CommandError(f"Entry {number}: {_explain(exc)}") from exc
    return stored


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    entry = {name: options[name] for name in _OPTIONS}
    for pair in options["set"]:
        name, mark, value = pair.partition("=")
        if not mark:
            raise CommandError("--set requires FIELD=VALUE.")
        entry[name.strip()] = value
    # Refuses what a file may not contain either.
    checked: dict[str, Any] = _parse_json(json.dumps(entry).encode(), "command line")
    return checked


def _read_file(options: dict[str, Any]) -> list[dict[str, Any]]:
    given = [name for name in _OPTIONS if options[name] is not None]
    if options["set"] or given not in ([], ["site_url"]):
        raise CommandError(
            "With --from, the registrations are read from the file; only --site-url "
            "can be combined with it."
        )
    file = options["from"]
    try:
        body = sys.stdin.read().encode() if file == "-" else Path(file).read_bytes()
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", "").lower() or "not a UTF-8 text file"
        raise CommandError(f"Cannot read {file}: {reason}.") from exc
    entries = _parse_json(body, "file")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise CommandError("The file is not a JSON list of objects.")
    return [
        {**each, "site_url": each.get("site_url") or options["site_url"]}
        for each in entries
    ]


def _parse_json(body: bytes, what: str) -> Any:
    try:
        return parse_json(body, error=SMARTError, what=what)
    except SMARTError as exc:
        raise CommandError(str(exc)) from None


def _explain(error: ValidationError) -> str:
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return "\n".join(
        " ".join(messages)
        if name == NON_FIELD_ERRORS
        else f"{_as_option(name)}: {' '.join(messages)}"
        for name, messages in error.message_dict.items()
    )


def _read_token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise CommandError(f"The environment variable {variable} is not set.")
    return token


def _as_option(name: str) -> str:
    is_option = name in _OPTIONS or name in {*_DYNAMIC_OPTIONS, "from"}
    return f"--{name.replace('_', '-')}" if is_option else f"--set {name}"
