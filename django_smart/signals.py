"""
Signals, sent after the change they report has been committed.

``launch_completed``
    sender: ``Launch``; ``launch``, ``request``, ``missing_scope``.
``launch_failed``
    sender: ``Launch``; ``launch`` (``None`` if there is no row), ``error``.
``grant_refreshed``, ``grant_lost``, ``grant_revoked``
    sender: ``TokenGrant``; ``grant``.  ``grant_lost`` also has ``error_code``.
``grant_ending``
    sender: ``TokenGrant``; ``grant``, whose known end (``ends_at``) is near.
``fhir_request_finished``
    sender: ``FHIRClient``; ``exchange`` (interaction, type, status, seconds),
    ``grant``, ``launch``.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = [
    "fhir_request_finished",
    "grant_ending",
    "grant_lost",
    "grant_refreshed",
    "grant_revoked",
    "launch_completed",
    "launch_failed",
]

launch_completed = Signal()
launch_failed = Signal()
grant_refreshed = Signal()
grant_ending = Signal()
grant_lost = Signal()
grant_revoked = Signal()
fhir_request_finished = Signal()
