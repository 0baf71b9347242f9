"""Tasks that ask for a launch; the vectors are the specification's own examples."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from django_smart.exceptions import ForeignTaskURLError, MalformedTaskError
from django_smart.protocol.task_launch import (
    TaskLaunch,
    TaskLaunchKind,
    build_task,
    parse_task,
)

URL = "https://www.example.org/myapplication"
_VECTORS = Path(__file__).resolve().parent.parent / "vectors"
_FILES = {
    TaskLaunchKind.EHR: "Task-task-for-ehr-launch.json",
    TaskLaunchKind.STANDALONE: "Task-task-for-standalone-launch.json",
}


def read_vector(kind: TaskLaunchKind) -> dict[str, Any]:
    task = json.loads((_VECTORS / _FILES[kind]).read_text(encoding="utf-8"))
    assert isinstance(task, dict)
    return task


@pytest.fixture
def task() -> dict[str, Any]:
    return copy.deepcopy(read_vector(TaskLaunchKind.EHR))


@pytest.mark.compliance("TASK-01", "TASK-03", "TASK-04")
def test_example_of_an_ehr_launch_is_read(task):
    assert parse_task(task, launch_urls=[URL]) == TaskLaunch(
        kind=TaskLaunchKind.EHR,
        url=URL,
        patient="https://example.org/fhir/Patient/123",
        encounter="https://example.org/fhir/Encounter/456",
        app_context='{"field1":"value"}',
    )


@pytest.mark.compliance("TASK-02", "TASK-03")
def test_example_of_a_standalone_launch_is_read():
    task = read_vector(TaskLaunchKind.STANDALONE)
    assert parse_task(task, launch_urls={URL}) == TaskLaunch(
        kind=TaskLaunchKind.STANDALONE,
        url=URL,
        patient="https://example.org/fhir/Patient/123",
        encounter="https://example.org/fhir/Encounter/456",
    )


@pytest.mark.parametrize("kind", TaskLaunchKind)
@pytest.mark.compliance("TASK-01", "TASK-02")
def test_examples_are_built_again_to_the_letter(kind):
    task = read_vector(kind)
    launch = parse_task(task, launch_urls=[URL])
    assert {**build_task(launch), "id": task["id"]} == task


@pytest.mark.parametrize("kind", TaskLaunchKind)
@pytest.mark.compliance("TASK-03")
def test_task_without_patient_encounter_and_context_is_fine(kind):
    launch = TaskLaunch(kind=kind, url=URL)
    task = build_task(launch, status="ready", intent="order")
    assert {"for", "encounter"}.isdisjoint(task)
    assert (task["status"], task["intent"], len(task["input"])) == ("ready", "order", 1)
    assert parse_task(task, launch_urls=[URL]) == launch


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/myapplication",
        f"{URL}/",
        f"{URL}?next=https://evil.example",
        URL.upper(),
        "javascript:alert(1)",
        "",
    ],
)
@pytest.mark.compliance("TASK-05")
def test_url_that_is_not_the_app_s_own_is_refused(task, url):
    task["input"][0]["valueUrl"] = url
    with pytest.raises(ForeignTaskURLError) as caught:
        parse_task(task, launch_urls=[URL])
    assert not url or url not in str(caught.value)


@pytest.mark.compliance("TASK-05")
def test_no_url_is_opened_where_none_is_registered(task):
    with pytest.raises(ForeignTaskURLError):
        parse_task(task, launch_urls=())


@pytest.mark.parametrize(
    "change",
    [
        {"resourceType": "Patient"},
        {"resourceType": None},
        {"code": None},
        {"code": "launch-app-ehr"},
        {"code": {"coding": "launch-app-ehr"}},
        {"code": {"coding": [None, {"code": "launch-app-ehr"}]}},
        {
            "code": {
                "coding": [{"system": "https://x.example", "code": "launch-app-ehr"}]
            }
        },
        {"input": None},
        {"input": []},
        {"input": ["x", {"type": None, "valueUrl": URL}]},
        {"for": {"reference": 5}},
        {"encounter": {"reference": []}},
    ],
)
@pytest.mark.compliance("TASK-01")
def test_task_of_no_profile_is_refused(task, change):
    with pytest.raises(MalformedTaskError):
        parse_task({**task, **change}, launch_urls=[URL])


@pytest.mark.compliance("TASK-01", "TASK-02")
def test_task_of_both_profiles_is_refused(task):
    other = read_vector(TaskLaunchKind.STANDALONE)
    task["code"]["coding"] += other["code"]["coding"]
    with pytest.raises(MalformedTaskError):
        parse_task(task, launch_urls=[URL])


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.compliance("TASK-01")
def test_input_that_comes_twice_is_refused(task, index):
    task["input"].append(task["input"][index])
    with pytest.raises(MalformedTaskError):
        parse_task(task, launch_urls=[URL])


@pytest.mark.parametrize(("index", "member"), [(0, "valueUrl"), (1, "valueString")])
@pytest.mark.parametrize("value", [None, 5, {}, [URL]])
def test_input_with_another_value_is_refused(task, index, member, value):
    task["input"][index][member] = value
    with pytest.raises(MalformedTaskError, match=member):
        parse_task(task, launch_urls=[URL])


def test_what_else_a_task_holds_is_passed_over(task):
    code = {"system": "http://hl7.org/fhir/smart-app-launch/CodeSystem/smart-codes"}
    task["code"]["coding"] += [
        {"system": "https://x.example", "code": "x"},
        {**code, "code": 5},
    ]
    task["input"].append({"type": {"text": "note"}, "valueString": "x"})
    task["for"] = {"display": "somebody"}
    task["encounter"] = None
    launch = parse_task(task, launch_urls=[URL])
    assert (launch.patient, launch.encounter) == (None, None)


@pytest.mark.compliance("TASK-02")
def test_context_in_a_standalone_launch_reaches_nobody(task):
    standalone = read_vector(TaskLaunchKind.STANDALONE)
    standalone["input"] = task["input"]
    assert parse_task(standalone, launch_urls=[URL]).app_context is None
    launch = TaskLaunch(kind=TaskLaunchKind.STANDALONE, url=URL, app_context="x")
    with pytest.raises(MalformedTaskError):
        build_task(launch)


@pytest.mark.parametrize("url", ["http://app.example", "javascript:alert(1)", ""])
def test_task_is_not_built_for_a_url_that_is_not_https(url):
    with pytest.raises(MalformedTaskError):
        build_task(TaskLaunch(kind=TaskLaunchKind.EHR, url=url))


def test_repr_tells_nothing_of_the_patient(task):
    text = repr(parse_task(task, launch_urls=[URL]))
    assert "123" not in text
    assert "field1" not in text
