"""One conditional UPDATE of a row: what it stores, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
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
    changes = {"access_token": grant.access_token, "was_restored": True, "ends_at": now}
    with CaptureQueriesContext(connection) as captured:
        assert compare_and_set(grant, changes, status=TokenGrant.Status.ACTIVE)
    assert len(captured) == 1
    stored = TokenGrant.objects.get()
    assert (stored.access_token, stored.was_restored, stored.ends_at) == (
        "a",
        True,
        now,
    )
    # Not named.
    assert (stored.refresh_token, stored.patient_id) == ("", "p1")
    assert not grant.was_restored


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
    assert compare_and_set(grant, {"scope": "changed"}, **expected) is is_stored
    assert TokenGrant.objects.get().scope == ("changed" if is_stored else "")


def test_other_rows_stay(grant: TokenGrant) -> None:
    now = timezone.now()
    other = TokenGrant.objects.create(
        registration=grant.registration, received_at=now, expires_at=now
    )
    assert compare_and_set(grant, {"scope": "changed"}, status="active")
    other.refresh_from_db()
    assert other.scope == ""


def test_row_that_is_gone_is_not_stored(grant: TokenGrant) -> None:
    TokenGrant.objects.filter(pk=grant.pk).delete()
    assert not compare_and_set(grant, {"scope": "changed"}, status="active")
    assert not TokenGrant.objects.exists()


def test_error_ends_the_transaction_around_it(grant: TokenGrant) -> None:
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            compare_and_set(grant, {"status": None})
        assert connection.needs_rollback
        connection.set_rollback(True)
    assert TokenGrant.objects.get().status == "active"
