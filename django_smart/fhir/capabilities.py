"""What a server says of itself, and the classes for its version of FHIR."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    SMARTError,
)
from django_smart.fhir.interactions import Interaction
from django_smart.fhir.messages import process_resource_response
from django_smart.fhir.perform import Performer

__all__ = ["capabilities", "convert", "forget_capabilities", "get_model"]

_T = TypeVar("_T")

# By base URL: when it was read, and the statement.
_capabilities: dict[str, tuple[float, dict[str, Any]]] = {}
_MAX_CAPABILITIES = 64
# Where fhir.resources has its classes, by the first two numbers of FHIR's version.
# It has none of R4 itself, which differs from R4B in few types.
_MODEL_PACKAGES = {
    "3.0": "fhir.resources.STU3",
    "4.0": "fhir.resources.R4B",
    "4.3": "fhir.resources.R4B",
    "5.0": "fhir.resources",
}


def capabilities(client: Performer, *, max_age: float = 3600.0) -> dict[str, Any]:
    """
    Read the server's ``CapabilityStatement``.

    All clients of this process share it: do not change it.

    Args:
        max_age: seconds for which an earlier response is reused.
    """
    known = _capabilities.get(client.base_url)
    if known is not None and time.monotonic() - known[0] < max_age:
        return known[1]
    response = client.perform(
        Interaction(name="capabilities", method="GET", path="metadata")
    )
    statement = process_resource_response(response, what="read of the capabilities")
    # Its name in DSTU2 (FHIR-08).
    if statement["resourceType"] not in {"CapabilityStatement", "Conformance"}:
        raise MalformedFHIRResponseError("metadata is not a CapabilityStatement")
    if len(_capabilities) >= _MAX_CAPABILITIES:
        _capabilities.clear()
    _capabilities[client.base_url] = time.monotonic(), statement
    return statement


def forget_capabilities(base_url: str) -> None:
    """Make :meth:`FHIRClient.capabilities` read the server's statement again."""
    _capabilities.pop(base_url.removesuffix("/"), None)


def get_model(client: Performer, resource_type: str) -> type[Any]:
    """
    Return the class of ``fhir.resources`` for the server's FHIR version.

    The version comes from :meth:`capabilities`.  ``fhir.resources`` has no models
    for R4; its R4B models are used for both.

    Raises:
        FHIRRequestError: there is no class for this version or type.
        ImportError: ``fhir.resources`` is not installed.
    """
    version, package = _get_version(client)
    if package is None:
        raise FHIRRequestError(
            f"fhir.resources has no models for FHIR version {version or 'unknown'}."
        )
    try:
        found: type[Any] = import_module(package).get_fhir_model_class(resource_type)
    except ValueError:
        raise FHIRRequestError(
            f"fhir.resources has no {resource_type} for FHIR {version}."
        ) from None
    return found


def _get_version(client: Performer) -> tuple[str, str | None]:
    """Return the server's FHIR version, and the package with its models."""
    version = str(capabilities(client).get("fhirVersion", ""))
    return version, _MODEL_PACKAGES.get(".".join(version.split(".")[:2]))


def convert(client: Performer, resource: dict[str, Any], model: type[_T]) -> _T:
    """
    Make a *model* of a resource.

    Args:
        model: a class with pydantic's ``model_validate``, or one that takes the
            dict as its only argument.

    Raises:
        FHIRRequestError: *model* refuses the resource, and is one of another FHIR
            than the server's.
        MalformedFHIRResponseError: it refuses the resource for another reason.
    """
    convert: Callable[[dict[str, Any]], _T] = getattr(model, "model_validate", model)
    try:
        return convert(resource)
    except (ValueError, TypeError, LookupError) as exc:
        reason = type(exc).__name__
    # Outside of the except block: the chain would quote the patient's data.
    kind = resource.get("resourceType", "resource")
    text = f"the {kind} does not match {model.__name__} ({reason})"
    package = model.__module__.rpartition(".")[0]
    if package in _MODEL_PACKAGES.values():
        version, own_package = "", None
        with suppress(SMARTError):
            version, own_package = _get_version(client)
        if own_package not in {None, package}:
            its_version = import_module(package).__fhir_version__
            raise FHIRRequestError(
                f"{text} is a model for FHIR {its_version}, but the server "
                f"uses FHIR {version}: use the model that the client's "
                "get_model() returns"
            )
    raise MalformedFHIRResponseError(text)
