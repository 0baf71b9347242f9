"""The management commands; :mod:`.entries` reads the input of ``smart_register``."""

from __future__ import annotations
