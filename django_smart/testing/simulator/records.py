"""The requests that reached the EHR, as received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests.structures import CaseInsensitiveDict

__all__ = ["RecordedRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """
    One request, and the status of its response.

    ``query`` and ``form`` keep order and repetitions. ``status`` is 0 for a request to
    another origin, which the in-process adapter refused.
    """

    exchange: str
    """Which endpoint: ``token``, ``authorize``, ``fhir``, ``elsewhere``, …"""
    method: str
    url: str
    path: str
    query: list[tuple[str, str]]
    headers: CaseInsensitiveDict[str]
    body: bytes
    form: list[tuple[str, str]]
    status: int
    patient: str | None
    """The patient of the bearer token, if one was accepted."""
    client_id: str | None
    at: float
    """Seconds since the epoch, by the simulator's clock."""
