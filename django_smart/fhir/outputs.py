"""What an operation has returned: a resource, or ``Parameters`` with several values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_smart.fhir.names import iter_mappings

__all__ = ["get_output", "get_outputs"]


def get_output(answer: Mapping[str, Any], name: str = "return") -> Any:
    """
    Return one value that an operation has returned, or ``None`` if it has none.

    ``get_output(answer, "result")`` is the boolean of ``$validate-code``.  If the only
    value is a resource, some servers return it alone and others as ``return``;
    ``get_output(answer)`` reads both.

    Args:
        answer: the result of ``fhir.operation()``.
        name: of the output parameter.

    Spec: FHIR R4, "Operations Framework", Response; "Parameters".
    """
    return next(iter(get_outputs(answer, name)), None)


def get_outputs(answer: Mapping[str, Any], name: str = "return") -> list[Any]:
    """
    Return all values of an output parameter, which may repeat.

    A parameter with parts is returned as a ``Parameters``: read it with the same
    functions.
    """
    if answer.get("resourceType") != "Parameters":
        return [answer] if name == "return" else []
    found = iter_mappings(answer.get("parameter"))
    return [_get_value(each) for each in found if each.get("name") == name]


def _get_value(parameter: Mapping[str, Any]) -> Any:
    if "part" in parameter:
        return {"resourceType": "Parameters", "parameter": parameter["part"]}
    if "resource" in parameter:
        return parameter["resource"]
    values = (value for key, value in parameter.items() if key.startswith("value"))
    return next(values, None)
