"""Checks of registrations, which need the database."""

from __future__ import annotations

from collections.abc import Collection

from django.conf import settings
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.core import checks
from django.db import DatabaseError, router

from ..models import ClientRegistration
from .structure import find_classes, load_class

__all__ = ["check_registrations"]


def check_registrations(databases: Collection[str]) -> list[checks.CheckMessage]:
    """``W071``: the scopes of launches on a site that requires a sign-in."""
    loaded = [load_class(path) for path in settings.MIDDLEWARE]
    if router.db_for_read(ClientRegistration) not in databases or not find_classes(
        loaded, LoginRequiredMiddleware
    ):
        return []
    try:
        active = list(ClientRegistration.objects.active())
    except DatabaseError:
        return []  # before the first migration
    lacking = [
        str(each.pk)
        for each in active
        if any(
            scope and "openid" not in scope.split()
            for scope in (each.ehr_scope, each.standalone_scope)
        )
    ]
    if not lacking:
        return []
    return [
        checks.Warning(
            "LoginRequiredMiddleware requires a sign-in, and launches without the "
            "scope openid sign no one in: users must sign in here before they open "
            f"the app. Client registrations: {', '.join(lacking)}.",
            hint='Add "openid fhirUser" to the scopes of these registrations.',
            id="django_smart.W071",
        )
    ]
