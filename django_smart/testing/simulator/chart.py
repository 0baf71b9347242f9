"""The facts about a patient on the chart page."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.fhir import is_in_record

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = ["display_name", "latest_encounter", "list_patients", "summarize"]

Resource = dict[str, Any]


def list_patients(ehr: EHRSimulator) -> list[dict[str, Any]]:
    """One row for each patient, in the order of their family names."""
    rows = [_banner(ehr, patient) for patient in ehr.data["Patient"].values()]
    return sorted(rows, key=lambda row: str(row["sort_name"]))


def display_name(patient: Resource) -> str:
    """The official name, and the person's own script if there is one."""
    official, *others = patient.get("name") or [{}]
    parts = [*official.get("given", ()), official.get("family", "")]
    text = " ".join(filter(None, parts)) or official.get("text", "No name")
    others = [name["text"] for name in others if "text" in name]
    return " ".join([text, *(f"({other})" for other in others)])


def summarize(ehr: EHRSimulator, patient_id: str) -> dict[str, Any]:
    """Everything the chart page needs."""
    patient = ehr.data["Patient"][patient_id]
    home = _get_first(patient, "address")
    town = [f"{home['city']}, {home['state']} {home['postalCode']}"] if home else []
    return {
        **_banner(ehr, patient),
        "phone": _get_first(patient, "telecom").get("value", ""),
        "address": [*home.get("line", ()), *town],
        "conditions": [
            {"text": one["code"]["text"], "since": one["onsetDateTime"][:4]}
            for one in _of(ehr, "Condition", patient_id)
        ],
        "medications": [
            {
                "text": one["medicationCodeableConcept"]["text"],
                "dosage": one["dosageInstruction"][0]["text"],
            }
            for one in _of(ehr, "MedicationRequest", patient_id)
        ],
        "allergies": [
            {"text": one["code"]["text"], "severe": one["criticality"] == "high"}
            for one in _of(ehr, "AllergyIntolerance", patient_id)
        ],
        "results": _latest_results(ehr, patient_id),
    }


def latest_encounter(ehr: EHRSimulator, patient_id: str) -> str | None:
    """The id of the patient's last visit, if there was one."""
    visits = _of(ehr, "Encounter", patient_id)
    if not visits:
        return None
    return str(max(visits, key=lambda one: str(one["period"]["start"]))["id"])


def _banner(ehr: EHRSimulator, patient: Resource) -> dict[str, Any]:
    # A test, or a client that may create patients, adds them with less than ours have.
    birth_date = patient.get("birthDate", "")
    return {
        "patient_id": patient["id"],
        "name": display_name(patient),
        "sort_name": _get_first(patient, "name").get("family", "").casefold(),
        "birth_date": birth_date or "unknown",
        "age": _get_age(ehr, birth_date),
        "gender": patient.get("gender", "unknown"),
        "mrn": _get_first(patient, "identifier").get("value", "none"),
    }


def _get_age(ehr: EHRSimulator, birth_date: str) -> int | str:
    try:
        born = date.fromisoformat(birth_date)
    except ValueError:  # a year, or none
        return "?"
    today = datetime.fromtimestamp(ehr.clock(), tz=UTC).date()
    had_birthday = (today.month, today.day) >= (born.month, born.day)
    return today.year - born.year - (not had_birthday)


def _get_first(resource: Resource, name: str) -> Resource:
    return next(iter(resource.get(name, ())), {})


def _of(ehr: EHRSimulator, resource_type: str, patient_id: str) -> list[Resource]:
    return [
        one
        for one in ehr.data[resource_type].values()
        if is_in_record(one, patient_id, ehr.base_url)
    ]


def _latest_results(ehr: EHRSimulator, patient_id: str) -> list[dict[str, str]]:
    """The last value of each kind of Observation."""
    latest: dict[str, Resource] = {}
    observations = _of(ehr, "Observation", patient_id)
    for one in sorted(observations, key=lambda one: str(one["effectiveDateTime"])):
        latest[one["code"]["text"]] = one
    return [
        {"text": text, "value": _value(one), "date": one["effectiveDateTime"][:10]}
        for text, one in sorted(latest.items())
    ]


def _value(observation: Resource) -> str:
    if "component" in observation:
        values = [one["valueQuantity"]["value"] for one in observation["component"]]
        unit = observation["component"][0]["valueQuantity"]["unit"]
        return f"{'/'.join(f'{value:g}' for value in values)} {unit}"
    quantity = observation["valueQuantity"]
    return f"{quantity['value']:g} {quantity['unit']}"
