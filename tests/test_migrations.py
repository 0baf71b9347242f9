"""The one migration: it creates the tables, and takes them away again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import SwappableTuple

from django_smart.models import Launch
from django_smart.testing import EHRSimulator
from tests.ehr import launch, make_browser, make_registration

_APP = "django_smart"


def _migrate(name: str | None) -> None:
    MigrationExecutor(connection).migrate([(_APP, name)])


def _get_tables() -> set[str]:
    tables = connection.introspection.table_names()
    return {each for each in tables if each.startswith(f"{_APP}_")}


@pytest.fixture
def _back_again() -> Iterator[None]:
    """The tables as every other test wants them."""
    yield
    _migrate("0001_initial")


def test_there_is_one_migration_until_the_first_release() -> None:
    loader = MigrationLoader(None)
    names = [name for app, name in loader.disk_migrations if app == _APP]
    assert names == ["0001_initial"]


def test_users_may_be_of_any_model() -> None:
    migration = MigrationLoader(None).disk_migrations[_APP, "0001_initial"]
    assert migration.initial
    (dependency,) = migration.dependencies
    assert isinstance(dependency, SwappableTuple)
    assert dependency.setting == settings.AUTH_USER_MODEL


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
