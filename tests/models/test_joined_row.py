"""A row with those it refers to: the same rows that ``select_related()`` finds."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart.models import Launch
from django_smart.models.joined_row import JoinedRow
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

_ROW: JoinedRow[Launch] = JoinedRow(
    Launch,
    {
        "": ("id", "nonce"),
        "registration": ("id", "client_secret"),
        "registration__server": ("slug", "id", "configuration"),
        "grant": ("id", "scope"),
    },
)


def _find(pk: int) -> Launch | None:
    return _ROW.find("this.nonce <> %s AND this.id = %s", "", pk)


@pytest.fixture
def launch() -> Launch:
    """A launch that has just begun."""
    registration = make_registration()
    return Launch.objects.create(
        registration=registration,
        state_digest="1" * 64,
        nonce="n",
        expires_at=registration.created_at,
    )


def test_columns_that_are_named_are_read_by_one_query(
    launch: Launch, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        found = _find(launch.pk)
        assert found is not None
        assert found.nonce == "n"
        assert found.registration.client_secret == launch.registration.client_secret
        assert found.registration.server.slug == launch.registration.server.slug
        assert found.grant is None
        keys = found.registration_id, found.registration.server_id, found.grant_id
    server = launch.registration.server
    assert keys == (launch.registration_id, server.pk, None)


def test_other_columns_are_read_when_they_are_asked_for(launch: Launch) -> None:
    found = _find(launch.pk)
    assert found is not None
    rows = [
        (found, launch),
        (found.registration, launch.registration),
        (found.registration.server, launch.registration.server),
    ]
    for row, whole in rows:
        whole.refresh_from_db()
        assert row == whole
        assert not row._state.adding
        for field in row._meta.concrete_fields:
            assert getattr(row, field.attname) == getattr(whole, field.attname)


def test_row_that_is_not_among_those_searched_is_not_found(launch: Launch) -> None:
    assert _find(launch.pk + 1) is None
    Launch.objects.update(nonce="")
    assert _find(launch.pk) is None
