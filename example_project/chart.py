"""What the pages show of a launch: the patient, and the HbA1c results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest
from django.utils.translation import gettext as _

from django_smart.exceptions import SMARTError
from django_smart.fhir.dates import parse_date
from django_smart.launches.context import SMARTContext
from django_smart.templatetags.fhir import address, codeable_concept, human_name
from example_project import fhirtext, hba1c
from example_project.problems import Problem, describe

__all__ = ["Facts", "SMARTRequest", "load_facts", "load_results", "read_facts"]

# More results than anybody has; a server whose pages never end, ends here.
_MAX_RESULTS = 500


class SMARTRequest(HttpRequest):
    """A request as ``SMARTMiddleware`` leaves it, for the type checker."""

    smart: SMARTContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """
    The patient in words; empty where the EHR says nothing.

    Attributes:
        resource: the ``Patient``, as it was read.
        name: never empty.
        birth_date: as FHIR writes it.
        rows: ``(term, lines)`` of the other demographics.
    """

    resource: Mapping[str, Any]
    name: str
    birth_date: str = ""
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


def load_facts(smart: SMARTContext) -> tuple[Facts | None, Problem | None]:
    """Read the patient of the launch: one of the two is ``None``."""
    if not smart.patient_id:
        return None, _no_patient()
    try:
        resource = smart.fhir.read("Patient", smart.patient_id)
    except SMARTError as error:
        return None, describe(error, _("the patient's details"))
    return read_facts(resource), None


def read_facts(resource: Mapping[str, Any]) -> Facts:
    """Put a FHIR Patient in words."""
    rows = [
        (_("Address"), [address(resource)]),
        *((kind, [value]) for kind, value in fhirtext.telecom(resource.get("telecom"))),
        (_("Marital status"), [codeable_concept(resource.get("maritalStatus"))]),
        (_("Language"), _languages(resource.get("communication"))),
        (_("General practitioner"), _displays(resource.get("generalPractitioner"))),
    ]
    birth_date = resource.get("birthDate")
    return Facts(
        resource=resource,
        name=human_name(resource) or _("Without a name"),
        birth_date=str(birth_date) if parse_date(birth_date) else "",
        rows=[(term, lines) for term, lines in rows if any(lines)],
    )


def load_results(smart: SMARTContext) -> tuple[hba1c.Series, Problem | None]:
    """
    Search for the HbA1c results of the launch's patient, over all pages.

    What came before a failure is kept: the series is then marked as not complete.
    """
    if not smart.patient_id:
        return hba1c.Series(), _no_patient()
    # By id: if results are added meanwhile, two pages can contain the same one.
    found: dict[object, dict[str, Any]] = {}
    problem = None
    is_complete, is_withheld = True, False
    try:
        parameters = hba1c.search_parameters(smart.patient_id)
        for page in smart.fhir.iterate("Observation", parameters).pages():
            is_withheld = is_withheld or any(map(_is_withheld, page.outcomes))
            for resource in page.resources:
                found.setdefault(resource.get("id", len(found)), resource)
            if len(found) > _MAX_RESULTS:
                is_complete = False
                break
    except SMARTError as error:
        is_complete = False
        problem = describe(error, _("older results") if found else _("the results"))
    series = hba1c.build_series(
        list(found.values())[:_MAX_RESULTS],
        is_complete=is_complete,
        is_withheld=is_withheld,
    )
    return series, problem


def _no_patient() -> Problem:
    return Problem(
        what=_("the patient's details"),
        reason=_("The EHR did not say which patient's chart is open."),
        advice=_("Open this app from a patient's chart, or connect your own records."),
        code="no_patient",
        can_connect=True,
    )


def _is_withheld(outcome: Mapping[str, Any]) -> bool:
    """Whether an ``OperationOutcome`` says that results were withheld."""
    issues = fhirtext.objects(outcome.get("issue"))
    return any(issue.get("code") == "suppressed" for issue in issues)


def _languages(communication: object) -> list[str]:
    """Return the languages somebody speaks, the preferred one first."""
    items = list(fhirtext.objects(communication))
    items.sort(key=lambda item: item.get("preferred") is not True)
    return [text for item in items if (text := codeable_concept(item.get("language")))]


def _displays(references: object) -> list[str]:
    """Return the names that references give of what they lead to."""
    return [
        item["display"]
        for item in fhirtext.objects(references)
        if isinstance(item.get("display"), str)
    ]
