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

    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.id_tokens import IDTokenDraft

__all__ = [
    "FAULTS",
    "Fault",
    "FaultSet",
    "apply_to_id_token",
    "apply_to_redirect",
    "apply_to_response",
    "replacement",
]


def replacement(exchange: Exchange) -> Response | None:
    """Return the response of a fault that replaces the server's handling."""
    for fault in exchange.ehr.faults.active("replaces", exchange.fault_exchange):
        response: Response | None = fault.function(exchange)
        if response is not None:
            return response
    return None


def apply_to_response(exchange: Exchange, response: Response) -> Response:
    """Return the server's response after all active faults changed it."""
    for fault in exchange.ehr.faults.active("edits", exchange.fault_exchange):
        response = fault.function(exchange, response)
    return response


def apply_to_redirect(
    ehr: EHRSimulator, params: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the parameters of an authorization response, as sent."""
    for fault in ehr.faults.active("redirects", "authorize"):
        params = fault.function(ehr, params)
    return params


def apply_to_id_token(draft: IDTokenDraft) -> None:
    """Change an ID token that is about to be signed."""
    for fault in draft.ehr.faults.active("drafts", "id_token"):
        fault.function(draft)
