"""Migrations: released ones stay as they are, and each can be reversed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, connection, models
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import SwappableTuple
from django.db.migrations.operations import AddField
from django.db.migrations.operations.base import Operation

from django_smart.models import Launch, TaskRun
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser, make_registration

_APP = "django_smart"
_APPS = (_APP, "django_smart_brands", "django_smart_records")


def _migrate(name: str | None) -> None:
    MigrationExecutor(connection).migrate([(app, name) for app in _APPS])


def _get_tables() -> set[str]:
    tables = connection.introspection.table_names()
    return {each for each in tables if each.startswith(f"{_APP}_")}


@pytest.fixture
def _back_again() -> Iterator[None]:
    """The tables as every other test wants them."""
    yield
    _migrate("0001_initial")


# SHA-256 of the files of released migrations, of which none is edited again.
_RELEASED = {
    ("django_smart", "0001_initial"): (
        "465f086b88a6286bc7f80a182af04597c6efd026dffbf20e7ef64412973d72ef"
    ),
    ("django_smart_brands", "0001_initial"): (
        "d374b531a31791ebc5bbcb35aea975d503564bd72a8006a74b60d66bdc9d0a3f"
    ),
    ("django_smart_records", "0001_initial"): (
        "9da9bb0343a1abee54d719c8aa9978843f041b71d64594ea3550089d41727bc2"
    ),
}


def test_released_migrations_are_not_edited() -> None:
    migrations = MigrationLoader(None).disk_migrations
    digests = {}
    for name in _RELEASED:
        path = inspect.getsourcefile(type(migrations[name]))
        assert path is not None
        digests[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert digests == _RELEASED


def test_users_may_be_of_any_model() -> None:
    migration = MigrationLoader(None).disk_migrations[_APP, "0001_initial"]
    assert migration.initial
    (dependency,) = migration.dependencies
    assert isinstance(dependency, SwappableTuple)
    assert dependency.setting == settings.AUTH_USER_MODEL


# Rolling upgrades


def _find_columns_that_break_old_code(
    operations: Sequence[Operation],
) -> list[str]:
    """Columns added without a default that the database knows."""
    return [
        f"{each.model_name}.{each.name}"
        for each in operations
        if isinstance(each, AddField)
        and not (each.field.null or each.field.many_to_many)
        and not each.field.has_db_default()
    ]


def test_columns_of_later_migrations_have_a_default_in_the_database() -> None:
    migrations = MigrationLoader(None).disk_migrations
    later = [
        operation
        for (app, name), migration in migrations.items()
        if app in _APPS and name != "0001_initial"
        for operation in migration.operations
    ]
    assert _find_columns_that_break_old_code(later) == []
    bad = AddField("grant", "bad", models.BooleanField(default=False))
    good = AddField("grant", "good", models.BooleanField(db_default=False))
    empty = AddField("grant", "empty", models.DateTimeField(null=True))
    assert _find_columns_that_break_old_code([bad, good, empty]) == ["grant.bad"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_default", [True, False])
def test_previous_version_inserts_into_a_newer_table(*, has_default: bool) -> None:
    options: dict[str, Any] = {"db_default": False} if has_default else {}
    column = models.BooleanField(default=False, **options)
    column.set_attributes_from_name("added_later")
    column.model = TaskRun
    with connection.schema_editor() as editor:
        editor.add_field(TaskRun, column)
    try:
        # This model is the previous version's: it does not know the column.
        if has_default:
            assert TaskRun.objects.create(name="by the old version").pk
        else:
            with pytest.raises(DatabaseError):
                TaskRun.objects.create(name="by the old version")
    finally:
        with connection.schema_editor() as editor:
            editor.remove_field(TaskRun, column)
        TaskRun.objects.all().delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_back_again")
def test_migration_can_be_taken_back_and_applied_again(ehr: EHRSimulator) -> None:
    make_registration()
    assert launch(make_browser(), ehr).grant is not None
    before = _get_tables()
    assert Launch._meta.db_table in before
    _migrate(None)
    assert _get_tables() == set()
    _migrate("0001_initial")
    assert _get_tables() == before
    assert not Launch.objects.exists()
    make_registration()
    assert launch(make_browser(), ehr).grant is not None
