"""The pages on writing and on the audit trail, by the code that they show."""

from __future__ import annotations

import io
import logging.config
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

from django_smart.clients import build_fhir_client
from django_smart.exceptions import FHIRForbiddenError, FHIRPreconditionFailedError
from django_smart.fhir import FHIRClient
from django_smart.fields import EncryptedTextField
from django_smart.models import ClientRegistration
from django_smart.signals import fhir_request_finished
from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import PATIENT, launch, make_browser

_LOGS = "how-to/keys-and-logs.rst"
NOW = datetime(2026, 3, 4, 10, tzinfo=UTC)


@pytest.fixture
def fhir(ehr: EHRSimulator, registration: ClientRegistration) -> FHIRClient:
    """The client of a launch that may write."""
    registration.ehr_scope = "launch openid fhirUser patient/*.cruds"
    registration.save()
    row = launch(make_browser(), ehr)
    assert row.grant is not None
    return build_fhir_client(row.grant, launch=row)


def run(page: str) -> dict[str, Any]:
    return execute(*read_blocks(page), refusals=[])


def test_functions_of_the_page_on_writing_write(fhir: FHIRClient) -> None:
    page = run("how-to/writing.rst")
    made = page["record_weight"](fhir, PATIENT, 71.5, NOW)
    assert made["meta"]["versionId"] == "1"
    assert fhir.read("Observation", made["id"])["valueQuantity"]["value"] == 71.5

    ids = {page["record_once"](fhir, made)["id"] for _ in range(2)}
    assert ids == {made["id"]}
    later = {**made, "effectiveDateTime": "2026-03-05T10:00:00Z"}
    assert page["record_once"](fhir, later)["id"] != made["id"]

    before = fhir.read("Patient", PATIENT).get("telecom", [])
    assert page["add_phone"](fhir, PATIENT, "+45 20")["telecom"] == [
        *before,
        {"system": "phone", "value": "+45 20"},
    ]
    letter = page["upload_letter"](fhir, PATIENT, io.BytesIO(b"%PDF"))
    assert letter["subject"] == {"reference": f"Patient/{PATIENT}"}
    file = io.BytesIO()
    fhir.download(letter["content"][0]["attachment"], file)
    assert file.getvalue() == b"%PDF"


def test_change_of_the_page_survives_somebody_elses(fhir: FHIRClient) -> None:
    page = run("how-to/writing.rst")
    read, others = fhir.read, ["+45 1", "+45 2"]

    def read_before_somebody_writes(resource_type: str, key: str) -> dict[str, Any]:
        found = read(resource_type, key)
        if others:
            number = {"system": "phone", "value": others.pop()}
            fhir.update({**found, "telecom": [*found.get("telecom", []), number]})
        return found

    fhir.read = read_before_somebody_writes  # type: ignore[method-assign,assignment]  # a race
    numbers = {
        each["value"] for each in page["add_phone"](fhir, PATIENT, "+45 3")["telecom"]
    }
    assert {"+45 1", "+45 2", "+45 3"} <= numbers
    others.extend(["+45 4"] * 3)
    with pytest.raises(FHIRPreconditionFailedError):
        page["add_phone"](fhir, PATIENT, "+45 5")


def test_prescription_of_the_page_is_cancelled_and_its_panel_recorded(
    fhir: FHIRClient,
) -> None:
    page = run("how-to/writing.rst")
    prescription = fhir.search("MedicationRequest", patient=PATIENT).first()
    assert page["cancel"](fhir, prescription)["status"] == "cancelled"
    with pytest.raises(FHIRPreconditionFailedError):
        page["cancel"](fhir, prescription)

    weight = page["record_weight"](fhir, PATIENT, 71.5, NOW)
    kept = ("resourceType", "status", "code", "subject")
    plain = {key: weight[key] for key in kept}
    *members, panel = page["record_panel"](fhir, plain, [plain, plain])
    found = fhir.read(*panel.reference.split("/"))
    assert [each["reference"] for each in found["hasMember"]] == [
        each.reference for each in members
    ]


def test_trail_of_the_page_tells_who_and_whom_and_nothing_more(
    ehr: EHRSimulator, registration: ClientRegistration, tmp_path: Path
) -> None:
    row = launch(make_browser(), ehr)
    assert row.grant is not None
    fhir = build_fhir_client(row.grant, launch=row)
    page = execute(*read_blocks(_LOGS, "Keep an audit trail"), refusals=[])
    try:
        file = tmp_path / "audit.log"
        page["LOGGING"]["handlers"]["audit"]["filename"] = str(file)
        logging.config.dictConfig(page["LOGGING"])
        list(fhir.search("Observation", patient=PATIENT, code="4548-4", _count=100))
        with pytest.raises(FHIRForbiddenError):
            fhir.search("Condition", code="c4nary").first()
        logging.getLogger("django_smart.audit").handlers[0].close()
        search, refusal = file.read_text().splitlines()
        assert f" patient={PATIENT} server=harbour " in search
        assert " fhir_user=Practitioner/" in search
        assert re.search(r" search Observation 200 \d+\.\d{3} ", search)
        # Behind it all stands an id, by chance of any digits.
        assert "4548-4" not in search.rpartition(" ")[0]
        assert re.search(r" search Condition 403 \d+\.\d{3} ", refusal)
        assert "c4nary" not in refusal
        assert page["refusals"][0][1] == "Condition"
    finally:
        fhir_request_finished.disconnect(page["count_refusals"])
        logger = logging.getLogger("django_smart.audit")
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def test_page_excludes_every_encrypted_field_from_a_log_of_all_models() -> None:
    (block,) = read_blocks(_LOGS, "Exclude secrets from a log of all models")
    page = execute(block)
    assert page["AUDITLOG_EXCLUDE_TRACKING_FIELDS"] == sorted(
        field.name
        for model in apps.get_models()
        for field in model._meta.fields
        if isinstance(field, EncryptedTextField)
    )
