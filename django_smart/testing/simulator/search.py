"""
FHIR search over plain resources: parameters, modifiers, chains, prefixes, sorting.

The parameters are those of ``search_parameters.tsv``, all of R4 but the composite ones.

Spec: FHIR R4, "Search", http://hl7.org/fhir/R4/search.html.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from django_smart.testing.simulator.errors import FHIRError

__all__ = [
    "RESOURCE_TYPES",
    "RESULT_PARAMETERS",
    "Parameter",
    "Search",
    "get_parameters",
    "iter_values",
    "select_elements",
]

RESULT_PARAMETERS = frozenset(
    {
        *("_count", "_elements", "_format", "_pretty", "_summary", "_total"),
        *("_sort", "_sort:asc", "_sort:desc"),
        *("_include", "_include:iterate", "_revinclude", "_revinclude:iterate"),
    }
)

# What is left by _summary=text, and left out by _summary=true (roughly).
_TEXT = ("resourceType", "id", "meta", "text")
_NO_SUMMARY = frozenset({"contained", "extension", "note", "text"})
_PREFIXES = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
# Of numbers, for which "sa" and "eb" mean the same as two others.
_COMPARISONS = {
    **{each: getattr(operator, each) for each in ("ne", "gt", "lt", "ge", "le")},
    "sa": operator.gt,
    "eb": operator.lt,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A search parameter: its kind, what it looks at, and what that refers to."""

    kind: str
    paths: tuple[str, ...]
    targets: frozenset[str]
    """Resource types; empty for all."""
    is_of_compartment: bool
    """True if the parameter puts a resource into a patient's compartment."""


@cache
def _read_table() -> dict[str, dict[str, Parameter]]:
    table: dict[str, dict[str, Parameter]] = {}
    text = files(__package__).joinpath("search_parameters.tsv").read_text("utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        resource_type, name, kind, paths, targets, *marks = line.split("\t")
        table.setdefault(resource_type, {})[name] = Parameter(
            kind=kind,
            paths=tuple(paths.split()),
            targets=frozenset(targets.split()),
            is_of_compartment=bool(marks),
        )
    return table


# Types of R4 that have no search parameter of their own.
_WITHOUT = """
    Binary BiologicallyDerivedProduct CatalogEntry MedicinalProductIngredient
    MedicinalProductManufactured ObservationDefinition OperationOutcome Parameters
    SubstanceNucleicAcid SubstancePolymer SubstanceProtein
    SubstanceReferenceInformation SubstanceSourceMaterial
"""
RESOURCE_TYPES = frozenset({*_read_table(), *_WITHOUT.split()} - {"Resource"})


@cache
def get_parameters(resource_type: str) -> dict[str, Parameter]:
    """The search parameters of *resource_type* by name."""
    table = _read_table()
    return {**table["Resource"], **table.get(resource_type, {})}


def iter_values(value: Any, path: str) -> Iterator[Any]:
    """
    Return the values at a dotted path, with lists flattened.

    The last name may be that of an element with a choice of types, such as
    ``effective`` for ``effectiveDateTime``.
    """
    if isinstance(value, list):
        for item in value:
            yield from iter_values(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict):
        head, _, rest = path.partition(".")
        if head in value:
            yield from iter_values(value[head], rest)
        elif not rest:
            for name, item in value.items():
                if name.startswith(head) and name[len(head)].isupper():
                    yield from iter_values(item, "")


class Search:
    """
    Searches in the resources of one server.

    Args:
        data: resources by type and id.
        base_url: of the server; references may begin with it.
    """

    def __init__(
        self, data: dict[str, dict[str, dict[str, Any]]], base_url: str
    ) -> None:
        self._data = data
        self._base_url = base_url

    def get_parameter(self, resource_type: str, name: str) -> Parameter:
        """
        The parameter that *name* begins with.

        Raises:
            FHIRError: 400, there is none.
        """
        bare = name.partition(":")[0].partition(".")[0]
        try:
            return get_parameters(resource_type)[bare]
        except KeyError:
            raise FHIRError(
                400, "not-supported", f"unknown search parameter: {name}"
            ) from None

    def check(self, resource_type: str, name: str) -> None:
        """Refuse a parameter that nothing can be searched by."""
        if name.startswith("_has:"):
            resource_type, _, name = _split_has(name)
        self.get_parameter(resource_type, name)

    def matches(self, resource: dict[str, Any], name: str, value: str) -> bool:
        """
        Whether *resource* is found by ``name=value`` (commas mean "or").

        Raises:
            FHIRError: 400, the parameter, modifier or value is not supported.
        """
        if name.startswith("_has:"):
            return self._has(resource, name, value)
        parameter = self.get_parameter(resource["resourceType"], name)
        held = [
            item for path in parameter.paths for item in iter_values(resource, path)
        ]
        first, dot, rest = name.partition(".")
        modifier = first.partition(":")[2]
        if dot:
            return any(
                self.matches(target, rest, value)
                for target in map(self.resolve, held)
                if target is not None
                and modifier in {"", target["resourceType"]}
                and rest.partition(":")[0].partition(".")[0]
                in {"_has", *get_parameters(target["resourceType"])}
            )
        if modifier == "missing":
            return (not held) == (value == "true")
        if modifier == "not":
            return not self._match(parameter, "", held, value, name)
        return self._match(parameter, modifier, held, value, name)

    def _match(
        self,
        parameter: Parameter,
        modifier: str,
        held: list[Any],
        value: str,
        name: str,
    ) -> bool:
        pairs = [(item, one) for item in held for one in value.split(",")]
        match parameter.kind, modifier:
            case (("id" | "uri"), ""):
                return any(item == one for item, one in pairs)
            case "token", "":
                return any(_token_matches(*pair) for pair in pairs)
            case "token", "text":
                return any(
                    _fold(one) in _fold(t) for i, one in pairs for t in _texts(i)
                )
            case "reference", "identifier":
                return any(
                    _token_matches(item.get("identifier", {}), one)
                    for item, one in pairs
                    if isinstance(item, dict)
                )
            case "reference", _ if modifier == "" or modifier[:1].isupper():
                only = {modifier} if modifier else parameter.targets
                return any(
                    self._reference_matches(item, one, only) for item, one in pairs
                )
            case "date", "":
                return any(_date_matches(*pair) for pair in pairs)
            case (("quantity" | "number"), ""):
                return any(_number_matches(*pair) for pair in pairs)
            case "string", ("" | "exact" | "contains"):
                return any(
                    _string_matches(text, one, modifier)
                    for item, one in pairs
                    for text in _texts(item)
                )
        raise FHIRError(400, "not-supported", f"unknown modifier: {name}")

    def _has(self, resource: dict[str, Any], name: str, value: str) -> bool:
        """Return whether a resource that refers to *resource* matches *name*."""
        resource_type, reference, rest = _split_has(name)
        return any(
            self.matches(other, rest, value)
            for other in self._data.get(resource_type, {}).values()
            if any(
                target is resource for target in self._iter_targets(other, reference)
            )
        )

    def resolve(self, reference: Any) -> dict[str, Any] | None:
        """The resource of this server that a ``Reference`` leads to."""
        kind, _, resource_id = self._get_local(reference).rpartition("/")
        return self._data.get(kind, {}).get(resource_id)

    def find_included(
        self, found: list[dict[str, Any]], pairs: list[tuple[str, str]]
    ) -> list[dict[str, Any]]:
        """Return the resources that ``_include`` and ``_revinclude`` add to *found*."""
        included: dict[tuple[str, str], dict[str, Any]] = {}
        known = {_key(resource) for resource in found}
        pending, is_first = found, True
        while pending:
            new = {
                _key(resource): resource
                for name, value in pairs
                if is_first or name.endswith(":iterate")
                for resource in self._include(pending, name.partition(":")[0], value)
                if _key(resource) not in known
            }
            included |= new
            known |= new.keys()
            pending, is_first = list(new.values()), False
        return list(included.values())

    def _include(
        self, found: list[dict[str, Any]], name: str, value: str
    ) -> Iterator[dict[str, Any]]:
        source, _, rest = value.partition(":")
        parameter, _, target_type = rest.partition(":")
        if name == "_include":
            for resource in found:
                if source in {"*", resource["resourceType"]}:
                    for target in self._iter_targets(resource, parameter or "*"):
                        if target_type in {"", target["resourceType"]}:
                            yield target
        elif name == "_revinclude":
            keys = {_key(resource) for resource in found}
            for resource in self._data.get(source, {}).values():
                targets = self._iter_targets(resource, parameter or "*")
                if any(_key(target) in keys for target in targets):
                    yield resource

    def _iter_targets(
        self, resource: dict[str, Any], name: str
    ) -> Iterator[dict[str, Any]]:
        """Yield the targets of *resource*'s parameter *name*, or ``*`` for any."""
        known = get_parameters(resource["resourceType"])
        for one in known.values() if name == "*" else filter(None, [known.get(name)]):
            if one.kind == "reference":
                for path in one.paths:
                    for held in iter_values(resource, path):
                        if target := self.resolve(held):
                            yield target

    def _get_local(self, reference: Any) -> str:
        """``Type/id`` of a reference to something of this server, else empty."""
        if isinstance(reference, dict):
            reference = reference.get("reference")
        if not isinstance(reference, str):
            return ""
        return reference.removeprefix(f"{self._base_url}/").partition("/_history/")[0]

    def _reference_matches(
        self, item: Any, wanted: str, only: set[str] | frozenset[str]
    ) -> bool:
        held = self._get_local(item)
        if only and held.partition("/")[0] not in only:
            return False
        wanted = wanted.removeprefix(f"{self._base_url}/")
        return wanted == held if "/" in wanted else wanted == held.rpartition("/")[2]

    def sort(
        self, resources: list[dict[str, Any]], pairs: list[tuple[str, str]]
    ) -> list[dict[str, Any]]:
        """
        Order by ``_sort=-date,code`` (R4) or ``_sort:desc=date`` (DSTU1 to STU3).

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
                self.get_parameter(resource["resourceType"], key)
                if "." in key:
                    text = f"unsupported sort by a chain: {key}"
                    raise FHIRError(400, "not-supported", text)
            resources = sorted(
                resources, key=lambda one: _sort_key(one, key), reverse=descending
            )
        return resources


def select_elements(
    resource: dict[str, Any], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """Reduce *resource* to ``_elements`` or ``_summary``, marked as incomplete."""
    told = dict(pairs)
    summary = told.get("_summary", "false")
    if "_elements" in told:
        names = {"resourceType", "id", *told["_elements"].split(",")}
        part = {name: value for name, value in resource.items() if name in names}
    elif summary == "text":
        part = {name: resource[name] for name in _TEXT if name in resource}
    elif summary in {"true", "data"}:
        left_out = {"text"} if summary == "data" else _NO_SUMMARY
        part = {k: v for k, v in resource.items() if k not in left_out}
    else:
        return resource
    system = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
    tag = {"system": system, "code": "SUBSETTED"}
    return {**part, "meta": {**resource["meta"], "tag": [tag]}}


def _split_has(name: str) -> tuple[str, str, str]:
    """Type, reference and parameter of ``_has:Observation:patient:code``."""
    parts = name.split(":", 3)
    if len(parts) != 4:
        raise FHIRError(400, "not-supported", f"unknown search parameter: {name}")
    return parts[1], parts[2], parts[3]


def _key(resource: dict[str, Any]) -> tuple[str, str]:
    return resource["resourceType"], resource["id"]


def _sort_key(resource: dict[str, Any], name: str) -> str:
    parameter = get_parameters(resource["resourceType"])[name]
    for path in parameter.paths:
        for item in iter_values(resource, path):
            if parameter.kind == "date":
                return _range(_period_start(item))[0].isoformat()
            return next(iter(_texts(item)), "")
    return ""


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
    if isinstance(value, bool):
        yield "", str(value).lower()
    elif isinstance(value, str):
        yield "", value
    elif not isinstance(value, dict):
        return
    elif "coding" in value:
        for coding in value["coding"]:
            yield from _codings(coding)
    else:
        code = value.get("code", value.get("value", ""))
        yield value.get("system", ""), str(code)


def _token_matches(value: Any, wanted: str) -> bool:
    system, bar, code = wanted.rpartition("|")
    return any(
        (not code or code == held_code) and (not bar or system == held_system)
        for held_system, held_code in _codings(value)
    )


def _string_matches(text: str, wanted: str, modifier: str) -> bool:
    if modifier == "exact":
        return text == wanted
    folded, sought = _fold(text), _fold(wanted)
    return sought in folded if modifier == "contains" else folded.startswith(sought)


def _fold(text: str) -> str:
    """Without case and accents, as FHIR string search wants."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _number_matches(item: Any, wanted: str) -> bool:
    prefix = wanted[:2] if wanted[:2] in _PREFIXES else ""
    number, _, unit = wanted.removeprefix(prefix).partition("|")
    try:
        held = float(item["value"] if isinstance(item, dict) else item)
        sought = float(number)
    except (KeyError, TypeError, ValueError):
        return False
    codes = {"", item.get("code"), item.get("unit")} if isinstance(item, dict) else {""}
    if unit.rpartition("|")[2] not in codes:
        return False
    return bool(_COMPARISONS.get(prefix, operator.eq)(held, sought))


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
    return str(item.get("start", "0001")) if isinstance(item, dict) else str(item)


def _period_end(item: Any) -> datetime:
    if isinstance(item, dict):
        if "end" not in item:
            return datetime.max.replace(tzinfo=UTC)
        item = item["end"]
    return _range(str(item))[1]


def _range(text: str) -> tuple[datetime, datetime]:
    """Return the half-open time span of a FHIR date of any precision."""
    try:
        if len(text) == 4:
            start = datetime(int(text), 1, 1, tzinfo=UTC)
            return start, start.replace(year=start.year + 1)
        if len(text) == 7:
            start = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
            return start, (start + timedelta(days=32)).replace(day=1)
        start = datetime.fromisoformat(text.replace(" ", "+"))
        if start.tzinfo is None:
            start = start.replace(tzinfo=UTC)
        length = timedelta(days=1) if len(text) == 10 else timedelta(seconds=1)
        return start, start + length
    except (OverflowError, ValueError) as exc:
        raise FHIRError(400, "value", f"not a FHIR date: {text}") from exc
