"""One row and the rows it refers to, by a statement that is composed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from django.db import connections, models, router

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["JoinedRow"]

_Model = TypeVar("_Model", bound=models.Model)


class _Statement(NamedTuple):
    sql: str
    # With placeholders for the values of find().
    parameters: Sequence[Any]
    # By relation, the model and its columns, in the order of the SELECT.
    parts: dict[str, tuple[Any, list[str]]]
    # The columns whose values have to be converted, with their positions.
    converted: list[tuple[int, Any]]


class JoinedRow(Generic[_Model]):
    """
    What ``select_related()`` reads, without composing the same SQL for each request.

    A page under a launch reads its launch, registration, server and grant, which have
    more than a hundred columns. Django takes longer to compose that statement than the
    database to run it, and each page would take twice as long.
    """

    def __init__(
        self,
        model: type[_Model],
        select: Callable[..., models.QuerySet[_Model]],
        *relations: str,
    ) -> None:
        """
        Say what to read.

        Args:
            select: returns a queryset for the values of :meth:`find`. It is called with
                placeholders, and only once for each kind of database.
            relations: as for ``select_related()``, each after the one it extends.
        """
        self._model = model
        self._select = select
        self._relations = ("", *relations)
        self._statements: dict[str, _Statement] = {}

    def find(self, *values: str) -> _Model | None:
        """Return the row that is selected by *values*, or ``None``."""
        given = {f"<{number}>": value for number, value in enumerate(values)}
        connection = connections[router.db_for_read(self._model)]
        if connection.vendor not in self._statements:
            self._statements[connection.vendor] = self._compose(connection, *given)
        statement = self._statements[connection.vendor]
        parameters = [given.get(each, each) for each in statement.parameters]
        with connection.cursor() as cursor:
            cursor.execute(statement.sql, parameters)
            found = cursor.fetchone()
        if found is None:
            return None
        row = list(found)
        for place, column in statement.converted:
            if row[place] is not None:
                for convert in _get_converters(column, connection):
                    row[place] = convert(row[place], column, connection)
        rest, instances = iter(row), dict[str, Any]()
        for relation, (model, names) in statement.parts.items():
            part = list(islice(rest, len(names)))
            instance = model.from_db(connection.alias, names, part)
            # If the relation is NULL, all its columns are, too.
            instances[relation] = None if instance.pk is None else instance
            if relation:
                outer, _, name = relation.rpartition("__")
                setattr(instances[outer], name, instances[relation])
        return instances[""]  # type: ignore[no-any-return]

    def _compose(
        self, connection: BaseDatabaseWrapper, *placeholders: str
    ) -> _Statement:
        parts, names, columns = {}, [], []
        for relation in self._relations:
            model: Any = self._model
            for name in filter(None, relation.split("__")):
                model = model._meta.get_field(name).related_model
            fields = model._meta.concrete_fields
            parts[relation] = model, [field.attname for field in fields]
            prefix = f"{relation}__" if relation else ""
            names += [f"{prefix}{field.attname}" for field in fields]
            columns += [field.get_col(model._meta.db_table) for field in fields]
        rows = self._select(*placeholders).order_by().values_list(*names)
        sql, parameters = rows.query.get_compiler(connection=connection).as_sql()
        converted = [
            (place, column)
            for place, column in enumerate(columns)
            if _get_converters(column, connection)
        ]
        return _Statement(sql, parameters, parts, converted)


def _get_converters(column: Any, connection: BaseDatabaseWrapper) -> list[Any]:
    # Not kept, because a database's converters belong to one connection and thread.
    return [
        *connection.ops.get_db_converters(column),
        *column.get_db_converters(connection),
    ]
