"""
Random requests of a script, at a server that checks nothing.

Half of them begin as something that the proxy allows, and are then changed somewhere.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from django_smart.exceptions import SMARTError
from django_smart.fhir import FHIRClient
from django_smart.fhir.guard import RecordRules
from django_smart.fhir.interactions import FHIR_JSON
from django_smart.protocol.scopes import ScopeSet
from django_smart.testing.simulator.search import get_parameters
from tests.boundary.careless import SECRET_TOTAL, CarelessServer
from tests.boundary.cases import (
    BASE,
    FORM,
    JSON_PATCH,
    SCOPE,
    SECRET,
    TYPES,
    Case,
    new,
    observation,
    ref,
)
from tests.boundary.running import METHODS, ask_proxy
from tests.fhir.servers import Carrier, Tokens

__all__ = ["play"]

VIEWS: tuple[dict[str, Any], ...] = (
    {"methods": ("GET", "HEAD")},
    {},
    {"batch": True},
    {
        "batch": True,
        "operations": {"everything", "lastn", "populate", "validate"},
        "parameters": {
            "MedicationRequest.medication.code",
            "Observation.encounter",
            "Observation.performer",
            "Observation.subject",
            "Slot.schedule.actor",
            "Appointment.actor",
        },
    },
    {"resource_types": {"Observation", "Practitioner", "DocumentReference"}},
)
OPERATIONS = {
    *("docref", "everything", "expand", "lastn", "lookup", "validate", "validate-code")
}
SHARED = ("Practitioner", "Organization", "Location", "Medication", "Questionnaire")
PATIENTS = ("Patient/mine", "Patient/other", "mine", "other", f"{BASE}/Patient/other")
REFERENCES = (
    *PATIENTS,
    *(
        "Practitioner/dr",
        "Group/other",
        "Person/other",
        "Location/ward",
        "patient/other",
    ),
    *("Encounter/encounter-mine", "Binary/scan-other", "Binary/scan-mine"),
    *("Practitioner?_has:Observation:performer:patient=other", "Patient?_id=other"),
    *("Practitioner/dr,Patient/other", "RelatedPerson/other", "#x", "urn:uuid:1"),
)
NAMES = (
    *("_has:Observation:performer:patient", "_has:Provenance:target:agent", "_filter"),
    *("_list", "_query", "_in", "_text", "_content", "_contained", "_type", "patient"),
    *("subject", "actor", "performer", "performer.name", "has-member.value-quantity"),
    *("patient.family", "schedule.actor", "medication.code", "encounter.subject"),
    *("_id", "identifier", "code", "_sort", "_include", "_revinclude", "_elements"),
    *("_summary", "_count", "_total", "_format", "_tag", "date", "status", "member"),
)
MODIFIERS = (
    *("", "", "", "not", "missing", "in", "not-in", "exact", "text", "identifier"),
    *("Patient", "Practitioner", "iterate", "below", "PATIENT", "of-type"),
)
VALUES = (
    *REFERENCES,
    *("x", "4548-4", "ge2026", "count", "true", "id-other", "observation-other", "1"),
    *(
        "0",
        "performer.name",
        "-date",
        "Observation:performer",
        "*",
        "Condition:patient",
    ),
    *("Provenance:target", "id", "Patient:link", "List/list-other", "json", "xml", ""),
)
ODD = ("%00", "%2F", "%25", ".", "[]", " ", ";", ":", "/", "\\", "%3F", "&", "?", ",")


READINGS = (
    *("Patient/mine", "Patient?_id=mine", "Practitioner?name:exact=Quill&_count=5"),
    *("Condition?_lastUpdated=ge2026&_sort=-_lastUpdated,code", "metadata"),
    *("Observation?_include=Observation:performer", "Observation?code:not=x"),
    *("Patient?_revinclude=Condition:subject", "Observation?performer=Practitioner/dr"),
    *("Observation/observation-mine/_history?_count=5", "Encounter?location=ward"),
    *("Patient/mine/$everything?_type=Condition&start=2026", "Observation?_total=none"),
    *("Observation/$lastn?max=1&category=x&patient=mine", "CodeSystem/$lookup?code=1"),
    *("DocumentReference/$docref?start=2026", "ValueSet/$expand?filter=x&count=5"),
    *("ValueSet/$validate-code?code=1&url=x", "Schedule?actor=Practitioner/dr"),
)
_STATUS = {"op": "replace", "path": "/status", "value": "final"}
_PARAMETERS = {"resourceType": "Parameters", "parameter": [{"name": "code"}]}
USES = (
    ("POST", "Observation", new("Observation", "mine"), FHIR_JSON),
    ("PUT", "Observation/observation-mine", observation(), FHIR_JSON),
    ("PUT", "Observation?identifier=x", observation(), FHIR_JSON),
    ("PATCH", "Observation/observation-mine", [_STATUS], JSON_PATCH),
    ("DELETE", "Observation/observation-mine", None, FHIR_JSON),
    ("POST", "Observation/_search", "code=x", FORM),
    ("POST", "Observation/$validate", observation(), FHIR_JSON),
    ("POST", "CodeSystem/$lookup", _PARAMETERS, FHIR_JSON),
)


class _Script:
    """Writes requests."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._any = chance.choice

    def write_use(self) -> Case:
        """A request that has to be answered where every method is allowed."""
        if self._chance.random() < 0.3:
            method, path, body, media_type = self._any(USES)
        else:
            method, path, body, media_type = "GET", self._write_reading(), None, ""
        return Case(
            about="use",
            is_attack=False,
            method=method,
            path=path,
            body=body,
            media_type=media_type or FHIR_JSON,
        )

    def _write_reading(self) -> str:
        names = sorted({*TYPES} - {"Binary", "Linkage"})
        one = self._any([f"{name}/{name.lower()}-mine" for name in names])
        known = get_parameters("Observation")
        name = self._any([name for name in sorted(known) if name[0] != "_"])
        modifier, value = "", "2026"
        if name in {"patient", "subject"}:
            value = "Patient/mine"
        elif self._chance.random() < 0.2:
            modifier, value = ":missing", "true"
        elif known[name].kind == "reference":
            value = "Practitioner/dr"
        search = f"Observation?{name}{modifier}={value}"
        return self._any([one, search, f"Patient/mine/{search}", *READINGS])

    def write(self) -> Case:
        """A request of any kind."""
        method = self._any(
            ["GET"] * 6 + ["POST", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
        )
        path, kind = self._write_path(method)
        body, media_type = self._write_body(method, path, kind)
        headers = {}
        if self._chance.random() < 0.2:
            headers["If-None-Exist"] = self._write_query(kind)
        if self._chance.random() < 0.1:
            headers["Prefer"] = self._any(["handling=lenient", "return=minimal"])
        return Case(
            about="any",
            method=method,
            path=path,
            body=body,
            headers=headers,
            media_type=media_type,
        )

    def _write_path(self, method: str) -> tuple[str, str]:
        name = self._any(["Observation"] * 3 + ["Patient", "Patient", *SHARED, *TYPES])
        whose = self._any(["mine", "other", "mine", "dr"])
        place = name if name == "Patient" else name.lower()
        resource_id = whose if name == "Patient" else f"{place}-{whose}"
        one = f"{name}/{resource_id}"
        operation = self._any(
            [
                *(
                    "$everything",
                    "$lastn",
                    "$docref",
                    "$expand",
                    "$validate",
                    "$export",
                ),
                *("$populate", "$graphql", "$match", "$lookup"),
            ]
        )
        path = self._any(
            [
                *([name] * 8 + [one] * 3),
                *(f"{one}/_history", f"{one}/_history/1", f"{name}/_history"),
                *(f"Patient/{whose}/{name}", f"{one}/Observation", "_history", ""),
                *(f"{name}/{operation}", f"{one}/{operation}", operation, "metadata"),
                *(
                    f"Patient/{whose}/$everything",
                    "Observation/$lastn",
                    f"{name}/_search",
                ),
                *("Questionnaire/deep/$populate", "SearchParameter", "Patient"),
            ]
        )
        if method == "POST" and self._chance.random() < 0.3:
            path = self._any(
                ["", name, f"{name}/_search", f"Patient/{whose}/{name}/_search"]
            )
        query = self._write_query(name) if self._chance.random() < 0.8 else ""
        path = f"{path}?{query}" if query else path
        return (self._spoil(path) if self._chance.random() < 0.2 else path), name

    def _write_query(self, kind: str) -> str:
        known = [*get_parameters(kind)]
        pairs = []
        for _ in range(self._any([0, 1, 1, 1, 2, 2, 3])):
            name = self._any(known if self._chance.random() < 0.4 else list(NAMES))
            if modifier := self._any(MODIFIERS):
                name = f"{name}:{modifier}"
            if self._chance.random() < 0.1:
                name = self._any([name.upper(), name.title(), self._spoil(name)])
            value = self._any(VALUES)
            if self._chance.random() < 0.1:
                value = self._spoil(value)
            pairs.append(f"{quote(name, safe=':[]%')}={quote(value, safe='%:/,')}")
        if self._chance.random() < 0.4:
            pairs.append(self._any(["_summary=count", "_count=0", "_elements=id"]))
        return "&".join(pairs)

    def _spoil(self, text: str) -> str:
        """*text* with something changed somewhere."""
        at = self._chance.randrange(len(text) + 1)
        one = text[at : at + 1]
        changed = [
            one.swapcase(),
            f"%{ord(one or 'x'):02X}" if ord(one or "x") < 128 else one,
            self._any(ODD) + one,
            "",
            one + one,
            self._any(string.ascii_letters),
        ]
        return text[:at] + self._any(changed) + text[at + 1 :]

    # Bodies

    def _write_body(self, method: str, path: str, kind: str) -> tuple[Any, str]:
        place = path.partition("?")[0]
        if method == "PATCH":
            return self._write_patch()
        if method not in {"POST", "PUT"}:
            return None, FHIR_JSON
        if place.endswith("_search"):
            return self._write_query(kind), FORM
        if place == "":
            return self._write_bundle(), FHIR_JSON
        if "$" in place and self._chance.random() < 0.7:
            return self._write_parameters(), FHIR_JSON
        return self._write_resource(kind), FHIR_JSON

    def _write_resource(self, kind: str) -> dict[str, Any]:
        whose = self._any(["mine", "mine", "other"])
        resource: dict[str, Any] = {"resourceType": kind}
        if kind in TYPES:
            resource = new(kind, whose)
        resource.pop("language", None)
        extra: dict[str, Callable[[], Any]] = {
            "performer": lambda: [ref(self._any(REFERENCES))],
            "focus": lambda: [ref(self._any(REFERENCES))],
            "content": lambda: [{"attachment": {"url": self._any(REFERENCES)}}],
            "subject": lambda: ref(self._any(PATIENTS)),
            "id": lambda: self._any(["observation-mine", "observation-other"]),
            "contained": lambda: [self._any([observation("other"), observation()])],
            "note": lambda: [{"authorReference": ref(self._any(REFERENCES))}],
        }
        for name, build in extra.items():
            if self._chance.random() < 0.15:
                resource[name] = build()
        return resource

    def _write_patch(self) -> tuple[Any, str]:
        if self._chance.random() < 0.1:
            return self._write_parameters(), FHIR_JSON
        steps = []
        for _ in range(self._any([1, 1, 2])):
            path = self._any(
                [
                    *("/status", "/note", "/performer", "/performer/0/reference", ""),
                    *("/subject", "/subject/reference", "/id", "/contained", "/focus"),
                    *("/derivedFrom", "/Subject", "/sub~0ject", "/status/x"),
                ]
            )
            value = self._any(
                ["final", ref(self._any(REFERENCES)), self._any(REFERENCES)]
            )
            name = self._any(["add", "replace", "remove", "copy", "move", "test"])
            steps.append({"op": name, "path": path, "value": value, "from": "/note"})
        return steps, JSON_PATCH

    def _write_parameters(self) -> dict[str, Any]:
        part: dict[str, Any] = {
            "name": self._any(
                ["patient", "subject", "url", "x", "resource", "_summary"]
            ),
            self._any(["valueString", "valueUri"]): self._any(VALUES),
        }
        if self._chance.random() < 0.3:
            name = part["name"]
            part = {"name": name, "valueReference": ref(self._any(REFERENCES))}
        return {"resourceType": "Parameters", "parameter": [part]}

    def _write_bundle(self) -> dict[str, Any]:
        entries = []
        for _ in range(self._any([1, 2, 3])):
            method = self._any(["GET", "GET", "POST", "PUT", "DELETE"])
            path, kind = self._write_path(method)
            request = {"method": method, "url": path}
            if self._chance.random() < 0.2:
                request["ifNoneExist"] = self._write_query(kind)
            entry: dict[str, Any] = {"request": request}
            if method in {"POST", "PUT"}:
                entry["resource"] = self._write_resource(kind)
            entries.append(entry)
        kind = self._any(["batch", "transaction"])
        return {"resourceType": "Bundle", "type": kind, "entry": entries}


def play(count: int, *, seed: int) -> Iterator[str]:
    """Send *count* requests, and return what must not have happened."""
    chance = random.Random(seed)
    server, script = CarelessServer(), _Script(chance)
    client = FHIRClient(
        base_url=BASE,
        tokens=Tokens(get_scopes=lambda: ScopeSet.parse(SCOPE)),
        transport=Carrier(server),
        patient_id="mine",
        record_rules=RecordRules(),
        sleep=lambda seconds: None,
    )
    secrets = (SECRET.encode(), str(SECRET_TOTAL).encode())
    for _ in range(count):
        is_use = chance.random() < 0.2
        attributes = {} if is_use else chance.choice(VIEWS)
        server.asked.clear()
        case = script.write_use() if is_use else script.write()
        server.opened = set(attributes.get("parameters", ()))
        server.written.clear()
        server.broken.clear()
        case = Case(**{**vars(case), "attributes": attributes})
        try:
            response = ask_proxy(client, case)
            content = bytes(response.content) + str(dict(response.headers)).encode()
            status = response.status_code
        except (
            SMARTError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            yield f"{type(error).__name__} for {_show(case)}"
            continue
        if any(secret in content for secret in secrets):
            yield f"another patient's data for {_show(case)}"
        if server.broken or (server.written and "methods" in attributes):
            yield f"written: {server.written} for {_show(case)}"
        for method, path in server.asked:
            if not _is_allowed(method, path, attributes):
                yield f"{method} {path} was sent for {_show(case)}"
        if is_use and status != 200:
            yield f"status {status} for {_show(case)}"


def _is_allowed(method: str, path: str, attributes: dict[str, Any]) -> bool:
    """Whether what was sent is of a method, a type and an operation that is listed."""
    if method == "GET" and path.startswith("Binary/"):
        return True  # also to check what a change refers to
    *types, last = path.split("/")
    operation = last.removeprefix("$") if last.startswith("$") else ""
    kinds = {one for one in (*types, last) if one[:1].isupper() and one.isalpha()}
    listed = attributes.get("resource_types") or kinds | {"Patient"}
    return (
        method in attributes.get("methods", METHODS)
        and (path != "" or attributes.get("batch", False))
        and kinds <= {*listed, *(["Patient"] if len(types) > 1 else [])}
        and operation in {"", *attributes.get("operations", OPERATIONS)}
    )


def _show(case: Case) -> str:
    body = json.dumps(case.body)
    return f"{case.request} {dict(case.headers)} {body} {dict(case.attributes)}"
