"""
System checks: every setting, what the site has to install, and what deployment needs.

Ids are never reused.  ``manage.py check --tag django_smart`` runs these alone.
"""

from __future__ import annotations

from typing import Any

from django.core import checks

__all__ = [
    "check_deployment",
    "check_settings",
    "check_structure",
    "check_unknown_settings",
    "register_all",
]

_TAG = "django_smart"

# What checks look at is loaded when they run: web processes and workers run none.


def check_settings(**values: Any) -> list[checks.CheckMessage]:
    """Each setting has a value that can be used."""
    from . import settings

    return settings.check_settings(**values)


def check_unknown_settings(**values: Any) -> list[checks.CheckMessage]:
    """Nothing is set that has the name of no setting."""
    from . import settings

    return settings.check_unknown_settings(**values)


def check_structure(**values: Any) -> list[checks.CheckMessage]:
    """The site has installed what the package needs."""
    from . import structure

    return structure.check_structure(**values)


def check_deployment(**values: Any) -> list[checks.CheckMessage]:
    """What is right for development alone is not deployed."""
    from . import deployment

    return deployment.check_deployment(**values)


def register_all() -> None:
    """Register every check with Django."""
    checks.register(check_settings, _TAG)
    checks.register(check_unknown_settings, _TAG)
    checks.register(check_structure, _TAG)
    checks.register(check_deployment, _TAG, checks.Tags.security, deploy=True)
