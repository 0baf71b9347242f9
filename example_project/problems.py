"""What to tell the person in front of the page when FHIR data could not be had."""

from __future__ import annotations

from dataclasses import dataclass

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

_AGAIN = "Open the chart once more from the EHR, or connect your records again."
_LATER = "Wait a moment, then reload this page."

# The first class that fits counts.
_TEXTS: list[tuple[type[SMARTError] | tuple[type[SMARTError], ...], str, str]] = [
    (
        (InsufficientScopeError, FHIRForbiddenError),
        "The EHR has not allowed this app to see them.",
        "Open the chart once more and allow the access that the app asks for, or ask "
        "the people who run the EHR.",
    ),
    (
        (ReauthorizationRequiredError, NoGrantError, FHIRUnauthorizedError),
        "The permission to read from the EHR has ended.",
        _AGAIN,
    ),
    (ContextChangedError, "The EHR has changed to another patient.", _AGAIN),
    (FHIRNotFoundError, "The EHR does not know them.", _AGAIN),
    (ReplacedPatientError, "The EHR sent the record of another patient.", _AGAIN),
    (ServerTimeoutError, "The EHR took too long to answer.", _LATER),
    (
        (ServerUnreachableError, FHIRUnavailableError, TokenServerError, GrantError),
        "The EHR cannot be reached at the moment.",
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
    """

    what: str
    reason: str
    advice: str
    code: str

    @property
    def can_connect(self) -> bool:
        """Whether the advice is to connect, so that a link belongs beside it."""
        return "connect" in self.advice


def describe(error: SMARTError, what: str) -> Problem:
    """Put *error* in words; nothing of the server's own answer is shown."""
    reason, advice = next(
        (
            (reason, advice)
            for classes, reason, advice in _TEXTS
            if isinstance(error, classes)
        ),
        (
            "The EHR gave an answer that this app cannot use.",
            "If it stays like this, tell the people who run this site.",
        ),
    )
    return Problem(what=what, reason=reason, advice=advice, code=error.code)
