"""
Signals, sent after the fact they tell of has been committed.

``launch_completed``
    sender: ``Launch``; ``launch``, ``request``.
``launch_failed``
    sender: ``Launch``; ``launch`` (``None`` if no row could be found), ``error``.
``grant_refreshed``, ``grant_lost``, ``grant_revoked``
    sender: ``TokenGrant``; ``grant``.  ``grant_lost`` also has ``error_code``.
``fhir_request_finished``
    sender: ``FHIRClient``; ``exchange`` (interaction, type, status, seconds),
    ``grant``, ``launch``.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = [
    "fhir_request_finished",
    "grant_lost",
    "grant_refreshed",
    "grant_revoked",
    "launch_completed",
    "launch_failed",
]

launch_completed = Signal()
launch_failed = Signal()
grant_refreshed = Signal()
grant_lost = Signal()
grant_revoked = Signal()
fhir_request_finished = Signal()
