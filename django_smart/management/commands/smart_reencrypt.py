"""Move stored secrets to the first encryption key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_smart.flows.reencrypt import ReencryptionResult, reencrypt_secrets

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_reencrypt``: after a new key was put first, and while the site runs."""

    help = (
        "Encrypt every stored secret and token with the first key of "
        "SMART_ENCRYPTION_KEYS, so that older keys can be taken out. Can be stopped "
        "and begun again at any time; exit status 1 if a row is left that no key "
        "decrypts."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--check",
            action="store_true",
            help="Count what is to be moved, and change nothing.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Move or count, and print the counts."""
        result = reencrypt_secrets(
            write=not options["check"],
            on_unreadable=lambda row: self.stderr.write(f"{row} cannot be decrypted"),
        )
        self.stdout.write(_describe(result, is_check=options["check"]))
        if result.unreadable:
            raise CommandError(
                f"{result.unreadable} rows cannot be decrypted with the keys in force; "
                "put the key they were encrypted with back into SMART_ENCRYPTION_KEYS."
            )
        if result.busy:
            raise CommandError("Rows changed while they were moved; run it again.")


def _describe(result: ReencryptionResult, *, is_check: bool) -> str:
    moved = "to be moved" if is_check else "moved"
    return (
        f"{moved}: {result.moved}, with the first key already: {result.current}, "
        f"changed meanwhile: {result.busy}, cannot be decrypted: {result.unreadable}"
    )
