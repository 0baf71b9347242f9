"""What the commands have in common."""

from __future__ import annotations
