"""Template tags: ``{% load smart %}``."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django import template
from django.core.exceptions import SynchronousOnlyOperation
from django.template import Context
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from ..fhir.dates import PartialDate, parse_date
from ..fhir.names import get_name, iter_mappings, read_text
from ..launches.prefix import get_protocol_url
from ..protocol.style import SMARTStyle
from .fhir import to_json

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
    "PatientFacts",
    "build_patient_facts",
    "patient_banner",
    "register",
    "smart_style",
    "smart_url",
]

register = template.Library()

_SEXES: dict[str, StrOrPromise] = {
    "female": _("Female"),
    "male": _("Male"),
    "other": _("Other"),
    "unknown": _("Unknown"),
}


@register.simple_tag
def smart_url(name: str) -> str:
    """
    The path of one of the package's own URLs: ``{% smart_url "logout" %}``.

    These are never under a launch prefix, which ``{% url %}`` would keep.
    """
    return get_protocol_url(name)


@register.simple_tag(takes_context=True)
def smart_style(context: Context, nonce: Any = "") -> SafeString:
    """
    The look of the EHR as CSS properties: ``{% smart_style nonce=csp_nonce %}``.

    A ``<style>`` element that sets ``--smart-color-background`` and its like on
    ``:root``; nothing if the EHR has no style, or none that can be used.

    Args:
        nonce: of the page's Content-Security-Policy, if that requires one.
    """
    style = _get_style(context.get("request"))
    if not style:
        return SafeString()
    # Each value passed our own grammar; escaping would break the CSS.
    css = mark_safe(style.to_css())  # noqa: S308
    if nonce:
        return format_html('<style nonce="{}">{}</style>', nonce, css)
    return format_html("<style>{}</style>", css)


@register.inclusion_tag("django_smart/patient_banner.html", takes_context=True)
def patient_banner(context: Context, patient: Any, heading: int = 2) -> dict[str, Any]:
    """
    Who the patient is: ``{% patient_banner patient %}``.

    Empty if the EHR said that its own window shows the patient; shown if it said
    nothing (RESP-13).

    Args:
        patient: the ``Patient`` that was read; ``None`` if that failed, which the
            banner then says.
        heading: level of the heading with the name, 1 to 6.
    """
    if heading not in range(1, 7):
        raise template.TemplateSyntaxError("a heading is of level 1 to 6")
    resource = to_json(patient)
    facts = build_patient_facts(
        resource if isinstance(resource, Mapping) else {}, today=timezone.localdate()
    )
    return {
        "is_shown": _needs_banner(context.get("request")),
        "facts": facts,
        "heading": heading,
    }


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PatientFacts:
    """
    What distinguishes one patient from another; empty where the EHR says nothing.

    Attributes:
        patient_id: id of the FHIR resource.
        age: in words; at death if the patient has died.
        died: ``True``, or the date if it is known.
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
    Read a ``Patient``; odd values are left out and never raise.

    Spec: FHIR R4, "Patient".
    """
    birth_date = parse_date(patient.get("birthDate"))
    died_at = parse_date(patient.get("deceasedDateTime"))
    died = died_at or patient.get("deceasedBoolean") is True
    # Age stops at death; without the date of death, no age is right.
    until = died_at or parse_date(today)
    return PatientFacts(
        patient_id=read_text(patient.get("id")),
        name=get_name(patient, today=today),
        birth_date=birth_date,
        age="" if died is True else _format_age(birth_date, until),
        sex=_SEXES.get(read_text(patient.get("gender")), ""),
        mrn=_find_mrn(patient.get("identifier")),
        died=died,
    )


def _get_style(request: Any) -> SMARTStyle | None:
    smart = getattr(request, "smart", None)
    try:
        return smart.style if smart else None
    except SynchronousOnlyOperation:
        # An async view that did not load its launch needs no style either.
        return None


def _needs_banner(request: Any) -> bool:
    """Only a clear "false" says that the EHR shows the patient itself."""
    try:
        smart = getattr(request, "smart", None)
        return not smart or smart.need_patient_banner is not False
    except SynchronousOnlyOperation:
        # An async view that did not load its launch.
        return True


def _format_age(birth_date: PartialDate | None, until: PartialDate | None) -> str:
    """An age in words, with "about" if one of the days is not known."""
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
    """The identifier of type ``MR``; one that is not old, if there is one."""
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
