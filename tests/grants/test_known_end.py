"""Refresh tokens whose end is known: announced, and not taken for a fault."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_smart.grants.deployment import hold_grants
from django_smart.grants.due_times import get_refresh_due_at
from django_smart.grants.ending import announce_ends
from django_smart.grants.refresh import get_access_token
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.signals import grant_ending
from django_smart.testing import EHRSimulator
from tests.answers import after_answer
from tests.ehr import (
    connect,
    listening,
    make_browser,
)
from tests.factories import (
    expire,
    make_due,
    make_grant,
    make_grants,
    make_registration,
    reload_grant,
)
from tests.grants.working import refresh_due, refresh_grants

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def connect_grant(ehr: EHRSimulator) -> TokenGrant:
    grant_id = connect(make_browser(), ehr).grant_id
    return reload_grant(grant_id)


def make_ending(registration: ClientRegistration, **values: Any) -> TokenGrant:
    """A grant that ends in a day, which is soon."""
    now = timezone.now()
    soon = {"ends_at": now + DAY, "ends_soon_at": now - DAY}
    return make_grant(registration, **{**soon, **values})


@pytest.mark.usefixtures("registration")
def test_grant_ends_when_the_ehr_says_and_is_announced_a_week_before(
    ehr: EHRSimulator,
) -> None:
    ehr.refresh_token_lifetime = 90 * 24 * 3600
    grant = connect_grant(ehr)
    assert grant.ends_at is not None
    assert grant.ends_soon_at is not None
    assert 89 * DAY < grant.ends_at - grant.received_at <= 90 * DAY
    assert grant.ends_at - grant.ends_soon_at == 7 * DAY
    assert not grant.is_ending(timezone.now())
    assert grant.is_ending(grant.ends_soon_at)


@pytest.mark.usefixtures("registration")
def test_column_of_the_server_counts_where_the_ehr_is_silent(
    ehr: EHRSimulator,
) -> None:
    FHIRServer.objects.update(quirks={"refresh_token_lifetime": 30 * 24 * 3600})
    grant = connect_grant(ehr)
    assert grant.ends_at is not None
    assert grant.ends_soon_at is not None
    assert grant.ends_at - grant.received_at == 30 * DAY
    assert grant.ends_at - grant.ends_soon_at == 3 * DAY


@pytest.mark.usefixtures("registration")
@pytest.mark.parametrize("rotates", [True, False])
def test_new_refresh_token_moves_the_end_and_the_old_one_does_not(
    ehr: EHRSimulator, *, rotates: bool
) -> None:
    ehr.rotate_refresh_tokens = rotates
    FHIRServer.objects.update(quirks={"refresh_token_lifetime": 30 * 24 * 3600})
    grant = connect_grant(ehr)
    first = timezone.now() + 10 * DAY
    TokenGrant.objects.update(ends_at=first, end_announced=True)
    expire(grant, ehr)
    refresh_grants([make_due(grant.pk)])
    grant = reload_grant(grant.pk)
    assert (grant.ends_at == first) is not rotates
    assert grant.end_announced is not rotates


def test_end_that_a_refresh_has_disproven_is_forgotten(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ehr.rotate_refresh_tokens = False
    FHIRServer.objects.update(quirks={"refresh_token_lifetime": 30 * 24 * 3600})
    past = {"ends_at": timezone.now() - DAY, "ends_soon_at": timezone.now() - 2 * DAY}
    grant_ids = make_grants(ehr, registration, 3, end_announced=True, **past)
    assert refresh_grants(grant_ids).refreshed == 3
    for grant in TokenGrant.objects.all():
        assert (grant.ends_at, grant.ends_soon_at) == (None, None)
    # So a mistake of the site, such as a wrong secret, ends none of them.
    ehr.faults.add("refresh_invalid_client")
    for grant_id in grant_ids:
        make_due(grant_id)
    refresh_grants(grant_ids)
    assert TokenGrant.objects.active().count() == 3
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "invalid_client"


@pytest.mark.usefixtures("registration")
def test_end_that_is_announced_during_a_refresh_is_not_announced_again(
    ehr: EHRSimulator,
) -> None:
    ehr.rotate_refresh_tokens = False
    grant = connect_grant(ehr)
    now = timezone.now()
    TokenGrant.objects.update(ends_at=now + DAY, ends_soon_at=now - DAY)
    expire(grant, ehr)
    after_answer(ehr, announce_ends)
    with listening(grant_ending) as announced:
        get_access_token(reload_grant(grant.pk))
        assert announce_ends() == 0
    assert len(announced) == 1


def test_grant_that_ends_soon_is_announced_once(
    registration: ClientRegistration,
) -> None:
    ending = make_ending(registration)
    now = timezone.now()
    make_grant(registration, ends_at=now + 90 * DAY, ends_soon_at=now + 83 * DAY)
    make_ending(registration, status="revoked")
    make_ending(registration, is_offline=False)
    with listening(grant_ending) as announced:
        purge()
        assert announce_ends() == 0
    assert [each["grant"] for each in announced] == [ending]


def test_receiver_that_fails_keeps_no_other_from_being_announced(
    registration: ClientRegistration,
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no mail server")

    for _ in range(2):
        make_ending(registration)
    grant_ending.connect(fail)
    try:
        assert announce_ends() == 2
    finally:
        grant_ending.disconnect(fail)


def test_copy_of_the_database_announces_nothing(
    registration: ClientRegistration,
) -> None:
    make_ending(registration)
    hold_grants()
    assert announce_ends() == 0


def test_grants_past_their_known_end_do_not_stop_the_registration(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    past = {"ends_at": timezone.now() - SECOND, "ends_soon_at": timezone.now() - DAY}
    make_grants(ehr, registration, 30, **past)
    good = make_grants(ehr, registration, 1)[-1]
    ehr.faults.add("refresh_invalid_grant")
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""
    assert TokenGrant.objects.active().count() == 0
    assert reload_grant(good).status == "needs_reauthorization"


def test_grants_before_their_known_end_stop_it_as_any_other(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    values = {"ends_at": timezone.now() + DAY, "ends_soon_at": timezone.now()}
    make_grants(ehr, registration, 30, **values)
    ehr.faults.add("refresh_invalid_grant")
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    assert TokenGrant.objects.active().count() == 10


def test_operator_gets_no_grant_back_that_was_past_its_known_end(
    registration: ClientRegistration,
) -> None:
    now = timezone.now()
    lost: dict[str, Any] = {"status": "needs_reauthorization", "ended_at": now}
    early = make_grant(registration, ends_at=now + DAY, **lost)
    past = make_grant(registration, ends_at=now - SECOND, **lost)
    assert TokenGrant.objects.restore_lost() == 1
    assert reload_grant(early.pk).status == "active"
    assert reload_grant(past.pk).status == "needs_reauthorization"


def test_grant_is_refreshed_before_its_known_end() -> None:
    registration = make_registration()
    now = timezone.now()
    grant = TokenGrant(
        registration=registration,
        received_at=now,
        expires_at=now + 365 * DAY,
        last_used_at=now,
        ends_at=now + 2 * DAY,
    )
    assert get_refresh_due_at(grant) < now + 2 * DAY
    grant.ends_at = now - DAY
    assert get_refresh_due_at(grant) <= now + timedelta(minutes=1)
