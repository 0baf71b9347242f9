"""Template tags: ``{% load smart %}``."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django import template
from django.core.exceptions import SynchronousOnlyOperation
from django.template import Context
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _

from ..fhir.dates import parse_date
from ..fhir.names import get_name, iter_mappings, read_text
from ..launches.prefix import get_protocol_url
from ..protocol.style import SMARTStyle
from .fhir import format_age, read_death

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
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
    Return the path of one of the package's URLs: ``{% smart_url "logout" %}``.

    These never have a launch prefix, which ``{% url %}`` would keep.
    """
    return get_protocol_url(name)


@register.simple_tag(takes_context=True)
def smart_style(context: Context, nonce: Any = "") -> SafeString:
    """
    Render the EHR's style as CSS properties: ``{% smart_style nonce=csp_nonce %}``.

    This is a ``<style>`` element that sets ``--smart-color-background`` and others on
    ``:root``; nothing if the EHR has no style, or none that can be used.

    Args:
        nonce: of the page's Content-Security-Policy, if that requires one.
    """
    style: SMARTStyle | None = _read(context.get("request"), "style")
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
    Render a banner that identifies the patient: ``{% patient_banner patient %}``.

    It is empty if the EHR's window already shows the patient, and shown if the EHR does
    not say so (RESP-13).

    Args:
        patient: the ``Patient`` resource; ``None`` if it could not be read, which the
            banner then shows.
        heading: level of the heading with the name, 1 to 6.
    """
    if heading not in range(1, 7):
        raise template.TemplateSyntaxError("a heading is of level 1 to 6")
    facts = build_patient_facts(
        patient if isinstance(patient, Mapping) else {}, today=timezone.localdate()
    )
    needed = _read(context.get("request"), "need_patient_banner")
    return {
        # Unless the EHR clearly says that it shows the patient itself.
        "is_shown": needed is not False,
        "facts": facts,
        "heading": heading,
    }


def build_patient_facts(
    patient: Mapping[str, Any], *, today: datetime.date
) -> dict[str, Any]:
    """
    Return the facts that distinguish patients; empty if the EHR does not provide them.

    ``age`` is in words, and at death if the patient has died; ``died`` is ``True``, or
    the date if it is known; ``mrn`` is the medical record number, or ``None`` if it
    cannot be read.

    Args:
        patient: empty if it could not be read; invalid values never raise.

    Spec: FHIR R4, "Patient".
    """
    birth_date = parse_date(patient.get("birthDate"))
    died = read_death(patient)
    return {
        "patient_id": read_text(patient.get("id")),
        "name": get_name(patient, today=today),
        "birth_date": birth_date,
        "age": format_age(birth_date, died or parse_date(today)),
        "sex": _SEXES.get(read_text(patient.get("gender")), ""),
        "mrn": _find_mrn(patient.get("identifier")) if patient else None,
        "died": died,
    }


def _read(request: Any, name: str) -> Any:
    """Return an attribute of ``request.smart``, or ``None`` without a launch."""
    try:
        smart = getattr(request, "smart", None)
        return getattr(smart, name) if smart else None
    except SynchronousOnlyOperation:
        # An async view that did not load its launch.
        return None


def _find_mrn(identifiers: object) -> str | None:
    """
    Return the identifier of type ``MR``, preferably a current one.

    Empty if there is none, and ``None`` if one that cannot be read may be it.
    """
    if identifiers is None:
        return ""
    kept = list(iter_mappings(identifiers))
    found = [each for each in kept if _is_mrn(each.get("type"))]
    found.sort(key=lambda each: each.get("use") == "old")
    mrn = next(filter(None, (read_text(each.get("value")) for each in found)), "")
    is_readable = isinstance(identifiers, list) and len(kept) == len(identifiers)
    is_readable = is_readable and all(_is_readable(each.get("type")) for each in kept)
    return mrn or (None if found or not is_readable else "")


def _is_readable(kind: object) -> bool:
    """Whether a ``CodeableConcept`` is one, or absent, and so are its codings."""
    if not isinstance(kind, Mapping):
        return kind is None
    coding = kind.get("coding") or []
    return isinstance(coding, list) and len(list(iter_mappings(coding))) == len(coding)


def _is_mrn(kind: object) -> bool:
    codings = iter_mappings(kind.get("coding")) if isinstance(kind, Mapping) else ()
    return any(coding.get("code") == "MR" for coding in codings)
