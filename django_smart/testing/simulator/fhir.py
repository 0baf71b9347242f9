"""
The FHIR R4 API: who may do what, read and search, within what the bearer token allows.

Spec: FHIR R4, "RESTful API"; SMART App Launch 2.2, "Scopes and Launch Context";
RFC 6750.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator import search
from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import json_response
from django_smart.testing.simulator.paging import searchset
from django_smart.testing.simulator.scopes import ResourceScope, parse_scope

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.state import AccessToken

__all__ = [
    "FHIR_JSON",
    "Access",
    "authorize",
    "fhir_error_response",
    "find",
    "insufficient",
    "known_type",
    "read",
    "search_type",
]

FHIR_JSON = "application/fhir+json; charset=utf-8"

# Where a resource says whose it is (the Patient compartment of FHIR R4).
_COMPARTMENT = ("subject", "patient", "securityContext")
# Types outside the compartment that a patient's own data refer to.
_SHARED_TYPES = frozenset({"Organization", "Practitioner"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one access token opens."""

    token: AccessToken
    scopes: list[ResourceScope]
    user_patient: str | None
    """For a person who is a patient: the only record their ``user/`` scopes reach."""
    base_url: str

    def has(self, resource_type: str, letter: str) -> bool:
        """Whether any scope is about this type and interaction."""
        return any(scope.applies_to(resource_type, letter) for scope in self.scopes)

    def allows(self, resource: dict[str, Any], letter: str) -> bool:
        """Whether a scope reaches this very resource."""
        return any(
            scope.applies_to(resource["resourceType"], letter)
            and self._reaches(scope.level, resource)
            and self._is_selected(scope, resource)
            for scope in self.scopes
        )

    def reaches_patient(self, patient: str, resource_type: str, letter: str) -> bool:
        """Whether a search in this patient's record can find anything."""
        probe = {"resourceType": "Patient", "id": patient}
        return any(
            scope.applies_to(resource_type, letter)
            and self._reaches(scope.level, probe)
            for scope in self.scopes
        )

    def _reaches(self, level: str, resource: dict[str, Any]) -> bool:
        if level == "system":
            return True
        if level == "patient":
            return _in_record(resource, self.token.grant.patient)
        return self.user_patient is None or _in_record(resource, self.user_patient)

    def _is_selected(self, scope: ResourceScope, resource: dict[str, Any]) -> bool:
        return all(
            search.matches(resource, name, value, base_url=self.base_url)
            for name, value in scope.params
        )


def _in_record(resource: dict[str, Any], patient: str | None) -> bool:
    if patient is None:
        return False
    if resource["resourceType"] in _SHARED_TYPES:
        return True
    if resource["resourceType"] == "Patient":
        return bool(resource["id"] == patient)
    reference = f"Patient/{patient}"
    return any(
        resource.get(name, {}).get("reference") == reference for name in _COMPARTMENT
    )


def authorize(exchange: Exchange) -> Access:
    """
    Check the bearer token of a FHIR request.

    Raises:
        FHIRError: 401, with a challenge.
    """
    ehr = exchange.ehr
    header = exchange.request.headers.get("Authorization")
    if header is None:
        raise FHIRError(
            401, "login", "a bearer token is needed", challenge='Bearer realm="fhir"'
        )
    scheme, _, value = header.partition(" ")
    token = ehr.store.live_access_token(value, now=ehr.clock())
    if scheme.lower() != "bearer" or token is None:
        raise FHIRError(
            401,
            "login",
            "the access token is unknown, expired or revoked",
            challenge='Bearer realm="fhir", error="invalid_token"',
        )
    exchange.client_id = token.grant.client_id
    exchange.patient = token.grant.patient
    parsed = [parse_scope(item) for item in token.scopes]
    user = ehr.users.get(token.grant.user or "")
    return Access(
        token=token,
        scopes=[scope for scope in parsed if scope is not None],
        user_patient=user.patient_id if user is not None else None,
        base_url=ehr.base_url,
    )


def read(exchange: Exchange, resource_type: str, resource_id: str) -> Response:
    """Answer ``GET [base]/[type]/[id]``."""
    access = authorize(exchange)
    known_type(exchange, resource_type)
    if not access.has(resource_type, "r"):
        raise insufficient(f"no scope for reading {resource_type}")
    resource = exchange.ehr.versions.get_current(resource_type, resource_id)
    if not access.allows(resource, "r"):
        raise insufficient("this resource is outside of what was granted")
    headers = {"ETag": f'W/"{resource["meta"]["versionId"]}"'}
    if exchange.request.headers.get("If-None-Match") == headers["ETag"]:
        return Response(status=304, headers=headers)
    if resource_type == "Binary" and not _wants_json(exchange):
        content = base64.b64decode(resource.get("data", ""))
        return Response(content, content_type=resource["contentType"], headers=headers)
    answer = select_elements(resource, exchange.query)
    return json_response(answer, content_type=FHIR_JSON, headers=headers)


def _wants_json(exchange: Exchange) -> bool:
    """A Binary is sent as it is to whoever does not ask for the resource."""
    return "json" in exchange.request.headers.get("Accept", "")


def select_elements(
    resource: dict[str, Any], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """What ``_elements`` leaves of *resource*, marked as a part."""
    elements = dict(pairs).get("_elements")
    if elements is None:
        return resource
    names = {"resourceType", "id", *elements.split(",")}
    part = {name: value for name, value in resource.items() if name in names}
    system = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
    tag = {"system": system, "code": "SUBSETTED"}
    return {**part, "meta": {**resource["meta"], "tag": [tag]}}


def search_type(exchange: Exchange, resource_type: str) -> Response:
    """Answer ``GET [base]/[type]?…`` and ``POST [base]/[type]/_search``."""
    access = authorize(exchange)
    known_type(exchange, resource_type)
    if not access.has(resource_type, "s"):
        raise insufficient(f"no scope for searching {resource_type}")
    pairs = [*exchange.query, *exchange.form]
    found = find(exchange, access, resource_type, pairs, letter="s")
    return searchset(
        exchange,
        access.token.grant,
        resource_type=resource_type,
        pairs=pairs,
        resources=[
            select_elements(resource, pairs)
            for resource in search.sort_resources(found, pairs)
        ],
    )


def find(
    exchange: Exchange,
    access: Access,
    resource_type: str,
    pairs: list[tuple[str, str]],
    *,
    letter: str,
) -> list[dict[str, Any]]:
    """What *pairs* select of the resources that *letter* reaches."""
    filters = _filters(exchange, resource_type, pairs)
    _check_patients(access, resource_type, filters, letter)
    return [
        resource
        for resource in exchange.ehr.data[resource_type].values()
        if access.allows(resource, letter)
        and all(
            search.matches(resource, name, value, base_url=access.base_url)
            for name, value in filters
        )
    ]


def known_type(exchange: Exchange, resource_type: str) -> dict[str, dict[str, Any]]:
    try:
        return exchange.ehr.data[resource_type]
    except KeyError:
        raise FHIRError(
            404, "not-supported", f"this server has no {resource_type}"
        ) from None


def _filters(
    exchange: Exchange, resource_type: str, pairs: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """
    The pairs that select resources.

    An unknown parameter is refused, unless ``Prefer: handling=lenient`` was sent: a
    filter that is dropped in silence would give too many results.
    """
    filters = [pair for pair in pairs if pair[0] not in search.RESULT_PARAMETERS]
    if "handling=lenient" in exchange.request.headers.get("Prefer", ""):
        known = search.PARAMETERS[resource_type]
        return [pair for pair in filters if pair[0].partition(":")[0] in known]
    for name, _ in filters:
        if name.partition(":")[0] not in search.PARAMETERS[resource_type]:
            raise FHIRError(400, "not-supported", f"unknown search parameter: {name}")
    return filters


def _check_patients(
    access: Access, resource_type: str, filters: list[tuple[str, str]], letter: str
) -> None:
    """A search in the record of somebody else is refused, not answered empty."""
    by_id = {"_id"} if resource_type == "Patient" else set()
    for name, value in filters:
        if name.partition(":")[0] in {"patient", "subject"} | by_id:
            for one in value.split(","):
                patient = one.rpartition("/")[2]
                if not access.reaches_patient(patient, resource_type, letter):
                    raise insufficient("this patient is outside of what was granted")


def insufficient(diagnostics: str) -> FHIRError:
    return FHIRError(
        403,
        "forbidden",
        diagnostics,
        challenge='Bearer realm="fhir", error="insufficient_scope"',
    )


def fhir_error_response(error: FHIRError) -> Response:
    """The ``OperationOutcome`` for *error*."""
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [
            {
                "severity": "error",
                "code": error.code,
                "diagnostics": error.diagnostics,
            }
        ],
    }
    headers = {"WWW-Authenticate": error.challenge} if error.challenge else None
    return json_response(
        outcome, status=error.status, content_type=FHIR_JSON, headers=headers
    )
