"""
Named misbehaviours of the EHR.

``EHRSimulator.faults`` holds the names of those that are on; ``FAULTS`` describes
all of them, with what a correct app does: refuse or tolerate.
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
    refresh,
    register,
    service,
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
    """The answer of a fault that strikes before the server sees the request."""
    for fault in exchange.ehr.faults.active("replaces", exchange.fault_exchange):
        response: Response | None = fault.function(exchange)
        if response is not None:
            return response
    return None


def apply_to_response(exchange: Exchange, response: Response) -> Response:
    """The server's answer after every fault that is on has had its way."""
    for fault in exchange.ehr.faults.active("edits", exchange.fault_exchange):
        response = fault.function(exchange, response)
    return response


def apply_to_redirect(
    ehr: EHRSimulator, params: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The parameters of an authorization response, as they are sent."""
    for fault in ehr.faults.active("redirects", "authorize"):
        params = fault.function(ehr, params)
    return params


def apply_to_id_token(draft: IDTokenDraft) -> None:
    """Change an ID token that is about to be signed."""
    for fault in draft.ehr.faults.active("drafts", "id_token"):
        fault.function(draft)
