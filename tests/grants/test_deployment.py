"""Two deployments with one database, or a copy of it: one refreshes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_smart import tasks
from django_smart.exceptions import SMARTError, TokenError
from django_smart.grants.deployment import is_owner
from django_smart.grants.refresh import get_access_token
from django_smart.grants.turn import RefreshResult
from django_smart.launches.purge import purge
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    TaskRun,
    TokenGrant,
)
from django_smart.models.clock import DatabaseClock
from django_smart.testing import EHRSimulator
from tests.celery import Broker
from tests.factories import make_grants, make_service, reload_grant
from tests.grants.working import refresh_due, refresh_grants, tick

pytestmark = pytest.mark.django_db


def _refresh_for_a_person(grant_ids: list[int]) -> None:
    get_access_token(reload_grant(grant_ids[0]))


@pytest.fixture
def staging(ehr: EHRSimulator, registration: ClientRegistration, settings: Any) -> Any:
    """A copy of the database of a site that has refreshed, under another address."""
    settings.SMART_SITE_URL = "https://app.example.org"
    make_grants(ehr, registration, 2)
    assert is_owner()
    settings.SMART_SITE_URL = "https://staging.example.org"
    return settings


@pytest.mark.usefixtures("staging")
def test_copy_of_the_database_refreshes_nothing(
    ehr: EHRSimulator, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    grant_ids = list(TokenGrant.objects.values_list("pk", flat=True))
    tasks.refresh_due_grants()
    assert broker.messages == []
    assert "smart_refresh --adopt" in caplog.text
    # Nor by a message that the copied broker still has, nor for a person.
    caplog.clear()
    assert refresh_grants(grant_ids) == RefreshResult(skipped=2)
    assert "smart_refresh --adopt" in caplog.text
    # Its owner can refresh them at once.
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    with pytest.raises(TokenError) as caught:
        get_access_token(reload_grant(grant_ids[0]))
    assert caught.value.code == "deployment_not_adopted"
    with pytest.raises(CommandError, match="--adopt"):
        call_command("smart_refresh")
    assert ehr.requests_to("refresh") == []
    assert TokenGrant.objects.active().exclude(refresh_token="").count() == 2


def test_copy_without_an_address_refreshes_nothing_either(
    ehr: EHRSimulator, staging: Any
) -> None:
    staging.SMART_SITE_URL = ""
    # Other tasks have no owner.
    tasks.purge()
    assert not is_owner()
    assert tick() == []
    assert refresh_due() == RefreshResult()
    assert ehr.requests_to("refresh") == []
    call_command("smart_refresh", "--adopt")
    assert is_owner()


@pytest.mark.usefixtures("staging")
def test_copy_of_the_database_revokes_nothing(ehr: EHRSimulator) -> None:
    TokenGrant.objects.active().end_pending_revocation(now=timezone.now())
    assert purge().revocations_finished == 0
    assert ehr.requests_to("revoke") == []
    call_command("smart_refresh", "--adopt")
    assert len(ehr.requests_to("revoke")) >= 2


@pytest.mark.usefixtures("staging")
def test_operator_adopts_the_grants(ehr: EHRSimulator) -> None:
    call_command("smart_refresh", "--adopt")
    assert len(ehr.requests_to("refresh")) == 2
    assert is_owner()


def test_nobody_refreshes_what_is_on_hold(staging: Any) -> None:
    call_command("smart_refresh", "--hold")
    for url in ("https://app.example.org", "https://staging.example.org", ""):
        staging.SMART_SITE_URL = url
        assert not is_owner()
    assert refresh_due() == RefreshResult()
    call_command("smart_refresh", "--adopt")
    assert is_owner()


def test_site_without_an_address_owns_its_grants(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.SMART_SITE_URL = ""
    make_grants(ehr, registration, 1)
    assert refresh_due() == RefreshResult(refreshed=1)
    assert not TaskRun.objects.exclude(owner="").exists()


# Switches


@pytest.mark.parametrize(
    "switch",
    [
        lambda: call_command("smart_refresh", "--pause", "harbour"),
        lambda: FHIRServer.objects.update(is_active=False),
        lambda: ClientRegistration.objects.update(is_active=False),
    ],
    ids=["paused", "server", "registration"],
)
def test_what_is_switched_off_is_not_refreshed(
    ehr: EHRSimulator, registration: ClientRegistration, switch: Any
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    switch()
    assert refresh_due() == RefreshResult()
    assert refresh_grants(grant_ids) == RefreshResult(skipped=2)
    assert ehr.requests_to("refresh") == []
    ClientRegistration.objects.update(is_active=True)
    FHIRServer.objects.update(is_active=True)
    call_command("smart_refresh", "--unpause", "harbour")
    assert len(ehr.requests_to("refresh")) == 2
    with pytest.raises(CommandError, match="No server"):
        call_command("smart_refresh", "--pause", "unknown")


@pytest.mark.parametrize("refresh", [refresh_grants, _refresh_for_a_person])
def test_assertion_has_the_time_of_the_database(
    ehr: EHRSimulator,
    refresh: Callable[[list[int]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (grant_id,) = make_grants(ehr, make_service(ehr), 1)
    offset = timedelta(minutes=20)
    monkeypatch.setattr(DatabaseClock, "__call__", lambda _: timezone.now() + offset)
    with suppress(SMARTError):
        refresh([grant_id])
    (request,) = ehr.requests_to("refresh")
    assertion = dict(request.form)["client_assertion"]
    claims = jwt.decode(assertion, options={"verify_signature": False})
    assert timedelta(seconds=claims["iat"] - time.time()) > timedelta(minutes=10)
