"""What a server did differently in the last thirty days, for its team."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max
from django.utils import timezone

from ...diagnoses import DIAGNOSES, Diagnosis
from ...exceptions import SMARTError
from ...models import FHIRServer, Launch

__all__ = ["PERIOD", "Observation", "Report", "read_report", "render_report"]

PERIOD = timedelta(days=30)
# Of a busy server, the newest tell as much as all.
_MOST_LAUNCHES = 10_000
# Different outcomes: a few at an honest server, while a hostile one could have as many
# as launches.
_MOST_OUTCOMES = 1_000
_MOST_EVIDENCE = 5
_LINES = textwrap.TextWrapper(
    width=79,
    initial_indent="   ",
    subsequent_indent="   ",
    break_long_words=False,
    break_on_hyphens=False,
)


@dataclass(kw_only=True, slots=True)
class Observation:
    """
    One thing that a server does differently, or that its launches fail with.

    Attributes:
        number: of launches; 0 for its configuration, which they share.
        last_at: when it was last seen; ``None`` for its configuration.
        evidence: names of members and types, without values.
    """

    diagnosis: Diagnosis
    number: int = 0
    last_at: datetime | None = None
    evidence: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Report:
    """
    What is known of a server's deviations; no member holds personal data.

    Attributes:
        launches: how many were completed or failed since then.
        observations: most frequent first, after those of the configuration.
        settings: names of the server's quirks and overrides.
    """

    server: FHIRServer
    since: datetime
    launches: int
    observations: list[Observation]
    settings: list[str]


def read_report(server: FHIRServer) -> Report:
    """Return what *server* published last, and what it did in its newest launches."""
    since = timezone.now() - PERIOD
    found: dict[str, Observation] = {}
    for code, evidence in _read_configuration(server):
        _add(found, code, evidence)
    number = 0
    for outcome in _count_outcomes(server, since):
        number += outcome["number"]
        deviations = outcome["deviations"]
        if outcome["status"] == Launch.Status.FAILED:
            deviations = [*deviations, (outcome["error_code"], "")]
        for code in {_add(found, *each) for each in deviations} & found.keys():
            one = found[code]
            one.number += outcome["number"]
            one.last_at = max(outcome["last_at"], one.last_at or outcome["last_at"])
    return Report(
        server=server,
        since=since,
        launches=number,
        observations=sorted(
            found.values(), key=lambda one: (one.last_at is not None, -one.number)
        ),
        settings=sorted([*server.quirks.as_json(), *server.overrides]),
    )


def _count_outcomes(server: FHIRServer, since: datetime) -> Iterable[Any]:
    """Return how often the newest launches ended alike, most frequent first."""
    launches = (
        Launch.objects.filter(registration__server=server, created_at__gte=since)
        .exclude(kind=Launch.Kind.CONNECTION)
        .exclude(status=Launch.Status.PENDING)
    )
    beyond = launches.order_by("-pk").values_list("pk", flat=True)[_MOST_LAUNCHES:]
    if (oldest := beyond.first()) is not None:
        launches = launches.filter(pk__gt=oldest)
    # Counted by the database: a page would read thousands of rows.
    return (
        launches.values("deviations", "status", "error_code")
        .annotate(number=Count("pk"), last_at=Max("created_at"))
        .order_by("-number", "-last_at")[:_MOST_OUTCOMES]
    )


def _read_configuration(server: FHIRServer) -> list[tuple[str, str]]:
    stored = server.discovered.configuration
    if stored is None:
        return []
    try:
        parsed = server.parse_configuration(stored)
    except SMARTError as exc:
        return [(exc.code, str(exc))]
    return [(each.code, each.evidence) for each in parsed.deviations]


def _add(found: dict[str, Observation], code: str, evidence: str) -> str:
    """Note *evidence* of *code*, if the server's team should know; return the code."""
    diagnosis = DIAGNOSES.get(code)
    if diagnosis is not None and diagnosis.is_for_ehr:
        one = found.setdefault(code, Observation(diagnosis=diagnosis))
        if evidence and evidence not in one.evidence:
            one.evidence = [*one.evidence, evidence][:_MOST_EVIDENCE]
    return code


def render_report(report: Report) -> str:
    """Return *report* as text that can be sent to the server's team."""
    return "\n".join(_render(report))


def _render(report: Report) -> Iterator[str]:
    server = report.server
    yield f"{server.name} ({server.base_url})"
    yield (
        f"Launches of SMART App Launch 2.2 since {report.since:%Y-%m-%d}: "
        f"{report.launches}. No values of tokens, patients or users are included."
    )
    for number, one in enumerate(report.observations, start=1):
        diagnosis = one.diagnosis
        where = "in the SMART configuration"
        if one.last_at:
            plural = "" if one.number == 1 else "es"
            where = f"{one.number} launch{plural}, last on {one.last_at:%Y-%m-%d}"
        of = f", {diagnosis.requirement}" if diagnosis.requirement else ""
        yield ""
        yield f"{number}. {diagnosis.code} ({diagnosis.severity}{of}): {where}"
        for title, text in (
            ("", diagnosis.what),
            ("Seen: ", "; ".join(one.evidence)),
            ("Why it matters: ", diagnosis.why),
            ("Please: ", diagnosis.fix),
            ("See ", diagnosis.docs_url),
        ):
            if text:
                yield _LINES.fill(f"{title}{text}".replace("``", ""))
    if not report.observations:
        yield ""
        yield "No deviation was seen."
    if report.settings:
        yield ""
        yield f"Set on this site because of the server: {', '.join(report.settings)}."
    yield ""
    yield "For the table of vendors:"
    yield _render_row(report)


def _render_row(report: Report) -> str:
    """Return the server's row of ``vendors.csv``; a person fills in the dots."""
    codes = [one.diagnosis.code for one in report.observations]
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(
        [
            report.server.get_preset_display()
            if report.server.preset
            else report.server.name,
            "…",
            "…",
            report.server.preset or "none",
            "…",
            f"{timezone.now():%Y-%m-%d}: {report.launches} launches",
            ", ".join([*codes, *report.settings]) or "none",
        ]
    )
    return out.getvalue()
