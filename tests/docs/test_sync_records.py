"""Keep a whole record: the page's settings, its sinks and its loop."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart.clients import connections_of
from django_smart.contrib.records.models import StoredResource, SyncRun
from django_smart.contrib.records.schedule import RECORDS_SCHEDULE
from django_smart.contrib.records.signals import record_synced
from django_smart.contrib.records.sinks import NDJSONSink, Sink
from django_smart.schedule import BEAT_SCHEDULE
from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import PATIENT, connect, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

PAGE = "how-to/sync-records.rst"
SETTINGS, USING, FUNCTION, SINK, LOOP, SIGNAL, FORGET = read_blocks(PAGE)


def test_settings_of_the_page() -> None:
    found = execute(SETTINGS)
    assert {*BEAT_SCHEDULE, *RECORDS_SCHEDULE} == set(found["CELERY_BEAT_SCHEDULE"])
    assert "django_smart.contrib.records" in found["INSTALLED_APPS"]


def test_function_builds_a_sink() -> None:
    assert isinstance(execute(FUNCTION)["build_sink"](), NDJSONSink)


def test_own_sink_is_complete() -> None:
    assert issubclass(execute(SINK, Result=None)["ObservationSink"], Sink)


def test_record_is_read_and_used(ehr: EHRSimulator) -> None:
    scope = "openid fhirUser launch/patient offline_access patient/*.rs"
    make_registration(standalone_scope=scope)
    launch = connect(make_browser(), ehr, patient=PATIENT)
    assert launch.user is not None
    (connection,) = connections_of(launch.user)
    assert execute(LOOP, user=launch.user)["run"].is_complete

    class _Request:
        user: Any = launch.user

    names = execute(USING, request=_Request)
    assert names["run"] == SyncRun.objects.get()
    assert names["copy"].resource["resourceType"] == "Observation"
    told: list[Any] = []
    names = execute(SIGNAL, tell_the_clinic=lambda user, run: told.append(user))
    assert execute(LOOP, user=launch.user)["run"].is_complete
    assert told == [launch.user]
    record_synced.disconnect(names["look_for_results"])
    execute(FORGET)["forget_record"](connection.grant)
    assert not SyncRun.objects.exists()
    assert not StoredResource.objects.exists()
