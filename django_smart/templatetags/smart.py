"""Template tags: ``{% load smart %}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import template
from django.core.exceptions import SynchronousOnlyOperation
from django.template import Context
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from ..banner import build_patient_facts
from ..launches.prefix import get_protocol_url
from ..protocol.style import SMARTStyle
from .fhir import to_json

__all__ = ["patient_banner", "register", "smart_style", "smart_url"]

register = template.Library()


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
        nonce: of the page's Content-Security-Policy, if that wants one.
    """
    style = _get_style(context.get("request"))
    if not style:
        return SafeString()
    # Each value was written by our own grammar; escaping would be no CSS any more.
    css = mark_safe(style.to_css())  # noqa: S308
    if nonce:
        return format_html('<style nonce="{}">{}</style>', nonce, css)
    return format_html("<style>{}</style>", css)


@register.inclusion_tag("django_smart/patient_banner.html", takes_context=True)
def patient_banner(context: Context, patient: Any, heading: int = 2) -> dict[str, Any]:
    """
    Who the patient is: ``{% patient_banner patient %}``.

    Nothing where the EHR has said that its own window shows it; where it has said
    nothing, the banner is there (RESP-13).

    Args:
        patient: the ``Patient`` that was read; ``None`` if that failed, which the
            banner then says.
        heading: level of the heading that the name is, 1 to 6.
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


def _needs_banner(request: Any) -> bool:
    """Only a clear "false" says that the EHR shows the patient itself."""
    try:
        smart = getattr(request, "smart", None)
        return not smart or smart.need_patient_banner is not False
    except SynchronousOnlyOperation:
        # An async view that has not looked for its launch.
        return True


def _get_style(request: Any) -> SMARTStyle | None:
    smart = getattr(request, "smart", None)
    try:
        return smart.style if smart else None
    except SynchronousOnlyOperation:
        # An async view that asked for no launch needs no style either.
        return None
