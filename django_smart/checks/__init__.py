"""
System checks of settings, required setup and deployment.

Ids are never reused.  ``manage.py check --tag django_smart`` runs only these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import checks

from ..conf import build_docs_url

__all__ = [
    "check_deployment",
    "check_registrations",
    "check_settings",
    "check_structure",
    "register_all",
]

_TAG = "django_smart"

# Checks import their modules when they run, because web processes and workers run none.


def check_settings(**values: Any) -> list[checks.CheckMessage]:
    """Check that each setting is known and has a valid value."""
    from . import settings

    return _add_links(settings.check_settings())


def check_structure(**values: Any) -> list[checks.CheckMessage]:
    """Check that the site has installed what the package needs."""
    from . import structure

    return _add_links(structure.check_structure())


def check_deployment(**values: Any) -> list[checks.CheckMessage]:
    """Check that settings for development are not deployed."""
    from . import deployment

    return _add_links(deployment.check_deployment())


def check_registrations(
    *, databases: Sequence[str] | None = None, **values: Any
) -> list[checks.CheckMessage]:
    """Check that the registrations suit the site: with ``migrate`` and the doctor."""
    from . import registrations

    return _add_links(registrations.check_registrations(databases or ()))


def _add_links(messages: list[checks.CheckMessage]) -> list[checks.CheckMessage]:
    for each in messages:
        each.hint = f"{each.hint} See {build_docs_url('checks', str(each.id))}"
    return messages


def register_all() -> None:
    """Register every check with Django."""
    checks.register(check_settings, _TAG)
    checks.register(check_structure, _TAG)
    checks.register(check_registrations, _TAG, checks.Tags.database)
    checks.register(check_deployment, _TAG, checks.Tags.security, deploy=True)
