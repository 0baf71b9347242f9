"""urllib3's own log, at its finest, during a walk over real sockets."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from django_smart import transport
from django_smart.clients import fhir_client_for
from django_smart.grants.ending import revoke_tokens
from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_SECRET,
    PATIENT,
    SITE,
    make_browser,
)
from tests.ehr import connect as connect_records
from tests.factories import expire, make_registration, register_at

pytestmark = pytest.mark.django_db


@pytest.fixture
def served_ehr(settings) -> Iterator[EHRSimulator]:
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    simulator = EHRSimulator("https://ehr.example.org/fhir")
    register_at(simulator, launch_url=f"{SITE}/smart/launch/", name="Growth chart")
    transport.close()
    with simulator.serve():
        yield simulator
    transport.close()


def test_walk_leaves_no_query_token_or_patient_in_the_log(
    served_ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    make_registration(server__base_url=served_ehr.base_url)
    with caplog.at_level(logging.DEBUG):
        grant = connect_records(make_browser(), served_ehr, patient=PATIENT).grant
        assert grant is not None
        old = expire(grant, served_ehr)
        secrets = {old.access_token, old.refresh_token}
        fhir = fhir_client_for(grant=old)
        assert fhir.read("Patient", PATIENT)["id"] == PATIENT
        assert fhir.search("Patient", birthdate="ge1850-04-03").first()
        new = TokenGrant.objects.get(pk=grant.pk)
        secrets |= {new.access_token, new.refresh_token, CLIENT_SECRET, PATIENT}
        revoke_tokens(new)
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("urllib3", "requests", "django_smart.transport"))
    ]
    assert any('"POST /*** HTTP/1.1" 200' in line for line in lines)
    assert any('"GET /*** HTTP/1.1" 200' in line for line in lines)
    assert [line for line in lines if "1850" in line or "Patient" in line] == []
    assert [line for line in lines if any(secret in line for secret in secrets)] == []
