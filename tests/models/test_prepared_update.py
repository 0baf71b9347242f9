"""Rows that are written by SQL that was made before."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, NotSupportedError, transaction
from django.utils import timezone

from django_smart.models import ClientRegistration, TokenGrant
from django_smart.models.prepared import PreparedUpdate
from django_smart.testing import EHRSimulator
from tests.factories import make_grants, reload_grant

pytestmark = pytest.mark.django_db


def _find(pk: int, seen: str) -> Any:
    return TokenGrant.objects.active().filter(pk=pk, refresh_token_digest=seen)


@pytest.fixture
def grant(ehr: EHRSimulator, registration: ClientRegistration) -> TokenGrant:
    """One of two."""
    return reload_grant(make_grants(ehr, registration, 2)[0])


def test_row_as_it_was_seen_is_written_and_no_other(grant: TokenGrant) -> None:
    update = PreparedUpdate(_find)
    seen = grant.refresh_token_digest
    for due_at in (None, timezone.now(), None, timezone.now() + timedelta(days=1)):
        columns = {"last_error": f"due {due_at}", "refresh_due_at": due_at}
        assert update.run(grant.pk, seen, columns)
        stored = reload_grant(grant.pk)
        assert (stored.last_error, stored.refresh_due_at) == (f"due {due_at}", due_at)
    (other,) = TokenGrant.objects.exclude(pk=grant.pk)
    assert other.last_error == ""
    assert other.refresh_due_at is not None


def test_row_that_changed_since_is_left_alone(grant: TokenGrant) -> None:
    update = PreparedUpdate(_find)
    columns = {"last_error": "late"}
    assert not update.run(grant.pk, "another digest", columns)
    TokenGrant.objects.filter(pk=grant.pk).update(status="revoked")
    assert not update.run(grant.pk, grant.refresh_token_digest, columns)
    assert not TokenGrant.objects.filter(last_error="late").exists()


def test_secret_is_stored_encrypted(grant: TokenGrant) -> None:
    update = PreparedUpdate(_find)
    columns = {"access_token": "canary"}
    assert update.run(grant.pk, grant.refresh_token_digest, columns)
    assert reload_grant(grant.pk).access_token == "canary"
    (column,) = TokenGrant.objects.filter(pk=grant.pk).values_list("access_token")[0]
    assert "canary" not in repr(column)


def test_error_ends_the_transaction_as_of_any_update(grant: TokenGrant) -> None:
    update = PreparedUpdate(_find)
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            update.run(grant.pk, grant.refresh_token_digest, {"refresh_failures": -1})
        assert transaction.get_rollback()
        transaction.set_rollback(True)


def test_update_whose_values_cannot_be_told_apart_is_refused(grant: TokenGrant) -> None:
    update = PreparedUpdate(lambda pk, _seen: TokenGrant.objects.filter(pk=pk))
    with pytest.raises(NotSupportedError):
        update.run(grant.pk, grant.refresh_token_digest, {"last_error": "x"})
    assert reload_grant(grant.pk).last_error == ""
