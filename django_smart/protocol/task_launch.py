"""
Tasks that ask a user to launch an app: build and parse both profiles.

Spec: SMART App Launch 2.2, "Task profile for requesting SMART launch".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from django_smart.exceptions import ForeignTaskURLError, MalformedTaskError
from django_smart.protocol.urls import is_https_url

__all__ = ["TaskLaunch", "TaskLaunchKind", "build_task", "parse_task"]

_SYSTEM = "http://hl7.org/fhir/smart-app-launch/CodeSystem/smart-codes"
_PROFILES = "http://hl7.org/fhir/smart-app-launch/StructureDefinition"
_APPLICATION = "smartonfhir-application"
_APP_CONTEXT = "smartonfhir-appcontext"


class TaskLaunchKind(StrEnum):
    """The kind of launch; a member equals the code in ``Task.code``."""

    EHR = "launch-app-ehr"
    STANDALONE = "launch-app-standalone"


# By kind: the profile, and the code's display name in the code system.
_KINDS = {
    TaskLaunchKind.EHR: (
        f"{_PROFILES}/task-ehr-launch",
        "Launch application using the SMART EHR launch",
    ),
    TaskLaunchKind.STANDALONE: (
        f"{_PROFILES}/task-standalone-launch",
        "Launch application using the SMART standalone launch",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLaunch:
    """
    A launch that a Task requests.

    Attributes:
        kind: the kind of launch.
        url: the app's launch URL, or the URL where a standalone launch starts.
        patient: ``Task.for``, the reference as written; ``None`` if absent (TASK-03).
        encounter: ``Task.encounter``, likewise.
        app_context: opaque text of an EHR launch, returned as ``appContext`` in the
            token response (TASK-04).
    """

    kind: TaskLaunchKind
    url: str
    patient: str | None = field(default=None, repr=False)
    encounter: str | None = field(default=None, repr=False)
    app_context: str | None = field(default=None, repr=False)


def build_task(
    launch: TaskLaunch, *, status: str = "requested", intent: str = "proposal"
) -> dict[str, Any]:
    """
    Build the Task that requests *launch*.

    Args:
        status, intent: codes of FHIR R4's ``Task``.

    Raises:
        MalformedTaskError: the URL is not https, or a standalone launch has an
            ``app_context``, which would not reach the app.

    Spec: the profiles ``task-ehr-launch`` and ``task-standalone-launch``.
    """
    if not is_https_url(launch.url):
        raise MalformedTaskError("The URL of the app is not https.")
    if launch.app_context is not None and launch.kind != TaskLaunchKind.EHR:
        raise MalformedTaskError("A standalone launch has no app context.")
    profile, display = _KINDS[launch.kind]
    inputs = [
        {
            "type": _concept(_APPLICATION, "SMART on FHIR application URL."),
            "valueUrl": launch.url,
        }
    ]
    if launch.app_context is not None:
        what = "Application context related to this launch."
        inputs.append(
            {"type": _concept(_APP_CONTEXT, what), "valueString": launch.app_context}
        )
    task: dict[str, Any] = {
        "resourceType": "Task",
        "meta": {"profile": [profile]},
        "status": status,
        "intent": intent,
        "code": _concept(launch.kind.value, display),
    }
    if launch.patient is not None:
        task["for"] = {"reference": launch.patient}
    if launch.encounter is not None:
        task["encounter"] = {"reference": launch.encounter}
    task["input"] = inputs
    return task


def parse_task(task: Mapping[str, Any], *, launch_urls: Collection[str]) -> TaskLaunch:
    """
    Read a Task that requests a launch of this app.

    Args:
        task: the resource as read; other codings and inputs are ignored.
        launch_urls: the app's URLs, compared character by character.

    Raises:
        MalformedTaskError: it matches neither profile, or does not have exactly one
            URL.
        ForeignTaskURLError: the URL is not in *launch_urls*; do not open it, since
            anybody could have written it.

    Spec: TASK-01 to TASK-05.
    """
    if task.get("resourceType") != "Task":
        raise MalformedTaskError("The resource is not a Task.")
    codes = set(_get_codes(task.get("code")))
    kinds = [kind for kind in TaskLaunchKind if kind in codes]
    if len(kinds) != 1:
        raise MalformedTaskError("Task.code names no launch, or more than one.")
    urls = list(_get_inputs(task, _APPLICATION, "valueUrl"))
    if len(urls) != 1:
        raise MalformedTaskError("The Task does not have exactly one app URL.")
    app_contexts: list[str] = []
    if kinds[0] == TaskLaunchKind.EHR:
        app_contexts = list(_get_inputs(task, _APP_CONTEXT, "valueString"))
    if len(app_contexts) > 1:
        raise MalformedTaskError("The Task has more than one app context.")
    if urls[0] not in launch_urls:
        raise ForeignTaskURLError("The Task asks for an app other than this one.")
    return TaskLaunch(
        kind=kinds[0],
        url=urls[0],
        patient=_get_reference(task, "for"),
        encounter=_get_reference(task, "encounter"),
        app_context=app_contexts[0] if app_contexts else None,
    )


def _concept(code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": _SYSTEM, "code": code, "display": display}]}


def _get_codes(concept: object) -> Iterator[str]:
    """Return the codes of the SMART code system in a ``CodeableConcept``."""
    codings = concept.get("coding") if isinstance(concept, Mapping) else None
    for coding in codings if isinstance(codings, list) else []:
        if isinstance(coding, Mapping) and coding.get("system") == _SYSTEM:
            code = coding.get("code")
            if isinstance(code, str):
                yield code


def _get_inputs(task: Mapping[str, Any], code: str, member: str) -> Iterator[str]:
    """Return the values of the inputs of one type."""
    inputs = task.get("input")
    for item in inputs if isinstance(inputs, list) else []:
        if isinstance(item, Mapping) and code in _get_codes(item.get("type")):
            value = item.get(member)
            if not isinstance(value, str):
                raise MalformedTaskError(f"An input of type {code} has no {member}.")
            yield value


def _get_reference(task: Mapping[str, Any], name: str) -> str | None:
    value = task.get(name)
    reference = value.get("reference") if isinstance(value, Mapping) else None
    if reference is not None and not isinstance(reference, str):
        raise MalformedTaskError(f"Task.{name}.reference is not text.")
    return reference
