"""
Named misbehaviors of the EHR.

``EHRSimulator.faults`` contains the names of the active ones; ``FAULTS`` describes all
of them, with the correct reaction of an app: refuse or tolerate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_smart.testing.simulator.faults import (  # noqa: F401 (they register)
    authorize,
    discovery,
    everywhere,
    fhir,
    id_token,
    management,
    token,
)
from django_smart.testing.simulator.faults.registry import FAULTS, Fault, FaultSet

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["FAULTS", "Fault", "FaultSet", "replacement"]


def replacement(exchange: Exchange) -> Response | None:
    """Return the response of a fault that replaces the server's handling."""
    for fault in exchange.ehr.faults.active("replaces", exchange.fault_exchange):
        response: Response | None = fault.function(exchange)
        if response is not None:
            return response
    return None
