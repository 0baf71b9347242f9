"""Refusals for scripts: an ``OperationOutcome`` with the status that says why."""

from __future__ import annotations

import json

from django.http import HttpResponse

from ..exceptions import (
    FHIRStatusError,
    ServerTimeoutError,
    SMARTError,
    TokenError,
    TokenServerError,
)

__all__ = [
    "FHIR_JSON",
    "JSON_TYPES",
    "MAX_DEPTH",
    "RefusedError",
    "build_fhir_response",
    "build_outcome",
    "get_gateway_status",
    "get_status",
]

FHIR_JSON = "application/fhir+json"
JSON_TYPES = frozenset({FHIR_JSON, "application/json"})
# Of JSON: a Questionnaire has groups in groups, each of which is two levels.
MAX_DEPTH = 200
# 5xx statuses that mean what they say here too; any other fault is a bad gateway.
_UNAVAILABLE = {503, 504}


class RefusedError(Exception):
    """The request, or what the server answered to it, is not passed on."""

    def __init__(self, status: int, issue: str, diagnostics: str) -> None:
        super().__init__(diagnostics)
        self.status = status
        self.issue = issue
        self.diagnostics = diagnostics


def get_gateway_status(status: int) -> int:
    """What a status of the FHIR server that is neither a success nor 4xx becomes."""
    return status if status in _UNAVAILABLE else 502


def get_status(error: SMARTError) -> int:
    """Return the HTTP status that tells a script what went wrong."""
    match error:
        case FHIRStatusError(status_code=status) if status < 500:
            return status
        case FHIRStatusError(status_code=status):
            return get_gateway_status(status)
        case ServerTimeoutError():
            return 504
        case TokenServerError():
            return 503
        case TokenError():  # of a refresh: not the caller's fault
            return 502
        case _:
            return error.http_status


def build_outcome(status: int, issue: str, diagnostics: str) -> HttpResponse:
    """An ``OperationOutcome`` with one issue."""
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": issue, "diagnostics": diagnostics}],
    }
    return build_fhir_response(status, json.dumps(outcome).encode())


def build_fhir_response(status: int, body: bytes) -> HttpResponse:
    """FHIR JSON for scripts; what a person opens of it does nothing."""
    response = HttpResponse(body, status=status, content_type=FHIR_JSON)
    if not body:
        del response.headers["Content-Type"]
    return response
