"""Who the patient is, for the banner at the top of a page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .fhir.dates import PartialDate, parse_date
from .fhir.elements import iter_mappings, read_text
from .fhir.names import get_name

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["PatientFacts", "build_patient_facts"]

_SEXES: dict[str, StrOrPromise] = {
    "female": _("Female"),
    "male": _("Male"),
    "other": _("Other"),
    "unknown": _("Unknown"),
}


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PatientFacts:
    """
    What tells one patient from another; empty where the EHR says nothing.

    Attributes:
        patient_id: id of the FHIR resource.
        age: in words; at death if the patient has died.
        died: ``True``, or the date where it is known.
        mrn: the medical record number.
    """

    patient_id: str = ""
    name: str = ""
    birth_date: PartialDate | None = None
    age: str = ""
    sex: StrOrPromise = ""
    mrn: str = ""
    died: bool | PartialDate = False


def build_patient_facts(
    patient: Mapping[str, Any], *, today: datetime.date
) -> PatientFacts:
    """
    Read a ``Patient``; odd values are left out, never an error.

    Spec: FHIR R4, "Patient".
    """
    birth_date = parse_date(patient.get("birthDate"))
    died_at = parse_date(patient.get("deceasedDateTime"))
    died = died_at or patient.get("deceasedBoolean") is True
    # Somebody who died grows no older; without the date, no age is right.
    until = died_at or parse_date(today)
    return PatientFacts(
        patient_id=read_text(patient.get("id")),
        name=get_name(patient, today=today),
        birth_date=birth_date,
        age="" if died is True else _tell_age(birth_date, until),
        sex=_SEXES.get(read_text(patient.get("gender")), ""),
        mrn=_find_mrn(patient.get("identifier")),
        died=died,
    )


def _tell_age(birth_date: PartialDate | None, until: PartialDate | None) -> str:
    """An age in words; "about" where one of the days is not known."""
    if birth_date is None or until is None:
        return ""
    born, today = birth_date.first_day, until.first_day
    months = (today.year - born.year) * 12 + today.month - born.month
    if today.day < born.day:
        months -= 1
    if months < 0:
        return ""
    years = months // 12
    if not (birth_date.is_day and until.is_day):
        text = ngettext("about %(n)s year", "about %(n)s years", years)
        return text % {"n": years}
    if months < 24:
        return ngettext("%(n)s month", "%(n)s months", months) % {"n": months}
    return ngettext("%(n)s year", "%(n)s years", years) % {"n": years}


def _find_mrn(identifiers: object) -> str:
    """The identifier of type ``MR``, one that is not old before others."""
    found = [
        each
        for each in iter_mappings(identifiers)
        if isinstance(kind := each.get("type"), Mapping)
        and any(
            coding.get("code") == "MR" for coding in iter_mappings(kind.get("coding"))
        )
    ]
    found.sort(key=lambda each: each.get("use") == "old")
    return next(filter(None, (read_text(each.get("value")) for each in found)), "")
