"""Whole records from FHIR servers that nobody here wrote, counted by a plain loop."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.utils import timezone

from django_smart import transport
from django_smart.contrib.records import sync_record
from django_smart.contrib.records.models import SyncRun
from django_smart.contrib.records.sinks import ModelSink
from django_smart.models import TokenGrant
from tests.factories import make_grant, make_registration, make_user
from tests.outside.node import running

pytestmark = [pytest.mark.node, pytest.mark.process, pytest.mark.django_db]

TYPES = ("AllergyIntolerance", "Condition", "Observation")
SCOPE = " ".join(f"patient/{each}.rs" for each in (*TYPES, "Patient", "Practitioner"))


class Medplum:
    """Its router and memory, with two patients."""

    def __init__(self, origin: str, token: str) -> None:
        self.base_url = f"{origin}/fhir"
        self.token = token
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {token}"
        self.patient_id, other = (
            self.create({"resourceType": "Patient"})["id"] for _ in range(2)
        )
        doctor = self.create({"resourceType": "Practitioner"})["id"]
        for number in range(75):
            self.observe(number, patient_id=other if number % 5 == 0 else "")
        for kind in ("AllergyIntolerance", "Condition"):
            name = "patient" if kind == "AllergyIntolerance" else "subject"
            patient = {name: {"reference": f"Patient/{self.patient_id}"}}
            recorder = {"recorder": {"reference": f"Practitioner/{doctor}"}}
            self.create({"resourceType": kind, **patient, **recorder})

    def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._session.request(
            method, f"{self.base_url}/{path}", json=body, timeout=20
        )
        answer.raise_for_status()
        return answer.json()

    def create(self, resource: dict[str, Any]) -> Any:
        return self.send("POST", resource["resourceType"], resource)

    def observe(self, number: int, *, patient_id: str = "") -> Any:
        patient = {"reference": f"Patient/{patient_id or self.patient_id}"}
        observation = {"resourceType": "Observation", "status": "final"}
        code = {"text": f"Result {number}"}
        return self.create({**observation, "code": code, "subject": patient})

    def count(self) -> Counter[str]:
        """What a plain loop finds."""
        found: Counter[str] = Counter()
        for kind in TYPES:
            query = f"{kind}?patient=Patient/{self.patient_id}&_count=10&_offset="
            # It has no next links.
            while entries := self.send("GET", f"{query}{found[kind]}").get("entry"):
                found[kind] += len(entries)
        return found


@pytest.fixture
def medplum(settings: Any) -> Iterator[Medplum]:
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    token = secrets.token_urlsafe(16)
    with running("medplum.mjs", token) as origin:
        yield Medplum(origin, token)
    transport.close()


@pytest.fixture
def grant(medplum: Medplum) -> TokenGrant:
    return make_grant(
        make_registration(server__base_url=medplum.base_url),
        user=make_user(),
        access_token=medplum.token,
        patient_id=medplum.patient_id,
        scope=SCOPE,
        scope_granted=SCOPE,
        expires_at=timezone.now() + timedelta(hours=1),
    )


def test_record_at_medplum_is_what_a_loop_counts(
    medplum: Medplum, grant: TokenGrant
) -> None:
    run = sync_record(grant, ModelSink())
    assert run.is_complete, (run.states, run.last_error)
    assert run.count() == {**medplum.count(), "Patient": 1, "Practitioner": 1}


def test_record_at_medplum_is_kept_in_step(medplum: Medplum, grant: TokenGrant) -> None:
    run = sync_record(grant, ModelSink())
    deleted, changed = run.copies.filter(resource_type="Observation")[:2]
    medplum.send("DELETE", f"Observation/{deleted.resource_id}")
    body = {**changed.resource, "status": "amended"}
    medplum.send("PUT", f"Observation/{changed.resource_id}", body)
    added = medplum.observe(99)
    sync_record(grant, ModelSink())
    copies = {one.resource_id: one.resource for one in run.copies.all()}
    assert copies[changed.resource_id]["status"] == "amended"
    assert added["id"] in copies
    SyncRun.objects.update(full_at=timezone.now() - timedelta(days=8))
    run = sync_record(grant, ModelSink())
    assert run.count() == {**medplum.count(), "Patient": 1, "Practitioner": 1}
    assert not run.copies.filter(resource_id=deleted.resource_id).exists()
