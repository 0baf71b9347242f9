"""What to tell the person in front of the page when FHIR data could not be had."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext, gettext_noop

from django_smart.exceptions import (
    ContextChangedError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRUnauthorizedError,
    FHIRUnavailableError,
    GrantError,
    InsufficientScopeError,
    NoGrantError,
    ReauthorizationRequiredError,
    ReplacedPatientError,
    ServerTimeoutError,
    ServerUnreachableError,
    SMARTError,
    TokenServerError,
)

__all__ = ["Problem", "describe"]

_AGAIN = gettext_noop(
    "Open the chart once more from the EHR, or connect your records again."
)
_LATER = gettext_noop("Wait a moment, then reload this page.")

# The first class that fits counts.
_TEXTS: list[tuple[type[SMARTError] | tuple[type[SMARTError], ...], str, str]] = [
    (
        (InsufficientScopeError, FHIRForbiddenError),
        gettext_noop("The EHR has not allowed this app to see them."),
        gettext_noop(
            "Open the chart once more and allow the access that the app asks for, or "
            "ask the people who run the EHR."
        ),
    ),
    (
        (ReauthorizationRequiredError, NoGrantError, FHIRUnauthorizedError),
        gettext_noop("The permission to read from the EHR has ended."),
        _AGAIN,
    ),
    (
        ContextChangedError,
        gettext_noop("The EHR has changed to another patient."),
        _AGAIN,
    ),
    (FHIRNotFoundError, gettext_noop("The EHR does not know them."), _AGAIN),
    (
        ReplacedPatientError,
        gettext_noop("The EHR sent the record of another patient."),
        _AGAIN,
    ),
    (ServerTimeoutError, gettext_noop("The EHR took too long to answer."), _LATER),
    (
        (ServerUnreachableError, FHIRUnavailableError, TokenServerError, GrantError),
        gettext_noop("The EHR cannot be reached at the moment."),
        _LATER,
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """
    Why something is missing from a page.

    Attributes:
        what: plural, what could not be shown, such as ``results``.
        reason: a sentence.
        advice: what to do next, a sentence.
        code: of the error, for those who are asked for help.
        can_connect: whether the advice is to connect, so that a link belongs beside it.
    """

    what: str
    reason: str
    advice: str
    code: str
    can_connect: bool = False


def describe(error: SMARTError, what: str) -> Problem:
    """Put *error* in words; nothing of the server's own answer is shown."""
    reason, advice = next(
        (
            (reason, advice)
            for classes, reason, advice in _TEXTS
            if isinstance(error, classes)
        ),
        (
            gettext_noop("The EHR gave an answer that this app cannot use."),
            gettext_noop("If it stays like this, tell the people who run this site."),
        ),
    )
    return Problem(
        what=what,
        reason=gettext(reason),
        advice=gettext(advice),
        code=error.code,
        can_connect=advice is _AGAIN,
    )
