"""Refresh: one request at a time for each grant, in threads and transactions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils import timezone

from django_smart.clients import build_fhir_client
from django_smart.exceptions import (
    ContextChangedError,
    RefreshInTransactionError,
    TokenResponseError,
    TokenServerError,
)
from django_smart.grants import lease
from django_smart.grants.refresh import (
    get_access_token,
    refresh_grant,
    renew_access_token,
)
from django_smart.grants.separate_connection import unless_locked
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    ServerState,
    TokenGrant,
)
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.answers import after_answer, answer
from tests.clocks import HostClock
from tests.ehr import PATIENT, connect, listening, make_browser
from tests.errors import raises_code
from tests.factories import (
    expire,
    make_due,
    make_grants,
    make_registration,
    reload_grant,
)
from tests.grants.working import refresh_grants
from tests.launch_urls import open_page
from tests.launch_urls import urlpatterns as _site
from tests.threads import run_together

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.launch_urls")]

_COMMITTED = pytest.mark.django_db(transaction=True)


def _read_patient(request: HttpRequest) -> JsonResponse:
    """A view that reads with the launch's token, perhaps inside a transaction."""
    smart: Any = request.smart  # type: ignore[attr-defined]  # the middleware's
    in_atomic = connection.in_atomic_block
    return JsonResponse(
        {"id": smart.fhir.read("Patient", PATIENT)["id"], "in_atomic": in_atomic}
    )


urlpatterns = [
    *_site,
    path("patient/", _read_patient),
]


# One at a time


@_COMMITTED
@pytest.mark.compliance("REF-08", "SEC-06")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize(
    ("threads", "rounds"), [(8, 1), pytest.param(64, 200, marks=pytest.mark.long)]
)
def test_of_many_at_once_one_refreshes_and_all_get_the_token(
    ehr: EHRSimulator, rotates: bool, threads: int, rounds: int
) -> None:
    ehr.rotate_refresh_tokens = rotates
    make_registration()
    grant = reload_grant(connect(make_browser(), ehr).grant_id)
    after_answer(ehr, lambda: time.sleep(0.3))
    for _ in range(rounds):
        expire(reload_grant(grant.pk), ehr)
        results = run_together(
            *[lambda: get_access_token(reload_grant(grant.pk))] * threads
        )
        stored = reload_grant(grant.pk)
        assert results == [stored.access_token] * threads
        assert len(ehr.requests_to("refresh")) == 1
        assert (stored.status, ehr.reused_refresh_tokens) == ("active", 0)


@_COMMITTED
@pytest.mark.compliance("REF-08")
def test_of_many_401_at_once_one_leads_to_a_refresh(ehr: EHRSimulator) -> None:
    make_registration()
    grant_id = connect(make_browser(), ehr, patient=PATIENT).grant_id
    ehr.expire_access_tokens()
    ehr.clear_requests()
    after_answer(ehr, lambda: time.sleep(0.3))

    def read() -> str:
        client = build_fhir_client(reload_grant(grant_id))
        return str(client.read("Patient", PATIENT)["id"])

    assert run_together(*[read] * 3) == [PATIENT] * 3
    assert len(ehr.requests_to("refresh")) == 1


def test_outdated_token_that_got_401_is_replaced_without_a_refresh(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    outdated = reload_grant(grant.pk)
    get_access_token(expire(grant, ehr))
    ehr.clear_requests()
    token = renew_access_token(outdated, outdated.access_token)
    assert token == outdated.access_token == reload_grant(grant.pk).access_token
    assert ehr.requests == []


def test_current_token_that_got_401_is_refreshed(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    rejected = grant.access_token
    ehr.clear_requests()
    assert renew_access_token(grant, rejected) != rejected
    assert len(ehr.requests_to("refresh")) == 1


@pytest.mark.usefixtures("ehr")
def test_waiting_for_another_holder_has_an_end(
    ehr: EHRSimulator,
    grant: TokenGrant,
    host_clock: HostClock,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    settings.SMART_HTTP_TIMEOUT = (1, 1, 1)
    monkeypatch.setattr(time, "sleep", host_clock.shift)
    grant = expire(grant, ehr)
    TokenGrant.objects.update(
        lease_owner="somebody", lease_expires_at=timezone.now() + timedelta(hours=1)
    )
    started = time.monotonic()
    with raises_code("refresh_busy"):
        get_access_token(grant)
    assert ehr.requests == []
    assert lease.lease_length().total_seconds() <= time.monotonic() - started < 15
    assert reload_grant(grant.pk).lease_owner == "somebody"


def test_lease_of_a_dead_process_runs_out(ehr: EHRSimulator, grant: TokenGrant) -> None:
    grant = expire(grant, ehr)
    TokenGrant.objects.update(
        lease_owner="a dead one", lease_expires_at=timezone.now() - timedelta(seconds=1)
    )
    get_access_token(grant)
    assert len(ehr.requests_to("refresh")) == 1


def test_lease_is_longer_than_the_longest_call(settings: Any) -> None:
    settings.SMART_HTTP_TIMEOUT = (5, 10, 120)
    assert lease.lease_length() > timedelta(seconds=120)


def _rotate(grant: TokenGrant) -> None:
    """Store newer tokens, as another process does."""
    newer = reload_grant(grant.pk)
    newer.set_tokens(access_token="newer", refresh_token="newer still")
    newer.received_at = timezone.now()
    newer.expires_at = newer.received_at + timedelta(hours=1)
    newer.lease_expires_at = None
    newer.save()


def test_answer_that_comes_late_does_not_overwrite_a_newer_one(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    after_answer(ehr, lambda: _rotate(grant))
    assert get_access_token(grant) == "newer"
    assert reload_grant(grant.pk).refresh_token == "newer still"
    # What came late may be of the same family: telling the EHR could end the newer one.
    assert not ehr.requests_to("revoke")


def test_refusal_that_comes_late_does_not_end_a_grant_that_was_rotated(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    ehr.faults.add("refresh_invalid_grant")
    after_answer(ehr, lambda: _rotate(grant))
    with listening(grant_lost) as lost:
        assert get_access_token(grant) == "newer"
    assert lost == []
    assert reload_grant(grant.pk).status == "active"


@pytest.mark.parametrize(
    "refresh", [refresh_grant, lambda grant: refresh_grants([grant.pk]).refreshed]
)
def test_response_that_arrived_during_a_suspension_is_stored(
    ehr: EHRSimulator,
    grant: TokenGrant,
    host_clock: HostClock,
    refresh: Callable[[TokenGrant], int],
) -> None:
    before = expire(grant, ehr).refresh_token
    make_due(grant.pk)
    # Longer than the call may take, while the lease holds by the database's clock.
    after_answer(ehr, lambda: host_clock.shift(600))
    assert refresh(reload_grant(grant.pk)) == 1
    assert reload_grant(grant.pk).refresh_token != before
    assert len(ehr.requests_to("refresh")) == 1


# Transactions


@_COMMITTED
def test_refresh_inside_a_transaction_is_not_rolled_back_with_it(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    grant = expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
    if connection.vendor == "sqlite":
        with transaction.atomic(), pytest.raises(RefreshInTransactionError):
            get_access_token(grant)
        assert ehr.requests == []
        assert reload_grant(grant.pk).refresh_token == grant.refresh_token
        return
    with transaction.atomic():
        FHIRServer.objects.update(name="rolled back")
        token = get_access_token(grant)
        transaction.set_rollback(True)
    assert FHIRServer.objects.get().name == "Harbour Hospital"
    stored = reload_grant(grant.pk)
    assert stored.access_token == token == grant.access_token
    assert len(ehr.requests_to("refresh")) == 1


@_COMMITTED
def test_grant_that_is_not_committed_yet_is_not_refreshed(ehr: EHRSimulator) -> None:
    make_registration()
    grant = expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
    with transaction.atomic():
        grant.pk = None
        grant.save()
        with pytest.raises(RefreshInTransactionError):
            get_access_token(grant)
    assert ehr.requests == []


@_COMMITTED
@pytest.mark.urls(__name__)
def test_atomic_requests_have_their_token_refreshed_before_they_begin(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    make_registration()
    browser = make_browser()
    opened = connect(browser, ehr, patient=PATIENT)
    expire(reload_grant(opened.grant_id), ehr)
    page = browser.get(f"/~{opened.key}/patient/")
    assert page.json() == {"id": PATIENT, "in_atomic": True}
    assert len(ehr.requests_to("refresh")) == 1


@_COMMITTED
@pytest.mark.urls(__name__)
def test_page_without_fhir_works_while_the_ehr_is_away(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    make_registration()
    browser = make_browser()
    opened = connect(browser, ehr)
    expire(reload_grant(opened.grant_id), ehr)
    ehr.faults.add("refresh_500")
    assert open_page(browser, opened) == 200


@_COMMITTED
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused inside atomic()")
@pytest.mark.urls(__name__)
def test_page_without_fhir_does_not_wait_for_the_ehr(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    make_registration()
    browser = make_browser()
    opened = connect(browser, ehr)
    expire(reload_grant(opened.grant_id), ehr)
    assert open_page(browser, opened) == 200
    assert not ehr.requests


@_COMMITTED
def test_failed_launch_keeps_its_row_under_atomic_requests(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    make_registration()
    ehr.faults.add("discovery_500")
    response = make_browser().get(
        "/smart/launch/", {"iss": ehr.base_url, "launch": "x"}
    )
    assert response.status_code == 502
    assert Launch.objects.get().status == "failed"


# In the background


def test_background_refresh_leaves_tokens_that_came_meanwhile_alone(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    due = expire(grant, ehr)
    ehr.rotate_refresh_tokens = False
    get_access_token(reload_grant(grant.pk))
    assert refresh_grant(due) is False
    assert len(ehr.requests_to("refresh")) == 1
    assert refresh_grant(expire(grant, ehr)) is True


# Rows that the caller has locked


@_COMMITTED
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
@pytest.mark.parametrize("how", ["read", "written"])
def test_caller_that_has_locked_the_grant_does_not_wait_for_itself(
    ehr: EHRSimulator, how: str
) -> None:
    make_registration()
    grant = expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
    with transaction.atomic():
        if how == "read":
            TokenGrant.objects.select_for_update().get(pk=grant.pk)
        else:
            TokenGrant.objects.filter(pk=grant.pk).update(last_error="mine")
        with pytest.raises(RefreshInTransactionError, match="has locked"):
            get_access_token(grant)
    assert ehr.requests == []
    assert get_access_token(reload_grant(grant.pk)) != grant.access_token
    assert len(ehr.requests_to("refresh")) == 1


@_COMMITTED
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_new_tokens_wait_for_a_row_that_is_locked_while_the_answer_comes(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    grant = expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
    locked = threading.Event()

    def lock() -> None:
        with transaction.atomic():
            TokenGrant.objects.select_for_update().get(pk=grant.pk)
            locked.set()
            time.sleep(4)  # longer than a connection waits for a lock

    def lock_meanwhile() -> None:
        threads.append(threading.Thread(target=run_together, args=(lock,)))
        threads[0].start()
        assert locked.wait(60)

    threads: list[threading.Thread] = []
    after_answer(ehr, lock_meanwhile)
    with transaction.atomic():
        token = get_access_token(grant)
    threads[0].join()
    assert reload_grant(grant.pk).access_token == token


@_COMMITTED
@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (("lock timeout",), {"sqlstate": "55P03"}),  # psycopg
        (("lock timeout",), {"pgcode": "55P03"}),  # psycopg2
        ((1205, "Lock wait timeout exceeded"), {}),  # mysqlclient
    ],
)
def test_locked_row_is_recognized_with_each_driver(
    caplog: pytest.LogCaptureFixture, arguments: tuple[Any, ...], state: dict[str, str]
) -> None:
    def fail(cause: Exception) -> None:
        raise OperationalError(*cause.args) from cause

    locked = Exception(*arguments)
    vars(locked).update(state)
    with unless_locked("Launch %s is locked", 5):
        fail(locked)
    assert "Launch 5 is locked" in caplog.text
    with pytest.raises(OperationalError), unless_locked("not locked"):
        fail(Exception("server closed the connection"))


@_COMMITTED
@pytest.mark.timeout(60)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_launch_that_the_caller_has_locked_gets_its_context_later(
    ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    make_registration()
    opened = connect(make_browser(), ehr)
    grant = expire(reload_grant(opened.grant_id), ehr)
    next(iter(ehr.store.grants())).context["intent"] = "reconcile"
    with transaction.atomic():
        Launch.objects.filter(pk=opened.pk).update(last_used_at=timezone.now())
        token = get_access_token(grant)
    opened.refresh_from_db()
    assert reload_grant(grant.pk).access_token == token
    assert "intent" not in opened.context
    assert f"Launch {opened.pk} is locked" in caplog.text

    get_access_token(expire(grant, ehr))
    opened.refresh_from_db()
    assert opened.context["intent"] == "reconcile"


@_COMMITTED
@pytest.mark.timeout(60)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_grant_of_another_patient_ends_though_the_caller_has_locked_its_launch(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    opened = connect(make_browser(), ehr, patient=PATIENT)
    grant = expire(reload_grant(opened.grant_id), ehr)
    next(iter(ehr.store.grants())).context["patient"] = "another"
    with transaction.atomic():
        Launch.objects.filter(pk=opened.pk).update(last_used_at=timezone.now())
        with pytest.raises(ContextChangedError):
            get_access_token(grant)
    assert reload_grant(grant.pk).status == "revoked"


@_COMMITTED
@pytest.mark.timeout(60)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_server_that_the_caller_has_locked_is_looked_up_later(
    ehr: EHRSimulator,
) -> None:
    registration = make_registration()
    (grant_id,) = make_grants(ehr, registration, 1)
    get_access_token(reload_grant(grant_id))
    answer(ehr, "/auth/token", status=404)
    grant = expire(reload_grant(grant_id), ehr)
    with transaction.atomic():
        ServerState.objects.update(last_error="by the caller")
        with pytest.raises(TokenServerError):
            get_access_token(grant)
    assert FHIRServer.objects.get().state.configuration_fetched_at is not None


@_COMMITTED
@pytest.mark.timeout(60)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_registration_that_the_caller_has_locked_is_stopped_later(
    ehr: EHRSimulator,
) -> None:
    registration = make_registration()
    first, second, third = map(reload_grant, make_grants(ehr, registration, 3))
    ehr.faults.add("refresh_invalid_client")
    with pytest.raises(TokenResponseError):
        get_access_token(first)
    with transaction.atomic():
        ClientRegistration.objects.update(landing_page="/chart/")
        with pytest.raises(TokenResponseError, match="invalid_client"):
            get_access_token(second)
    assert reload_grant(second.pk).refresh_token == second.refresh_token
    with pytest.raises(TokenResponseError):
        get_access_token(third)
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is not None


@_COMMITTED
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_connection_goes_back_to_a_pool_as_it_came(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = {
        "postgresql": "SHOW lock_timeout",
        "mysql": "SELECT @@innodb_lock_wait_timeout",
    }[connection.vendor]

    def read_limit(database: Any) -> Any:
        with database.cursor() as cursor:
            cursor.execute(show)
            return cursor.fetchone()

    limits: list[Any] = []
    wrapper = type(connections["default"])
    close = wrapper.close

    def note_and_close(self: Any) -> None:
        if threading.current_thread().name == "django_smart-token":
            limits.append(read_limit(self))
        close(self)

    monkeypatch.setattr(wrapper, "close", note_and_close)
    make_registration()
    grant = expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
    with transaction.atomic():
        get_access_token(grant)
        TokenGrant.objects.update(expires_at=timezone.now())
        with pytest.raises(RefreshInTransactionError):
            renew_access_token(grant, grant.access_token)
    assert limits == [read_limit(connection)] * 2


@pytest.fixture
def small_pool() -> Iterator[None]:
    """Django's pool, with a connection for this thread and two others."""
    options = connections["default"].settings_dict["OPTIONS"]
    connections["default"].close()
    options["pool"] = {"min_size": 0, "max_size": 3, "timeout": 30}
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"].close_pool()  # type: ignore[attr-defined]
        del options["pool"]


@_COMMITTED
@pytest.mark.skipif(connection.vendor != "postgresql", reason="has Django's pool")
@pytest.mark.usefixtures("small_pool")
def test_pool_whose_connections_all_wait_for_a_token_is_enough(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    grants = [
        expire(reload_grant(connect(make_browser(), ehr).grant_id), ehr)
        for _ in range(2)
    ]
    both = threading.Barrier(2, timeout=60)

    def refresh(grant: TokenGrant) -> str:
        try:
            with transaction.atomic():
                reload_grant(grant.pk)
                both.wait()
                return get_access_token(grant)
        finally:
            connections.close_all()

    tokens = run_together(*(partial(refresh, grant) for grant in grants))
    assert sorted(tokens) == sorted(reload_grant(one.pk).access_token for one in grants)
