"""Token grants: compare-and-set, leases and ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart.models import ClientRegistration, TokenGrant
from tests.factories import make_grant

pytestmark = pytest.mark.django_db


@pytest.fixture
def grant(registration: ClientRegistration) -> TokenGrant:
    """An offline grant."""
    make_grant(registration, access_token="access", refresh_token="refresh")
    return TokenGrant.objects.get()


def test_lease_is_taken_by_one_until_it_runs_out(grant: TokenGrant) -> None:
    length = timedelta(minutes=1)
    take = TokenGrant.objects.take_lease
    assert take(grant, owner="a", length=length)
    assert not take(grant, owner="b", length=length)
    assert list(TokenGrant.objects.leased_by("a")) == [grant]
    TokenGrant.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert not TokenGrant.objects.leased_by("a")
    assert take(grant, owner="b", length=length)
    assert TokenGrant.objects.give_back([grant.pk], owner="a") == 0
    grant.refresh_from_db()
    assert grant.lease_owner == "b"


@pytest.mark.skipif(connection.vendor == "sqlite", reason="its clock is the host's")
@pytest.mark.parametrize("minutes", [-10, 10])
def test_clock_of_a_host_that_is_wrong_ends_no_lease(
    grant: TokenGrant, minutes: int
) -> None:
    length = timedelta(minutes=1)
    with time_machine.travel(timezone.now() + timedelta(minutes=minutes)):
        assert TokenGrant.objects.take_lease(grant, owner="a", length=length)
    assert not TokenGrant.objects.take_lease(grant, owner="b", length=length)
    with time_machine.travel(timezone.now() + timedelta(minutes=minutes)):
        assert not TokenGrant.objects.take_lease(grant, owner="b", length=length)
        assert list(TokenGrant.objects.leased_by("a")) == [grant]


@pytest.mark.parametrize("change", ["tokens", "time", "status"])
def test_lease_is_for_who_saw_the_stored_tokens(grant: TokenGrant, change: str) -> None:
    seen = TokenGrant.objects.get()
    if change == "tokens":
        grant.set_tokens(access_token="access 2", refresh_token="refresh 2")
    elif change == "time":
        # A server that does not rotate: the same refresh token, newly answered.
        grant.received_at += timedelta(seconds=1)
    else:
        grant.status = TokenGrant.Status.REVOKED
    grant.save()
    length = timedelta(minutes=1)
    assert not TokenGrant.objects.take_lease(seen, owner="a", length=length)


def test_new_tokens_are_stored_only_in_place_of_those_that_were_used(
    grant: TokenGrant,
) -> None:
    used = grant.refresh_token_digest
    grant.set_tokens(access_token="access 2", refresh_token="refresh 2")
    assert TokenGrant.objects.store_refreshed(grant, used_digest=used)
    grant.set_tokens(access_token="access 3", refresh_token="refresh 3")
    assert not TokenGrant.objects.store_refreshed(grant, used_digest=used)
    stored = TokenGrant.objects.get()
    assert (stored.access_token, stored.refresh_token) == ("access 2", "refresh 2")
    TokenGrant.objects.all().end_pending_revocation(now=timezone.now())
    current = stored.refresh_token_digest
    assert not TokenGrant.objects.store_refreshed(grant, used_digest=current)
    assert TokenGrant.objects.get().status == "revoked"


def test_new_tokens_are_stored_encrypted(grant: TokenGrant) -> None:
    used = grant.refresh_token_digest
    grant.set_tokens(access_token="canary 1", refresh_token="canary 2")
    assert TokenGrant.objects.store_rotated(grant, used_digest=used)
    stored = TokenGrant.objects.get()
    assert (stored.access_token, stored.refresh_token) == ("access", "canary 2")
    used = grant.refresh_token_digest
    assert TokenGrant.objects.store_refreshed(grant, used_digest=used)
    assert TokenGrant.objects.get().access_token == "canary 1"
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT access_token, refresh_token FROM django_smart_tokengrant"
        )
        assert "canary" not in repr(cursor.fetchall())


def test_rotated_token_of_a_grant_that_changed_is_not_stored(grant: TokenGrant) -> None:
    grant.set_tokens(access_token="late", refresh_token="late")
    assert not TokenGrant.objects.store_rotated(grant, used_digest="another")
    assert TokenGrant.objects.get().refresh_token == "refresh"


def test_ended_grant_has_no_tokens_and_stays_as_it_ended(grant: TokenGrant) -> None:
    now = timezone.now()
    rows = TokenGrant.objects.all()
    assert rows.end("expired", now=now, error="invalid_grant") == 1
    assert rows.end("revoked", now=now) == 0
    assert rows.end_pending_revocation(now=now) == 0
    grant.refresh_from_db()
    assert (grant.status, grant.last_error) == ("expired", "invalid_grant")
    assert grant.access_token == grant.refresh_token == grant.refresh_token_digest == ""
    assert (grant.ended_at, grant.refresh_due_at) == (now, None)


def test_grant_that_awaits_its_revocation_keeps_its_tokens(grant: TokenGrant) -> None:
    rows = TokenGrant.objects.all()
    assert rows.end_pending_revocation(now=timezone.now()) == 1
    assert list(rows.awaiting_revocation()) == [grant]
    assert not rows.active()
    grant.refresh_from_db()
    assert (grant.refresh_token, grant.refresh_due_at) == ("refresh", None)
    assert rows.forget_tokens() == 1
    grant.refresh_from_db()
    assert (grant.refresh_token, grant.is_revocation_pending) == ("", False)


def test_text_of_a_grant_shows_its_number_and_status(grant: TokenGrant) -> None:
    with CaptureQueriesContext(connection) as queries:
        shown = str(TokenGrant.objects.get())
    assert shown == f"#{grant.pk} (active)"
    # Pages that delete a user have thousands.
    assert len(queries) == 1
