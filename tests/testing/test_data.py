"""The synthetic patients."""

from __future__ import annotations

from datetime import datetime

import pytest
from fhirclient.models import (
    allergyintolerance,
    condition,
    encounter,
    medicationrequest,
    observation,
    organization,
    patient,
    practitioner,
)

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.data import A1C_CODE, build_resources
from django_smart.testing.simulator.people import PATIENTS
from tests.testing.app import PATIENT

MODELS = {
    "AllergyIntolerance": allergyintolerance.AllergyIntolerance,
    "Condition": condition.Condition,
    "Encounter": encounter.Encounter,
    "MedicationRequest": medicationrequest.MedicationRequest,
    "Observation": observation.Observation,
    "Organization": organization.Organization,
    "Patient": patient.Patient,
    "Practitioner": practitioner.Practitioner,
}


@pytest.mark.parametrize("resource_type", sorted(MODELS))
def test_resources_are_valid_fhir(resource_type: str) -> None:
    """By the classes of a client that nobody here wrote; it raises on any fault."""
    for resource in build_resources()[resource_type].values():
        MODELS[resource_type](resource)


def test_data_are_the_same_in_every_run() -> None:
    assert build_resources() == build_resources()
    assert set(build_resources()) == set(MODELS)


def test_references_lead_to_resources() -> None:
    resources = build_resources()
    for kind in resources.values():
        for resource in kind.values():
            for name in ("subject", "patient", "encounter"):
                if name in resource:
                    target, _, target_id = resource[name]["reference"].partition("/")
                    assert target_id in resources[target]


def test_each_course_is_long_and_one_patient_has_none() -> None:
    resources = build_resources()
    courses: dict[str, list[str]] = {one.patient_id: [] for one in PATIENTS}
    for one in resources["Observation"].values():
        if one["code"]["coding"][0]["code"] == A1C_CODE:
            assert 4 < one["valueQuantity"]["value"] < 12
            owner = one["subject"]["reference"].removeprefix("Patient/")
            courses[owner].append(one["effectiveDateTime"])
    lengths = sorted(map(len, courses.values()))
    assert lengths[0] == 0
    assert lengths[1] >= 11
    assert len(courses[PATIENT]) == 11
    for dates in courses.values():
        assert len(set(dates)) == len(dates)
        if dates:
            span = datetime.fromisoformat(max(dates)) - datetime.fromisoformat(
                min(dates)
            )
            assert span.days > 4 * 365


def test_names_are_varied() -> None:
    assert len(PATIENTS) == 8
    assert any(not one.display_name.isascii() for one in PATIENTS)
    assert any(one.native_name for one in PATIENTS)


def test_launch_needs_the_ids_of_patients_and_not_the_resources():
    ehr = EHRSimulator()
    ids = list(ehr.versions.get_ids("Patient"))
    assert not ehr.versions.get_ids("Nothing")
    assert ehr.versions._data is None
    assert list(ehr.data["Patient"]) == ids
    # Then it is what a test has made of them that counts.
    del ehr.data["Patient"][ids[0]]
    assert list(ehr.versions.get_ids("Patient")) == ids[1:]
    assert ids[0] in EHRSimulator().data["Patient"]
    assert not ehr.versions.get_ids("Nothing")
