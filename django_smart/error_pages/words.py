"""The texts of error pages: for each error code, and for each reason of an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from .. import exceptions
from ..exceptions import AuthorizationDeniedError, SMARTError
from ..models import Launch

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
    "DEFAULT",
    "ENDINGS",
    "OUTCOME_UNKNOWN",
    "WORDS",
    "Advice",
    "Turn",
    "Words",
    "find_stored_words",
    "find_words",
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


class Turn(models.TextChoices):
    """Who can do something about an error; the admin shows it to this site's staff."""

    USER = "user", _("the user")
    SITE = "site", _("this site")
    EHR = "ehr", _("the EHR")


@dataclass(frozen=True, slots=True)
class Advice:
    """
    What to do next, in one sentence that agrees with whose turn it is.

    Attributes:
        in_ehr: instead of ``text``, for an EHR launch whose page has no button, because
            it can only be started again in the EHR.
    """

    turn: Turn
    text: StrOrPromise
    in_ehr: StrOrPromise = ""

    def get(self, kind: str, *, can_retry: bool = False) -> str:
        """Return the sentence for a launch of this kind (``Launch.Kind``)."""
        is_in_ehr = kind == Launch.Kind.EHR and not can_retry
        return str((is_in_ehr and self.in_ehr) or self.text)


@dataclass(frozen=True, slots=True)
class Words:
    """
    The texts of some error codes.

    Attributes:
        title: a sentence without a period; ``%(Server)s`` at its beginning and
            ``%(server)s`` later are replaced with the organization's name.
    """

    title: StrOrPromise
    advice: Advice

    def get_title(self, server_name: str) -> str:
        """Return the title with the organization's name, or with "the hospital"."""
        return str(self.title) % {
            "Server": server_name or pgettext("at the beginning", "The hospital"),
            "server": server_name or pgettext("in a sentence", "the hospital"),
        }


def find_words(error: SMARTError, code: str = "", *, kind: str = "") -> Words:
    """
    Return the words for *code*, or for the error's code or its nearest parent class.

    Args:
        kind: how the launch began (``Launch.Kind``).
    """
    named = getattr(error, "error", "")
    is_refused = isinstance(error, AuthorizationDeniedError)
    if is_refused and named == "invalid_request" and kind == Launch.Kind.EHR:
        # The launch value was used or has expired, as after a reload.
        return _LAUNCH_REFUSED
    above = (getattr(each, "code", "") for each in type(error).__mro__)
    oauth_error = _CODES.get(named, "")
    codes = [code] if code else [oauth_error, error.code, *above]
    return next((WORDS[each] for each in codes if each in WORDS), DEFAULT)


def find_stored_words(code: str) -> Words | None:
    """
    Return the words for the code of an error that happened earlier.

    ``None`` if they are not known: no error has the code, or its page depended on the
    EHR's own error, which is not stored.
    """
    if code in _BY_OAUTH_ERROR:
        return None
    if code in WORDS:
        return WORDS[code]
    for each in vars(exceptions).values():
        is_error = isinstance(each, type) and issubclass(each, SMARTError)
        if is_error and (each.code == code or code in each.codes):
            # Only its class counts; what else it takes to make one is not known.
            return find_words(each.__new__(each))
    return None


_BY_OAUTH_ERROR = frozenset({"authorization_refused", "token_refused"})


# Errors of RFC 6749 that say more than the code of their class does.
_CODES = {
    "invalid_client": "credentials_unusable",
    "unauthorized_client": "credentials_unusable",
    "server_error": "token_server_error",
    "temporarily_unavailable": "token_server_error",
}
_AGAIN = Advice(
    Turn.USER,
    _("To continue, open the app or connect your records again."),
    in_ehr=_("To continue, open the app from the patient's chart again."),
)
_OPEN_CHART = Advice(
    Turn.USER, _("Open the app from a patient's chart, or connect your records.")
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
    Turn.EHR, _("If you need it, look for it there or ask there for access.")
)

_INVALID_RESPONSE = _("%(Server)s sent an invalid response")
_REFUSED = _("%(Server)s refused to open this app")
_UNPROVEN = _("%(Server)s could not prove who you are")
_LAUNCH_REFUSED = Words(_REFUSED, _AGAIN)

DEFAULT = Words(_("Something went wrong"), _TELL_SUPPORT)
"""For errors that no page should meet; a test lists them."""

_TABLE: Mapping[str, Words] = {
    # Before anything was sent
    "missing_parameter no_launch grant_missing patient_missing": Words(
        _("No patient's chart is open here"), _OPEN_CHART
    ),
    "encounter_missing": Words(_("No visit was selected"), _OPEN_VISIT),
    "ambiguous": Words(_("Which chart do you mean?"), _CHOOSE),
    "grant_ambiguous": Words(_("Whose record?"), _CHOOSE_RECORD),
    "unknown_server": Words(
        _("This organization is not registered here"), _TELL_SUPPORT
    ),
    "registration_inactive server_moved": Words(
        _("This app is turned off for %(server)s"), _TELL_SUPPORT
    ),
    "server_unsupported app_state_unsupported": Words(
        _("%(Server)s does not support what this app needs"), _REPORT
    ),
    "credentials_unusable tokens_not_stored deployment_not_adopted grants_refused "
    "refresh_in_transaction": Words(
        _("This site cannot connect to %(server)s"), _TELL_SUPPORT
    ),
    # Pages that are over, and the page that asks
    "launch_unknown launch_foreign launch_ended "
    "decision_unknown decision_expired": Words(_("This page is not open here"), _AGAIN),
    "decision_declined": Words(_("You canceled, so nothing was changed"), _AGAIN),
    "launch_signed_out user_signed_out": Words(_("You were signed out"), _SIGN_IN),
    "launch_without_user user_changed": Words(
        _("Someone signed in after this page was opened"), _AGAIN
    ),
    # The connection between the two systems
    "insecure_url response_too_large redirect_refused discovery_malformed "
    "issuer_not_known token_response_malformed fhir_response_malformed": Words(
        _INVALID_RESPONSE, _REPORT
    ),
    "address_refused bearer_boundary issuer_mismatch": Words(
        _INVALID_RESPONSE, _TELL_SUPPORT
    ),
    "server_unreachable server_timeout discovery_status discovery_busy "
    "token_server_error refresh_busy record_busy fhir_unavailable": Words(
        _("%(Server)s is unavailable at the moment"), _TRY_LATER
    ),
    # The way back from the EHR
    "authorization_response_malformed state_unknown state_failed "
    "state_withdrawn too_many_pending state_expired callback_mismatch": Words(
        _("This sign-in can no longer be completed"), _AGAIN
    ),
    "state_used": Words(_("This sign-in link was already opened"), _GO_FORWARD),
    "state_foreign": Words(
        _("This was started in another browser or window"), _ALLOW_COOKIES
    ),
    "access_denied scope_insufficient": Words(
        _("%(Server)s did not grant the access that this app needs"), _APPROVE
    ),
    "authorization_refused": Words(_REFUSED, _REPORT),
    "token_refused": _LAUNCH_REFUSED,
    "grant_lost fhir_unauthorized": Words(
        _("The access to %(server)s has ended"), _AGAIN
    ),
    # The user's identity
    "id_token_invalid": Words(_UNPROVEN, _REPORT),
    "id_token_key_unknown": Words(_UNPROVEN, _TRY_LATER),
    "user_inactive user_refused": Words(
        _("You cannot sign in with this account"), _TELL_SUPPORT
    ),
    "identity_in_use": Words(
        _("This account is connected to another user of this site"), _USE_THAT_ACCOUNT
    ),
    # The records themselves
    "context_changed patient_replaced": Words(
        _("%(Server)s switched to another patient"), _AGAIN
    ),
    "patient_foreign": Words(
        _("Nothing was shown or changed, because it may belong to another patient"),
        _TELL_SUPPORT,
    ),
    "fhir_request_invalid": Words(
        _("This page made an invalid request"), _TELL_SUPPORT
    ),
    "fhir_status": Words(_("%(Server)s refused this page's request"), _TELL_SUPPORT),
    "fhir_forbidden fhir_not_found": Words(
        _("%(Server)s does not have this, or does not share it with this app"),
        _ASK_THERE,
    ),
    "fhir_conflict": Words(
        _("Someone else has changed this at %(server)s"), _LOOK_AGAIN
    ),
    "too_many_results": Words(
        _("%(Server)s has more records than this page can show"), _TELL_SUPPORT
    ),
}

WORDS: Mapping[str, Words] = {
    code: words for codes, words in _TABLE.items() for code in codes.split()
}
"""By code; a code without an entry uses the words of its nearest parent class."""
