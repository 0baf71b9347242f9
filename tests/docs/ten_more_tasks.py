"""Ten more tasks, each for the patient of a launch."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import unquote

from tests.docs.comparing import Task, observe
from tests.fhir.servers import bundle

__all__ = ["TASKS"]

PATIENT = {"reference": "Patient/1"}
PDF = b"%PDF-1.7 letter"
SNOMED = "http://snomed.info/sct"
VALUE_SET = "http://example.org/ValueSet/devices"


def outcome(**issue: str) -> dict[str, Any]:
    return {"resourceType": "OperationOutcome", "issue": [issue]}


class PatientTask(Task):
    scope = "patient/*.cruds"


class Upsert(PatientTask):
    title = "Upsert by identifier"
    weight = observe(
        0,
        identifier=[{"system": "urn:scale", "value": "r-1"}],
        subject=PATIENT,
        valueQuantity={"value": 71.5, "unit": "kg"},
    )
    expected = "w-1"
    expected_in_trouble = None

    def get_arguments(self):
        weight = {name: each for name, each in self.weight.items() if name != "id"}
        return "1", weight

    def answer(self, chart, asked, stored_id="w-1", subject=PATIENT):
        stored = {**self.weight, "id": stored_id, "subject": subject}
        stored["meta"] = {"versionId": "1"}
        if asked.method == "PUT":
            assert asked.path == f"Observation/{stored_id}" or asked.params
            return 200, {**asked.body, "id": stored_id}
        assert asked.method == "GET"
        if asked.path == f"Observation/{stored_id}":
            return 200, stored
        assert asked.params == {"identifier": "urn:scale|r-1", "patient": "1"}
        return 200, bundle(stored)

    def trouble(self, chart, asked):
        other = {"reference": "Patient/2"}
        return self.answer(chart, asked, stored_id="w-2", subject=other)


class Letter(PatientTask):
    title = "A document's references"
    arguments = ("letter-1",)
    expected = expected_in_trouble = ["Asthma", "Hypertension"]

    def answer(self, chart, asked, base="urn:uuid:", left_out=0):
        def refer(kind, key):
            return {"reference": f"{base}{kind}/{key}" if not base else f"{base}{key}"}

        assert asked.method == "GET"
        problems = [
            {
                "resourceType": "Condition",
                "id": name[0],
                "code": {"text": name},
                "subject": refer("Patient", "1"),
            }
            for name in self.expected
        ]
        if asked.path.startswith("Condition/"):
            return 200, next(each for each in problems if each["id"] == asked.path[-1])
        assert asked.path == "Bundle/letter-1"
        entry = [refer("Condition", each["id"]) for each in problems]
        first = {
            "resourceType": "Composition",
            "id": "c",
            "status": "final",
            "title": "Letter",
            "type": {"text": "Letter"},
            "date": "2026-01-05",
            "author": [{"display": "Dr. Quill"}],
            "subject": refer("Patient", "1"),
            "section": [{"entry": entry}],
        }
        patient = {"resourceType": "Patient", "id": "1"}
        resources = (first, patient, *problems[left_out:])
        here = f"http://{asked.headers['host']}/fhir"
        entries = [
            {
                "fullUrl": f"{base}{each['id']}"
                if base
                else f"{here}/{each['resourceType']}/{each['id']}",
                "resource": each,
            }
            for each in resources
        ]
        letter = {"resourceType": "Bundle", "id": "letter-1", "type": "document"}
        return 200, {**letter, "entry": entries}

    def trouble(self, chart, asked):
        return self.answer(chart, asked, base="", left_out=1)


class Trend(PatientTask):
    title = "A blood-pressure trend"
    arguments = ("1",)
    expected = [
        ("2026-01-05", "Systolic: 131 mmHg; Diastolic: 80 mmHg"),
        ("2026-02-09", "Systolic: 127 mmHg; Diastolic: 79 mmHg"),
    ]
    expected_in_trouble = [
        expected[0],
        ("2026-02-09", "Systolic: 127 mmHg; Diastolic: Not Performed"),
    ]

    def answer(self, chart, asked, last=79):
        assert asked.params == {"patient": "1", "code": "http://loinc.org|85354-9"}
        absent = {"coding": [{"code": "not-performed", "display": "Not Performed"}]}
        found: list[dict[str, Any]] = []
        for date, values in (("2026-02-09", (127, last)), ("2026-01-05", (131, 80))):
            components = [
                {
                    "code": {"text": name},
                    **(
                        {"valueQuantity": {"value": value, "unit": "mmHg"}}
                        if value
                        else {"dataAbsentReason": absent}
                    ),
                }
                for name, value in zip(("Systolic", "Diastolic"), values, strict=True)
            ]
            members = {"effectiveDateTime": date, "component": components}
            found.append(observe(len(found), subject=PATIENT, **members))
        return 200, bundle(*found)

    def trouble(self, chart, asked):
        return self.answer(chart, asked, last=None)


class Answers(PatientTask):
    title = "A ``QuestionnaireResponse``"
    arguments = ("1", "Questionnaire/phq")
    expected = {"1": "Several days", "2": "yes", "2.1": "3 h"}
    expected_in_trouble = None

    def answer(self, chart, asked, has_next=True):
        assert asked.path == "QuestionnaireResponse"
        if asked.params != {"page": "2"}:
            query = {"patient": "1", "questionnaire": "Questionnaire/phq"}
            assert asked.params == query
            more = f"http://{asked.headers['host']}/fhir/QuestionnaireResponse?page=2"
            first = self.respond("2026-02-01", "Not at all")
            return 200, bundle(first, next_url=more if has_next else None, total=2)
        return 200, bundle(self.respond("2026-03-01", "Several days"), total=2)

    def trouble(self, chart, asked):
        return self.answer(chart, asked, has_next=False)

    def respond(self, authored: str, first: str) -> dict[str, Any]:
        more = {
            "linkId": "2.1",
            "answer": [{"valueQuantity": {"value": 3, "unit": "h"}}],
        }
        questions = [
            {"linkId": "1", "answer": [{"valueCoding": {"display": first}}]},
            {"linkId": "2", "answer": [{"valueBoolean": True, "item": [more]}]},
        ]
        return {
            "resourceType": "QuestionnaireResponse",
            "id": authored,
            "status": "completed",
            "authored": authored,
            "subject": PATIENT,
            "item": [{"linkId": "0", "item": questions}],
        }


class Bytes(PatientTask):
    title = "A document's bytes"
    arguments = ("d-1",)
    expected = expected_in_trouble = PDF

    def answer(self, chart, asked):
        if asked.path == "DocumentReference/d-1":
            attachment = {"contentType": "application/pdf", "url": "Binary/b-1"}
            return 200, {
                "resourceType": "DocumentReference",
                "id": "d-1",
                "status": "current",
                "subject": PATIENT,
                "content": [{"attachment": attachment}],
            }
        assert asked.path == "Binary/b-1"
        assert asked.headers["accept"] == "application/pdf"
        return 200, PDF, "Content-Type: application/pdf"

    def trouble(self, chart, asked):
        if asked.path != "Binary/b-1":
            return None
        return 200, {
            "resourceType": "Binary",
            "id": "b-1",
            "contentType": "application/pdf",
            "data": base64.b64encode(PDF).decode(),
        }


class Contained(PatientTask):
    title = "Medications with contained ones"
    arguments = ("1",)
    expected = ["Metformin", "Lisinopril", "Aspirin", "Ibuprofen"]
    expected_in_trouble = None

    def answer(self, chart, asked, where=""):
        include = "MedicationRequest:medication"
        assert asked.params == {"patient": "1", "_include": include}
        first, second, third, fourth = (
            {"resourceType": "Medication", "id": "m", "code": {"text": name}}
            for name in self.expected
        )
        inside, outside = {"reference": "#m"}, {"reference": f"{where}Medication/m"}
        orders: list[dict[str, Any]] = [
            {"medicationReference": inside, "contained": [first]},
            {"medicationReference": inside, "contained": [second]},
            {"medicationReference": outside},
            {"medicationCodeableConcept": fourth["code"]},
        ]
        common: dict[str, Any] = {
            "resourceType": "MedicationRequest",
            "status": "active",
            "intent": "order",
            "subject": PATIENT,
        }
        found = [{**common, "id": f"o-{n}", **each} for n, each in enumerate(orders)]
        resources = (*found, *([] if where else [third]))
        here = f"http://{asked.headers['host']}/fhir"
        answer = bundle(*resources)
        for entry in answer["entry"]:
            kind, key = entry["resource"]["resourceType"], entry["resource"]["id"]
            entry["fullUrl"] = f"{here}/{kind}/{key}"
        return 200, answer

    def trouble(self, chart, asked):
        return self.answer(chart, asked, where=f"http://{chart.elsewhere}/fhir/")


class Summary(PatientTask):
    title = "``$summary``"
    arguments = ("1",)
    expected = expected_in_trouble = ["Penicillin", "Latex"]

    def answer(self, chart, asked):
        assert asked.path == "Patient/1/$summary"
        allergies = [
            {
                "resourceType": "AllergyIntolerance",
                "id": name,
                "code": {"text": name},
                "patient": PATIENT,
            }
            for name in self.expected
        ]
        first = {"resourceType": "Composition", "id": "c", "subject": PATIENT}
        patient = {"resourceType": "Patient", "id": "1"}
        entry = [{"resource": each} for each in (first, patient, *allergies)]
        return 200, {"resourceType": "Bundle", "type": "document", "entry": entry}

    def trouble(self, chart, asked):
        _, document = self.answer(chart, asked)
        parameter = {"name": "return", "resource": document}
        return 200, {"resourceType": "Parameters", "parameter": [parameter]}


class Terminology(PatientTask):
    title = "``$expand`` and ``$validate-code``"
    arguments = (VALUE_SET, SNOMED, "pump")
    expected = {"1": "Insulin pump", "2": "Pain pump"}
    expected_in_trouble = None

    def answer(self, chart, asked):
        if asked.path == "ValueSet/$validate-code":
            query = {"url": VALUE_SET, "system": SNOMED, "code": "pump"}
            assert asked.params == query
            parameter = {"name": "result", "valueBoolean": False}
            return 200, {"resourceType": "Parameters", "parameter": [parameter]}
        assert asked.path == "ValueSet/$expand"
        assert asked.params == {"url": VALUE_SET, "filter": "pump"}
        contains = [
            {"code": code, "display": display}
            for code, display in self.expected.items()
        ]
        return 200, {
            "resourceType": "ValueSet",
            "status": "active",
            "expansion": {"timestamp": "2026-01-01", "contains": contains},
        }

    def trouble(self, chart, asked):
        if asked.path != "ValueSet/$expand":
            return None
        return 200, outcome(severity="error", code="too-costly")


class Subscribe(Task):
    title = "A subscription"
    scope = "system/Subscription.crus"
    arguments = ("Observation?code=4548-4", "https://app.example.org/hook")
    expected = expected_in_trouble = "active"

    def answer(self, chart, asked):
        criteria, endpoint = self.arguments
        if asked.method == "GET":
            assert asked.path == "Subscription/s-1"
            return 200, {
                "resourceType": "Subscription",
                "id": "s-1",
                "status": "active",
                "reason": "New results",
                "criteria": criteria,
                "channel": {"type": "rest-hook", "endpoint": endpoint},
            }
        assert asked.method == "POST"
        assert asked.body["criteria"] == criteria
        assert asked.body["channel"]["endpoint"] == endpoint
        assert unquote(asked.headers["if-none-exist"]) == f"url={endpoint}"
        return 201, {**asked.body, "id": "s-1"}

    def trouble(self, chart, asked):
        if asked.method == "GET":
            return None
        self.answer(chart, asked)
        place = f"http://{asked.headers['host']}/fhir/Subscription/s-1"
        return 200, None, f"Location: {place}"


class Everything(PatientTask):
    title = "``$everything`` over three pages"
    arguments = ("1",)
    expected = {"Patient": 1, "Observation": 4}
    expected_in_trouble = None

    def answer(self, chart, asked, last=()):
        patient = {"resourceType": "Patient", "id": "1"}
        number = int(asked.params.get("page", 1))
        if number == 1:
            assert asked.path == "Patient/1/$everything"
            assert asked.params == {"_count": "2"}
        pages = [
            (patient, observe(1, subject=PATIENT)),
            (observe(2, subject=PATIENT), observe(3, subject=PATIENT)),
            last or (observe(4, subject=PATIENT),),
        ]
        more = f"http://{asked.headers['host']}/fhir?page={number + 1}"
        return 200, bundle(*pages[number - 1], next_url=more if number < 3 else None)

    def trouble(self, chart, asked):
        return self.answer(
            chart, asked, last=(outcome(severity="warning", code="timeout"),)
        )


TASKS: list[type[Task]] = [
    *(Upsert, Letter, Trend, Answers, Bytes),
    *(Contained, Summary, Terminology, Subscribe, Everything),
]
