"""Checks of each setting: whether it exists, and its value."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from django.conf import settings

from ..conf import SETTINGS
from ..diagnoses import Finding, build_finding

__all__ = ["find_setting_faults"]


def find_setting_faults() -> Iterator[Finding]:
    """Settings with an invalid value, and those that are probably misspelled."""
    for name in sorted(set(dir(settings))):
        if not name.startswith("SMART_"):
            continue
        if name not in SETTINGS:
            near = get_close_matches(name, SETTINGS, n=1)
            yield build_finding(
                "django_smart.W021",
                what=f"{name} is not a setting of django_smart.",
                fix=f"Did you mean {near[0]}?" if near else "",
            )
        elif not SETTINGS[name].accepts(getattr(settings, name)):
            yield build_finding(
                "django_smart.E001",
                what=f"{name} must {SETTINGS[name].must}.",
                fix="Set it to such a value, or remove it to use the default, "
                f"{SETTINGS[name].default!r}.",
            )
