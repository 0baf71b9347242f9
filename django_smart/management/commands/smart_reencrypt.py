"""Move stored secrets to the first encryption key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import models, router

from ...exceptions import CredentialsError
from ...fields import EncryptedTextField, reencrypt

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_reencrypt``: after a new key was put first, and while the site runs."""

    help = (
        "Encrypt every stored secret and token with the first key of "
        "SMART_ENCRYPTION_KEYS, so that older keys can be removed. You can "
        "stop it and run it again at any time. Exits with status 1 if no key "
        "decrypts a row."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--check",
            action="store_true",
            help="Count the rows to re-encrypt, and change nothing.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Move or count, and print the counts."""
        is_check = options["check"]
        counts: Counter[str] = Counter()
        for model, names in _find_columns():
            for row in _read_rows(model, names):
                try:
                    counts[_move(model, names, row, write=not is_check)] += 1
                except CredentialsError:
                    # No key in force decrypts it, or it is from another column.
                    counts["unreadable"] += 1
                    name = f"{model._meta.object_name} {row[0]}"
                    self.stderr.write(f"{name} cannot be decrypted")
        self.stdout.write(
            f"{'to re-encrypt' if is_check else 're-encrypted'}: {counts['moved']}, "
            f"already current: {counts['current']}, changed meanwhile: "
            f"{counts['busy']}, cannot be decrypted: {counts['unreadable']}"
        )
        if counts["unreadable"]:
            raise CommandError(
                f"{counts['unreadable']} rows cannot be decrypted with the "
                "current keys. Add the key they were encrypted with back to "
                "SMART_ENCRYPTION_KEYS, or find out who moved these values "
                "from another column."
            )
        if counts["busy"]:
            raise CommandError(
                "Some rows kept changing during re-encryption; run the command again."
            )


_BATCH_SIZE = 500
# A row changes once in minutes; more than once while we look at it is already odd.
_ATTEMPTS = 5

_Row = tuple[Any, ...]


def _find_columns() -> Iterator[tuple[type[models.Model], list[str]]]:
    for model in apps.get_models():
        names = [
            field.attname
            for field in model._meta.local_concrete_fields
            if isinstance(field, EncryptedTextField)
        ]
        if names:
            yield model, names


def _read_rows(model: type[models.Model], names: list[str]) -> Iterator[_Row]:
    """Primary key and secrets of each row, in batches by primary key."""
    rows = _rows_of(model).values_list("pk", *names).order_by("pk")
    batch: list[_Row] = list(rows[:_BATCH_SIZE])
    while batch:
        yield from batch
        batch = list(rows.filter(pk__gt=batch[-1][0])[:_BATCH_SIZE])


def _move(
    model: type[models.Model], names: list[str], row: _Row | None, *, write: bool
) -> str:
    """Encrypt *row* with the first key, and return what became of it."""
    for _attempt in range(_ATTEMPTS):
        if row is None or not any(row[1:]):
            # Deleted, or its tokens dropped, since it was read; or it never had any.
            return "empty"
        stored = dict(zip(names, row[1:], strict=True))
        moved = {name: reencrypt(value) for name, value in stored.items()}
        if all(moved[name] is value for name, value in stored.items()):
            return "current"
        # Compare-and-set on the old ciphertext: a refresh that stores new tokens
        # between reading and writing must not be undone.
        if not write or _rows_of(model).filter(pk=row[0], **stored).update(**moved):
            return "moved"
        row = _rows_of(model).filter(pk=row[0]).values_list("pk", *names).first()
    return "busy"


def _rows_of(model: type[models.Model]) -> models.QuerySet[Any]:
    # The base manager: a site's own may hide rows.
    return model._base_manager.using(router.db_for_write(model))
