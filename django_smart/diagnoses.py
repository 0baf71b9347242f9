"""
Every code of the package: of an error, a system check or a finding of the doctor.

Each has a row in ``diagnoses.tsv``.  Error pages, system checks, ``smart_doctor``, the
admin and the log render what is declared there, and the page "Every code" of the
documentation is made from it.  A code means one thing everywhere.

No Django: texts of pages are marked for translation with ``_`` and translated when
they are rendered.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

__all__ = [
    "DIAGNOSES",
    "DOCS_URL",
    "PAGES",
    "Advice",
    "Diagnosis",
    "Finding",
    "Page",
    "Severity",
    "Turn",
    "build_docs_url",
    "build_finding",
]

DOCS_URL = "https://django-smart.readthedocs.io/en/latest/"


def build_docs_url(code: str) -> str:
    """Return the URL of a code's entry in the documentation."""
    return f"{DOCS_URL}reference/codes.html#{code}"


class Severity(StrEnum):
    """How bad it is; a note is nothing bad, and good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Turn(StrEnum):
    """Who can do something about it."""

    USER = "user"
    SITE = "site"
    EHR = "ehr"


@dataclass(frozen=True, slots=True)
class Advice:
    """
    What the user does next, in one sentence that agrees with whose turn it is.

    Attributes:
        in_ehr: instead of ``text``, for a page without a button whose launch can only
            be started in the EHR.
    """

    turn: Turn
    text: str
    in_ehr: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """
    What an error page says.

    Attributes:
        title: a sentence without a period; ``%(Server)s`` at its beginning and
            ``%(server)s`` later are replaced with the organization's name.
    """

    title: str
    advice: Advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """
    What a code means.

    Attributes:
        code: never changes; that of a system check is its id.
        section: of the page "Every code".
        requirement: that a server did not meet, by its number in the conformance
            matrix; empty for everything else.
        turn: who can do something about it.
        what: what happened, in general.
        why: why it matters; empty if that is plain.
        fix: what to do, unless a finding says it more precisely; empty for an error.
        status: HTTP status of the page that reports an error; 0 if it is none.
        page: what that page says; ``None`` for an error that no user meets.
    """

    code: str
    section: str
    requirement: str
    severity: Severity
    turn: Turn
    what: str
    why: str
    fix: str
    status: int
    page: Page | None

    @property
    def docs_url(self) -> str:
        """Its entry in the documentation."""
        return build_docs_url(self.code)

    @property
    def is_for_ehr(self) -> bool:
        """Whether the EHR's team should know, also if a user can do something else."""
        return self.turn == Turn.EHR or bool(self.requirement)

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.page is not None and self.page.advice is _TRY_LATER


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    What a check or the doctor has found.  No member holds a secret.

    Attributes:
        severity: usually that of the diagnosis.
        subject: the server's slug; empty for the site itself.
        what: what was found.
        fix: what to do.
    """

    diagnosis: Diagnosis
    severity: Severity
    subject: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"

    @property
    def code(self) -> str:
        """That of the diagnosis."""
        return self.diagnosis.code

    @property
    def why(self) -> str:
        """Why it matters."""
        return _strip_markup(self.diagnosis.why)

    @property
    def turn(self) -> Turn:
        """Who can do something about it."""
        return self.diagnosis.turn

    @property
    def docs_url(self) -> str:
        """Its entry in the documentation."""
        return build_docs_url(self.code)

    def to_json(self) -> dict[str, str]:
        """Return what ``smart_doctor --json`` prints."""
        return {name: str(getattr(self, name)) for name in _MEMBERS}


_MEMBERS = ("code", "severity", "subject", "turn", "what", "why", "fix", "docs_url")


def build_finding(
    code: str,
    *,
    what: str = "",
    fix: str = "",
    subject: str = "",
    severity: Severity | None = None,
) -> Finding:
    """Return a finding of the diagnosis *code*, whose own words are the default."""
    diagnosis = DIAGNOSES[code]
    return Finding(
        diagnosis=diagnosis,
        severity=severity or diagnosis.severity,
        subject=subject,
        what=what or _strip_markup(diagnosis.what),
        fix=fix or _strip_markup(diagnosis.fix),
    )


def _strip_markup(text: str) -> str:
    return text.replace("``", "")


def _(text: str) -> str:
    """Mark *text* for translation."""
    return text


_AGAIN = Advice(
    Turn.USER,
    _("To continue, open the app or connect your records again."),
    in_ehr=_("To continue, open the app from the patient's chart again."),
)
_OPEN_CHART = Advice(
    Turn.USER,
    _("Open the app from a patient's chart, or connect your records."),
    in_ehr=_("Open the app from a patient's chart."),
)
_CHOOSE = Advice(
    Turn.USER,
    _("Choose an open chart, or open the app from the chart that you want to see."),
)
_CHOOSE_RECORD = Advice(
    Turn.USER, _("Choose the record that you want to see, or connect another one.")
)
_OPEN_VISIT = Advice(
    Turn.USER, _("Open the app from one of the patient's visits (encounters).")
)
_SIGN_IN = Advice(
    Turn.USER,
    _("Sign in again to continue."),
    in_ehr=_("Sign in again, or open the app from the patient's chart again."),
)
_GO_FORWARD = Advice(
    Turn.USER,
    _("Go forward in your browser, or start again if nothing opens within a minute."),
)
_ALLOW_COOKIES = Advice(
    Turn.USER,
    _(
        "Start again in this browser, and allow cookies for this site if it happens "
        "again."
    ),
)
_SEND_AGAIN = Advice(
    Turn.USER,
    _("Try again, and allow cookies for this site if it happens again."),
)
_APPROVE = Advice(
    Turn.USER,
    _("To continue, start again and approve the access that you are asked for."),
    in_ehr=_(
        "Open the app from the patient's chart again and approve the access that it "
        "asks for, or contact this site's support if you are not asked."
    ),
)
_USE_THAT_ACCOUNT = Advice(
    Turn.USER,
    _(
        "Sign out here and sign in with this account instead, or ask this site's "
        "support to unlink it from that user."
    ),
)
_LOOK_AGAIN = Advice(
    Turn.USER,
    _(
        "Nothing was saved, so open the page again, check the current version, and "
        "repeat your change if it is still correct."
    ),
)
_TELL_SUPPORT = Advice(
    Turn.SITE,
    _("Contact this site's support and include the code at the end of this page."),
)
_REPORT = Advice(
    Turn.EHR,
    _("Contact this site's support, who can report the code below to the hospital."),
)
_TRY_LATER = Advice(
    Turn.EHR,
    _(
        "Wait a minute and try again, or contact this site's support if the problem "
        "continues."
    ),
    in_ehr=_(
        "Wait a minute and open the app from the patient's chart again, or contact "
        "this site's support if the problem continues."
    ),
)
_ASK_THERE = Advice(
    Turn.EHR,
    _("If you need it, look in the hospital's own system, or ask the hospital."),
)

_INVALID_RESPONSE = _("%(Server)s sent an invalid response")
_UNPROVEN = _("%(Server)s could not prove who you are")
_REFUSED = _("%(Server)s refused to open this app")

PAGES: Mapping[str, Page] = {
    # For errors that no page should meet, and for those of a site's own classes.
    "default": Page(_("Something went wrong"), _TELL_SUPPORT),
    "no_chart": Page(_("No patient's chart is open here"), _OPEN_CHART),
    "no_visit": Page(_("No visit was selected"), _OPEN_VISIT),
    "which_chart": Page(_("Which chart do you mean?"), _CHOOSE),
    "which_record": Page(_("Whose record?"), _CHOOSE_RECORD),
    "not_registered": Page(
        _("This organization is not registered here"), _TELL_SUPPORT
    ),
    "turned_off": Page(_("This app is turned off for %(server)s"), _TELL_SUPPORT),
    "unsupported": Page(_("%(Server)s does not support what this app needs"), _REPORT),
    "no_connection": Page(_("This site cannot connect to %(server)s"), _TELL_SUPPORT),
    # Pages that are over, and the page that asks
    "not_open": Page(_("This page is not open in this browser"), _AGAIN),
    "canceled": Page(_("You canceled, so nothing was changed"), _AGAIN),
    "signed_out": Page(_("You were signed out"), _SIGN_IN),
    "other_user": Page(_("Someone signed in after this page was opened"), _AGAIN),
    "outdated": Page(
        _("This page is older than your last sign-in, so nothing was changed"),
        _SEND_AGAIN,
    ),
    # The connection between the two systems
    "wrong_response": Page(_INVALID_RESPONSE, _REPORT),
    "wrong_address": Page(_INVALID_RESPONSE, _TELL_SUPPORT),
    "unavailable": Page(_("%(Server)s is unavailable at the moment"), _TRY_LATER),
    # The way back from the EHR
    "too_late": Page(_("This sign-in can no longer be completed"), _AGAIN),
    "already_opened": Page(_("This sign-in link was already opened"), _GO_FORWARD),
    "other_browser": Page(
        _("This sign-in was started in another browser or window"), _ALLOW_COOKIES
    ),
    "not_granted": Page(
        _("%(Server)s did not grant the access that this app needs"), _APPROVE
    ),
    "refused": Page(_REFUSED, _REPORT),
    "launch_refused": Page(_REFUSED, _AGAIN),
    "access_ended": Page(_("Your access to %(server)s has ended"), _AGAIN),
    # The user's identity
    "not_proven": Page(_UNPROVEN, _REPORT),
    "not_proven_yet": Page(_UNPROVEN, _TRY_LATER),
    "no_sign_in": Page(_("You cannot sign in with this account"), _TELL_SUPPORT),
    "account_taken": Page(
        _("This account is connected to another user of this site"), _USE_THAT_ACCOUNT
    ),
    # The records themselves
    "other_patient": Page(_("%(Server)s switched to another patient"), _AGAIN),
    "maybe_other_patient": Page(
        _("Nothing was shown or changed, because it may belong to another patient"),
        _TELL_SUPPORT,
    ),
    "wrong_request": Page(_("This page made an invalid request"), _TELL_SUPPORT),
    "request_refused": Page(_("%(Server)s refused this page's request"), _TELL_SUPPORT),
    "not_shared": Page(
        _("%(Server)s does not have this, or does not share it with this app"),
        _ASK_THERE,
    ),
    "changed_there": Page(
        _("Someone else has changed this at %(server)s"), _LOOK_AGAIN
    ),
    "too_many": Page(
        _("%(Server)s has more records than this page can show"), _TELL_SUPPORT
    ),
}
"""By the names in the table."""


def _read_table() -> Iterator[Diagnosis]:
    text = files(__package__).joinpath("diagnoses.tsv").read_text("utf-8")
    for row in csv.DictReader(
        text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE
    ):
        yield Diagnosis(
            code=row["code"],
            section=row["section"],
            requirement=row["requirement"],
            severity=Severity(row["severity"]),
            turn=Turn(row["turn"]),
            what=row["what"],
            why=row["why"],
            fix=row["fix"],
            status=int(row["status"] or 0),
            page=PAGES[row["page"]] if row["page"] else None,
        )


DIAGNOSES: Mapping[str, Diagnosis] = {each.code: each for each in _read_table()}
"""By code, in the order of the table."""
