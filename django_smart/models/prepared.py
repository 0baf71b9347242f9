"""What is asked and written all the time: its SQL is made once for each connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from typing import Any, Generic, TypeVar

from django.db import NotSupportedError, connections, models, router, transaction
from django.db.models.expressions import RawSQL
from django.db.models.sql import UpdateQuery

__all__ = ["PreparedLookup", "PreparedUpdate"]

_Row = TypeVar("_Row", bound=models.Model)

# In the place of the value while the SQL is made.
_VALUE = "(the value that is looked for)"
_KEY = -1


class PreparedLookup(Generic[_Row]):
    """
    One row by one value, with what belongs to it.

    Django makes the SQL of a query anew each time.  For the hundred columns of a launch
    and what it came by, that takes five times as long as the database needs.  The SQL
    and the converters of its columns are kept with the connection, which belongs to one
    thread; everything else, from the router to the instances, is Django's own.

    Args:
        build: makes the queryset for a value, which is a ``str`` that goes into the SQL
            as it is, as a digest or a slug does, and is there once.
    """

    def __init__(self, build: Callable[[str], models.QuerySet[_Row]]) -> None:
        self._build = build

    @cached_property
    def _model(self) -> type[_Row]:
        return self._build(_VALUE).model

    def first(self, value: str) -> _Row | None:
        """The row, or ``None``."""
        using = router.db_for_read(self._model)
        known = vars(connections[using]).setdefault("django_smart_prepared", {})
        prepared = known.get(self)
        if prepared is None:
            prepared = known[self] = _Prepared(self._build(_VALUE), using)
        query: Any = prepared.with_value(value)
        return next(iter(models.QuerySet(self._model, query, using)), None)


class _Prepared:
    """What is kept of a query."""

    def __init__(self, queryset: Any, using: str) -> None:
        self._compiler = queryset.query.get_compiler(using)
        self._sql, params = self._compiler.as_sql()
        self._params = tuple(params)
        converters = self._compiler.get_converters(
            [column for column, _, _ in self._compiler.select]
        )
        self._compiler.get_converters = lambda _columns: converters

    def with_value(self, value: str) -> _Query:
        compiler = copy(self._compiler)
        sql = self._sql
        params = tuple(value if each == _VALUE else each for each in self._params)
        compiler.as_sql = lambda *_args, **_options: (sql, params)
        return _Query(compiler)


class _Query:
    """In the place of ``queryset.query``: knows its SQL already."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def get_compiler(self, *_args: object, **_options: object) -> Any:
        return self._compiler


class PreparedUpdate:
    """
    An UPDATE of one row, if it still is as it was seen.

    As for :class:`PreparedLookup`: Django takes three times as long to make the SQL as
    PostgreSQL to do it, and a worker does it for each grant.

    Args:
        build: makes the queryset of the row, for its primary key and for a ``str`` that
            goes into the SQL as it is, as a digest does.
    """

    def __init__(self, build: Callable[[int, str], models.QuerySet[Any]]) -> None:
        self._build = build

    @cached_property
    def _model(self) -> type[models.Model]:
        return self._build(_KEY, _VALUE).model

    def run(self, pk: int, value: str, columns: Mapping[str, Any]) -> bool:
        """
        Write *columns*; whether there was such a row.

        Args:
            columns: by the names of their fields; plain values, no expressions.

        Raises:
            NotSupportedError: Django's SQL does not have each value once.
        """
        using = router.db_for_write(self._model)
        connection: Any = connections[using]
        known = vars(connection).setdefault("django_smart_prepared", {})
        prepared = known.get((self, *columns))
        if prepared is None:
            prepared = known[(self, *columns)] = self._prepare(using, tuple(columns))
        sql, fields, params = prepared
        given = {_KEY: pk, _VALUE: value}
        for name, field in fields.items():
            given[_mark(name)] = field.get_db_prep_save(columns[name], connection)
        with (
            transaction.mark_for_rollback_on_error(using=using),
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, [given.get(each, each) for each in params])
            return bool(cursor.rowcount == 1)

    def _prepare(
        self, using: str, names: tuple[str, ...]
    ) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
        query: Any = self._build(_KEY, _VALUE).query.chain(UpdateQuery)
        # Each value by a mark of its own: in which order they come, and whether NULL
        # is one of them, is Django's matter.
        query.add_update_values({name: RawSQL("%s", [_mark(name)]) for name in names})
        sql, params = query.get_compiler(using).as_sql()
        fields = {name: self._model._meta.get_field(name) for name in names}
        expected = [_KEY, _VALUE, *map(_mark, names)]
        if any(params.count(each) != 1 for each in expected):
            raise NotSupportedError("The parameters of an UPDATE cannot be told apart.")
        return sql, fields, params


def _mark(name: str) -> str:
    return f"(the value of {name})"
