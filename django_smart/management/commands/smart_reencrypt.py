"""Move stored secrets to the first encryption key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import models, router

from ...exceptions import CredentialsError
from ...fields import EncryptedTextField, reencrypt

__all__ = ["Command", "ReencryptionResult", "reencrypt_secrets"]


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
        result = reencrypt_secrets(
            write=not options["check"],
            on_unreadable=lambda row: self.stderr.write(f"{row} cannot be decrypted"),
        )
        self.stdout.write(_describe(result, is_check=options["check"]))
        if result.unreadable:
            raise CommandError(
                f"{result.unreadable} rows cannot be decrypted with the "
                "current keys. Add the key they were encrypted with back to "
                "SMART_ENCRYPTION_KEYS, or find out who moved these values "
                "from another column."
            )
        if result.busy:
            raise CommandError(
                "Some rows kept changing during re-encryption; run the command again."
            )


def _describe(result: ReencryptionResult, *, is_check: bool) -> str:
    moved = "to re-encrypt" if is_check else "re-encrypted"
    return (
        f"{moved}: {result.moved}, already current: {result.current}, changed "
        f"meanwhile: {result.busy}, cannot be decrypted: {result.unreadable}"
    )


_BATCH_SIZE = 500
# A row changes once in minutes; more than once while we look at it is already odd.
_ATTEMPTS = 5

_Row = tuple[Any, ...]


@dataclass(kw_only=True, slots=True)
class ReencryptionResult:
    """Counts of rows that hold a secret."""

    #: With the first key already.
    current: int = 0
    #: Moved to it; or, if nothing was to be written, with another key.
    moved: int = 0
    #: Changed by others each time they were to be written.
    busy: int = 0
    #: No key in force decrypts them, or they were moved there from another column.
    unreadable: int = 0


def reencrypt_secrets(
    *, write: bool = True, on_unreadable: Callable[[str], None] = lambda row: None
) -> ReencryptionResult:
    """
    Encrypt with the first key whatever has another one, in every model.

    Args:
        write: ``False`` only counts.
        on_unreadable: called with the name of each row that cannot be decrypted, such
            as ``TokenGrant 5``; the row is left as it is.
    """
    result = ReencryptionResult()
    for model, names in _find_columns():
        for row in _read_rows(model, names):
            try:
                _move(model, names, row, result, write=write)
            except CredentialsError:
                result.unreadable += 1
                on_unreadable(f"{model._meta.object_name} {row[0]}")
    return result


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
    model: type[models.Model],
    names: list[str],
    row: _Row | None,
    result: ReencryptionResult,
    *,
    write: bool,
) -> None:
    for _attempt in range(_ATTEMPTS):
        if row is None or not any(row[1:]):
            # Deleted, or its tokens dropped, since it was read; or it never had any.
            return
        stored = dict(zip(names, row[1:], strict=True))
        moved = {name: reencrypt(value) for name, value in stored.items()}
        if all(moved[name] is value for name, value in stored.items()):
            result.current += 1
            return
        # Compare-and-set on the old ciphertext: a refresh that stores new tokens
        # between reading and writing must not be undone.
        if not write or _rows_of(model).filter(pk=row[0], **stored).update(**moved):
            result.moved += 1
            return
        row = _rows_of(model).filter(pk=row[0]).values_list("pk", *names).first()
    result.busy += 1


def _rows_of(model: type[models.Model]) -> models.QuerySet[Any]:
    # The base manager: a site's own may hide rows.
    return model._base_manager.using(router.db_for_write(model))
