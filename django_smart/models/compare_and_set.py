"""The UPDATE that decides between concurrent writers of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from django.db import connections, models, router, transaction

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["compare_and_set"]


def compare_and_set(
    row: models.Model, changes: Mapping[str, object], **expected: object
) -> bool:
    """
    Store *changes* in the database if *row* still has the *expected* values there.

    Written out, because every launch and every refresh runs some, and Django takes
    longer to build one than a database to run it.  *row* itself stays as it is.

    Args:
        changes: values by column, foreign keys as ``user_id``.
        expected: values by column; a tuple stands for one of several, and ``None`` for
            NULL.

    Returns:
        Whether the row was changed.
    """
    model = type(row)
    connection = connections[router.db_for_write(model)]
    columns, conditions, values = [], [], []
    for name, value in changes.items():
        field = _get_field(model, name)
        columns.append(f"{field.column} = %s")
        values.append(field.get_db_prep_save(value, connection))
    for name, value in {"pk": row.pk, **expected}.items():
        condition, wanted = _compare(_get_field(model, name), value, connection)
        conditions.append(condition)
        values += wanted
    # Names of the models' own tables and columns, none of them reserved.
    statement = (
        f"UPDATE {model._meta.db_table} SET {', '.join(columns)} "  # noqa: S608
        f"WHERE {' AND '.join(conditions)}"
    )
    with (
        transaction.mark_for_rollback_on_error(using=connection.alias),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement, values)
        is_stored: bool = cursor.rowcount == 1
    return is_stored


def _compare(
    field: models.Field[Any, Any], value: object, connection: BaseDatabaseWrapper
) -> tuple[str, list[Any]]:
    if value is None:
        return f"{field.column} IS NULL", []
    several = value if isinstance(value, tuple) else (value,)
    places = ", ".join(["%s"] * len(several))
    prepared = [field.get_db_prep_save(each, connection) for each in several]
    return f"{field.column} IN ({places})", prepared


def _get_field(model: type[models.Model], name: str) -> models.Field[Any, Any]:
    field = model._meta.pk if name == "pk" else model._meta.get_field(name)
    return cast("models.Field[Any, Any]", field)
