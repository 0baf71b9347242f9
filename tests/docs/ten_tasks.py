"""The first ten tasks, their servers, and the problems that those can have."""

from __future__ import annotations

import io
import re
from datetime import UTC, date, datetime
from typing import Any

from django.template import engines
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient

from django_smart.fhir.json import Number
from tests.docs.blocks import execute
from tests.docs.comparing import Task, judge, observe, quantity
from tests.fhir.servers import bundle

__all__ = ["TASKS"]

SINCE = datetime(2026, 3, 1, tzinfo=UTC)
IDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(120)]
BIRTHDAY = date(date.today().year - 42, 1, 1)


class LatestA1c(Task):
    title = "The latest HbA1c of each patient"
    arguments = (["1", "2"],)
    expected = {"Patient/1": "7.2 %", "Patient/2": "< 4.5 %"}
    expected_in_trouble = {**expected, "Patient/1": "7.10 %"}

    def answer(self, chart, asked, last=7.2):
        code = "http://loinc.org|4548-4"
        query = {"patient": "1,2", "code": code, "_sort": "date"}
        if asked.params == query:
            first = observe(1, **quantity(4.5, comparator="<"))
            more = f"http://{asked.headers['host']}/fhir/Observation?page=2"
            return 200, bundle(observe(0, **quantity(9.5)), first, next_url=more)
        assert asked.params == {"page": "2"}
        return 200, bundle(observe(2, **quantity(last)))

    def trouble(self, chart, asked):
        return self.answer(chart, asked, last=Number("7.10"))


class Medications(Task):
    title = "Medications, with ``_include``"
    arguments = ("1",)
    expected = expected_in_trouble = ["Metformin", "Lisinopril"]

    def answer(self, chart, asked, left_out=0):
        drugs = [
            {"resourceType": "Medication", "id": name[0], "code": {"text": name}}
            for name in self.expected
        ]
        if asked.path != "MedicationRequest":
            return 200, next(each for each in drugs if each["id"] == asked.path[-1])
        include = "MedicationRequest:medication"
        assert asked.params == {"patient": "1", "_include": include}
        orders = [
            {
                "resourceType": "MedicationRequest",
                "id": each["id"],
                "status": "active",
                "intent": "order",
                "medicationReference": {"reference": f"Medication/{each['id']}"},
                "subject": {"reference": "Patient/1"},
            }
            for each in drugs
        ]
        return 200, bundle(*orders, *drugs[left_out:])

    def trouble(self, chart, asked):
        return self.answer(chart, asked, left_out=1)


class TenThousand(Task):
    title = "10,000 Observations"
    expected = expected_in_trouble = {"2025-01": 5_000, "2025-02": 5_000}

    def answer(self, chart, asked):
        page = int(asked.params.get("page", 0))
        assert page or asked.params == {"_count": "100"}
        month = f"2025-0{page % 2 + 1}-03"
        found = [observe(page * 100 + n, effectiveDateTime=month) for n in range(100)]
        more = f"http://{asked.headers['host']}/fhir/Observation?page={page + 1}"
        return 200, bundle(*found, next_url=more if page < 99 else None)

    def trouble(self, chart, asked):
        if asked.params.get("page") == "50" and chart.fail_once():
            return 503, None, "Retry-After: 0"
        return None


class Upload(Task):
    title = "Upload a PDF"
    expected = expected_in_trouble = "d-1"

    def get_arguments(self):
        return "1", io.BytesIO(b"%PDF")

    def answer(self, chart, asked):
        (content,) = asked.body["content"]
        assert asked.method == "POST"
        assert content["attachment"]["data"] == "JVBERg=="
        assert content["attachment"]["contentType"] == "application/pdf"
        assert asked.body["subject"] == {"reference": "Patient/1"}
        return 201, {**asked.body, "id": "d-1"}

    def trouble(self, chart, asked):
        self.answer(chart, asked)
        host = asked.headers["host"]
        return (
            201,
            None,
            f"Location: http://{host}/fhir/DocumentReference/d-1/_history/1",
        )


class ChangePhone(Task):
    title = "Change a phone number"
    arguments = ("1", "+45 20")
    expected = ("+45 20", True, "2")
    expected_in_trouble = ("+45 20", False, "3")

    def read(self, result):
        phone = result["telecom"][0]["value"]
        return phone, result["active"], result["meta"]["versionId"]

    def answer(self, chart, asked, version=1):
        patient = {"resourceType": "Patient", "id": "1", "active": version == 1}
        if asked.method == "GET":
            return 200, {**patient, "meta": {"versionId": str(version)}}
        assert asked.method == "PUT"
        assert asked.headers["if-match"] == f'W/"{version}"'
        return 200, {**asked.body, "meta": {"versionId": str(version + 1)}}

    def trouble(self, chart, asked):
        if asked.method == "PUT" and chart.fail_once():
            return 412, None
        return self.answer(chart, asked, version=2 if chart.has_failed else 1)


class ManyIds(Task):
    title = "120 ids"
    arguments = (IDS,)
    expected = expected_in_trouble = IDS

    def answer(self, chart, asked):
        assert asked.params == {"_id": ",".join(IDS), "_count": "120"}
        found = (
            {"resourceType": "Patient", "id": each, "name": [{"text": each}]}
            for each in IDS
        )
        return 200, bundle(*found)

    def trouble(self, chart, asked):
        return (414, None) if len(asked.target) > 2_048 else None


class Chained(Task):
    title = "A chained search, and ``_has``"
    arguments = ("Smith",)
    expected = ["1", "2"]
    expected_in_trouble = None

    def answer(self, chart, asked):
        if asked.path == "Observation":
            assert asked.params == {"patient.family": "Smith"}
            return 200, bundle(observe(1))
        assert asked.path == "Patient"
        assert asked.params == {"_has:Observation:patient:code": "4548-4"}
        return 200, bundle({"resourceType": "Patient", "id": "2"})

    def trouble(self, chart, asked):
        issue = {"severity": "error", "code": "not-supported"}
        return 200, bundle({"resourceType": "OperationOutcome", "issue": [issue]})


class TypeHistory(Task):
    title = "The history of a type"
    arguments = (SINCE,)
    expected = ["Observation/1", "Observation/2"]
    expected_in_trouble = None

    def answer(self, chart, asked, host=""):
        page = {
            "resourceType": "Bundle",
            "type": "history",
            "entry": [{"request": {"method": "DELETE", "url": "Observation/1"}}],
        }
        if asked.params == {"_since": SINCE.isoformat()}:
            host = host or asked.headers["host"]
            url = f"http://{host}/fhir/Observation/_history?page=2"
            return 200, {**page, "link": [{"relation": "next", "url": url}]}
        assert asked.params == {"page": "2"}
        entry = {"request": {"method": "DELETE", "url": "Observation/2"}}
        return 200, {**page, "entry": [entry]}

    def trouble(self, chart, asked):
        return self.answer(chart, asked, host=chart.elsewhere)


class Template(Task):
    title = "A patient and results in a template"
    expected = (
        "Ada Lee, 42 years 49 Meadow St, Mounds, OK 74047, +1 918 555 0100 "
        "HbA1c: < 7.2 % HbA1c: Positive HbA1c: not measured"
    )
    expected_in_trouble = expected + " BP: Systolic: 120 mmHg; Diastolic: 80 mmHg"
    patient = {
        "resourceType": "Patient",
        "id": "1",
        "name": [{"given": ["Ada"], "family": "Lee"}],
        "birthDate": BIRTHDAY.isoformat(),
        "telecom": [
            {"system": "email", "value": "ada@example.org"},
            {"system": "phone", "value": "+1 918 555 0100"},
        ],
        "address": [
            {
                "line": ["49 Meadow St"],
                "city": "Mounds",
                "state": "OK",
                "postalCode": "74047",
            }
        ],
    }
    results = (
        observe(1, **quantity(7.2, comparator="<")),
        observe(2, valueCodeableConcept={"coding": [{"display": "Positive"}]}),
        observe(3, valueString="not measured"),
    )
    pressure = observe(
        4,
        code={"text": "BP"},
        component=[
            {
                "code": {"text": name},
                "valueQuantity": {"value": value, "unit": "mmHg"},
            }
            for name, value in (("Systolic", 120), ("Diastolic", 80))
        ],
    )

    def perform(self, library, blocks, *, is_troubled):
        patient: Any = self.patient
        results: Any = [*self.results, *([self.pressure] if is_troubled else [])]
        if library == "fhirclient":
            patient, results = Patient(patient), [Observation(each) for each in results]
        values: dict[str, Any] = {"patient": patient, "results": results}
        if library != "django_smart":
            values = execute(blocks[0])["describe"](patient, results)

        def call() -> str:
            html = engines["django"].from_string(blocks[-1].code).render(values)
            text = re.sub(r"<[^>]*>", " ", html).replace("&lt;", "<")
            return " ".join(text.split())

        return judge(self, call, is_troubled=is_troubled), 0


class Five(Task):
    title = "Five resources at once"
    arguments = ([("Patient", "1"), *(("Observation", str(n)) for n in range(4))],)
    expected = expected_in_trouble = ["1", "0", "1", "2", "3"]

    def answer(self, chart, asked):
        resource_type, _, key = asked.path.partition("/")
        return 200, {"resourceType": resource_type, "id": key}

    def trouble(self, chart, asked):
        has_ended = asked.headers.get("authorization") != "Bearer token-2"
        return (401, None) if has_ended else None


TASKS: list[type[Task]] = [
    *(LatestA1c, Medications, TenThousand, Upload, ChangePhone),
    *(ManyIds, Chained, TypeHistory, Template, Five),
]
