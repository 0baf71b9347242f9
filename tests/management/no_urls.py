"""A site that forgot our URLs."""

from __future__ import annotations

urlpatterns: list[object] = []
