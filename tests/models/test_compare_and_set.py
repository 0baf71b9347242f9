"""One conditional UPDATE of a row: what it stores, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart.models import ClientRegistration, TokenGrant
from django_smart.models.compare_and_set import compare_and_set

pytestmark = pytest.mark.django_db


@pytest.fixture
def grant(registration: ClientRegistration) -> TokenGrant:
    """An active grant that no process has leased."""
    now = timezone.now()
    return TokenGrant.objects.create(
        registration=registration, received_at=now, expires_at=now, patient_id="p1"
    )


def test_named_fields_are_stored_by_one_statement(grant: TokenGrant) -> None:
    now = timezone.now()
    grant.set_tokens(access_token="a", refresh_token="r")
    grant.was_restored, grant.ends_at, grant.patient_id = True, now, "p2"
    names = ["access_token", "was_restored", "ends_at"]
    with CaptureQueriesContext(connection) as captured:
        assert compare_and_set(grant, names, status=TokenGrant.Status.ACTIVE)
    assert len(captured) == 1
    stored = TokenGrant.objects.get()
    assert (stored.access_token, stored.was_restored, stored.ends_at) == (
        "a",
        True,
        now,
    )
    # Not named.
    assert (stored.refresh_token, stored.patient_id) == ("", "p1")


@pytest.mark.parametrize(
    ("expected", "is_stored"),
    [
        ({}, True),
        ({"status": ("active", "expired")}, True),
        ({"status": ("revoked", "expired")}, False),
        ({"lease_expires_at": None}, True),
        ({"ended_at": None, "status": "revoked"}, False),
        ({"expires_at": None}, False),
        ({"is_offline": False, "patient_id": "p1"}, True),
        ({"is_offline": True}, False),
    ],
)
def test_row_is_changed_only_if_it_has_every_expected_value(
    grant: TokenGrant, expected: dict[str, Any], is_stored: bool
) -> None:
    grant.scope = "patient/*.rs"
    assert compare_and_set(grant, ["scope"], **expected) is is_stored
    assert TokenGrant.objects.get().scope == (grant.scope if is_stored else "")


def test_other_rows_stay(grant: TokenGrant) -> None:
    now = timezone.now()
    other = TokenGrant.objects.create(
        registration=grant.registration, received_at=now, expires_at=now
    )
    grant.scope = "patient/*.rs"
    assert compare_and_set(grant, ["scope"], status="active")
    other.refresh_from_db()
    assert other.scope == ""


def test_row_that_is_gone_is_not_stored(grant: TokenGrant) -> None:
    TokenGrant.objects.filter(pk=grant.pk).delete()
    assert not compare_and_set(grant, ["scope"], status="active")
    assert not TokenGrant.objects.exists()
