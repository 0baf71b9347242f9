"""A row and the rows it refers to, by one query of the columns that are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from django.db import connections, models, router

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["JoinedRow"]

_Model = TypeVar("_Model", bound=models.Model)


class _Part(NamedTuple):
    model: Any
    alias: str
    # In the order that from_db() takes; it searches a dict faster than a list.
    names: dict[str, None]


class JoinedRow(Generic[_Model]):
    """
    What ``select_related()`` with ``only()`` returns, in a fraction of the time.

    Those two visit every field of every model for each query, and a launch with its
    registration and server has more than a hundred; here the statement is written once.
    Other columns are read when they are asked for, as after ``only()``.
    """

    def __init__(
        self, model: type[_Model], columns: Mapping[str, Collection[str]]
    ) -> None:
        """
        Say what to read.

        Args:
            columns: names of columns by the path of foreign keys to their model; the
                empty path first, and each path behind those that lead to it.  Each
                has the primary key, which is also the value of the foreign key.
        """
        self._model = model
        self._columns = columns
        self._converters: dict[str, list[tuple[int, Any, Any]]] = {}

    def find(self, where: str, *values: str | int) -> _Model | None:
        """
        Return the row that the condition *where* selects, or ``None``.

        Args:
            where: SQL with ``%s`` for each of *values*.  The row that is searched is
                ``this`` there, and the ones it refers to are ``the_server`` and so on,
                by the last name of their path.
        """
        connection = connections[router.db_for_read(self._model)]
        with connection.cursor() as cursor:
            cursor.execute(f"{self._statement} WHERE {where}", values)
            found = cursor.fetchone()
        if found is None:
            return None
        row = list(found)
        for place, convert, expression in self._get_converters(connection):
            row[place] = convert(row[place], expression, connection)
        made: dict[str, Any] = {}
        start = 0
        for path, part in self._parts.items():
            end = start + len(part.names)
            each = part.model.from_db(connection.alias, part.names, row[start:end])
            made[path] = each if each.pk is not None else None
            if path:
                outer, _, name = path.rpartition("__")
                # Sets the column of the foreign key, too.
                setattr(made[outer], name, made[path])
            start = end
        return made[""]  # type: ignore[no-any-return]

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {}
        for path, columns in self._columns.items():
            model, alias = self._model, "this"
            if path:
                outer, _, name = path.rpartition("__")
                model = parts[outer].model._meta.get_field(name).related_model
                alias = f"the_{name}"
            fields = [field.attname for field in model._meta.concrete_fields]
            names = dict.fromkeys(name for name in fields if name in columns)
            parts[path] = _Part(model, alias, names)
        return parts

    @cached_property
    def _statement(self) -> str:
        columns = (
            f"{part.alias}.{part.model._meta.get_field(name).column}"
            for part in self._parts.values()
            for name in part.names
        )
        joins = "".join(self._join())
        table = self._model._meta.db_table
        return f"SELECT {', '.join(columns)} FROM {table} this{joins}"  # noqa: S608

    def _join(self) -> Iterator[str]:
        for path, part in self._parts.items():
            if path:
                before, _, name = path.rpartition("__")
                outer = self._parts[before]
                field = outer.model._meta.get_field(name)
                yield (
                    f" {'LEFT' if field.null else 'INNER'} JOIN "
                    f"{part.model._meta.db_table} {part.alias} "
                    f"ON {outer.alias}.{field.column} = "
                    f"{part.alias}.{part.model._meta.pk.column}"
                )

    def _get_converters(
        self, connection: BaseDatabaseWrapper
    ) -> list[tuple[int, Any, Any]]:
        """By place in the row, what Django calls for values from this database."""
        if connection.alias not in self._converters:
            fields = (
                part.model._meta.get_field(name)
                for part in self._parts.values()
                for name in part.names
            )
            self._converters[connection.alias] = [
                (place, convert, column)
                for place, field in enumerate(fields)
                for column in [models.Value(None, output_field=field)]
                for convert in (
                    *connection.ops.get_db_converters(column),
                    *field.get_db_converters(connection),
                )
            ]
        return self._converters[connection.alias]
