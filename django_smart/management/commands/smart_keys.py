"""Make, rotate, list, retire and export this site's signing keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from django_smart.exceptions import KeyRotationError
from django_smart.models import ClientRegistration, SigningKey
from django_smart.protocol.jwk import SIGNING_ALGORITHMS
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

_AT_ONCE = "Without waiting for EHRs to know: for a key that got out."


class Command(BaseCommand):
    """
    ``smart_keys``: one action each for the steps of a key's life.

    No action prints or takes a private key.
    """

    help = (
        "Make, rotate, list, retire and export the keys that this site signs with "
        "(private_key_jwt)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the actions and their options."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        generate = actions.add_parser(
            "generate",
            help="Make and publish the next key; the first one of all signs at once.",
        )
        rotate = actions.add_parser(
            "rotate", help="Let the next key sign; the one before it retires."
        )
        for each in (generate, rotate):
            each.add_argument(
                "--algorithm",
                choices=SIGNING_ALGORITHMS,
                help="Default: each that is in use.",
            )
        how = rotate.add_mutually_exclusive_group()
        how.add_argument("--now", action="store_true", help=_AT_ONCE)
        how.add_argument(
            "--due",
            action="store_true",
            help="What SMART_KEY_ROTATION asks for by now, as the task rotate_keys "
            "does.",
        )
        actions.add_parser("list", help="Every key and its place in the life cycle.")
        retire = actions.add_parser(
            "retire", help="Take a key out of use that no registration needs."
        )
        retire.add_argument("kid", help="Id of the key, as list prints it.")
        retire.add_argument("--now", action="store_true", help=_AT_ONCE)
        actions.add_parser(
            "export", help="Print the public JWK Set, for a server that takes no URL."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Do the action."""
        try:
            getattr(self, f"_{options['action']}")(options)
        except KeyRotationError as exc:
            raise CommandError(str(exc)) from exc

    def _generate(self, options: dict[str, Any]) -> None:
        algorithms = _choose_algorithms(options)
        refused = _do_each(algorithms, lambda name: self._write(generate_key(name)))
        # The others had a next key already.
        if len(refused) == len(algorithms):
            raise KeyRotationError("\n".join(refused))

    def _rotate(self, options: dict[str, Any]) -> None:
        if options["due"]:
            if options["algorithm"]:
                raise CommandError("--due sees to all algorithms; leave the other out.")
            changes = rotate_due_keys()
            self.stdout.write(
                f"generated: {changes.generated}, rotated: {changes.rotated}, "
                f"removed: {changes.removed}"
            )
            return

        def rotate(algorithm: str) -> None:
            self._write(rotate_key(algorithm, at_once=options["now"]))
            # Published from now on, so that the rotation after this one need not wait.
            self._write(ensure_next_key(algorithm)[0])

        if refused := _do_each(_choose_algorithms(options), rotate):
            raise KeyRotationError("\n".join(refused))

    def _list(self, options: dict[str, Any]) -> None:
        for key in SigningKey.objects.defer("private_key").order_by("algorithm", "pk"):
            self._write(key)

    def _retire(self, options: dict[str, Any]) -> None:
        self._write(retire_key(options["kid"], at_once=options["now"]))

    def _export(self, options: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(SigningKey.objects.as_jwks(), indent=2))
        following = {key.algorithm for key in SigningKey.objects.following()}
        for key in SigningKey.objects.active():
            if key.algorithm not in following:
                self.stderr.write(
                    f"There is no next {key.algorithm} key in it, so a rotation would "
                    "need the server to be told first: run smart_keys generate before."
                )

    def _write(self, key: SigningKey) -> None:
        self.stdout.write("  ".join(_describe(key)))


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
    signing = ClientRegistration.objects.active().filter(
        token_endpoint_auth_method=ClientRegistration.AuthMethod.PRIVATE_KEY_JWT
    )
    used = {
        *SigningKey.objects.active().values_list("algorithm", flat=True),
        *signing.values_list("signing_algorithm", flat=True),
    }
    if not used:
        raise CommandError("No algorithm is in use yet; choose one with --algorithm.")
    return [name for name in SIGNING_ALGORITHMS if name in used]


def _describe(key: SigningKey) -> Iterator[str]:
    yield key.kid
    yield key.algorithm
    yield f"{key.status:7}"
    yield ", ".join(
        f"{what} {_format(moment)}" for what, moment in _get_times(key) if moment
    )


def _get_times(key: SigningKey) -> Iterator[tuple[str, datetime | None]]:
    if key.status == SigningKey.Status.NEXT:
        yield "published since", key.created_at
        yield "may sign from", get_ready_at(key)
    elif key.status == SigningKey.Status.ACTIVE:
        yield "signs since", key.activated_at
    else:
        yield "signed until", key.retired_at
    if key.status == SigningKey.Status.RETIRED:
        yield "published until", get_removal_at(key)


def _format(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M %Z")
