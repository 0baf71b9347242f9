"""The texts of error pages, translated: what happened, and what the user does next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils import translation
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from ..diagnoses import DIAGNOSES, PAGES, Diagnosis, Page, Turn
from ..exceptions import AuthorizationDeniedError, SMARTError
from ..models import Launch

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
    "ENDINGS",
    "OUTCOME_UNKNOWN",
    "TURNS",
    "find_page",
    "find_stored",
    "get_advice",
    "get_title",
]

ENDINGS: Mapping[str, StrOrPromise] = {
    "context_changed": _(
        "The hospital switched to another patient, so this page was closed to prevent "
        "a mix-up."
    ),
    "disconnected": _("Its connection to the hospital was removed."),
    "ended_by_staff": _("A member of this site's staff closed it."),
    "idle": _("It was not used for a long time."),
    "lifetime": _("It was open for too long."),
    "signed_out": _("You signed out."),
    "too_many_open": _(
        "Too many charts were open in this browser, and this one had not been used for "
        "the longest time."
    ),
    "user_changed": _("Another user signed in here."),
}
"""Why a launch ended, by the reason it has; other reasons need no explanation."""

OUTCOME_UNKNOWN = _(
    "It is not known whether this was saved. Check the chart before you send it again."
)
"""Advice if the EHR did not answer a page that writes."""

TURNS: Mapping[Turn, StrOrPromise] = {
    Turn.USER: _("the user"),
    Turn.SITE: _("this site"),
    Turn.EHR: _("the EHR"),
}
"""Who can do something about an error; the admin shows it to this site's staff."""

# Errors of RFC 6749 that say more than the code of their class does.
_CODES = {
    "invalid_client": "credentials_unusable",
    "unauthorized_client": "credentials_unusable",
    "server_error": "token_server_error",
    "temporarily_unavailable": "token_server_error",
}


def find_page(error: SMARTError, code: str = "", *, kind: str = "") -> Page:
    """
    Return what the page says for *code*, or else for *error*.

    Args:
        kind: how the launch began (``Launch.Kind``).
    """
    named = getattr(error, "error", "")
    is_refused = isinstance(error, AuthorizationDeniedError)
    if is_refused and named == "invalid_request" and kind == Launch.Kind.EHR:
        # The launch value was used or has expired, as after a reload.
        return PAGES["launch_refused"]
    found = DIAGNOSES.get(code or _CODES.get(named, error.code))
    return (found and found.page) or PAGES["default"]


def find_stored(code: str) -> Diagnosis | None:
    """
    Return the diagnosis for the code of an error that happened earlier.

    ``None`` if it is not known: no error has the code, or its page depended on the
    EHR's own error, which is not stored.
    """
    return None if code in _BY_OAUTH_ERROR else DIAGNOSES.get(code)


_BY_OAUTH_ERROR = frozenset({"authorization_refused", "token_refused"})


def get_title(page: Page, server_name: str) -> str:
    """Return the title with the organization's name, or with "the hospital"."""
    return translation.gettext(page.title) % {
        "Server": server_name or pgettext("at the beginning", "The hospital"),
        "server": server_name or pgettext("in a sentence", "the hospital"),
    }


def get_advice(page: Page, kind: str, *, can_retry: bool = False) -> str:
    """Return the advice for a launch of this kind (``Launch.Kind``)."""
    is_in_ehr = kind == Launch.Kind.EHR and not can_retry
    return translation.gettext((is_in_ehr and page.advice.in_ehr) or page.advice.text)
