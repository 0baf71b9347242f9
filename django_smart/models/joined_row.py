"""A row and the rows it refers to, by one query of the columns that are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from django.db import models

__all__ = ["JoinedRow"]

_Model = TypeVar("_Model", bound=models.Model)


class JoinedRow(Generic[_Model]):
    """
    What ``select_related()`` with ``only()`` returns, in a fraction of the time.

    Those two visit every field of every model for each query, and a launch with its
    registration and server has more than a hundred.  Other columns are read when they
    are asked for, as after ``only()``.
    """

    def __init__(
        self,
        make_rows: Callable[[], models.QuerySet[_Model]],
        columns: Mapping[str, Collection[str]],
    ) -> None:
        """
        Say what to read.

        Args:
            make_rows: returns the queryset to search; called once, at the first use.
            columns: names of columns by the path of foreign keys to their model; the
                empty path first, and each path behind those that lead to it.  Each
                has the primary key, which is also the value of the foreign key.
        """
        self._make_rows = make_rows
        self._columns = columns

    def find(self, **lookups: Any) -> _Model | None:
        """The row that *lookups* select, or ``None``."""
        found = self._values.filter(**lookups)
        row = next(iter(found), None)
        if row is None:
            return None
        made: dict[str, Any] = {}
        start = 0
        for path, (model, names) in self._parts.items():
            end = start + len(names)
            each = model.from_db(found.db, names, row[start:end])
            made[path] = each if each.pk is not None else None
            if path:
                outer, _, name = path.rpartition("__")
                # Sets the column of the foreign key, too.
                setattr(made[outer], name, made[path])
            start = end
        return made[""]  # type: ignore[no-any-return]

    @cached_property
    def _parts(self) -> dict[str, tuple[Any, dict[str, None]]]:
        """Models and names of columns, in the order that ``from_db()`` takes."""
        parts: dict[str, tuple[Any, dict[str, None]]] = {}
        for path, columns in self._columns.items():
            model: Any = self._make_rows().model
            for name in filter(None, path.split("__")):
                model = model._meta.get_field(name).related_model
            fields = [field.attname for field in model._meta.concrete_fields]
            # A dict, which from_db() searches faster than a list.
            parts[path] = (
                model,
                dict.fromkeys(name for name in fields if name in columns),
            )
        return parts

    @cached_property
    def _values(self) -> models.QuerySet[_Model, tuple[Any, ...]]:
        paths = [
            f"{path}__{name}" if path else name
            for path, (_, names) in self._parts.items()
            for name in names
        ]
        return self._make_rows().values_list(*paths).order_by()
