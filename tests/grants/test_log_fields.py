"""Fields of log lines: ids of our rows, for logs that keep them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.utils import timezone

from django_smart.models import ServerState, TokenGrant
from django_smart.testing import EHRSimulator
from tests.answers import answer, refuse_refresh
from tests.grants.working import refresh_grants

pytestmark = pytest.mark.django_db


def refresh(grant: TokenGrant) -> None:
    """As a worker does."""
    TokenGrant.objects.update(refresh_due_at=timezone.now())
    refresh_grants([grant.pk])


def read_fields(caplog: Any, event: str) -> dict[str, Any]:
    """The fields of the one line about *event*."""
    (record,) = [
        record
        for record in caplog.records
        if getattr(record, "smart_event", "") == event
    ]
    return {
        name: value for name, value in vars(record).items() if name.startswith("smart_")
    }


@pytest.mark.parametrize(
    ("faults", "event", "error_code"),
    [
        ([], "grant_refreshed", ""),
        (["refresh_500"], "grant_refresh_failed", "token_server_error"),
        (["refresh_invalid_grant"], "grant_lost", "invalid_grant"),
        (["refresh_other_patient"], "grant_lost", "context_changed"),
    ],
)
def test_refresh_tells_of_which_grant_it_was(
    ehr: EHRSimulator,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
    faults: list[str],
    event: str,
    error_code: str,
) -> None:
    secrets = (grant.access_token, grant.refresh_token, grant.patient_id)
    caplog.set_level(logging.INFO, "django_smart")
    ehr.faults = faults
    refresh(grant)
    fields = read_fields(caplog, event)
    assert fields == {
        "smart_event": event,
        "smart_server": grant.registration.server_id,
        "smart_registration": grant.registration_id,
        "smart_grant": grant.pk,
        "smart_error": error_code,
    }
    assert not [secret for secret in secrets if secret in repr(fields)]


def test_failed_refresh_tells_the_status_but_no_text_of_the_server(
    ehr: EHRSimulator, grant: TokenGrant, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_refresh(ehr, grant, "of_its_own")
    refresh(grant)
    assert f"Grant {grant.pk} has no new access token: token_refused\n" in caplog.text
    answer(ehr, "/auth/token", status=403)
    refresh(grant)
    assert "token_server_error (The token endpoint responded with status 403 " in (
        caplog.text
    )
    assert "of_its_own" not in caplog.text


def test_pause_and_its_end_tell_of_which_server(
    ehr: EHRSimulator, grant: TokenGrant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_smart")
    ehr.faults = ["refresh_500"]
    refresh(grant)
    paused = read_fields(caplog, "server_paused")
    assert paused["smart_server"] == grant.registration.server_id
    assert paused["smart_error"] == "token_server_error"
    assert "smart_grant" not in paused
    ehr.faults = []
    ServerState.objects.update(paused_until=timezone.now())
    refresh(grant)
    resumed = read_fields(caplog, "server_resumed")
    assert resumed["smart_server"] == grant.registration.server_id
