"""
System checks of settings, required setup and deployment.

A check looks at settings and code; what the database, the network or processes show
is a finding of the doctor.  Ids are never reused.  ``manage.py check --tag
django_smart`` runs only these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core import checks

from ..diagnoses import Finding, Severity

__all__ = ["check_deployment", "check_settings", "check_structure", "register_all"]

_TAG = "django_smart"
_LEVELS = {
    Severity.ERROR: checks.ERROR,
    Severity.WARNING: checks.WARNING,
    Severity.NOTE: checks.INFO,
}

# Checks import their modules when they run, because web processes and workers run none.


def check_settings(**values: Any) -> list[checks.CheckMessage]:
    """Check that each setting is known and has a valid value."""
    from .settings import find_setting_faults

    return _build_messages(find_setting_faults())


def check_structure(**values: Any) -> list[checks.CheckMessage]:
    """Check that the site has installed what the package needs."""
    from .structure import find_structure_faults

    return _build_messages(find_structure_faults())


def check_deployment(**values: Any) -> list[checks.CheckMessage]:
    """Check that settings for development are not deployed."""
    from .deployment import find_deployment_faults

    return _build_messages(find_deployment_faults())


def _build_messages(findings: Iterable[Finding]) -> list[checks.CheckMessage]:
    return [
        checks.CheckMessage(
            _LEVELS[each.severity],
            f"{each.what} {each.why}",
            hint=f"{each.fix} See {each.docs_url}",
            id=each.code,
        )
        for each in findings
    ]


def register_all() -> None:
    """Register every check with Django."""
    checks.register(check_settings, _TAG)
    checks.register(check_structure, _TAG)
    checks.register(check_deployment, _TAG, checks.Tags.security, deploy=True)
