"""The simulator's own reading of scopes, against the vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from django_smart.testing.simulator.consent import describe_scopes
from django_smart.testing.simulator.scopes import (
    ScopeError,
    covers,
    parse_scope,
    split_scope,
)
from django_smart.testing.simulator.search import RESOURCE_TYPES

_VECTORS = Path(__file__).parent.parent / "vectors" / "known-answers.json"
VECTORS: dict[str, Any] = json.loads(_VECTORS.read_text(encoding="utf-8"))["scopes"]


@pytest.mark.parametrize("scope", ["openid", "fhirUser", "launch/diagnosticreport"])
@pytest.mark.compliance("SCOPE-13", "SCOPE-19")
def test_scopes_that_are_not_about_resources(scope: str) -> None:
    assert parse_scope(scope) is None


@pytest.mark.compliance("SCOPE-04", "SCOPE-05")
@pytest.mark.parametrize(
    ("suffix", "letters"), [("read", "rs"), ("write", "cud"), ("*", "cruds")]
)
def test_v1_suffixes_stand_for_letters(suffix: str, letters: str) -> None:
    scope = parse_scope(f"patient/Observation.{suffix}")
    assert scope is not None
    assert scope.letters == letters


@pytest.mark.parametrize(
    "scope",
    [
        "patient/Observation.dus",
        "patient/Observation.rr",
        "patient/Observation.",
        "patient/Observation.read?category=x",
        "patient/observation.rs",
        "group/Observation.rs",
        "launch/Patient",
        "email",
    ],
)
@pytest.mark.compliance("SCOPE-01", "SCOPE-03", "SCOPE-12")
def test_unknown_scopes_are_refused(scope: str) -> None:
    with pytest.raises(ScopeError):
        parse_scope(scope)


@pytest.mark.parametrize("text", ["", " openid", "a  b", 'a"b', "a\\b", "ä"])
def test_scope_strings_are_tokens_with_one_space_between(text: str) -> None:
    with pytest.raises(ScopeError):
        split_scope(text)


@pytest.mark.parametrize(
    ("granted", "asked", "expected"),
    [
        ("patient/*.rs", "patient/Observation.r", True),
        ("patient/Observation.r patient/Observation.s", "patient/Observation.rs", True),
        ("patient/Observation.rs", "patient/Observation.read", True),
        ("patient/Observation.rs?category=a", "patient/Observation.rs", False),
        ("patient/Observation.rs", "patient/Observation.rs?category=a", True),
        ("patient/Observation.rs", "user/Observation.rs", False),
        ("patient/Observation.rs", "patient/*.rs", False),
        ("patient/Observation.c", "patient/Observation.r", False),
        ("openid", "openid", True),
        ("openid", "fhirUser", False),
    ],
)
@pytest.mark.compliance("SCOPE-06", "SCOPE-10", "SCOPE-11", "SCOPE-20")
def test_what_a_grant_covers(granted: str, asked: str, expected: bool) -> None:
    assert covers(granted.split(), asked) == expected


def test_all_types_of_r4_are_known() -> None:
    assert len(RESOURCE_TYPES) == 146
    assert {"Observation", "CatalogEntry", "VisionPrescription"} <= RESOURCE_TYPES


def test_scopes_are_told_in_words() -> None:
    (launch, role, visit, read, write, all_of_it) = describe_scopes(
        [
            "offline_access",
            "launch/imagingstudy?role=x",
            "launch/encounter",
            "patient/Observation.rs?category=http://x|laboratory",
            "user/Device.cud",
            "system/*.s",
        ]
    )
    assert launch["text"].startswith("Keep access when you are away")
    assert role["text"] == "Know which imagingstudy is chosen"
    assert visit["text"] == "Know which visit is chosen"
    assert read["text"] == (
        "Read and search measurements and test results of this patient, "
        "only where category is laboratory"
    )
    assert not read["writes"]
    assert write["text"].startswith("Add, change and delete Device entries")
    assert write["writes"]
    assert all_of_it["text"] == "Search everything in the record of all patients"
