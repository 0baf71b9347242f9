"""
Synthetic FHIR R4 resources, the same in every run.

Nothing here is about a real person, and nothing is taken from a data set. Codes are
of LOINC, SNOMED CT and RxNorm, values are made up.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from django_smart.testing.simulator.people import (
    CLINICIANS,
    PATIENTS,
    Clinician,
    Person,
)

__all__ = ["A1C_CODE", "Resources", "build_resources", "get_first_ids"]

A1C_CODE = "4548-4"
"""LOINC: Hemoglobin A1c/Hemoglobin.total in Blood."""

_NAMESPACE = uuid.UUID("6f0c3b52-5d0a-4c57-9d5e-3b7f4b6f1f10")
_FIRST_VISIT = datetime(2022, 2, 7, 8, 30, tzinfo=UTC)
_LAST_VISIT = datetime(2026, 9, 14, 9, 10, tzinfo=UTC)
_HOSPITAL = "harbour-hospital"
_LOINC = "http://loinc.org"
_SNOMED = "http://snomed.info/sct"
_RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
_UCUM = "http://unitsofmeasure.org"
_HL7 = "http://terminology.hl7.org/CodeSystem"

_CONDITIONS = {
    "44054006": ("Type 2 diabetes mellitus", "2021-11-15"),
    "46635009": ("Type 1 diabetes mellitus", "2009-05-21"),
    "15777000": ("Prediabetes", "2022-02-07"),
    "38341003": ("Hypertensive disorder", "2016-03-02"),
    "13644009": ("Hypercholesterolemia", "2018-10-10"),
    "414545008": ("Ischemic heart disease", "2023-06-19"),
    "195967001": ("Asthma", "2019-04-12"),
}
_MEDICATIONS = {
    "860975": ("metformin hydrochloride 500 MG Oral Tablet", "1 tablet twice a day"),
    "314076": ("lisinopril 10 MG Oral Tablet", "1 tablet each morning"),
    "617312": ("atorvastatin 20 MG Oral Tablet", "1 tablet each evening"),
    "311041": (
        "insulin glargine 100 UNT/ML Injectable Solution",
        "18 units at bedtime",
    ),
    "745679": ("albuterol 0.09 MG/ACTUAT Metered Dose Inhaler", "2 puffs as needed"),
}
_ALLERGIES = {
    "91936005": ("Allergy to penicillin", "medication", "high"),
    "91935009": ("Allergy to peanuts", "food", "high"),
    "294505008": ("Allergy to amoxicillin", "medication", "low"),
}

Resources = dict[str, dict[str, dict[str, Any]]]


def build_resources() -> Resources:
    """All resources, by type and id, for the caller to change."""
    resources: Resources = json.loads(_as_json())
    return resources


@cache
def get_first_ids(resource_type: str) -> tuple[str, ...]:
    """The ids of one type in what ``build_resources`` returns, without making it."""
    return tuple(json.loads(_as_json()).get(resource_type, ()))


# Read again in a fraction of the time that it takes to make them.
@cache
def _as_json() -> str:
    resources: Resources = {}
    for resource in _all():
        kind = resources.setdefault(resource["resourceType"], {})
        kind[resource["id"]] = resource
    return json.dumps(resources)


def _all() -> Iterator[dict[str, Any]]:
    yield _resource("Organization", _HOSPITAL, name="Harbour Hospital")
    yield from map(_practitioner, CLINICIANS)
    for number, person in enumerate(PATIENTS):
        clinician = CLINICIANS[number % len(CLINICIANS)]
        # A generator of its own: a patient added later changes nobody else's data.
        rng = random.Random(person.patient_id)  # noqa: S311 (made up, not secret)
        yield _patient(person, clinician)
        yield from _visits(person, clinician, rng)
        yield from _a1c_course(person, clinician, rng)
        yield from _history(person, clinician)


def _practitioner(one: Clinician) -> dict[str, Any]:
    return _resource(
        "Practitioner",
        one.practitioner_id,
        identifier=[{"system": "http://hl7.org/fhir/sid/us-npi", "value": one.npi}],
        active=True,
        name=[{"family": one.family, "given": [one.given], "prefix": [one.prefix]}],
        qualification=[{"code": {"text": one.specialty}}],
    )


def _patient(one: Person, clinician: Clinician) -> dict[str, Any]:
    names: list[dict[str, Any]] = [
        {"use": "official", "family": one.family, "given": list(one.given)}
    ]
    if one.native_name is not None:
        names.append({"use": "usual", "text": one.native_name})
    return _resource(
        "Patient",
        one.patient_id,
        identifier=[
            {
                "use": "usual",
                "type": _concept(f"{_HL7}/v2-0203", "MR", "Medical record number"),
                "system": "https://harbour.example.org/mrn",
                "value": one.mrn,
            }
        ],
        active=True,
        name=names,
        telecom=[
            {"system": "phone", "value": one.phone, "use": "home"},
            {"system": "email", "value": one.email},
        ],
        gender=one.gender,
        birthDate=one.birth_date,
        address=[
            {
                "use": "home",
                "line": [one.street],
                "city": one.city,
                "state": "ME",
                "postalCode": one.postal_code,
                "country": "US",
            }
        ],
        generalPractitioner=[_reference(clinician)],
        managingOrganization={
            "reference": f"Organization/{_HOSPITAL}",
            "display": "Harbour Hospital",
        },
    )


def _visits(
    one: Person, clinician: Clinician, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Twice a year: an Encounter with vital signs."""
    for number, when in enumerate(_spread(10, rng)):
        encounter_id = _id(one, "encounter", number)
        yield _resource(
            "Encounter",
            encounter_id,
            status="finished",
            **{"class": _coding(f"{_HL7}/v3-ActCode", "AMB", "ambulatory")},
            type=[_concept(_SNOMED, "185349003", "Encounter for check up")],
            subject=_subject(one),
            participant=[{"individual": _reference(clinician)}],
            period={
                "start": when.isoformat(),
                "end": (when + timedelta(minutes=40)).isoformat(),
            },
        )
        yield from _vital_signs(one, encounter_id, number, when, rng)


def _vital_signs(
    one: Person, encounter_id: str, number: int, when: datetime, rng: random.Random
) -> Iterator[dict[str, Any]]:
    hypertensive = "38341003" in one.conditions
    systolic = (141 if hypertensive else 116) + rng.randint(-8, 9) - number
    pulse = rng.randint(62, 84)
    weight = round(one.weight + rng.uniform(-1.4, 1.4) - number * 0.2, 1)
    measured: list[tuple[str, str, float, str, str]] = [
        ("29463-7", "Body weight", weight, "kg", "kg"),
        ("8302-2", "Body height", one.height, "cm", "cm"),
        ("8867-4", "Heart rate", pulse, "bpm", "/min"),
    ]
    for code, display, value, unit, ucum in measured:
        yield _observation(
            one,
            _id(one, code, number),
            _concept(_LOINC, code, display),
            when,
            category="vital-signs",
            encounter={"reference": f"Encounter/{encounter_id}"},
            valueQuantity=_quantity(value, unit, ucum),
        )
    pressures = [
        ("8480-6", "Systolic blood pressure", systolic),
        ("8462-4", "Diastolic blood pressure", round(systolic * 0.62)),
    ]
    yield _observation(
        one,
        _id(one, "85354-9", number),
        _concept(_LOINC, "85354-9", "Blood pressure"),
        when,
        category="vital-signs",
        encounter={"reference": f"Encounter/{encounter_id}"},
        component=[
            {
                "code": _concept(_LOINC, code, display),
                "valueQuantity": _quantity(value, "mmHg", "mm[Hg]"),
            }
            for code, display, value in pressures
        ],
    )


def _a1c_course(
    one: Person, clinician: Clinician, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Values along the person's course, with some scatter."""
    for number, when in enumerate(_spread(one.a1c_count, rng)):
        position = number / (one.a1c_count - 1) * (len(one.a1c) - 1)
        left = min(int(position), len(one.a1c) - 2)
        between = one.a1c[left] + (one.a1c[left + 1] - one.a1c[left]) * (
            position - left
        )
        value = round(between + rng.uniform(-0.15, 0.15), 1)
        yield _observation(
            one,
            _id(one, A1C_CODE, number),
            {
                **_concept(
                    _LOINC, A1C_CODE, "Hemoglobin A1c/Hemoglobin.total in Blood"
                ),
                "text": "Hemoglobin A1c",
            },
            when,
            category="laboratory",
            performer=[_reference(clinician)],
            valueQuantity=_quantity(value, "%", "%"),
            referenceRange=[
                {"low": _quantity(4.0, "%", "%"), "high": _quantity(5.6, "%", "%")}
            ],
        )


def _history(one: Person, clinician: Clinician) -> Iterator[dict[str, Any]]:
    """Conditions, medications and allergies."""
    for code in one.conditions:
        display, since = _CONDITIONS[code]
        yield _resource(
            "Condition",
            _id(one, code),
            clinicalStatus=_concept(f"{_HL7}/condition-clinical", "active", "Active"),
            verificationStatus=_concept(
                f"{_HL7}/condition-ver-status", "confirmed", "Confirmed"
            ),
            category=[
                _concept(
                    f"{_HL7}/condition-category",
                    "problem-list-item",
                    "Problem List Item",
                )
            ],
            code=_concept(_SNOMED, code, display),
            subject=_subject(one),
            onsetDateTime=since,
            recordedDate=since,
        )
    for code in one.medications:
        display, dosage = _MEDICATIONS[code]
        yield _resource(
            "MedicationRequest",
            _id(one, code),
            status="active",
            intent="order",
            medicationCodeableConcept=_concept(_RXNORM, code, display),
            subject=_subject(one),
            authoredOn="2026-03-16",
            requester=_reference(clinician),
            dosageInstruction=[{"text": dosage}],
        )
    for code in one.allergies:
        display, category, criticality = _ALLERGIES[code]
        yield _resource(
            "AllergyIntolerance",
            _id(one, code),
            clinicalStatus=_concept(
                f"{_HL7}/allergyintolerance-clinical", "active", "Active"
            ),
            verificationStatus=_concept(
                f"{_HL7}/allergyintolerance-verification", "confirmed", "Confirmed"
            ),
            category=[category],
            criticality=criticality,
            code=_concept(_SNOMED, code, display),
            patient=_subject(one),
            recordedDate="2020-05-04",
        )


def _spread(count: int, rng: random.Random) -> list[datetime]:
    """*count* moments over the years, roughly even, none at the same time."""
    if count == 0:
        return []
    step = (_LAST_VISIT - _FIRST_VISIT) / (count - 1)
    return [
        _FIRST_VISIT
        + timedelta(days=round(step.days * number) + rng.randint(-9, 9))
        + timedelta(minutes=rng.randint(0, 420))
        for number in range(count)
    ]


def _id(one: Person, *parts: object) -> str:
    return str(uuid.uuid5(_NAMESPACE, "/".join(map(str, (one.patient_id, *parts)))))


def _resource(resource_type: str, resource_id: str, **members: Any) -> dict[str, Any]:
    return {
        "resourceType": resource_type,
        "id": resource_id,
        "meta": {"versionId": "1", "lastUpdated": _LAST_VISIT.isoformat()},
        **members,
    }


def _observation(
    one: Person,
    resource_id: str,
    code: dict[str, Any],
    when: datetime,
    *,
    category: str,
    **members: Any,
) -> dict[str, Any]:
    display = category.replace("-", " ").title()
    return _resource(
        "Observation",
        resource_id,
        status="final",
        category=[_concept(f"{_HL7}/observation-category", category, display)],
        code=code,
        subject=_subject(one),
        effectiveDateTime=when.isoformat(),
        issued=when.isoformat(),
        **members,
    )


def _coding(system: str, code: str, display: str) -> dict[str, Any]:
    return {"system": system, "code": code, "display": display}


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [_coding(system, code, display)], "text": display}


def _quantity(value: float, unit: str, ucum: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": _UCUM, "code": ucum}


def _subject(one: Person) -> dict[str, Any]:
    return {"reference": f"Patient/{one.patient_id}", "display": one.display_name}


def _reference(one: Clinician) -> dict[str, Any]:
    return {
        "reference": f"Practitioner/{one.practitioner_id}",
        "display": one.display_name,
    }
