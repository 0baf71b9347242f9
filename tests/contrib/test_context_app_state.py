"""``request.smart.app_state``, against the simulated EHR."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart import transport
from django_smart.contrib.app_state import GLOBAL
from django_smart.exceptions import (
    AppStateError,
    AppStateUnsupportedError,
    FHIRForbiddenError,
    FHIRPreconditionFailedError,
    NoLaunchError,
)
from django_smart.launches.context import SMARTContext
from django_smart.models import ClientRegistration, FHIRServer, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import BASE_URL, EHR_SCOPE, PATIENT, SITE
from tests.site.browsers import SITE_MARKS, make_context, open_chart

pytestmark = SITE_MARKS

CODE = "display-preferences"
URL = f"{SITE}/display-preferences-v1"
USER_SCOPE = "user/Basic.cuds"


def open_context(ehr: EHRSimulator, scope: str = USER_SCOPE) -> SMARTContext:
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} {scope}")
    chart = open_chart(ehr)
    context = make_context(chart, user=chart.launch.user)
    ehr.clear_requests()
    return context


def set_configuration(**changes: Any) -> None:
    server = FHIRServer.objects.get()
    assert server.state.configuration is not None
    server.state.configuration = {**server.state.configuration, **changes}
    server.state.save()


@pytest.mark.compliance("STATE-04", "STATE-09", "STATE-10", "STATE-13")
def test_person_s_settings_are_kept_changed_and_deleted(ehr):
    smart = open_context(ehr)
    client, person = smart.app_state, smart.fhir_user
    assert client.search(CODE, subject=person) == []
    first = client.create(CODE, {URL: '{"rows": 1}'}, subject=person)
    assert (first.etag, first.subject) == ('W/"1"', f"{BASE_URL}/{person}")
    second = client.update(first, {URL: '{"rows": 2}'})
    assert client.search(CODE, subject=person) == [second]
    assert second.read_json(URL) == {"rows": 2}
    client.delete(second)
    assert client.search(CODE, subject=person) == []
    with pytest.raises(AppStateError, match="was deleted"):
        client.update(second, {URL: "x"})
    token = f"Bearer {smart.grant.access_token}" if smart.grant else ""
    assert {one.headers["Authorization"] for one in ehr.requests} == {token}


@pytest.mark.compliance("STATE-17")
def test_codes_belong_to_the_origin_of_this_site(ehr, settings):
    assert open_context(ehr).app_state.system == SITE
    settings.SMART_APP_STATE_SYSTEM = "https://own.example.org/"
    state = open_context(ehr).app_state.create(CODE, {URL: "x"}, subject=GLOBAL)
    assert state.system == "https://own.example.org"


@pytest.mark.compliance("STATE-11")
def test_change_by_another_tab_is_a_conflict(ehr):
    one, other = open_context(ehr), open_context(ehr)
    mine = one.app_state.create(CODE, {URL: "x"}, subject=one.fhir_user)
    [theirs] = other.app_state.search(CODE, subject=other.fhir_user)
    changed = other.app_state.update(theirs, {URL: "theirs"})
    with pytest.raises(FHIRPreconditionFailedError):
        one.app_state.update(mine, {URL: "mine"})
    with pytest.raises(FHIRPreconditionFailedError):
        one.app_state.delete(mine)
    assert one.app_state.search(CODE, subject=one.fhir_user) == [changed]


@pytest.mark.compliance("STATE-15")
def test_state_is_of_a_person_of_a_patient_or_global(ehr):
    smart = open_context(ehr)
    for subject in (smart.fhir_user, f"Patient/{PATIENT}", GLOBAL):
        state = smart.app_state.create(CODE, {URL: str(subject)}, subject=subject)
        assert smart.app_state.search(CODE, subject=subject) == [state]


@pytest.mark.compliance("STATE-16")
def test_scope_of_the_patient_reaches_that_patient_alone(ehr):
    client = open_context(ehr, f"patient/Basic.cuds?code={SITE}|{CODE}").app_state
    client.create(CODE, {URL: "x"}, subject=f"Patient/{PATIENT}")
    for code, subject in (
        (CODE, GLOBAL),
        (CODE, "Patient/other"),
        ("other", f"Patient/{PATIENT}"),
    ):
        with pytest.raises(FHIRForbiddenError):
            client.create(code, {URL: "x"}, subject=subject)


@pytest.mark.compliance("STATE-03")
def test_server_without_app_state_is_not_asked(ehr):
    smart = open_context(ehr)
    set_configuration(capabilities=["launch-ehr"])
    with pytest.raises(AppStateUnsupportedError):
        _ = smart.app_state
    assert ehr.requests == []


@pytest.mark.compliance("STATE-03", "STATE-04", "STATE-07")
def test_associated_endpoint_gets_the_token_and_subjects_of_the_main_server(ehr):
    smart = open_context(ehr)
    base_url = "https://state.example.org/r4"
    set_configuration(
        capabilities=["launch-ehr"],
        associated_endpoints=[{"url": base_url, "capabilities": ["smart-app-state"]}],
    )
    other = EHRSimulator(base_url=base_url)
    other.store = ehr.store
    with transport.mounted("https://state.example.org", other.adapter()):
        state = smart.app_state.create(CODE, {URL: "x"}, subject=GLOBAL)
        assert smart.app_state.search(CODE, subject=GLOBAL) == [state]
        # To this simulator a subject at the main server is somebody it does not know.
        with pytest.raises(FHIRForbiddenError):
            smart.app_state.search(CODE, subject=f"Patient/{PATIENT}")
    assert smart.grant is not None
    bearer = f"Bearer {smart.grant.access_token}"
    assert [one.headers["Authorization"] for one in other.requests] == [bearer] * 3
    query = dict(other.requests[-1].query)
    assert query["subject"] == f"{BASE_URL}/Patient/{PATIENT}"
    assert ehr.requests == []


@pytest.mark.compliance("STATE-06")
def test_state_that_is_too_large_is_not_sent(ehr):
    client = open_context(ehr).app_state
    with pytest.raises(AppStateError, match="the limit is"):
        client.create(CODE, {URL: "x" * 256 * 1024}, subject=GLOBAL)
    assert ehr.requests == []


def test_there_is_no_app_state_without_a_launch(ehr):
    smart = open_context(ehr)
    Launch.objects.all().delete()
    with pytest.raises(NoLaunchError):
        _ = smart.app_state
