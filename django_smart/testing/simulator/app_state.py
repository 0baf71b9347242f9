"""
App state: ``Basic`` resources that an app keeps at the EHR.

Spec: SMART App Launch 2.2, "App State" (experimental).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import fhir_response
from django_smart.testing.simulator.fhir import (
    Access,
    authorize,
    insufficient,
    searchset,
)
from django_smart.testing.simulator.search import iter_values

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.versions import Version

__all__ = ["MAX_SIZE", "routes"]

MAX_SIZE = 256 * 1024
"""Bytes of JSON."""

_SUBJECTS = frozenset(
    {"Patient", "Person", "Practitioner", "PractitionerRole", "RelatedPerson"}
)


def routes(base: str) -> Routes:
    """Path, method and handler of each interaction."""
    yield f"{base}/Basic", "GET", _search
    yield f"{base}/Basic", "POST", _create
    yield f"{base}/Basic/<resource_id>", "PUT", _update
    yield f"{base}/Basic/<resource_id>", "DELETE", _delete


def _create(exchange: Exchange) -> Response:
    access = authorize(exchange)
    resource = _read_body(exchange)
    if "id" in resource or "versionId" in resource.get("meta", {}):
        raise FHIRError(400, "invalid", "a new resource has no id and no versionId")
    _check_scope(access, resource, "c")
    with exchange.ehr.store.lock:
        version = exchange.ehr.versions.put(
            "Basic", str(uuid.uuid4()), resource, method="POST"
        )
    return _answer(version, 201)


def _update(exchange: Exchange, resource_id: str) -> Response:
    access = authorize(exchange)
    resource = _read_body(exchange)
    if resource.get("id") != resource_id:
        raise FHIRError(400, "invalid", "the id in the body is not that of the URL")
    with exchange.ehr.store.lock:
        held = _match(exchange, access, resource_id, "u")
        if any(resource.get(one) != held.get(one) for one in ("code", "subject")):
            raise FHIRError(422, "business-rule", "code and subject do not change")
        version = exchange.ehr.versions.put(
            "Basic", resource_id, resource, method="PUT"
        )
    return _answer(version, 200)


def _delete(exchange: Exchange, resource_id: str) -> Response:
    access = authorize(exchange)
    with exchange.ehr.store.lock:
        _match(exchange, access, resource_id, "d")
        exchange.ehr.versions.put("Basic", resource_id, None, method="DELETE")
    return Response(status=204)


def _search(exchange: Exchange) -> Response:
    access = authorize(exchange)
    query = dict(exchange.query)
    subject = query.get("subject")
    is_global = query.get("subject:missing") == "true"
    system, bar, code = query.get("code", "").partition("|")
    if not system or not bar or not code or (subject is None) != is_global:
        raise FHIRError(
            400, "not-supported", "search by code=system|code and by the subject"
        )
    wanted: dict[str, Any] = {"resourceType": "Basic"}
    wanted["code"] = {"coding": [{"system": system, "code": code}]}
    if subject is not None:
        wanted["subject"] = {"reference": subject}
    _check_scope(access, wanted, "s")
    held = list(exchange.ehr.data["Basic"].values())
    return searchset(
        exchange,
        access,
        path="Basic",
        pairs=exchange.query,
        resources=[one for one in held if _key(one) == _key(wanted)],
    )


def _answer(version: Version, status: int) -> Response:
    headers = {"ETag": version.etag}
    return fhir_response(version.resource, status=status, headers=headers)


def _match(
    exchange: Exchange, access: Access, resource_id: str, letter: str
) -> dict[str, Any]:
    """The resource as held, if the request is about this very version of it."""
    held = exchange.ehr.versions.get_current("Basic", resource_id)
    _check_scope(access, held, letter)
    wanted = exchange.request.headers.get("If-Match")
    if wanted is None:
        raise FHIRError(428, "required", "If-Match is needed")
    if wanted != f'W/"{held["meta"]["versionId"]}"':
        raise FHIRError(412, "conflict", "the app state was changed meanwhile")
    return held


def _read_body(exchange: Exchange) -> dict[str, Any]:
    """A ``Basic`` that follows the rules for app state."""
    if len(exchange.body) > MAX_SIZE:
        raise FHIRError(413, "too-long", f"more than {MAX_SIZE} bytes")
    resource = exchange.json
    if not isinstance(resource, dict) or resource.get("resourceType") != "Basic":
        raise FHIRError(400, "structure", "the body is no Basic resource")
    codings = resource.get("code", {}).get("coding", [])
    if len(codings) != 1 or not {"system", "code"} <= set(codings[0]):
        raise FHIRError(422, "business-rule", "there is not exactly one coding")
    if any(set(one) != {"url", "valueString"} for one in resource.get("extension", [])):
        raise FHIRError(422, "business-rule", "extensions may only hold valueString")
    if "subject" in resource:
        reference = resource["subject"].get("reference", "")
        base, _, relative = reference.rpartition("/")[0].rpartition("/")
        if base != exchange.ehr.base_url or relative not in _SUBJECTS:
            raise FHIRError(422, "business-rule", "the subject is not absolute")
    return resource


def _key(resource: dict[str, Any]) -> tuple[str, str, str]:
    coding: dict[str, str] = next(iter_values(resource, "code.coding"), {})
    reference = resource.get("subject", {}).get("reference", "")
    return coding.get("system", ""), coding.get("code", ""), reference


def _check_scope(access: Access, resource: dict[str, Any], letter: str) -> None:
    """A patient's scopes are about that patient, a user's not about other users."""
    system, code, reference = _key(resource)
    subject = reference.removeprefix(f"{access.ehr.base_url}/")
    grant = access.token.grant
    mine: dict[str, set[str | None]] = {
        "patient": {f"Patient/{grant.patient}"},
        "user": {"", grant.user, f"Patient/{access.user_patient}"},
    }
    is_clinician = access.user_patient is None and subject.startswith("Patient/")
    for scope in access.scopes:
        if (
            scope.applies_to("Basic", letter)
            and set(scope.params) <= {("code", f"{system}|{code}")}
            and (
                subject in mine.get(scope.level, set())
                or (scope.level == "user" and is_clinician)
            )
        ):
            return
    raise insufficient("this app state is outside of what was granted")
