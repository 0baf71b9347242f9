"""The UPDATE that decides between concurrent writers of a row."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

from django.db import connections, models, router

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["compare_and_set"]


def compare_and_set(
    row: models.Model, names: Collection[str], **expected: object
) -> bool:
    """
    Store the fields *names* of *row* if the stored row still has the *expected* values.

    The statement is written out: each launch and each refresh has some, and Django
    takes longer to build one than a database to run it.

    Args:
        expected: values by field; a tuple stands for one of several, and ``None`` for
            NULL.

    Returns:
        Whether the row was changed.
    """
    model = type(row)
    connection = connections[router.db_for_write(model, instance=row)]
    changes, conditions, values = [], [], []
    for name in names:
        field = _get_field(model, name)
        changes.append(f"{field.column} = %s")
        value = field.pre_save(row, add=False)
        values.append(field.get_db_prep_save(value, connection))
    for name, value in {"pk": row.pk, **expected}.items():
        condition, wanted = _compare(_get_field(model, name), value, connection)
        conditions.append(condition)
        values += wanted
    with connection.cursor() as cursor:
        # Names of tables and columns are those of the models.
        cursor.execute(
            f"UPDATE {model._meta.db_table} SET {', '.join(changes)} "  # noqa: S608
            f"WHERE {' AND '.join(conditions)}",
            values,
        )
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
