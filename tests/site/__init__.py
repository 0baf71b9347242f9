"""A site of every kind of view, for the tests of the edges."""

from __future__ import annotations
