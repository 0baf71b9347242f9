"""``smart_refresh`` and ``smart_purge``: what the tasks do, without Celery."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.core.management import CommandError
from django.utils import timezone

from django_smart.grants.stopping import stop_refreshes
from django_smart.models import ClientRegistration, FHIRServer, Launch, TokenGrant
from django_smart.signals import grant_refreshed
from tests.ehr import connect, make_browser
from tests.factories import (
    find_due,
    make_due,
    make_grants,
    make_registration,
    reload_grant,
)
from tests.management.running import run

pytestmark = pytest.mark.django_db


@pytest.fixture
def grant(registration, ehr) -> TokenGrant:
    """An offline grant that is not due yet."""
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    assert grant.is_offline
    return grant


def test_due_grants_are_refreshed_and_counted(grant):
    make_due(grant.pk)
    ran = run("smart_refresh")
    assert ran.out == "refreshed: 1, skipped: 0, failed: 0\n"
    fresh = TokenGrant.objects.get()
    assert fresh.access_token != grant.access_token
    assert fresh.access_token not in ran.out
    assert run("smart_refresh").out.startswith("refreshed: 0,")


@pytest.mark.usefixtures("longest_waits")
def test_failure_is_counted_and_the_refresh_token_kept(grant, ehr):
    make_due(grant.pk)
    ehr.faults = ["refresh_500"]
    assert run("smart_refresh").out == "refreshed: 0, skipped: 0, failed: 1\n"
    assert TokenGrant.objects.get().refresh_token == grant.refresh_token


def test_time_limit_is_looked_at_after_each_batch(registration, ehr, host_clock):
    make_grants(ehr, registration, 1)
    other = make_registration(
        server__slug="other", server__base_url="https://other.example.org/r4"
    )
    make_grants(ehr, other, 1)

    def take_a_minute(**_):
        host_clock.shift(60)

    grant_refreshed.connect(take_a_minute)
    try:
        assert run("smart_refresh").out == "refreshed: 1, skipped: 0, failed: 0\n"
    finally:
        grant_refreshed.disconnect(take_a_minute)
    assert find_due().count() == 1


def test_one_grant_is_refreshed_due_or_not(grant):
    ran = run("smart_refresh", "--grant", str(grant.pk))
    assert ran.out.startswith("refreshed: 1,")
    assert TokenGrant.objects.get().access_token != grant.access_token


@pytest.mark.usefixtures("database_stays")
def test_one_grant_is_refreshed_by_the_clock_of_the_database(grant):
    now = timezone.now()
    with time_machine.travel(now + timedelta(hours=1)):
        run("smart_refresh", "--grant", str(grant.pk))
    stored = reload_grant(grant.pk)
    assert stored.access_token != grant.access_token
    assert abs(stored.received_at - now) < timedelta(minutes=1)


def test_grant_that_the_server_refused_by_mistake_is_restored(grant, ehr):
    make_due(grant.pk)
    ehr.faults = ["refresh_invalid_grant"]
    assert run("smart_refresh").out.endswith("failed: 1\n")
    assert reload_grant(grant.pk).status == "needs_reauthorization"
    # As often as the operator says, and it is lost again if it is refused again.
    with pytest.raises(CommandError, match="has ended this grant"):
        run("smart_refresh", "--grant", str(grant.pk))
    assert reload_grant(grant.pk).status == "needs_reauthorization"
    ehr.faults = []
    ran = run("smart_refresh", "--grant", str(grant.pk))
    assert ran.out.startswith("refreshed: 1,")
    assert reload_grant(grant.pk).status == "active"


def test_grant_that_was_lost_for_long_stays_lost(grant):
    TokenGrant.objects.all().lose(error="invalid_grant")
    TokenGrant.objects.update(ended_at=timezone.now() - timedelta(days=2))
    with pytest.raises(CommandError, match=r"has ended \(needs_reauthorization\)"):
        run("smart_refresh", "--grant", str(grant.pk))


def test_grant_that_another_process_refreshes_is_left_to_it(grant):
    TokenGrant.objects.take_lease(grant, owner="another", length=timedelta(minutes=1))
    ran = run("smart_refresh", "--grant", str(grant.pk))
    assert ran.out == "refreshed: 0, skipped: 1, failed: 0\n"


def test_failed_refresh_of_one_grant_is_an_error(grant, ehr):
    ehr.faults = ["refresh_500"]
    with pytest.raises(CommandError, match="token_server_error"):
        run("smart_refresh", "--grant", str(grant.pk))


def test_registrations_that_were_refused_go_on(grant, ehr):
    make_due(grant.pk)
    make_grants(ehr, grant.registration, 1)
    ehr.faults = ["refresh_invalid_client"]
    assert run("smart_refresh").out == "refreshed: 0, skipped: 0, failed: 2\n"
    ehr.faults = []
    assert run("smart_refresh").out == "refreshed: 0, skipped: 0, failed: 0\n"
    assert run("smart_refresh", "--resume").out == (
        "registrations resumed: 1\nrefreshed: 2, skipped: 0, failed: 0\n"
    )
    assert run("smart_refresh", "--resume").out.startswith("registrations resumed: 0")


def test_registrations_of_one_server_go_on_and_no_others(grant):
    elsewhere = make_registration(
        server__slug="other", server__base_url="https://other.example.org/r4"
    )
    for each in (grant.registration, elsewhere):
        stop_refreshes(each, reason="grants_refused")
    # Such as from a variable of a script that is not set.
    for slug in ("unknown", ""):
        with pytest.raises(CommandError, match=f"No server has the slug {slug}"):
            run("smart_refresh", "--resume", slug)
    ran = run("smart_refresh", "--resume", "other", "--accept-losses")
    assert ran.out.startswith("registrations resumed: 1\n")
    assert ClientRegistration.objects.stopped().get() == grant.registration
    assert not TokenGrant.objects.get().was_restored


def test_losses_are_accepted_only_when_refreshes_are_resumed(grant):
    with pytest.raises(CommandError, match="--resume"):
        run("smart_refresh", "--accept-losses")


def test_grant_without_refresh_token_is_refused_and_stays(grant):
    TokenGrant.objects.update(refresh_token="", refresh_token_digest="")
    with pytest.raises(CommandError, match="has no refresh token"):
        run("smart_refresh", "--grant", str(grant.pk))
    assert TokenGrant.objects.get().status == TokenGrant.Status.ACTIVE


def test_ended_grant_is_refused(grant):
    TokenGrant.objects.all().end(TokenGrant.Status.REVOKED, now=timezone.now())
    with pytest.raises(CommandError, match=r"has ended \(revoked\)"):
        run("smart_refresh", "--grant", str(grant.pk))


def test_grant_of_an_inactive_server_is_refused_and_stays(grant):
    FHIRServer.objects.update(is_active=False)
    with pytest.raises(CommandError, match="registration_inactive"):
        run("smart_refresh", "--grant", str(grant.pk))
    assert TokenGrant.objects.get().refresh_token == grant.refresh_token


def test_grant_of_a_deactivated_user_is_refused_and_stays(grant, ehr):
    get_user_model().objects.update(is_active=False)
    with pytest.raises(CommandError, match="user of this grant is deactivated"):
        run("smart_refresh", "--grant", str(grant.pk))
    assert not ehr.requests_to("refresh")
    assert TokenGrant.objects.get().status == TokenGrant.Status.ACTIVE


@pytest.mark.compliance("REF-11")
def test_grant_without_offline_access_is_refused_and_stays(grant, ehr):
    TokenGrant.objects.update(is_offline=False)
    with pytest.raises(CommandError, match="offline access"):
        run("smart_refresh", "--grant", str(grant.pk))
    assert not ehr.requests_to("refresh")
    assert TokenGrant.objects.get().status == TokenGrant.Status.ACTIVE


def test_unknown_grant_is_refused():
    with pytest.raises(CommandError, match="No grant has the ID 5"):
        run("smart_refresh", "--grant", "5")


@pytest.mark.usefixtures("registration")
def test_server_is_paused_and_the_grants_held_at_once():
    told = run("smart_refresh", "--hold", "--pause", "harbour").out
    assert "harbour: background refreshes paused until --unpause." in told
    assert FHIRServer.objects.get().paused
    told = run("smart_refresh", "--hold", "--unpause", "harbour").out
    assert "harbour: background refreshes resumed." in told
    assert not FHIRServer.objects.get().paused


def test_purge_deletes_what_is_long_over_and_counts_it(grant, settings):
    settings.SMART_PURGE_AFTER = 3600
    long_ago = timezone.now() - timedelta(hours=2)
    Launch.objects.update(status=Launch.Status.ENDED, ended_at=long_ago)
    TokenGrant.objects.all().end(TokenGrant.Status.REVOKED, now=long_ago)
    assert run("smart_purge").out == (
        "launches expired: 0, launches deleted: 1, grants deleted: 1, "
        "revocations finished: 0\n"
    )
    assert not Launch.objects.exists()
    assert not TokenGrant.objects.exists()


def test_purge_finishes_open_revocations(grant, ehr):
    TokenGrant.objects.filter(pk=grant.pk).end_pending_revocation(now=timezone.now())
    assert "revocations finished: 1" in run("smart_purge").out
    assert TokenGrant.objects.get().access_token == ""
