"""What the package costs, beside what a site would use instead; see README.rst."""

from __future__ import annotations
