"""
A FHIR server that checks nothing, and reads each request as generously as it can.

It decodes more than once, ignores the case of names, follows chains, and applies what
it understands to all patients.  The ids of the patient's resources end with ``mine``,
those of another patient with ``other``.  Whatever it answers from another patient's
record contains :data:`SECRET` or :data:`SECRET_TOTAL`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from django_smart.fhir.compartment import get_compartment
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.testing.simulator.search import get_parameters
from tests.boundary.cases import BASE, SECRET, TYPES, build_data, build_odd

__all__ = ["SECRET_TOTAL", "CarelessServer"]

SECRET_TOTAL = 90_807_060
_SECRET_PARAMETERS = (
    *("_filter", "_query", "_list", "_in", "_text", "_content", "_contained"),
    *("_containedtype", "_type", "near"),
)
_WHO = {"actor", "beneficiary", "individual", "member", "patient", "subject"}
_OTHER = re.compile(r"(?:^|[,=?|]|patient/)other(?:$|[/,?|&])")
_SHARED = {"Practitioner", "Organization", "Location", "Medication", "Questionnaire"}


def fold(text: str) -> str:
    """What the server takes *text* for."""
    for _ in range(3):
        text = unquote(text)
    return text.strip(" \0\n\t").lower().replace("\\", "/")


def names_other(value: str) -> bool:
    """Whether a value is another patient's id or reference, or has it in a list."""
    return _OTHER.search(fold(value)) is not None


class CarelessServer:
    """
    Answers a request of the FHIR client.

    Attributes:
        opened: parameters of searches that the site has decided to allow.
        asked: methods and paths, also those of entries.
        written: what it was asked to store.
        broken: what of it must not have come here.
    """

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.written: list[str] = []
        self.broken: list[str] = []
        stored = [*build_data(), *build_odd()]
        self._data = {
            (one["resourceType"].lower(), one["id"].lower()): one for one in stored
        }
        names = {"SearchParameter", *TYPES, *(one["resourceType"] for one in stored)}
        self._types = {name.lower(): name for name in names}

    def __call__(self, request: HTTPRequest) -> HTTPResponse:
        path = request.url.removeprefix(BASE).lstrip("/")
        headers = {name.lower(): text for name, text in request.headers.items()}
        body = request.body or b""
        kind = headers.get("content-type", "")
        form = body.decode("utf-8", "replace") if "urlencoded" in kind else ""
        value = None if form or not body else json.loads(body)
        found = self._answer(
            request.method, path, value, form, headers.get("if-none-exist", "")
        )
        return HTTPResponse(
            status_code=200,
            headers={"content-type": "application/fhir+json"},
            body=json.dumps(found).encode(),
            url=request.url,
        )

    def _answer(
        self, method: str, path: str, body: Any, form: str = "", condition: str = ""
    ) -> dict[str, Any]:
        place, _, query = path.partition("?")
        parts = fold(place).strip("/").split("/")
        self.asked.append((method, place))
        pairs = parse_qsl(f"{query}&{form}", keep_blank_values=True)
        if method == "POST" and parts == [""]:
            return self._run_bundle(body)
        if parts[-1].startswith("$"):
            return self._operate(parts, pairs, body)
        if method != "GET" and parts[-1] != "_search":
            self._write(method, parts, pairs, body, condition)
            return self._get("observation", "observation-mine")
        if parts[-1] == "_history":
            is_shared = self._types.get(parts[0]) in _SHARED
            is_others = len(parts) < 3 or (
                parts[-2].endswith("other") and not is_shared
            )
            return _bundle("history", is_secret=is_others)
        if parts == ["metadata"]:
            return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}
        if len(parts) in {2, 4} and parts[-1] != "_search":
            return self._get(parts[0], parts[1])
        return self._search(parts, pairs)

    def _get(self, kind: str, resource_id: str) -> dict[str, Any]:
        missing = {"resourceType": "OperationOutcome", "issue": []}
        return self._data.get((kind, resource_id), missing)

    # Searches

    def _search(self, parts: list[str], pairs: list[tuple[str, str]]) -> dict[str, Any]:
        is_secret = any(part.endswith("other") for part in parts)
        parts = [part for part in parts if part != "_search"]
        kind = self._types.get(parts[-1] if parts else "", "")
        compartment = get_compartment(kind)
        is_named = len(parts) > 2 or not compartment.subjects
        for name, value in pairs:
            is_secret |= self._looks_elsewhere(kind, name, value)
            bare = fold(name).partition(":")[0]
            is_named |= bare in {n.lower() for n in compartment.names | _WHO}
        found = [
            one
            for (type_, id_), one in self._data.items()
            if type_ == kind.lower() and id_.endswith("-mine")
        ]
        return _bundle("searchset", *found, is_secret=is_secret or not is_named)

    def _looks_elsewhere(self, kind: str, name: str, value: str) -> bool:
        """Whether the server looks at another record for a parameter."""
        if f"{kind}.{name}" in self.opened:
            return names_other(value) or ("_has" in name and value == "other")
        name = fold(name).strip(".").replace("[]", "")
        steps = re.split("[.:;]", name)
        bare, modifiers = steps[0], steps[1:]
        if "_has" in steps or bare in _SECRET_PARAMETERS or "." in name:
            return True
        if {"in", "not-in", "identifier", "iterate"} & set(modifiers):
            return True
        if bare == "_sort":
            return "." in value or "_has" in value
        if bare == "_revinclude":
            return kind in _SHARED or (kind == "Patient" and "performer" in value)
        if kind == "Patient" and (
            bare == "identifier" or (bare == "_id" and names_other(value))
        ):
            return True
        known = {n.lower(): p for n, p in get_parameters(kind).items()} if kind else {}
        found = known.get(bare)
        is_reference = found is not None and found.kind == "reference"
        if found is not None and found.targets:
            is_reference &= "Patient" in found.targets
        is_typed = any(self._types.get(one) in _SHARED for one in modifiers)
        return (is_reference or bare in _WHO) and names_other(value) and not is_typed

    # Operations

    def _operate(
        self, parts: list[str], pairs: list[tuple[str, str]], body: Any
    ) -> dict[str, Any]:
        is_secret = any(part.endswith("other") for part in parts)
        is_secret &= self._types.get(parts[0]) not in _SHARED
        is_secret |= parts[-1] in {"$export", "$graphql", "$purge", "$match", "$merge"}
        is_secret |= len(parts) == 1 or parts == ["patient", "$everything"]
        is_search = parts[-1] in {"$lastn", "$docref"}
        for name, value in [*pairs, *_iter_parameters(body)]:
            is_who = fold(name) in _WHO or ("/" in fold(value) and not is_search)
            is_secret |= names_other(value) and is_who
        is_secret |= any(
            fold(name).startswith(("_has", "_summary")) for name, _ in pairs
        )
        if is_search:
            is_secret |= any(
                self._looks_elsewhere("Observation", *pair) for pair in pairs
            )
        text = SECRET if is_secret else "en"
        return {
            "resourceType": "Parameters",
            "parameter": [{"name": "x", "valueString": text}],
        }

    # Changes

    def _run_bundle(self, bundle: Any) -> dict[str, Any]:
        entries = []
        for entry in bundle["entry"]:
            asked = entry["request"]
            resource = entry.get("resource")
            found = self._answer(
                asked["method"],
                asked["url"],
                resource,
                condition=asked.get("ifNoneExist", ""),
            )
            entries.append({"resource": found, "response": {"status": "200"}})
        kind = f"{bundle['type']}-response"
        return {"resourceType": "Bundle", "type": kind, "entry": entries}

    def _write(
        self,
        method: str,
        parts: list[str],
        pairs: list[tuple[str, str]],
        body: Any,
        condition: str,
    ) -> None:
        what = f"{method} {'/'.join(parts)} {json.dumps(body)}"
        self.written.append(what)
        kind = self._types.get(parts[0], parts[0])
        pairs = [*pairs, *parse_qsl(condition, keep_blank_values=True)]
        is_broken = (
            parts[-1].endswith("other")
            or kind in {"SearchParameter", "StructureDefinition"}
            or any(self._looks_elsewhere(kind, *pair) for pair in pairs)
            or any(fold(name).startswith("_cascade") for name, _ in pairs)
            or any(map(_is_binary_of_other, _iter_texts(body)))
            or any(map(self._is_wrong, _iter_references(body)))
        )
        if isinstance(body, list):
            is_broken |= kind != "Patient" and any(map(_touches_subject, body))
        if is_broken:
            self.broken.append(what)

    def _is_wrong(self, reference: Any) -> bool:
        """Whether a reference leads to another patient, also by a search."""
        if not isinstance(reference, str):
            return False
        text = fold(reference)
        place, mark, query = text.partition("?")
        kind = self._types.get(place.rpartition("/")[2], "")
        if not mark or not kind or "=" not in query:
            return re.search(r"(?:^|[/\s])patient/other$", text) is not None
        pairs = parse_qsl(query, keep_blank_values=True)
        return kind not in _SHARED or any(
            self._looks_elsewhere(kind, *pair) for pair in pairs
        )


def _is_binary_of_other(text: str) -> bool:
    return re.search(r"(?:^|/)binary/scan-(?:other|nobody)", fold(text)) is not None


def _bundle(kind: str, *resources: Any, is_secret: bool) -> dict[str, Any]:
    """Without the resources, which say whose they are, where that is a secret."""
    return {
        "resourceType": "Bundle",
        "type": kind,
        "total": SECRET_TOTAL if is_secret else len(resources),
        "entry": [] if is_secret else [{"resource": one} for one in resources],
    }


def _iter_texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _iter_texts(item)
    elif isinstance(value, str):
        yield value


def _iter_references(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        is_step = str(value.get("path")).endswith("/reference")
        is_step &= value.get("op") in {"add", "replace"}
        yield from (value[name] for name in ("reference",) if name in value)
        yield from (value[name] for name in ("value",) if is_step)
        if value.get("op") in {"remove", "test"}:
            return
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _iter_references(item)


def _iter_parameters(body: Any) -> Iterator[tuple[str, str]]:
    for one in body.get("parameter", ()) if isinstance(body, Mapping) else ():
        for value in one.values():
            text = value.get("reference") if isinstance(value, Mapping) else value
            yield str(one.get("name")), str(text)


def _touches_subject(step: Any) -> bool:
    """Whether a step of a JSON Patch is about what says whose a resource is."""
    names = [fold(str(step.get(name, ""))) for name in ("path", "from")]
    touched = ("/subject", "/id", "/contained", "/resourcetype", "/patient")
    is_kept = any(name.startswith(touched) for name in names if name)
    return is_kept or step.get("op") in {"copy", "move"} or not names[0]
