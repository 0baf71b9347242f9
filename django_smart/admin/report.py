"""What an EHR did differently: on the page of a launch, and on that of its server."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..contrib.doctor.report import Observation, read_report
from ..models import FHIRServer, Launch
from .base import as_code, as_list

__all__ = ["REPORT_FIELDSET", "LaunchReportMixin", "ServerReportMixin"]

REPORT_FIELDSET: Any = (
    _("What this EHR did, last 30 days"),
    {
        "description": _("For its team, smart_doctor --report prints this as text."),
        "fields": ("report",),
    },
)


class ServerReportMixin:
    """Shows the report of a server."""

    @admin.display(description=_("deviations"))
    def report(self, obj: FHIRServer) -> SafeString | str:
        """Each kind of deviation, with how often it was seen."""
        return as_list(_describe(one) for one in read_report(obj).observations)


class LaunchReportMixin:
    """Shows what the EHR of a launch did differently."""

    @admin.display(description=_("deviations"))
    def found_deviations(self, obj: Launch) -> SafeString | str:
        """As they were noted, without any value that the EHR sent."""
        return as_list(
            format_html("{} {}", as_code(code), evidence)
            for code, evidence in obj.deviations
        )


def _describe(one: Observation) -> SafeString:
    where = gettext("in its configuration")
    if one.last_at:
        where = ngettext("%(count)d launch", "%(count)d launches", one.number) % {
            "count": one.number
        }
    return format_html(
        "{} ({}) {}", as_code(one.diagnosis.code), where, "; ".join(one.evidence)
    )
