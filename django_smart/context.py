"""``request.smart``, at the path that users import it from."""

from __future__ import annotations

from .launches.context import SMARTContext

__all__ = ["SMARTContext"]
