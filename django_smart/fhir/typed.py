"""Resources as instances of other classes: ``fhir.resources``, dataclasses, …"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    ModelVersionError,
    SMARTError,
)

__all__ = ["convert_resource", "find_model"]

_T = TypeVar("_T")

# Where ``fhir.resources`` has its classes, by the first two numbers of FHIR's version.
# It has none of R4 itself, which differs from R4B in few types.
_PACKAGES = {
    "3.0": "fhir.resources.STU3",
    "4.0": "fhir.resources.R4B",
    "4.3": "fhir.resources.R4B",
    "5.0": "fhir.resources",
}


def find_model(resource_type: str, fhir_version: str) -> type[Any]:
    """As ``FHIRClient.get_model``; *fhir_version* such as ``"4.0.1"``."""
    package = _PACKAGES.get(_shorten(fhir_version))
    if package is None:
        raise FHIRRequestError(
            "fhir.resources has no models for FHIR version "
            f"{fhir_version or 'unknown'}."
        )
    try:
        found: type[Any] = import_module(package).get_fhir_model_class(resource_type)
    except ValueError:
        raise FHIRRequestError(
            f"fhir.resources has no {resource_type} for FHIR {fhir_version}."
        ) from None
    return found


def convert_resource(
    resource: dict[str, Any],
    model: Callable[..., _T],
    get_version: Callable[[], str],
) -> _T:
    """
    Make a *model* of a resource.

    Args:
        model: a class with pydantic's ``model_validate``, or anything that takes the
            dict as its only argument.
        get_version: what FHIR the server has; called if *model* refuses the resource.

    Raises:
        ModelVersionError: *model* refuses the resource, and is one of another FHIR than
            the server's.
        MalformedFHIRResponseError: it refuses the resource for another reason.
    """
    convert: Callable[[dict[str, Any]], _T] = getattr(model, "model_validate", model)
    try:
        return convert(resource)
    except (ValueError, TypeError, LookupError) as exc:
        reason = type(exc).__name__
    # Outside of the except block: the chain would quote the patient's data.
    name = getattr(model, "__name__", "model")
    kind = resource.get("resourceType", "resource")
    text = f"the {kind} does not match {name} ({reason})"
    package = getattr(model, "__module__", "").rpartition(".")[0]
    if package in _PACKAGES.values():
        try:
            version = get_version()
        except SMARTError:
            version = ""
        if _PACKAGES.get(_shorten(version), package) != package:
            its_version = import_module(package).__fhir_version__
            raise ModelVersionError(
                f"{text} is a model for FHIR {its_version}, but the server "
                f"uses FHIR {version}: use the model that the client's "
                "get_model() returns"
            )
    raise MalformedFHIRResponseError(text)


def _shorten(version: str) -> str:
    return ".".join(version.split(".")[:2])
