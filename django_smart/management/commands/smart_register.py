"""Register this site's client at a FHIR server, or bring a registration up to date."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from django.core.exceptions import (
    NON_FIELD_ERRORS,
    ImproperlyConfigured,
    ValidationError,
)
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, models, router, transaction

from django_smart.contrib.doctor import BASE_URL_WRONG, discover
from django_smart.diagnoses import Finding
from django_smart.exceptions import SMARTError
from django_smart.models import ClientRegistration, FHIRServer
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.protocol.json import parse_json
from django_smart.protocol.quirks import QUIRKS, Quirk
from django_smart.protocol.scopes import ScopeSet
from django_smart.servers.discovery import (
    copy_discovered,
    fetch_configuration,
    fetch_jwks,
)
from django_smart.servers.registering import (
    ClientURLs,
    DynamicRegistration,
    RegistrationInput,
    build_client_urls,
    get_site_url,
    register_client,
    register_dynamically,
)
from django_smart.servers.requirements import check_registration, find_problems

__all__ = ["Command"]

_URLS = tuple(field.name for field in fields(ClientURLs))


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
        what = parser.add_argument_group("what")
        what.add_argument("--base-url", metavar="URL", help="FHIR base URL.")
        what.add_argument(
            "--client-id", metavar="ID", help="Client ID from the server."
        )
        what.add_argument(
            "--from",
            dest="file",
            metavar="FILE",
            help="JSON list of entries with these options as keys, with "
            "underscores; - reads standard input. Either all entries are "
            "stored or none.",
        )
        by_server = parser.add_argument_group("dynamic registration")
        by_server.add_argument(
            "--dynamic",
            action="store_true",
            help="Let the server create the client ID (RFC 7591) instead of "
            "passing --client-id. Implies --check.",
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
        credentials = parser.add_argument_group("credentials")
        credentials.add_argument(
            "--client-secret",
            metavar="SECRET",
            help="Client secret; stored encrypted. Other users of this machine can "
            "see it on the command line; --secret-env and --from - avoid "
            "that.",
        )
        credentials.add_argument(
            "--secret-env",
            metavar="VAR",
            help="Environment variable from which the secret is read at run time.",
        )
        credentials.add_argument(
            "--auth-method",
            choices=ClientRegistration.AuthMethod.values,
            help="Default: client_secret_basic, or private_key_jwt with only a "
            "--system-scope.",
        )
        scopes = parser.add_argument_group("scopes, separated by spaces")
        scopes.add_argument("--ehr-scope", metavar="SCOPE", help="For EHR launches.")
        scopes.add_argument(
            "--standalone-scope", metavar="SCOPE", help="For standalone launches."
        )
        scopes.add_argument(
            "--system-scope", metavar="SCOPE", help="For backend services."
        )
        server = parser.add_argument_group("the server")
        server.add_argument(
            "--slug", help="Name of the server in URLs. Default: derived from the host."
        )
        server.add_argument(
            "--name", help="Display name of the server. Default: the host."
        )
        server.add_argument(
            "--preset",
            choices=FHIRServer.Preset.values,
            help="Vendor whose known settings are used.",
        )
        server.add_argument(
            "--frame-origin",
            action="append",
            metavar="URL",
            help="Origin of a page that may show this site in a frame; can be "
            "repeated.",
        )
        rest = parser.add_argument_group("other options")
        rest.add_argument(
            "--site-url",
            metavar="URL",
            help="Scheme and host of this site. Default: SMART_SITE_URL.",
        )
        rest.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="Set any other field or quirk by name; durations in seconds, headers "
            "and lists as JSON; can be repeated. Fields: "
            f"{', '.join(_get_names())}.",
        )
        asking = rest.add_mutually_exclusive_group()
        asking.add_argument(
            "--check",
            action="store_true",
            help="Store nothing unless the server responds and supports this "
            "registration.",
        )
        asking.add_argument(
            "--offline",
            action="store_true",
            help="Do not check the base URL of a new server.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Store what was given and print the URLs."""
        try:
            self._register(options)
        except DatabaseError as exc:
            raise CommandError(
                f"The database cannot be used: {exc}. If a table is missing, "
                "run “manage.py migrate” first; smart_doctor reports details."
            ) from exc

    def _register(self, options: dict[str, Any]) -> None:
        if options["dynamic"]:
            self._handle_dynamic(options)
            return
        for name in _DYNAMIC_OPTIONS:
            if options[name] is not None:
                raise CommandError(f"{_as_option(name)} requires --dynamic.")
        file = options["file"]
        entries = [_read_options(options)] if file is None else _read_file(options)
        try:
            if file is None and not (options["check"] or options["offline"]):
                self._remark_on_server(entries[0])
            registrations = _register(entries, check=options["check"])
            answers = [
                _describe(registration, site_url=data.site_url)
                for registration, data in zip(registrations, entries, strict=True)
            ]
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc)) from exc
        for registration in registrations:
            self._remark(registration)
        self.stdout.write(json.dumps(answers[0] if file is None else answers, indent=2))

    def _handle_dynamic(self, options: dict[str, Any]) -> None:
        given = [name for name in _REFUSED if options[name] is not None]
        if given:
            option = "--from" if given[0] == "file" else _as_option(given[0])
            raise CommandError(
                f"{option} cannot be combined with --dynamic: the server creates "
                "the client ID and secret, one client at a time."
            )
        try:
            outcome = register_dynamically(
                _read_options(options),
                client_name=options["client_name"] or "",
                initial_access_token=_read_token(options["initial_access_token_env"]),
            )
            registration = outcome.registration
            answer = _describe(registration, site_url=options["site_url"] or "")
        except (ImproperlyConfigured, ValueError) as exc:
            raise CommandError(str(exc)) from exc
        except ValidationError as exc:
            raise CommandError(_explain(exc)) from exc
        except SMARTError as exc:
            said = getattr(exc, "error_description", "")
            said = f' The server says: "{said}"' if said else ""
            raise CommandError(f"{exc} ({exc.code}){said}") from exc
        self._remark(registration)
        for remark in _describe_outcome(outcome):
            self.stderr.write(f"{registration.server.slug}: {remark}")
        answer = {**answer, "client_id": registration.client_id}
        self.stdout.write(json.dumps(answer, indent=2))

    def _remark_on_server(self, data: RegistrationInput) -> None:
        """Refuse a new server whose base URL is wrong; one that is down is stored."""
        (registration,) = _store([data], keep=False)
        server = registration.server
        if FHIRServer.objects.filter(pk=server.pk).exists():
            return
        found = discover(server, registration.client_id)
        if not isinstance(found, Finding):
            problems = find_problems(registration, found)
            for problem in problems:
                self.stderr.write(f"{server.slug}: {problem}")
        elif found.code in BASE_URL_WRONG:
            raise CommandError(f"{found} Use --offline to register it anyway.")
        else:
            self.stderr.write(f"{server.slug}: {found}")
        if isinstance(found, Finding) or problems:
            self.stderr.write(f"Then run: smart_doctor {server.slug}")

    def _remark(self, registration: ClientRegistration) -> None:
        """Say what is no fault but hardly meant."""
        where = registration.server.slug
        if registration.is_service_with_secret:
            self.stderr.write(
                f"{where}: anyone with this secret can read everything the "
                "system scope covers. Use --auth-method private_key_jwt if "
                "the server supports it."
            )
        if not get_site_url(registration):
            self.stderr.write(
                f"{where}: the URL of this site is unknown, so its URLs cannot "
                "be printed. Use --site-url, or set SMART_SITE_URL."
            )
        variable = registration.client_secret_env
        if variable and not os.environ.get(variable):
            self.stderr.write(
                f"{where}: {variable} is not set here; web processes and "
                "workers need it."
            )


def _read_options(options: Mapping[str, Any]) -> RegistrationInput:
    settings: dict[str, str] = {}
    for pair in options["set"]:
        name, mark, value = pair.partition("=")
        if not mark:
            raise CommandError("--set requires FIELD=VALUE.")
        settings[name.strip()] = value
    entry = {name: options[name] for name in _ENTRY_NAMES} | {"set": settings}
    # Refuses what a file may not contain either.
    entry = _parse_json(json.dumps(entry).encode(), what="command line")
    return _build_input(entry, is_dynamic=options["dynamic"])


def _read_file(options: dict[str, Any]) -> list[RegistrationInput]:
    site_url = options["site_url"] or ""
    given = [name for name in _ENTRY_NAMES if options[name] is not None]
    if options["set"] or given not in ([], ["site_url"]):
        raise CommandError(
            "With --from, the registrations are read from the file; only "
            "--site-url and --check can be combined with it."
        )
    entries = _parse_json(_read_bytes(options["file"]), what="file")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise CommandError("The file is not a JSON list of objects.")
    result: list[RegistrationInput] = []
    for number, entry in enumerate(entries, start=1):
        try:
            result.append(_build_input(entry, site_url=site_url))
        except CommandError as exc:
            raise CommandError(f"Entry {number}: {exc}") from exc
    return result


def _read_bytes(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.read().encode()
        return Path(file).read_bytes()
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", "").lower() or "not a UTF-8 text file"
        raise CommandError(f"Cannot read {file}: {reason}.") from exc


def _parse_json(body: bytes, *, what: str) -> Any:
    try:
        return parse_json(body, error=SMARTError, what=what)
    except SMARTError as exc:
        raise CommandError(str(exc)) from None


def _register(
    entries: Sequence[RegistrationInput], *, check: bool
) -> list[ClientRegistration]:
    """
    Store all entries, or none.

    A check happens between two runs, the first of which is rolled back: no request is
    made inside a transaction, and nothing is stored that the server refuses.
    """
    registrations = _store(entries, keep=not check)
    if not check:
        return registrations
    _check(registrations)
    with transaction.atomic(using=router.db_for_write(ClientRegistration)):
        stored = _store(entries)
        for registration, checked in zip(stored, registrations, strict=True):
            copy_discovered(registration.server, source=checked.server)
    return stored


def _store(
    entries: Sequence[RegistrationInput], *, keep: bool = True
) -> list[ClientRegistration]:
    registrations = []
    using = router.db_for_write(ClientRegistration)
    with transaction.atomic(using=using):
        for number, data in enumerate(entries, start=1):
            try:
                registrations.append(register_client(data))
            except ValidationError as exc:
                place = f"Entry {number}: " if len(entries) > 1 else ""
                raise CommandError(place + _explain(exc)) from exc
        transaction.set_rollback(not keep, using=using)
    # One object for each server, as the last of its entries left it.
    servers = {each.server_id: each.server for each in registrations}
    for registration in registrations:
        registration.server = servers[registration.server_id]
    return registrations


def _check(registrations: Sequence[ClientRegistration]) -> None:
    """Ask each server once, and hold its registrations against the answer."""
    configurations: dict[tuple[int, str], SMARTConfiguration] = {}
    for registration in registrations:
        server, client_id = registration.server, registration.client_id
        key = server.pk, client_id if server.differs_by_client else ""
        try:
            if key not in configurations:
                configurations[key] = fetch_configuration(server, client_id, save=False)
            check_registration(registration, configurations[key])
            scopes = f"{registration.ehr_scope} {registration.standalone_scope}"
            if "openid" in ScopeSet.parse(scopes):
                fetch_jwks(server, save=False)
        except SMARTError as exc:
            raise CommandError(f"{server.slug}: {exc} ({exc.code})") from exc


def _explain(error: ValidationError) -> str:
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return "\n".join(
        " ".join(messages)
        if column == NON_FIELD_ERRORS
        else f"{_get_option(column)}: {' '.join(messages)}"
        for column, messages in error.message_dict.items()
    )


def _describe(
    registration: ClientRegistration, *, site_url: str
) -> dict[str, str | None]:
    site_url = site_url.removesuffix("/") or get_site_url(registration)
    slug = registration.server.slug
    if not site_url:
        # Backend services alone: nobody is ever sent here.
        return {"slug": slug, **dict.fromkeys(_URLS)}
    return {"slug": slug, **asdict(build_client_urls(registration, site_url=site_url))}


# Options that mean nothing without ``--dynamic``.
_DYNAMIC_OPTIONS = ("client_name", "initial_access_token_env")
# What the server makes, or what is for many registrations at once.
_REFUSED = ("client_id", "client_secret", "file", "secret_env")


def _describe_outcome(outcome: DynamicRegistration) -> Iterator[str]:
    """Remarks on what the server made otherwise than asked."""
    if outcome.missing:
        yield f"the server did not register the scopes {outcome.missing}."
    if outcome.secret_expires_at is not None:
        yield (
            "the client secret expires on "
            f"{outcome.secret_expires_at:%Y-%m-%d}; register again before that "
            "day."
        )


def _read_token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise CommandError(f"The environment variable {variable} is not set.")
    return token


# Entries, from the command line or a file: options, and columns by name (``--set``).

# They say which row it is; quirks have their own names.
_NOT_SETTABLE = {"base_url", "client_id", "quirks"}
_TRUE = {"1", "on", "true", "yes"}
_FALSE = {"0", "false", "no", "off"}
# Option, as a file names it, and the column it sets.
_OPTIONS = {
    "auth_method": "token_endpoint_auth_method",
    "client_secret": "client_secret",
    "ehr_scope": "ehr_scope",
    "frame_origin": "frame_origins",
    "secret_env": "client_secret_env",
    "standalone_scope": "standalone_scope",
    "system_scope": "system_scope",
}
_OWN = {"base_url", "client_id", "name", "preset", "site_url", "slug"}
# What an entry may have, beside ``set``: the options' names, with underscores.
_ENTRY_NAMES = tuple(sorted(_OWN | {*_OPTIONS}))


def _build_input(
    entry: Mapping[str, Any], *, site_url: str = "", is_dynamic: bool = False
) -> RegistrationInput:
    """
    Make one entry the input of the flow; ``null`` and absent are the same.

    Args:
        site_url: for an entry that names none.
        is_dynamic: whether the client id is still to be made.

    Raises:
        CommandError: a name is unknown or missing, or a value has another type; the
            message is without values.
    """
    given = {name: value for name, value in entry.items() if value is not None}
    settings = given.pop("set", {})
    unknown = sorted(given.keys() - {*_ENTRY_NAMES})
    if unknown:
        raise CommandError(
            f"Unknown: {', '.join(unknown)}. Valid keys: {', '.join(_ENTRY_NAMES)}, "
            "set."
        )
    for name in ("base_url",) if is_dynamic else ("base_url", "client_id"):
        if not given.get(name):
            raise CommandError(f"{_get_option(name)} is missing.")
    if not isinstance(settings, Mapping):
        raise CommandError("set is not an object.")
    if isinstance(given.get("frame_origin"), str):
        given["frame_origin"] = [given["frame_origin"]]
    own = {name: given.pop(name) for name in sorted(_OWN & given.keys())}
    for name, value in own.items():
        if not isinstance(value, str):
            raise CommandError(f"{name} must be text.")
    columns = _parse_columns({**given, **settings})
    return RegistrationInput(
        **{"site_url": site_url, "client_id": "", **own},
        server_values=columns[FHIRServer],
        registration_values=columns[ClientRegistration],
    )


def _parse_columns(
    values: Mapping[str, Any],
) -> dict[type[models.Model], dict[str, Any]]:
    """
    Turn text, or values as JSON has them, into what the columns of each table hold.

    Booleans are true or false; what JSON columns hold is JSON.
    An empty text, or null, empties a column that may be null.

    Raises:
        CommandError: unknown name, or a value of another type.
    """
    fields = _get_fields()
    columns: dict[type[models.Model], dict[str, Any]] = {
        ClientRegistration: {},
        FHIRServer: {},
    }
    for name, value in values.items():
        column = _OPTIONS.get(name, name)
        if column in QUIRKS:
            columns[FHIRServer][column] = _parse_quirk(QUIRKS[column], value)
            continue
        if column not in fields:
            near = get_close_matches(name, _get_names(), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CommandError(
                f"There is no field {name}.{hint} Fields that can be set: "
                f"{', '.join(_get_names())}."
            )
        model, field = fields[column]
        try:
            columns[model][field.name] = _parse(field, value)
        except (TypeError, ValueError):
            # The value is not quoted: it may be a secret that went astray.
            raise CommandError(f"{name} must be {_describe_type(field)}.") from None
    return columns


def _get_fields() -> dict[str, tuple[type[models.Model], models.Field[Any, Any]]]:
    fields: dict[str, tuple[type[models.Model], models.Field[Any, Any]]] = {}
    for model in (ClientRegistration, FHIRServer):
        for column in model._meta.concrete_fields:
            settable = (
                column.editable
                and not column.primary_key
                and not column.is_relation
                and column.name not in _NOT_SETTABLE
            )
            if settable:
                prefix = "server." if column.name in fields else ""
                fields[prefix + column.name] = (model, column)
    return fields


def _get_names() -> list[str]:
    return sorted([*_get_fields(), *QUIRKS])


def _parse_quirk(quirk: Quirk, value: Any) -> Any:
    """Return *value* as JSON has it; whether it fits is checked when it is stored."""
    if value == "":
        return None
    if quirk.choices or not isinstance(value, str):
        return value
    text = value.lower() if quirk.type is bool else value
    try:
        return parse_json(text.encode(), error=SMARTError, what=quirk.name)
    except SMARTError:
        return value


def _describe_type(field: models.Field[Any, Any]) -> str:
    if isinstance(field, models.BooleanField):
        return "true or false"
    if isinstance(field, models.IntegerField):
        return "a whole number"
    if isinstance(field, models.JSONField):
        kind = "object" if isinstance(field.get_default(), dict) else "list"
        return f"a JSON {kind}"
    return "text"


def _parse(field: models.Field[Any, Any], value: Any) -> Any:
    if field.null and (value is None or value == ""):
        return None
    if isinstance(field, models.BooleanField):
        return _parse_boolean(value)
    if isinstance(field, models.IntegerField):
        return int(_require(value, int, str))
    if isinstance(field, models.JSONField):
        if isinstance(value, str):
            value = _parse_json(value.encode(), what=f"value of {field.name}")
        # An empty value of another kind would pass the validators of the column.
        return _require(value, type(field.get_default()))
    if field.name == "request_headers" and isinstance(value, Mapping):
        return json.dumps(value)  # in a file
    return _require(value, str)


def _parse_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError


def _require(value: Any, *types: type) -> Any:
    # True is an int to Python, and to nobody else.
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError
    return value


def _as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _get_option(column: str) -> str:
    """What *column* is called on the command line, for messages."""
    for name, target in _OPTIONS.items():
        if target == column:
            return _as_option(name)
    return _as_option(column) if column in _OWN else f"--set {column}"
