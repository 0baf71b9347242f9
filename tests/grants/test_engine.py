"""What workers do with grants: refresh those that are due."""

from __future__ import annotations

import sys
import time
from copy import copy
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from django_smart.grants.turn import RefreshResult
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    ServerState,
    TokenGrant,
)
from django_smart.signals import grant_refreshed
from django_smart.testing import EHRSimulator
from tests.ehr import connect, listening, make_browser
from tests.factories import (
    make_due,
    make_grant,
    make_grants,
    make_registration,
    make_server,
)
from tests.grants.working import refresh_due, refresh_grants, tick

pytestmark = pytest.mark.django_db


def _due_at(grant: TokenGrant) -> datetime:
    assert grant.refresh_due_at is not None
    return grant.refresh_due_at


def _make_grant(
    registration: ClientRegistration, *, due: int = 1, **values: Any
) -> TokenGrant:
    """A grant that no EHR knows; *due* minutes ago."""
    due_at = timezone.now() - timedelta(minutes=due)
    return make_grant(registration, refresh_due_at=due_at, **values)


# Due grants


@pytest.mark.compliance("REF-11")
@pytest.mark.usefixtures("registration")
def test_due_grant_is_refreshed_while_its_token_still_works(ehr: EHRSimulator) -> None:
    due = make_due(connect(make_browser(), ehr).grant_id)
    with listening(grant_refreshed) as refreshed:
        assert refresh_grants([due]) == RefreshResult(refreshed=1)
    assert [each["grant"].pk for each in refreshed] == [due]
    assert len(ehr.requests_to("refresh")) == 1
    assert _due_at(TokenGrant.objects.get()) > timezone.now()


@pytest.mark.compliance("REF-11")
def test_only_usable_offline_grants_without_a_lease_are_due(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    user = get_user_model().objects.create(username="gone", is_active=False)
    now = timezone.now()
    _make_grant(registration, is_offline=False)
    _make_grant(registration, status="revoked")
    _make_grant(registration, user=user)
    later = _make_grant(registration, due=-1)
    assert tick() == []
    _make_grant(registration, lease_expires_at=now + timedelta(minutes=1))
    assert refresh_due() == RefreshResult()
    make_due(later.pk)
    assert refresh_due() == RefreshResult(failed=1)


def test_grants_whose_token_ends_first_come_first_of_all_registrations(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    other = make_registration(
        registration.server,
        client_id="another",
        is_ehr_default=False,
        is_standalone_default=False,
    )
    now = timezone.now()
    wanted = [
        _make_grant(
            each,
            expires_at=now + timedelta(minutes=minutes),
            refresh_token=f"{minutes}",
        ).refresh_token
        for each, minutes in ((registration, 3), (other, 2), (registration, 1))
    ]
    sent: list[str] = []
    ehr.on_request = lambda request: sent.append(
        dict(request.form).get("refresh_token", "")
    )
    refresh_due()
    assert [token for token in sent if token] == wanted[::-1]


def test_servers_that_do_not_respond_are_tried_one_at_a_time(
    registration: ClientRegistration,
) -> None:
    now = timezone.now()
    hanging = [
        make_registration(
            server__slug=f"away{number}",
            server__base_url=f"https://away{number}.example.org/r4",
            server__state__last_error="server_timeout",
            server__state__paused_until=now - timedelta(seconds=number),
        )
        for number in range(3)
    ]
    grants = [_make_grant(each, due=5).pk for each in hanging]
    servers = [each.server_id for each in hanging]
    # The one whose pause ended first, and no other until a worker is done with it.
    assert tick() == [servers[2]]
    _make_grant(registration)
    assert tick() == [registration.server_id]
    states = ServerState.objects
    assert states.take_turn(servers[2], token="w", length=timedelta(minutes=1))
    assert tick() == []
    until = now + timedelta(minutes=1)
    assert states.end_turn(servers[2], token="w", changes={"paused_until": until})
    # One whose grants cannot be refreshed keeps no other from being tried.
    user = get_user_model().objects.create(username="gone", is_active=False)
    TokenGrant.objects.filter(pk=grants[1]).update(user=user)
    assert tick() == [servers[0]]
    TokenGrant.objects.filter(pk=grants[1]).update(user=None)
    # Those that respond with an error occupy no worker.
    states.update(last_error="token_server_error", turn_until=None)
    assert set(tick()) == {registration.server_id, *servers[:2]}


def test_server_gets_one_message_until_that_may_be_lost(
    registration: ClientRegistration,
) -> None:
    _make_grant(registration)
    assert tick() == [registration.server_id]
    assert tick() == []
    state = ServerState.objects.get()
    assert state.turn_until is not None
    assert state.turn_until <= timezone.now() + timedelta(seconds=45)
    ServerState.objects.update(turn_until=timezone.now())
    assert tick() == [registration.server_id]
    # Nor while a worker serves it.
    ServerState.objects.take_turn(state.pk, token="w", length=timedelta(minutes=1))
    assert tick() == []


def test_server_that_a_bulk_import_created_without_its_state_is_served(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ServerState.objects.all().delete()
    make_grants(ehr, registration, 1)
    assert refresh_due() == RefreshResult(refreshed=1)


def test_tick_for_many_servers_is_a_few_statements(
    registration: ClientRegistration, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        server = make_server(
            slug=f"s{number}", base_url=f"https://s{number}.example.org/r4"
        )
        _make_grant(make_registration(server, client_id=f"c{number}"))
    tick()
    ServerState.objects.update(turn_until=None)
    with django_assert_max_num_queries(6):
        assert len(tick()) == 20


@pytest.mark.long
def test_tick_for_a_thousand_servers_takes_less_than_two_seconds(
    ehr: EHRSimulator,
) -> None:
    servers = FHIRServer.objects.bulk_create(
        FHIRServer(slug=f"s{each}", base_url=f"https://s{each}.example.org/r4")
        for each in range(1000)
    )
    registrations = ClientRegistration.objects.bulk_create(
        ClientRegistration(
            server=each, client_id="c", callback_id=each.slug, launch_slug=each.slug
        )
        for each in servers
    )
    now = timezone.now()
    pattern = TokenGrant(
        is_offline=True, received_at=now, expires_at=now, refresh_due_at=now
    )
    grants = []
    for each in registrations * 30:
        grant = copy(pattern)
        grant.registration = each
        grants.append(grant)
    TokenGrant.objects.bulk_create(grants, batch_size=1000)
    for _ in range(5):
        started = time.monotonic()
        assert len(tick()) == 1000
        taken = time.monotonic() - started
        sys.stdout.write(f"1,000 servers, 30,000 due grants: {taken:.2f} s\n")
        assert taken < 2
        ServerState.objects.update(turn_until=None)


def test_database_clock_that_was_set_back_stops_no_refreshes(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    # Its row is from the time when it was an hour ahead.
    later = timezone.now() + timedelta(hours=1)
    ServerState.objects.update(turn_token="then", turn_until=later)
    make_grants(ehr, registration, 1)
    assert refresh_due() == RefreshResult(refreshed=1)
