"""Resources as instances of somebody's classes: ``fhir.resources``, dataclasses, …"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django_smart.exceptions import MalformedFHIRResponseError

__all__ = ["convert_resource"]

_T = TypeVar("_T")


def convert_resource(resource: dict[str, Any], model: Callable[..., _T]) -> _T:
    """
    Make a *model* of a resource.

    Args:
        model: a class with pydantic's ``model_validate``, or anything that takes the
            dict as its only argument.

    Raises:
        MalformedFHIRResponseError: *model* refuses the resource.
    """
    convert: Callable[[dict[str, Any]], _T] = getattr(model, "model_validate", model)
    try:
        return convert(resource)
    except (ValueError, TypeError, LookupError) as exc:
        reason = type(exc).__name__
    # Outside of the except block: the chain would quote the patient's data.
    name = getattr(model, "__name__", "model")
    raise MalformedFHIRResponseError(
        f"the {resource['resourceType']} does not fit {name} ({reason})"
    )
