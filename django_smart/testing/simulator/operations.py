"""
Operations on an instance, a type and the server.

Spec: FHIR R4, "Operations", http://hl7.org/fhir/R4/operations.html.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator import fhir
from django_smart.testing.simulator.errors import FHIRError, build_outcome
from django_smart.testing.simulator.exchange import fhir_response
from django_smart.testing.simulator.search import get_parameters

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange, Routes

__all__ = ["routes"]


def routes(base: str) -> Routes:
    """Path, method and handler of each operation."""
    kind = f"{base}/<type:resource_type>"
    yield f"{base}/Patient/<resource_id>/$everything", "GET", _everything
    yield f"{base}/Observation/$lastn", "GET", _lastn
    yield f"{kind}/$validate", "POST", _validate
    yield f"{kind}/<resource_id>/$validate", "POST", _validate
    for method in ("GET", "POST"):
        yield f"{base}/Questionnaire/<resource_id>/$populate", method, _populate
    yield f"{base}/$versions", "GET", _versions


def _everything(exchange: Exchange, resource_id: str) -> Response:
    """The patient, and all of the record that may be read."""
    access = fhir.authorize(exchange)
    patient = exchange.ehr.versions.get_current("Patient", resource_id)
    if not access.allows(patient, "r"):
        raise fhir.insufficient("this patient is outside of what was granted")
    types = dict(exchange.query).get("_type", "").split(",")
    record = [
        resource
        for name, kind in list(exchange.ehr.data.items())
        if name != "Patient" and (types == [""] or name in types)
        for resource in kind.values()
        if any(one.is_of_compartment for one in get_parameters(name).values())
        and fhir.is_in_record(resource, resource_id, exchange.ehr.base_url)
        and access.allows(resource, "r")
    ]
    return fhir.searchset(
        exchange,
        access,
        path=f"Patient/{resource_id}/$everything",
        pairs=exchange.query,
        resources=[patient, *record],
    )


def _lastn(exchange: Exchange) -> Response:
    """The last ``max`` observations of each code."""
    access = fhir.authorize_type(exchange, "Observation", "s", "searching")
    pairs = [pair for pair in exchange.query if pair[0] != "max"]
    found = fhir.find(exchange, access, "Observation", pairs, letter="s")
    number = dict(exchange.query).get("max", "1")
    if not number.isdecimal():
        raise FHIRError(400, "value", "max is no number")
    by_code: dict[str, list[dict[str, Any]]] = {}
    for resource in access.search.sort(found, [("_sort", "-date")]):
        code = json.dumps(resource.get("code"), sort_keys=True)
        by_code.setdefault(code, []).append(resource)
    return fhir.searchset(
        exchange,
        access,
        path="Observation/$lastn",
        pairs=exchange.query,
        resources=[
            resource for group in by_code.values() for resource in group[: int(number)]
        ],
    )


def _validate(
    exchange: Exchange, resource_type: str, resource_id: str = ""
) -> Response:
    """Validate that the body is a resource of the type; profiles are ignored."""
    fhir.authorize(exchange)
    fhir.known_type(resource_type)
    body = exchange.json
    if isinstance(body, dict) and body.get("resourceType") == "Parameters":
        body = next((one.get("resource") for one in body.get("parameter", [])), None)
    is_fine = isinstance(body, dict) and body.get("resourceType") == resource_type
    if resource_id:
        is_fine = is_fine and body is not None and body.get("id") == resource_id
    verdict = ("information", "informational") if is_fine else ("error", "structure")
    return fhir_response(build_outcome(*verdict))


def _populate(exchange: Exchange, resource_id: str) -> Response:
    """A response without answers, about whom the request names, or the patient."""
    access = fhir.authorize(exchange)
    questionnaire = exchange.ehr.versions.get_current("Questionnaire", resource_id)
    if not access.allows(questionnaire, "r"):
        raise fhir.insufficient("this Questionnaire is outside of what was granted")
    body = exchange.request.get_json(force=True, silent=True)
    parameters = body.get("parameter", []) if isinstance(body, dict) else []
    named = {one.get("name"): one.get("valueReference") for one in parameters}
    subject = named.get("subject") or {
        "reference": dict(exchange.query).get(
            "subject", f"Patient/{access.token.grant.patient}"
        )
    }
    answer = {
        "resourceType": "QuestionnaireResponse",
        "questionnaire": f"Questionnaire/{resource_id}",
        "status": "in-progress",
        "subject": subject,
    }
    if not access.allows({**answer, "id": ""}, "r"):
        raise fhir.insufficient("this subject is outside of what was granted")
    return fhir_response(answer)


def _versions(exchange: Exchange) -> Response:
    """Which version of FHIR this is."""
    fhir.authorize(exchange)
    parameters = [{"name": name, "valueCode": "4.0"} for name in ("version", "default")]
    answer = {"resourceType": "Parameters", "parameter": parameters}
    return fhir_response(answer)
