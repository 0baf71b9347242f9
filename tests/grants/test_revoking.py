"""The row is the outbox: what ends here is revoked by the next tick, and not lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db.models.signals import pre_delete
from django.test.utils import isolate_apps
from django.utils import timezone

from django_smart import tasks, transport
from django_smart.grants.ending import revoke_pending
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, Launch, ServerState, TokenGrant
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.clocks import HostClock
from tests.ehr import connect, make_browser
from tests.factories import (
    end_wait,
    make_grant,
    make_launch,
    make_registration,
    make_user,
    reload_grant,
)
from tests.management.running import run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database_travels")]

_OTHER = "https://other.example.org"


def _end(registration: ClientRegistration, number: int = 1) -> list[int]:
    """Grants whose tokens are to be revoked."""
    grants = [make_grant(registration) for _ in range(number)]
    ended = TokenGrant.objects.filter(pk__in=[each.pk for each in grants])
    ended.end_pending_revocation(now=timezone.now())
    return [each.pk for each in grants]


def _count_pending(registration: ClientRegistration) -> int:
    pending = TokenGrant.objects.awaiting_revocation()
    return pending.filter(registration=registration).count()


def _revoke(how: str) -> None:
    """As beat and workers do, or cron."""
    if how == "beat":
        tasks.refresh_due_grants()
    else:
        run(how)


@pytest.fixture
def other() -> ClientRegistration:
    """A client of an EHR that does not respond."""
    return make_registration(server__slug="other", server__base_url=f"{_OTHER}/r4")


@pytest.fixture
def requests(ehr: EHRSimulator) -> list[str]:
    """Of the EHR, which fails while there is a request in front of each."""
    seen: list[str] = []

    def fail(respond: Any, request: Any) -> Any:
        seen.append(request.path)
        raise OSError("no route")

    ehr.interceptors.append(fail)
    return seen


# Nothing is lost


@pytest.mark.compliance("SEC-12")
@pytest.mark.parametrize("how", ["beat", "smart_refresh", "smart_purge"])
def test_tokens_are_revoked_by_whatever_runs(
    ehr: EHRSimulator, registration: ClientRegistration, how: str
) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    TokenGrant.objects.filter(pk=grant.pk).end_pending_revocation(now=timezone.now())
    _revoke(how)
    assert reload_grant(grant.pk).refresh_token == ""
    assert all(each.revoked for each in ehr.store.grants())


def test_command_counts_what_it_revoked(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _end(registration, 2)
    assert "revocations finished: 2" in run("smart_refresh").out
    assert "revocations" not in run("smart_refresh").out


def test_grant_of_a_process_that_was_killed_is_tried_again(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _end(registration)

    def kill(respond: Any, request: Any) -> Any:
        raise KeyboardInterrupt

    ehr.interceptors.append(kill)
    with pytest.raises(KeyboardInterrupt):
        revoke_pending()
    ehr.interceptors.clear()
    # Another process may have it under way.
    assert revoke_pending() == 0
    with time_machine.travel(timezone.now() + timedelta(minutes=5)):
        assert revoke_pending() == 1


@pytest.mark.compliance("SEC-12")
@pytest.mark.usefixtures("registration")
def test_tokens_of_a_deleted_user_are_revoked(ehr: EHRSimulator) -> None:
    user = get_user_model().objects.create_user("maria")
    browser = make_browser()
    browser.force_login(user)
    grant = reload_grant(connect(browser, ehr).grant_id)
    over = make_grant(grant.registration, user=user, status="expired")
    user.delete()
    kept = reload_grant(grant.pk)
    assert (kept.status, kept.user, kept.patient_id) == ("revoked", None, "")
    assert not TokenGrant.objects.filter(pk=over.pk).exists()
    assert revoke_pending() == 1
    assert reload_grant(grant.pk).refresh_token == ""
    assert all(each.revoked for each in ehr.store.grants())
    with time_machine.travel(timezone.now() + timedelta(days=31)):
        purge()
    assert not TokenGrant.objects.exists()


@pytest.mark.usefixtures("ehr")
def test_launch_that_is_over_is_deleted_with_its_user(
    registration: ClientRegistration,
) -> None:
    user = make_user()
    make_launch(registration, user=user)
    user.delete()
    assert not Launch.objects.exists()


def test_deletion_by_a_proxy_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with isolate_apps("tests"):

        class Patient(User):
            class Meta:
                app_label = "tests"
                proxy = True

    models = [*apps.get_models(), Patient]
    monkeypatch.setattr(apps, "get_models", lambda: models)
    apps.get_app_config("django_smart").ready()
    assert pre_delete.has_listeners(Patient)
    pre_delete.disconnect(sender=Patient, dispatch_uid="django_smart.pre_delete")


# No EHR delays another


@pytest.mark.usefixtures("ehr")
@pytest.mark.parametrize("how", ["beat", "smart_purge"])
def test_ehr_that_is_away_keeps_no_other_from_being_told(
    registration: ClientRegistration, other: ClientRegistration, how: str
) -> None:
    _end(other, 4)
    _end(registration, 4)
    with transport.mounted(_OTHER, Away()):
        _revoke(how)
    assert (_count_pending(registration), _count_pending(other)) == (0, 4)


def test_ehr_that_is_away_is_asked_once_until_the_others_have_waited(
    ehr: EHRSimulator, registration: ClientRegistration, requests: list[str]
) -> None:
    _end(registration, 4)
    for _ in range(3):
        assert revoke_pending() == 0
    assert len(requests) == 1
    ehr.interceptors.clear()
    with time_machine.travel(timezone.now() + timedelta(minutes=16)):
        assert revoke_pending() == 4


def test_new_grant_comes_before_those_that_failed(
    ehr: EHRSimulator, registration: ClientRegistration, other: ClientRegistration
) -> None:
    _end(other)
    with transport.mounted(_OTHER, Away()):
        assert revoke_pending() == 0
        end_wait()
        _end(registration)
        assert revoke_pending(seconds=0.0) == 0
        # As if there were time for one alone.
        take = TokenGrant.objects.take_revocation
        first = take(owner="first", length=timedelta(minutes=1))
    assert first is not None
    assert first.registration == registration


def test_one_process_at_a_time_revokes(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _end(registration, 2)
    finished: list[int] = []

    def meanwhile(respond: Any, request: Any) -> Any:
        if request.path.endswith("/revoke"):
            finished.append(revoke_pending())
        return respond(request)

    ehr.interceptors.append(meanwhile)
    assert revoke_pending() == 2
    assert set(finished) == {0}


def test_slow_ehr_leaves_the_process_to_the_others(
    ehr: EHRSimulator, registration: ClientRegistration, host_clock: HostClock
) -> None:
    _end(registration, 5)

    def be_slow(respond: Any, request: Any) -> Any:
        host_clock.shift(9)
        return respond(request)

    ehr.interceptors.append(be_slow)
    assert revoke_pending(seconds=600) == 1
    assert revoke_pending(seconds=600) == 0
    ehr.interceptors.clear()
    with time_machine.travel(timezone.now() + timedelta(minutes=2)):
        assert revoke_pending() == 4


def test_run_has_an_end_and_the_next_one_goes_on(
    ehr: EHRSimulator, registration: ClientRegistration, host_clock: HostClock
) -> None:
    _end(registration, 8)

    def take_a_while(respond: Any, request: Any) -> Any:
        host_clock.shift(0.8)
        return respond(request)

    ehr.interceptors.append(take_a_while)
    done = revoke_pending()
    assert 0 < done < 8
    ehr.interceptors.clear()
    assert revoke_pending() == 8 - done


def test_ehr_that_asked_for_a_pause_is_not_told_of_grants_meanwhile(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _end(registration, 2)
    ServerState.objects.update(paused_until=timezone.now() + timedelta(minutes=1))
    assert revoke_pending() == 0
    assert ehr.requests_to("revoke") == []
    ServerState.objects.update(paused_until=timezone.now())
    assert revoke_pending() == 2


def test_refusal_lets_no_other_grant_wait(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _end(registration, 2)
    ehr.faults.add("revoke_invalid_client")
    assert revoke_pending() == 0
    assert len(ehr.requests_to("revoke")) == 2
