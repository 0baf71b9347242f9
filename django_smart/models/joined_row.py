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
            columns: names of columns by the path of relations to their model; the
                empty path first, and each path behind those that lead to it.  Each
                has the primary key, which is also the value of the foreign key.
        """
        self._model = model
        self._columns = columns
        self._converted: dict[str, list[tuple[int, Any]]] = {}

    def find(self, where: str, *values: str | int) -> _Model | None:
        """
        Return the row that the condition *where* selects, or ``None``.

        Args:
            where: SQL with ``%s`` for each of *values*.  The row that is searched is
                ``this`` there, and the ones it refers to are ``the_server`` and so on:
                the last names of the paths differ.
        """
        connection = connections[router.db_for_read(self._model)]
        with connection.cursor() as cursor:
            cursor.execute(f"{self._statement} WHERE {where}", values)
            found = cursor.fetchone()
        if found is None:
            return None
        row = list(found)
        self._convert(row, connection)
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
        # Names of the models' own; reserved ones such as "key" follow an alias.
        return f"SELECT {', '.join(columns)} FROM {table} this{joins}"  # noqa: S608

    def _join(self) -> Iterator[str]:
        for path, part in self._parts.items():
            if path:
                before, _, name = path.rpartition("__")
                outer = self._parts[before]
                field = outer.model._meta.get_field(name)
                # One that refers back has the primary key of what it refers to.
                to = outer.model._meta.pk if field.auto_created else field
                yield (
                    f" {'LEFT' if field.null else 'INNER'} JOIN "
                    f"{part.model._meta.db_table} {part.alias} "
                    f"ON {outer.alias}.{to.column} = "
                    f"{part.alias}.{part.model._meta.pk.column}"
                )

    def _convert(self, row: list[Any], connection: BaseDatabaseWrapper) -> None:
        """Convert values from the database as Django does for a queryset."""
        for place, column in self._find_converted(connection):
            for convert in _get_converters(column, connection):
                row[place] = convert(row[place], column, connection)

    def _find_converted(self, connection: BaseDatabaseWrapper) -> list[tuple[int, Any]]:
        # By vendor: the converters themselves would keep a thread's connection.
        if connection.vendor not in self._converted:
            columns = (
                part.model._meta.get_field(name).get_col(part.alias)
                for part in self._parts.values()
                for name in part.names
            )
            self._converted[connection.vendor] = [
                (place, column)
                for place, column in enumerate(columns)
                if _get_converters(column, connection)
            ]
        return self._converted[connection.vendor]


def _get_converters(column: Any, connection: BaseDatabaseWrapper) -> list[Any]:
    # Those of the database, such as for dates, and of the field, such as for JSON.
    return [
        *connection.ops.get_db_converters(column),
        *column.get_db_converters(connection),
    ]
