"""Every value of the protocol is frozen, keyword-only and slotted."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

import django_smart.protocol
from django_smart.protocol.scopes import ScopeSet

VALUES: set[type] = {
    value
    for module in pkgutil.iter_modules(django_smart.protocol.__path__)
    for value in vars(
        importlib.import_module(f"django_smart.protocol.{module.name}")
    ).values()
    if inspect.isclass(value) and dataclasses.is_dataclass(value)
}


def test_the_values_are_found():
    assert len(VALUES) > 15


@pytest.mark.parametrize("value", sorted(VALUES, key=repr), ids=repr)
def test_a_value_cannot_be_changed_or_mistaken(value):
    assert value.__dataclass_params__.frozen
    assert "__slots__" in vars(value)
    # A set of scopes has one member, and readers of documents stay inside.
    if value is not ScopeSet and not value.__name__.startswith("_"):
        assert all(field.kw_only for field in dataclasses.fields(value))
