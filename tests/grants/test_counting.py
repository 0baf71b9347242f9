"""What is counted of refreshes, across processes and restarts."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import Sum

from django_smart.exceptions import SMARTError
from django_smart.grants.counting import Outcomes, count_lost, count_refresh
from django_smart.grants.refresh import get_access_token
from django_smart.models import ClientRegistration, RefreshCount, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import connect, make_browser
from tests.factories import expire, make_grant, make_grants, reload_grant
from tests.grants.working import refresh_due

pytestmark = pytest.mark.django_db


def read(kind: str = "refresh") -> dict[str, int]:
    rows = RefreshCount.objects.filter(kind=kind).values_list("code")
    return dict(rows.annotate(Sum("number")).order_by("code"))


def test_refreshes_of_a_batch_are_counted_by_outcome(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 5)
    ehr.revoke_grant(reload_grant(grant_ids[0]).refresh_token)
    refresh_due()
    assert read() == {"ok": 4, "grant_lost": 1}
    assert read("lost") == {"invalid_grant": 1}
    counts = RefreshCount.objects.filter(kind="refresh")
    # On a busy machine, one request takes longer than another.
    assert all(float(bucket) <= 20 for (bucket,) in counts.values_list("bucket"))
    assert RefreshCount.objects.aggregate(total=Sum("seconds"))["total"] > 0


@pytest.mark.usefixtures("registration")
def test_refresh_that_a_page_waits_for_is_counted(ehr: EHRSimulator) -> None:
    launch = connect(make_browser(), ehr)
    grant = expire(reload_grant(launch.grant_id), ehr)
    get_access_token(grant)
    assert read() == {"ok": 1}
    ehr.faults.add("refresh_invalid_grant")
    with pytest.raises(SMARTError):
        get_access_token(expire(reload_grant(grant.pk), ehr))
    assert read() == {"ok": 1, "grant_lost": 1}
    assert read("lost") == {"invalid_grant": 1}


def test_grant_past_its_known_end_is_lost_for_that_reason(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 1)
    TokenGrant.objects.update(ends_at=TokenGrant.objects.get().received_at)
    ehr.faults.add("refresh_invalid_grant")
    refresh_due()
    assert read("lost") == {"known_end": 1}


def test_counts_add_up_over_batches(registration: ClientRegistration) -> None:
    for _ in range(2):
        outcomes = Outcomes(registration.server_id)
        outcomes.add("ok", seconds=0.3)
        outcomes.add("ok", seconds=0.4)
        outcomes.add("ok", seconds=99.0)
        outcomes.add("discovery_unreachable", number=7)
        outcomes.write()
        outcomes.write()  # nothing is counted twice
    rows = RefreshCount.objects.values_list("code", "bucket", "number")
    assert sorted(rows) == [
        ("discovery_unreachable", "", 14),
        ("ok", "+Inf", 2),
        ("ok", "0.5", 4),
    ]


@pytest.mark.django_db(transaction=True)
def test_transaction_of_the_sites_locks_no_count(
    registration: ClientRegistration,
) -> None:
    grant = make_grant(registration)
    with transaction.atomic():
        count_lost(grant, "context_changed")
        assert read("lost") == {}
    assert read("lost") == {"context_changed": 1}
    with transaction.atomic():
        count_lost(grant, "context_changed")
        transaction.set_rollback(True)
    assert read("lost") == {"context_changed": 1}


@pytest.mark.django_db(transaction=True)
def test_count_that_cannot_be_written_harms_nothing(
    registration: ClientRegistration,
) -> None:
    grant = make_grant(registration)

    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        raise DatabaseError("no such table")

    with connection.execute_wrapper(fail):
        count_refresh(grant, "ok", seconds=0.1)
    assert read() == {}


@pytest.mark.timeout(20)
def test_site_test_may_run_what_waits_for_the_commit_inside_atomic(
    registration: ClientRegistration, django_capture_on_commit_callbacks: Any
) -> None:
    outcomes = Outcomes(registration.server_id)
    outcomes.add("ok", seconds=0.3)
    with transaction.atomic(), django_capture_on_commit_callbacks(execute=True):
        outcomes.write()
    assert read() == {"ok": 1}
