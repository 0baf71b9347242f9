"""
The FHIR R4 API: who may do what, read, and search page by page.

Spec: FHIR R4, "RESTful API" and "Paging", http://hl7.org/fhir/R4/http.html#paging;
SMART App Launch 2.2, "Scopes and Launch Context"; RFC 6750.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from werkzeug.wrappers import Response

from django_smart.testing.simulator.errors import FHIRError, build_outcome
from django_smart.testing.simulator.exchange import fhir_response
from django_smart.testing.simulator.scopes import ResourceScope, parse_scope
from django_smart.testing.simulator.search import (
    RESOURCE_TYPES,
    RESULT_PARAMETERS,
    Search,
    get_parameters,
    iter_values,
    select_elements,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.state import AccessToken

__all__ = [
    "Access",
    "SavedSearch",
    "authorize",
    "authorize_type",
    "fhir_error_response",
    "find",
    "insufficient",
    "is_in_record",
    "known_type",
    "routes",
    "searchset",
]

_DEFAULT_COUNT = 50
_MAX_COUNT = 200
# Parameters of the compartment that say whose a resource is; others say who took part.
_SUBJECTS = ("patient", "subject", "beneficiary", "individual", "actor", "member")
# Where types outside the compartment may say it.
_ELSEWHERE = ("patient", "subject", "securityContext")
# Those of them that belong to nobody who can tell, unless they say whose they are.
_NOBODYS = frozenset({"Binary", "Linkage", "MessageHeader", "Parameters"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The access that a token grants."""

    token: AccessToken
    scopes: list[ResourceScope]
    user_patient: str | None
    """For a person who is a patient: the only record their ``user/`` scopes reach."""
    search: Search
    ehr: EHRSimulator

    def has(self, resource_type: str, letter: str) -> bool:
        """Return whether any scope covers this type and interaction."""
        return any(scope.applies_to(resource_type, letter) for scope in self.scopes)

    def allows(self, resource: dict[str, Any], letter: str) -> bool:
        """Return whether a scope covers this resource."""
        return any(
            scope.applies_to(resource["resourceType"], letter)
            and self._reaches(scope.level, resource)
            and self._is_selected(scope, resource)
            for scope in self.scopes
        )

    def reaches_patient(self, patient: str, resource_type: str, letter: str) -> bool:
        """Return whether a search in this patient's record can find anything."""
        probe = {"resourceType": "Patient", "id": patient}
        return any(
            scope.applies_to(resource_type, letter)
            and self._reaches(scope.level, probe)
            for scope in self.scopes
        )

    def _reaches(self, level: str, resource: dict[str, Any]) -> bool:
        if level == "system" or "compartment" not in self.ehr.checks:
            return True
        if level == "patient":
            return is_in_record(resource, self.token.grant.patient, self.ehr.base_url)
        return self.user_patient is None or is_in_record(
            resource, self.user_patient, self.ehr.base_url
        )

    def _is_selected(self, scope: ResourceScope, resource: dict[str, Any]) -> bool:
        return "scope_query" not in self.ehr.checks or all(
            self.search.matches(resource, name, value) for name, value in scope.params
        )


def is_in_record(resource: dict[str, Any], patient: str | None, base_url: str) -> bool:
    """
    Whether everything that says whose *resource* is says that it is this patient's.

    What belongs to no patient, such as a ``Practitioner``, is in every record.
    """
    if patient is None:
        return False
    if resource["resourceType"] == "Patient":
        return bool(resource["id"] == patient)
    if resource["resourceType"] == "Bundle":
        held = [one for one in iter_values(resource, "entry.resource") if one]
        return bool(held) and all(is_in_record(one, patient, base_url) for one in held)
    parameters = get_parameters(resource["resourceType"])
    paths = {
        path
        for name in _SUBJECTS
        if name in parameters and parameters[name].is_of_compartment
        for path in parameters[name].paths
    }
    found = [
        item for path in paths or _ELSEWHERE for item in iter_values(resource, path)
    ]
    references = [
        str(item.get("reference")) if isinstance(item, dict) else "" for item in found
    ]
    own = {f"Patient/{patient}", f"{base_url}/Patient/{patient}"}
    if not any(reference in own for reference in references):
        # Of two elements, one that names the patient does not speak for the other.
        return not paths and not found and resource["resourceType"] not in _NOBODYS
    return all(
        reference in own or "Patient" not in reference for reference in references
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
        search=Search(ehr.data, ehr.base_url),
        ehr=ehr,
    )


def authorize_type(
    exchange: Exchange, resource_type: str, letter: str, doing: str
) -> Access:
    """Check the bearer token, and that a scope covers *doing* this with the type."""
    access = authorize(exchange)
    known_type(resource_type)
    if not access.has(resource_type, letter):
        raise insufficient(f"no scope for {doing} {resource_type}")
    return access


def routes(base: str) -> Routes:
    """Path, method and handler of reading and searching."""
    kind = f"{base}/<type:resource_type>"
    yield kind, "GET", _search_type
    yield f"{kind}/_search", "POST", _search_type
    yield f"{kind}/<resource_id>", "GET", _read
    yield f"{base}/Patient/<resource_id>/<type:resource_type>", "GET", _search_record
    if base:
        yield base, "GET", _next_page


def _read(exchange: Exchange, resource_type: str, resource_id: str) -> Response:
    """Answer ``GET [base]/[type]/[id]``."""
    access = authorize_type(exchange, resource_type, "r", "reading")
    resource = exchange.ehr.versions.get_current(resource_type, resource_id)
    if not access.allows(resource, "r"):
        raise insufficient("this resource is outside of what was granted")
    headers = {"ETag": f'W/"{resource["meta"]["versionId"]}"'}
    if exchange.request.headers.get("If-None-Match") == headers["ETag"]:
        return Response(status=304, headers=headers)
    accepted = exchange.request.headers.get("Accept", "")
    if resource_type == "Binary" and "json" not in accepted:
        # It is sent as it is to whoever does not ask for the resource.
        content = base64.b64decode(resource.get("data", ""))
        return Response(content, content_type=resource["contentType"], headers=headers)
    answer = select_elements(resource, exchange.query)
    return fhir_response(answer, headers=headers)


def _search_type(exchange: Exchange, resource_type: str) -> Response:
    """Answer ``GET [base]/[type]?…`` and ``POST [base]/[type]/_search``."""
    return _search(exchange, resource_type, [])


def _search_record(
    exchange: Exchange, resource_id: str, resource_type: str
) -> Response:
    """Answer ``GET [base]/Patient/[id]/[type]?…``."""
    own = f"Patient/{resource_id}"
    names = [
        name
        for name, parameter in get_parameters(resource_type).items()
        if parameter.is_of_compartment
    ]
    if not names:
        raise FHIRError(404, "not-supported", f"{resource_type} is in no record")
    return _search(exchange, resource_type, [(name, own) for name in names])


def _search(
    exchange: Exchange, resource_type: str, any_of: list[tuple[str, str]]
) -> Response:
    access = authorize_type(exchange, resource_type, "s", "searching")
    pairs = [*exchange.query, *exchange.form]
    found = [
        resource
        for resource in find(exchange, access, resource_type, pairs, letter="s")
        if not any_of or any(access.search.matches(resource, *one) for one in any_of)
    ]
    return searchset(
        exchange,
        access,
        path=exchange.request.path.removeprefix(f"{exchange.ehr.base_path}/"),
        pairs=pairs,
        resources=access.search.sort(found, pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSearch:
    """The result of a search with further pages."""

    search_id: str
    access: Access
    pairs: list[tuple[str, str]]
    resources: list[dict[str, Any]]


def searchset(
    exchange: Exchange,
    access: Access,
    *,
    path: str,
    pairs: list[tuple[str, str]],
    resources: list[dict[str, Any]],
) -> Response:
    """The first page."""
    ehr = exchange.ehr
    count = _number(pairs, "_count", _DEFAULT_COUNT)
    if dict(pairs).get("_summary") == "count":
        count = 0
    self_url = f"{ehr.page_url}/{path}"
    if pairs:
        self_url += f"?{urlencode(pairs)}"
    saved = SavedSearch(
        search_id=str(uuid.uuid4()), access=access, pairs=pairs, resources=resources
    )
    with ehr.store.lock:
        ehr.saved_searches[saved.search_id] = saved
    return _page(exchange, saved, self_url=self_url, offset=0, count=count)


def _next_page(exchange: Exchange) -> Response:
    """Answer ``GET [base]?_getpages=<id>&_getpagesoffset=<n>&_count=<n>``."""
    access = authorize(exchange)
    pairs = exchange.query
    saved = exchange.ehr.saved_searches.get(dict(pairs).get("_getpages", ""))
    if saved is None:
        raise FHIRError(404, "not-found", "there is no such page")
    if saved.access.token.grant is not access.token.grant:
        raise FHIRError(403, "forbidden", "this page belongs to another authorization")
    offset = _number(pairs, "_getpagesoffset", 0)
    count = _number(pairs, "_count", _DEFAULT_COUNT)
    self_url = f"{exchange.ehr.page_url}?{urlencode(pairs)}"
    return _page(exchange, saved, self_url=self_url, offset=offset, count=count)


def _page(
    exchange: Exchange, saved: SavedSearch, *, self_url: str, offset: int, count: int
) -> Response:
    ehr = exchange.ehr
    count = min(count, _MAX_COUNT)
    links = [{"relation": "self", "url": self_url}]
    if count and offset + count < len(saved.resources):
        query = {
            "_getpages": saved.search_id,
            "_getpagesoffset": offset + count,
            "_count": count,
            "_bundletype": "searchset",
        }
        links.append({"relation": "next", "url": f"{ehr.page_url}?{urlencode(query)}"})
    updated = datetime.fromtimestamp(ehr.clock(), tz=UTC)
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": updated.isoformat(timespec="milliseconds")},
        "type": "searchset",
        "link": links,
    }
    if dict(saved.pairs).get("_total") != "none":
        bundle["total"] = len(saved.resources)
    page = saved.resources[offset : offset + count]
    if page:
        # FHIR forbids an empty array.
        bundle["entry"] = [_entry(saved, one, "match") for one in page] + [
            _entry(saved, one, "include")
            for one in saved.access.search.find_included(page, saved.pairs)
            if saved.access.allows(one, "r") or saved.access.allows(one, "s")
        ]
    return fhir_response(bundle)


def _entry(saved: SavedSearch, resource: dict[str, Any], mode: str) -> dict[str, Any]:
    path = f"{resource['resourceType']}/{resource['id']}"
    return {
        "fullUrl": f"{saved.access.ehr.base_url}/{path}",
        "resource": select_elements(resource, saved.pairs),
        "search": {"mode": mode},
    }


def _number(pairs: list[tuple[str, str]], name: str, default: int) -> int:
    text = dict(pairs).get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise FHIRError(400, "value", f"{name} must be a number that is not negative")
    return int(text)


def find(
    exchange: Exchange,
    access: Access,
    resource_type: str,
    pairs: list[tuple[str, str]],
    *,
    letter: str,
) -> list[dict[str, Any]]:
    """Return the resources that *pairs* select and the scope *letter* allows."""
    filters = _filters(exchange, access, resource_type, pairs)
    if "compartment" in access.ehr.checks:
        _check_patients(access, resource_type, filters, letter)
    return [
        resource
        for resource in list(exchange.ehr.data[resource_type].values())
        if access.allows(resource, letter)
        and all(access.search.matches(resource, *one) for one in filters)
    ]


def known_type(resource_type: str) -> None:
    if resource_type not in RESOURCE_TYPES:
        raise FHIRError(404, "not-supported", f"this server has no {resource_type}")


def _filters(
    exchange: Exchange,
    access: Access,
    resource_type: str,
    pairs: list[tuple[str, str]],
) -> list[tuple[str, str]]:
    """
    The pairs that select resources.

    An unknown parameter is refused, unless ``Prefer: handling=lenient`` was sent: a
    filter that is dropped in silence would give too many results.
    """
    is_lenient = "handling=lenient" in exchange.request.headers.get("Prefer", "")
    filters = []
    for name, value in pairs:
        if name in RESULT_PARAMETERS:
            continue
        try:
            access.search.check(resource_type, name)
        except FHIRError:
            if not is_lenient:
                raise
        else:
            filters.append((name, value))
    return filters


def _check_patients(
    access: Access, resource_type: str, filters: list[tuple[str, str]], letter: str
) -> None:
    """A search in the record of somebody else is refused, not answered empty."""
    by_id = {"_id"} if resource_type == "Patient" else set()
    for name, value in filters:
        bare, _, modifier = name.partition(":")
        if bare in {"patient", "subject"} | by_id and modifier in {"", "Patient"}:
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
    outcome = build_outcome("error", error.code, diagnostics=error.diagnostics)
    headers = {"WWW-Authenticate": error.challenge} if error.challenge else None
    return fhir_response(outcome, status=error.status, headers=headers)
