"""Make, rotate, list, retire and export this site's signing keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Exists, OuterRef
from django.utils import timezone

from django_smart.exceptions import KeyRotationError
from django_smart.models import ClientRegistration, SigningKey
from django_smart.servers.signing_keys import (
    ensure_next_key,
    generate_key,
    get_ready_at,
    get_removal_at,
    retire_key,
    rotate_due_keys,
    rotate_key,
)

__all__ = ["Command"]

_ALGORITHMS = ClientRegistration.SigningAlgorithm.values
_AT_ONCE = "Do not wait until EHRs know the new key. Use this for a compromised key."


class Command(BaseCommand):
    """
    ``smart_keys``: one action each for the steps of a key's life.

    No action prints or takes a private key.
    """

    help = (
        "Generate, rotate, list, retire and export the keys that this site "
        "signs with (private_key_jwt)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the actions and their options."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        generate = actions.add_parser(
            "generate",
            help="Generate and publish the next key. The very first key is active "
            "immediately.",
        )
        rotate = actions.add_parser(
            "rotate", help="Make the next key active and retire the current one."
        )
        for each in (generate, rotate):
            each.add_argument(
                "--algorithm",
                choices=_ALGORITHMS,
                help="Default: every algorithm in use.",
            )
            _add_registration(each)
        how = rotate.add_mutually_exclusive_group()
        how.add_argument("--now", action="store_true", help=_AT_ONCE)
        how.add_argument(
            "--due",
            action="store_true",
            help="Do what is due according to SMART_KEY_ROTATION, as the task "
            "rotate_keys does.",
        )
        actions.add_parser("list", help="List every key with its status.")
        retire = actions.add_parser(
            "retire", help="Retire a key that no registration needs."
        )
        retire.add_argument("kid", help="ID of the key, as printed by list.")
        retire.add_argument("--now", action="store_true", help=_AT_ONCE)
        export = actions.add_parser(
            "export",
            help="Print the public JWK Set, for a server that does not accept a URL.",
        )
        _add_registration(export)

    def handle(self, *args: Any, **options: Any) -> None:
        """Do the action."""
        try:
            getattr(self, f"_{options['action']}")(options)
        except KeyRotationError as exc:
            raise CommandError(str(exc)) from exc

    def _generate(self, options: dict[str, Any]) -> None:
        algorithms = _choose_algorithms(options)
        registration = _find_registration(options)
        refused = _do_each(
            algorithms, lambda name: self._write(generate_key(name, registration))
        )
        # The others had a next key already.
        if len(refused) == len(algorithms):
            raise KeyRotationError("\n".join(refused))

    def _rotate(self, options: dict[str, Any]) -> None:
        if options["due"]:
            if options["algorithm"] or options["registration"]:
                raise CommandError(
                    "--due handles all keys; do not combine it with other options."
                )
            changes = rotate_due_keys()
            texts = (f"{what}: {number}" for what, number in changes.items())
            self.stdout.write(", ".join(texts))
            return

        registration = _find_registration(options)

        def rotate(algorithm: str) -> None:
            self._write(rotate_key(algorithm, registration, at_once=options["now"]))
            # Published from now on, so that the rotation after this one need not wait.
            self._write(ensure_next_key(algorithm, registration)[0])

        if refused := _do_each(_choose_algorithms(options), rotate):
            raise KeyRotationError("\n".join(refused))

    def _list(self, options: dict[str, Any]) -> None:
        keys = SigningKey.objects.defer("private_key")
        for key in keys.order_by("registration", "algorithm", "pk"):
            self._write(key)
        if not keys:
            self.stderr.write(
                "There are no signing keys. A client that you register with "
                "private_key_jwt gets one."
            )

    def _retire(self, options: dict[str, Any]) -> None:
        self._write(retire_key(options["kid"], at_once=options["now"]))

    def _export(self, options: dict[str, Any]) -> None:
        registration = _find_registration(options)
        keys = SigningKey.objects.of(None)
        if registration is not None:
            keys = SigningKey.objects.for_registration(registration)
        self.stdout.write(json.dumps(keys.as_jwks(), indent=2))
        following = {key.algorithm for key in keys.following()}
        for key in keys.active():
            if key.algorithm not in following:
                self.stderr.write(
                    f"The JWK Set has no next {key.algorithm} key, so the "
                    "server would have to be updated again before a rotation: "
                    "run smart_keys generate first."
                )

    def _write(self, key: SigningKey) -> None:
        self.stdout.write("  ".join(_describe(key)))


def _add_registration(parser: CommandParser) -> None:
    parser.add_argument(
        "--registration",
        type=int,
        metavar="ID",
        help="Only keys of this registration; its ID is in the admin URL.",
    )


def _find_registration(options: dict[str, Any]) -> ClientRegistration | None:
    if options["registration"] is None:
        return None
    found = ClientRegistration.objects.filter(pk=options["registration"]).first()
    if found is None or not found.uses_private_key:
        raise CommandError("No registration with private_key_jwt has this ID.")
    return found


def _do_each(algorithms: Sequence[str], action: Callable[[str], None]) -> list[str]:
    """Why *action* was refused, for each of the algorithms that it was refused for."""
    refused = []
    for algorithm in algorithms:
        try:
            action(algorithm)
        except KeyRotationError as exc:
            refused.append(str(exc))
    return refused


def _choose_algorithms(options: dict[str, Any]) -> list[str]:
    if options["algorithm"]:
        return [options["algorithm"]]
    if registration := _find_registration(options):
        return [registration.signing_algorithm]
    active = SigningKey.objects.active()
    own = active.filter(
        registration=OuterRef("pk"), algorithm=OuterRef("signing_algorithm")
    )
    signing = ClientRegistration.objects.active().filter(
        ~Exists(own),
        token_endpoint_auth_method=ClientRegistration.AuthMethod.PRIVATE_KEY_JWT,
    )
    used = {
        *active.of(None).values_list("algorithm", flat=True),
        *signing.values_list("signing_algorithm", flat=True),
    }
    if not used:
        raise CommandError(
            "No shared signing key yet. A client that you register with "
            "private_key_jwt gets one, or add --algorithm to generate."
        )
    return [name for name in _ALGORITHMS if name in used]


def _describe(key: SigningKey) -> Iterator[str]:
    yield key.kid
    yield key.algorithm
    yield f"{key.status:7}"
    if key.registration_id is not None:
        yield f"registration {key.registration_id}"
    yield ", ".join(
        f"{what} {_format(moment)}" for what, moment in _get_times(key) if moment
    )


def _get_times(key: SigningKey) -> Iterator[tuple[str, datetime | None]]:
    if key.status == SigningKey.Status.NEXT:
        yield "published since", key.created_at
        yield "can sign from", get_ready_at(key)
    elif key.status == SigningKey.Status.ACTIVE:
        yield "signing since", key.activated_at
    else:
        yield "signed until", key.retired_at
    if key.status == SigningKey.Status.RETIRED:
        yield "published until", get_removal_at(key)


def _format(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M %Z")
