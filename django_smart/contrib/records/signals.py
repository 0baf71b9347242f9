"""The signal of a finished run."""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["record_synced"]

record_synced = Signal()
"""
A run has read everything that the EHR let it read: ``run``, ``grant``.

Types that were refused or incomplete have that state in ``run.states``.
"""
