"""What a server says of itself."""

from __future__ import annotations

import time
from typing import Any

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import Interaction
from django_smart.fhir.messages import process_resource_response

__all__ = ["capabilities", "forget_capabilities"]

# By base URL: when it was read, and the statement.
_capabilities: dict[str, tuple[float, dict[str, Any]]] = {}
_MAX_CAPABILITIES = 64


def capabilities(client: FHIRConnection, *, max_age: float = 3600.0) -> dict[str, Any]:
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
