"""An upgrade keeps what is stored: each migration, with rows in every table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, models, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import ensure_active_key
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI

pytestmark = pytest.mark.django_db(transaction=True)

_APP = "django_smart"
_NUMBERS = itertools.count(1)


def _migrate(name: str) -> Any:
    """Go to the migration *name*, forward or back; the models as they are there."""
    executor = MigrationExecutor(connection)
    executor.migrate([(_APP, name)])
    executor = MigrationExecutor(connection)
    return executor.loader.project_state((_APP, name)).apps


def get_names() -> list[str]:
    """Every migration, the first one first."""
    graph = MigrationExecutor(connection).loader.graph
    (leaf,) = graph.leaf_nodes(_APP)
    return [name for app, name in graph.forwards_plan(leaf) if app == _APP]


@pytest.fixture
def _back_again() -> Iterator[None]:
    """The tables as every other test wants them."""
    yield
    _migrate(get_names()[-1])


def _sample(field: Any) -> Any:
    """Some value that the column takes."""
    if field.has_default():
        return field.get_default()
    if field.null:
        return None
    if isinstance(field, models.ForeignKey):
        related: Any = field.related_model
        return related.objects.values_list("pk", flat=True)[:1].get()
    if isinstance(field, models.DateTimeField):
        return timezone.now()
    if isinstance(field, models.JSONField):
        return {}
    if isinstance(field, models.CharField | models.TextField):
        return field.choices[0][0] if field.choices else f"{next(_NUMBERS):020}"
    assert isinstance(field, models.IntegerField), field
    return next(_NUMBERS)


def _insert(model: Any, **values: Any) -> None:
    """
    Write a row, by the columns alone.

    A model of a migration has no properties, which the digests are made of.
    """
    columns = {
        field.column: field.get_db_prep_save(
            values.get(field.attname, values.get(field.name, _sample(field))),
            connection,
        )
        for field in model._meta.concrete_fields
        if not isinstance(field, models.AutoField)
    }
    quote = connection.ops.quote_name
    names = ", ".join(map(quote, columns))
    places = ", ".join(["%s"] * len(columns))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(model._meta.db_table)} ({names}) VALUES ({places})",
            list(columns.values()),
        )


def _fill_first_tables(apps: Any, user: User) -> None:
    """What a site has that was installed with the first migration."""
    server, registration, key, identity, grant, launch = (
        apps.get_model(_APP, name)
        for name in (
            *("FHIRServer", "ClientRegistration", "SigningKey"),
            *("Identity", "TokenGrant", "Launch"),
        )
    )
    digest = FHIRServer(base_url=BASE_URL)
    digest.validate_constraints()
    _insert(
        server,
        slug="harbour",
        name="Harbour Hospital",
        base_url=BASE_URL,
        base_url_digest=digest.base_url_digest,
    )
    _insert(
        registration,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uri=REDIRECT_URI,
        ehr_scope="launch patient/Patient.rs",
    )
    # Nothing kept a second key out yet.
    now = timezone.now()
    for number in range(3):
        _insert(
            key,
            algorithm="RS384",
            kid=f"key-{number}",
            status="active",
            private_key="hush",
            public_jwk={"kid": f"key-{number}"},
            created_at=now + timedelta(days=number),
        )
    _insert(identity, issuer=BASE_URL, subject="rosa", user_id=user.pk)
    _insert(
        grant,
        user_id=user.pk,
        access_token="hush-access",
        refresh_token="hush-refresh",
        status="active",
        is_offline=True,
    )
    _insert(launch, user_id=user.pk, status="completed", context={"patient": "p"})


def _fill_new_tables(apps: Any) -> None:
    """One row in each table that is empty; related ones first."""
    empty = [
        model
        for model in apps.get_models()
        if model._meta.app_label == _APP and not model.objects.exists()
    ]
    while empty:
        model = empty.pop(0)
        needed = {
            field.related_model
            for field in model._meta.concrete_fields
            if isinstance(field, models.ForeignKey) and not field.null
        }
        if needed.intersection(empty):
            empty.append(model)
        else:
            _insert(model)


def _count(apps: Any) -> dict[str, int]:
    return {
        model._meta.db_table: model.objects.count()
        for model in apps.get_models()
        if model._meta.app_label == _APP
    }


@pytest.mark.usefixtures("_back_again")
@pytest.mark.timeout(600)
def test_rows_outlive_every_migration() -> None:
    first, *later = get_names()
    apps = _migrate(first)
    user = User.objects.create_user("rosa")
    _fill_first_tables(apps, user)
    before = _count(apps)
    assert min(before.values()) > 0
    for name in later:
        apps = _migrate(name)
        after = _count(apps)
        assert before.items() <= after.items(), name
        _fill_new_tables(apps)
        before = _count(apps)
        assert min(before.values()) > 0, name

    server = FHIRServer.objects.with_base_url(BASE_URL).get()
    assert server.search_text == " harbour hospital"
    registration = ClientRegistration.objects.get()
    assert registration.client_secret == CLIENT_SECRET
    registration.full_clean()
    registration.save()
    grant = TokenGrant.objects.get()
    assert (grant.access_token, grant.refresh_token) == ("hush-access", "hush-refresh")
    assert grant.user == user
    assert Launch.objects.get().context == {"patient": "p"}

    # The newest of the three keys signs, and keeps every other one out.
    active = SigningKey.objects.get(status="active")
    assert active.kid == "key-2"
    assert SigningKey.objects.filter(status="retired").count() == 2
    assert ensure_active_key("RS384") == active
    with pytest.raises(IntegrityError), transaction.atomic():
        SigningKey(
            algorithm="RS384", kid="another", status="active", public_jwk={}
        ).save()


@pytest.mark.long
@pytest.mark.usefixtures("_back_again")
@pytest.mark.timeout(600)
def test_migrations_can_be_taken_back() -> None:
    User.objects.create_user("rosa")
    last, *earlier = reversed(get_names())
    _fill_new_tables(_migrate(last))
    for name in earlier:
        assert min(_count(_migrate(name)).values()) > 0, name
    MigrationExecutor(connection).migrate([(_APP, None)])
    tables = connection.introspection.table_names()
    assert [each for each in tables if each.startswith("django_smart_")] == []
