"""The site that is measured."""

from __future__ import annotations
