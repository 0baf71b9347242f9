"""The quirks of a server in its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.query_utils import DeferredAttribute

from ..protocol.quirks import QuirkError, Quirks

__all__ = ["QuirksField"]

if TYPE_CHECKING:
    _JSONField = models.JSONField[Quirks | Mapping[str, Any], Quirks]
else:  # Django's fields take type arguments in the stubs alone.
    _JSONField = models.JSONField


class _QuirksAttribute(DeferredAttribute):
    """Reads as ``Quirks``, also of a ``dict``, which is checked."""

    field: QuirksField

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.field.attname] = _check_quirks(value)


class QuirksField(_JSONField):
    """
    ``Quirks``, of which the database stores those that differ from the defaults.

    A ``dict`` that is assigned, or passed to ``update()``, replaces all of them, and
    unknown names are refused.  Stored ones that this version does not know are kept.
    """

    descriptor_class = _QuirksAttribute

    def from_db_value(self, value: Any, *args: Any) -> Quirks:
        return Quirks.read(super().from_db_value(value, *args) or {})

    def to_python(self, value: Any) -> Any:
        # Of a fixture, which value_to_string() wrote.
        return Quirks.read(value) if isinstance(value, Mapping) else value

    def validate(self, value: Any, model_instance: models.Model | None) -> None:
        """Do nothing: what is no ``Quirks`` cannot be assigned."""

    def get_prep_value(self, value: Any) -> Any:
        value = _check_quirks(value)
        return value.as_json() if isinstance(value, Quirks) else value

    def value_to_string(self, obj: models.Model) -> Any:
        return self.value_from_object(obj).as_json()


def _check_quirks(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return Quirks().replace(value)
    except QuirkError as exc:
        raise ValidationError(str(exc), code="quirks") from exc
