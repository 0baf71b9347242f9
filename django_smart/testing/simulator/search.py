"""
FHIR search over plain resources: parameters, modifiers, prefixes, sorting.

Spec: FHIR R4, "Search", http://hl7.org/fhir/R4/search.html.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from django_smart.testing.simulator.errors import FHIRError

__all__ = ["PARAMETERS", "RESULT_PARAMETERS", "matches", "sort_resources"]

RESULT_PARAMETERS = frozenset(
    {
        *("_count", "_elements", "_format", "_pretty"),
        *("_sort", "_sort:asc", "_sort:desc", "_total"),
    }
)

_COMMON = {"_id": ("id", "id"), "_lastUpdated": ("date", "meta.lastUpdated")}
_NAME = {
    "name": ("string", "name"),
    "family": ("string", "name.family"),
    "given": ("string", "name.given"),
    "identifier": ("token", "identifier"),
}
_SUBJECT = {
    "patient": ("reference", "subject"),
    "subject": ("reference", "subject"),
    "encounter": ("reference", "encounter"),
}
PARAMETERS: dict[str, dict[str, tuple[str, str]]] = {
    "Patient": {
        **_NAME,
        "birthdate": ("date", "birthDate"),
        "gender": ("token", "gender"),
        "phone": ("string", "telecom.value"),
        "address": ("string", "address"),
    },
    "Practitioner": dict(_NAME),
    "Organization": {"name": ("string", "name")},
    "Binary": {},
    "Observation": {
        **_SUBJECT,
        "code": ("token", "code"),
        "category": ("token", "category"),
        "date": ("date", "effectiveDateTime"),
        "status": ("token", "status"),
    },
    "Condition": {
        **_SUBJECT,
        "code": ("token", "code"),
        "category": ("token", "category"),
        "clinical-status": ("token", "clinicalStatus"),
        "onset-date": ("date", "onsetDateTime"),
        "recorded-date": ("date", "recordedDate"),
    },
    "MedicationRequest": {
        **_SUBJECT,
        "code": ("token", "medicationCodeableConcept"),
        "category": ("token", "category"),
        "status": ("token", "status"),
        "intent": ("token", "intent"),
        "authoredon": ("date", "authoredOn"),
    },
    "AllergyIntolerance": {
        "patient": ("reference", "patient"),
        "code": ("token", "code"),
        "category": ("token", "category"),
        "clinical-status": ("token", "clinicalStatus"),
        "criticality": ("token", "criticality"),
        "date": ("date", "recordedDate"),
    },
    "Encounter": {
        "patient": ("reference", "subject"),
        "subject": ("reference", "subject"),
        "status": ("token", "status"),
        "class": ("token", "class"),
        "type": ("token", "type"),
        "date": ("date", "period"),
    },
}
"""Search parameters by resource type: name → (kind, path)."""

for _parameters in PARAMETERS.values():
    _parameters.update(_COMMON)

_PREFIXES = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})


def matches(resource: dict[str, Any], name: str, value: str, *, base_url: str) -> bool:
    """
    Whether *resource* is found by ``name=value`` (commas mean "or").

    Raises:
        FHIRError: 400, the parameter, modifier or value is not supported.
    """
    bare, _, modifier = name.partition(":")
    known = PARAMETERS[resource["resourceType"]]
    if bare not in known:
        raise FHIRError(400, "not-supported", f"unknown search parameter: {name}")
    kind, path = known[bare]
    held = list(_values(resource, path))
    if modifier == "missing":
        return (not held) == (value == "true")
    options = value.split(",")
    if kind == "id" and not modifier:
        return resource["id"] in options
    if kind == "token" and modifier in {"", "not"}:
        found = any(_token_matches(item, one) for item in held for one in options)
        return found != (modifier == "not")
    if kind == "reference" and modifier in {"", "Patient"}:
        only_patients = bare == "patient" or modifier == "Patient"
        return any(
            _reference_matches(item["reference"], one, base_url, only_patients)
            for item in held
            for one in options
        )
    if kind == "date" and not modifier:
        return any(_date_matches(item, one) for item in held for one in options)
    if kind == "string" and modifier in {"", "exact", "contains"}:
        return any(
            _string_matches(text, one, modifier)
            for item in held
            for text in _texts(item)
            for one in options
        )
    raise FHIRError(400, "not-supported", f"unknown modifier: {name}")


def sort_resources(
    resources: list[dict[str, Any]], pairs: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """
    Order by ``_sort=-date,code`` (R4) or ``_sort:desc=date`` (DSTU1 to STU3 servers).

    Raises:
        FHIRError: 400, no such search parameter.
    """
    keys: list[tuple[str, bool]] = []
    for name, value in pairs:
        if name in {"_sort", "_sort:asc", "_sort:desc"}:
            for part in value.split(","):
                descending = part.startswith("-") or name == "_sort:desc"
                keys.append((part.removeprefix("-"), descending))
    for key, descending in reversed(keys):
        for resource in resources:
            if key not in PARAMETERS[resource["resourceType"]]:
                raise FHIRError(400, "not-supported", f"cannot sort by {key}")
        resources = sorted(
            resources, key=lambda one: _sort_key(one, key), reverse=descending
        )
    return resources


def _sort_key(resource: dict[str, Any], name: str) -> str:
    kind, path = PARAMETERS[resource["resourceType"]][name]
    for item in _values(resource, path):
        if kind == "date":
            return _range(_period_start(item))[0].isoformat()
        return next(iter(_texts(item)), "")
    return ""


def _values(value: Any, path: str) -> Iterator[Any]:
    """What stands at a dotted path, lists flattened."""
    if isinstance(value, list):
        for item in value:
            yield from _values(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict):
        head, _, rest = path.partition(".")
        if head in value:
            yield from _values(value[head], rest)


def _texts(value: Any) -> Iterator[str]:
    """Every string inside a HumanName, Address, CodeableConcept or string."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in {"use", "system"}:
                yield from _texts(item)


def _codings(value: Any) -> Iterator[tuple[str, str]]:
    """The (system, code) pairs of whatever a token parameter looks at."""
    if isinstance(value, str):
        yield "", value
    elif "coding" in value:
        for coding in value["coding"]:
            yield from _codings(coding)
    else:
        yield value.get("system", ""), value.get("code", value.get("value", ""))


def _token_matches(value: Any, wanted: str) -> bool:
    system, bar, code = wanted.rpartition("|")
    return any(
        (not code or code == held_code) and (not bar or system == held_system)
        for held_system, held_code in _codings(value)
    )


def _reference_matches(
    held: str, wanted: str, base_url: str, only_patients: bool
) -> bool:
    wanted = wanted.removeprefix(f"{base_url}/")
    if only_patients and not held.startswith("Patient/"):
        return False
    return wanted == held if "/" in wanted else wanted == held.rpartition("/")[2]


def _string_matches(text: str, wanted: str, modifier: str) -> bool:
    if modifier == "exact":
        return text == wanted
    folded, sought = _fold(text), _fold(wanted)
    return sought in folded if modifier == "contains" else folded.startswith(sought)


def _fold(text: str) -> str:
    """Without case and accents, as FHIR string search wants."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _date_matches(item: Any, wanted: str) -> bool:
    prefix = wanted[:2] if wanted[:2] in _PREFIXES else ""
    low, high = _range(wanted.removeprefix(prefix))
    start = _range(_period_start(item))[0]
    end = _period_end(item)
    match prefix:
        case "" | "eq":
            return low <= start and end <= high
        case "ne":
            return not (low <= start and end <= high)
        case "gt":
            return end > high
        case "lt":
            return start < low
        case "ge":
            return end > low
        case "le":
            return start < high
        case "sa":
            return start >= high
        case "eb":
            return end <= low
        case _:
            # "ap": FHIR suggests a tenth of the time since then; a day is enough here.
            return start < high + timedelta(days=1) and end > low - timedelta(days=1)


def _period_start(item: Any) -> str:
    return str(item["start"]) if isinstance(item, dict) else str(item)


def _period_end(item: Any) -> datetime:
    if isinstance(item, dict):
        if "end" not in item:
            return datetime.max.replace(tzinfo=UTC)
        item = item["end"]
    return _range(str(item))[1]


def _range(text: str) -> tuple[datetime, datetime]:
    """The half-open time span that a FHIR date of any precision stands for."""
    try:
        if len(text) == 4:
            start = datetime(int(text), 1, 1, tzinfo=UTC)
            return start, start.replace(year=start.year + 1)
        if len(text) == 7:
            start = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
            return start, (start + timedelta(days=32)).replace(day=1)
        start = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as exc:
        raise FHIRError(400, "value", f"not a FHIR date: {text}") from exc
    if start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
    length = timedelta(days=1) if len(text) == 10 else timedelta(seconds=1)
    return start, start + length
