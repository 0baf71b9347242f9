"""Whether the database can be used: its tables, and that it can be written."""

from __future__ import annotations

from collections.abc import Iterator

from django.apps import apps
from django.db import DatabaseError, connections, router, transaction
from django.db.migrations.executor import MigrationExecutor

from ...models import FHIRServer
from .findings import Finding, build_finding

__all__ = ["UNUSABLE", "examine_database"]

#: The codes after which nothing that reads the database can be examined.
UNUSABLE = frozenset({"database_unusable", "migrations_missing"})

_APPS = ("django_smart", "auth", "sessions")
_MIGRATE = (
    "Run “manage.py migrate”. If there is nothing to apply, compare "
    "“manage.py showmigrations” with the tables: a migration that stopped "
    "halfway has to be completed or reversed."
)


def examine_database() -> Iterator[Finding]:
    """Missing migrations and columns; a database that only reads."""
    alias = router.db_for_write(FHIRServer)
    try:
        executor = MigrationExecutor(connections[alias])
    except DatabaseError as exc:
        yield build_finding(
            "database_unusable",
            what=f"The database cannot be used: {_describe(exc)}.",
            fix="Check host, name, user and password in DATABASES, and start the "
            "database server if it is down.",
        )
        return
    targets = [each for each in executor.loader.graph.leaf_nodes() if each[0] in _APPS]
    plan = executor.migration_plan(targets)
    missing = [f"{each.app_label}.{each.name}" for each, _ in plan]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    shown = ", ".join(missing[-3:]) + more
    faults = [f"not applied: {shown}"] if missing else []
    for model in (
        apps.get_app_config("django_smart").get_models() if not missing else ()
    ):
        try:
            with transaction.atomic(using=alias):
                list(model._base_manager.using(alias).filter(pk__lt=0).values())
        except DatabaseError as exc:
            faults.append(f"{model._meta.db_table} cannot be read ({_describe(exc)})")
    if faults:
        yield build_finding(
            "migrations_missing",
            what=f"The tables do not match this version: {'; '.join(faults)}.",
            fix=_MIGRATE,
        )
        return
    try:
        with transaction.atomic(using=alias):
            FHIRServer.objects.using(alias).filter(pk__lt=0).update(paused=False)
    except DatabaseError as exc:
        yield build_finding(
            "database_read_only",
            what=f"The database is read-only: {_describe(exc)}.",
            fix="Give the user in DATABASES write permission; for SQLite, make "
            "the file and its folder writable for the site's processes.",
        )


def _describe(error: DatabaseError) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
