"""What the recommended LOGGING keeps, and how much is logged."""

from __future__ import annotations

import logging

import pytest

from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import connect, make_browser
from tests.factories import make_due, make_registration, reload_grant
from tests.grants.working import refresh_grants

pytestmark = pytest.mark.django_db


def _count(caplog: pytest.LogCaptureFixture) -> int:
    """Our records since the last call, without the audit trail."""
    names = [each.name for each in caplog.records]
    caplog.clear()
    ours = [each for each in names if each.startswith("django_smart.")]
    return len(ours) - ours.count("django_smart.audit")


def _revoke(grant_id: int | None) -> None:
    disconnect_grant(reload_grant(grant_id))
    assert revoke_pending() == 1


def test_recommended_logging_names_the_grants_that_were_revoked(
    ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    logs, _ = read_blocks("how-to/keys-and-logs.rst", "Logs")
    recommended = execute(logs)
    configuration = recommended["LOGGING"]
    caplog.set_level(configuration["root"]["level"])
    for name, options in configuration["loggers"].items():
        if "level" in options:
            caplog.set_level(options["level"], logger=name)
    make_registration()
    grant_id = connect(make_browser(), ehr).grant_id
    refresh_grants([make_due(grant_id)])
    assert _count(caplog) == 0
    _revoke(grant_id)
    (record,) = caplog.records
    assert (record.smart_event, record.smart_grant) == (  # type: ignore[attr-defined]
        "grant_revoked",
        grant_id,
    )


def test_log_has_as_many_lines_as_the_page_says(
    ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="django_smart")
    make_registration()
    grant_id = connect(make_browser(), ehr).grant_id
    assert _count(caplog) == 2
    refresh_grants([make_due(grant_id)])
    assert _count(caplog) == 1
    _revoke(grant_id)
    assert _count(caplog) == 1
