"""The texts of error pages: for each error code, and for each reason of an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    "ByKind",
    "Words",
    "find_stored_words",
    "find_words",
]

ENDINGS: Mapping[str, StrOrPromise] = {
    "context_changed": _(
        "The EHR switched to another patient, so this page was closed to prevent a "
        "mix-up."
    ),
    "disconnected": _("Its connection to the EHR was removed."),
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ByKind:
    """Advice by how the launch began (``Launch.Kind``)."""

    ehr: StrOrPromise
    standalone: StrOrPromise
    unknown: StrOrPromise

    def get(self, kind: str) -> StrOrPromise:
        """Return the advice for *kind*, or for an unknown kind."""
        if kind == Launch.Kind.EHR:
            return self.ehr
        return self.standalone if kind == Launch.Kind.STANDALONE else self.unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """
    The texts of one error code.

    Attributes:
        title: a sentence without a period; ``%(Server)s`` at its beginning and
            ``%(server)s`` later are replaced with the organization's name.
        advice: what to do next.
        turn: who can fix it; if empty, it is derived from title and advice.
    """

    title: StrOrPromise
    advice: StrOrPromise | ByKind
    turn: StrOrPromise = ""

    def get_turn(self, server_name: str) -> str:
        """Return who can fix it; derived from title and advice if not set."""
        turn = self.turn or (
            _EHRS_TURN
            if self.title is _UNUSABLE or self.advice is _TRY_LATER
            else _SITES_TURN
            if self.advice in {_TELL_SUPPORT, _ASK_ADMINISTRATOR}
            else _YOUR_TURN
        )
        return str(turn) % {
            "server": server_name or pgettext("in a sentence", "the EHR")
        }

    def get_title(self, server_name: str) -> str:
        """Return the title with the organization's name, or "the EHR" without one."""
        return str(self.title) % {
            "Server": server_name or pgettext("at the beginning", "The EHR"),
            "server": server_name or pgettext("in a sentence", "the EHR"),
        }

    def get_advice(self, kind: str, *, can_retry: bool = True) -> str:
        """
        Return the advice for a launch of this kind.

        Args:
            can_retry: whether the page has a button; without one, an EHR launch can
                only be tried again in the EHR.
        """
        advice = self.advice
        if advice is _TRY_LATER and kind == Launch.Kind.EHR and not can_retry:
            advice = _OPEN_LATER
        return str(advice.get(kind) if isinstance(advice, ByKind) else advice)


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
_YOUR_TURN = _("You can fix this yourself.")
_EHRS_TURN = _("Only the administrators of %(server)s can fix this.")
_SITES_TURN = _("Only this site's support team can fix this.")
_AGAIN = ByKind(
    ehr=_("Go back to the patient's chart and open the app again."),
    standalone=_("Connect your records again."),
    unknown=_(
        "Start again: open the app from the patient's chart, or connect your records "
        "on this site."
    ),
)
_TRY_LATER = _(
    "Wait a minute and try again. If the problem continues, contact this site's "
    "support."
)
_OPEN_LATER = _(
    "Wait a minute, then go back to the patient's chart and open the app again. If the "
    "problem continues, contact this site's support."
)
_TELL_SUPPORT = _(
    "You did nothing wrong. Contact this site's support and include the code at the "
    "end of this page."
)
_UNUSABLE = _("%(Server)s sent an invalid response")
_REFUSED = _("%(Server)s refused to open this app")
_LAUNCH_REFUSED = Words(title=_REFUSED, advice=_AGAIN)
_LOOK_AGAIN = _(
    "Nothing was saved. Open the page again, check the current version, and repeat "
    "your change if it is still correct."
)
_ASK_ADMINISTRATOR = _("Ask the administrators of this site.")

DEFAULT = Words(title=_("Something went wrong"), advice=_TELL_SUPPORT)
"""For errors that no page should meet; a test lists them."""

WORDS: Mapping[str, Words] = {
    # Before anything was sent
    "launch_request_invalid": Words(
        title=_("The app cannot be opened this way"), advice=_AGAIN
    ),
    "missing_parameter": Words(
        title=_("This address works only from inside an EHR"),
        advice=_(
            "Open the app from a patient's chart. To connect your own records, start "
            "on this site's home page."
        ),
    ),
    "unknown_server": Words(
        title=_("This organization is not registered here"),
        advice=_("Contact this site's support and name your organization."),
        turn=_SITES_TURN,
    ),
    "registration_inactive": Words(
        title=_("This app is turned off for %(server)s"),
        advice=_("Ask this site's support when it will be available."),
        turn=_SITES_TURN,
    ),
    "server_unsupported": Words(
        title=_("%(Server)s does not support what this app needs"),
        advice=_TELL_SUPPORT,
        turn=_EHRS_TURN,
    ),
    "credentials_unusable": Words(
        title=_("This site is not set up for %(server)s"), advice=_TELL_SUPPORT
    ),
    # Open charts
    "launch_unavailable": Words(title=_("This page cannot be opened"), advice=_AGAIN),
    "launch_unknown": Words(title=_("This page does not exist"), advice=_AGAIN),
    "launch_foreign": Words(
        title=_("This page is not open in this browser"),
        advice=ByKind(
            ehr=_(
                "It was opened by another user, in another browser, or before this "
                "browser was restarted. Go back to the patient's chart and open the "
                "app yourself."
            ),
            standalone=_(
                "It was opened by another user, in another browser, or before this "
                "browser was restarted. Connect your own records."
            ),
            unknown=_(
                "It was opened by another user, in another browser, or before this "
                "browser was restarted. Open the app yourself from the patient's "
                "chart, or connect your records on this site."
            ),
        ),
    ),
    "launch_signed_out": Words(
        title=_("You were signed out"),
        advice=ByKind(
            ehr=_(
                "Sign in again to continue. If you sign in through your EHR, go back "
                "to the patient's chart and open the app again."
            ),
            standalone=_("Sign in again to continue."),
            unknown=_("Sign in again to continue."),
        ),
    ),
    "launch_without_user": Words(
        title=_("You signed in after this page was opened"), advice=_AGAIN
    ),
    "launch_ended": Words(title=_("This page was closed"), advice=_AGAIN),
    "no_launch": Words(
        title=_("No patient's chart is open here"),
        advice=_("Open the app from inside your EHR, or connect your records."),
    ),
    "ambiguous": Words(
        title=_("Which chart do you mean?"),
        advice=_(
            "Several charts were opened in this browser, and this link does not say "
            "which one you want. Choose one that is still open, or open the app again "
            "from the chart in your EHR."
        ),
    ),
    "patient_missing": Words(
        title=_("No patient was selected"),
        advice=ByKind(
            ehr=_("Open the app again from inside a patient's chart."),
            standalone=_("Connect your records again and select a patient."),
            unknown=_(
                "Open the app from inside a patient's chart, or connect your records "
                "again and select a patient."
            ),
        ),
    ),
    "tokens_not_stored": Words(
        title=_("This site could not save its access to %(server)s"),
        advice=_TELL_SUPPORT,
    ),
    "deployment_not_adopted": Words(
        title=_("This copy of the site cannot renew its access to %(server)s"),
        advice=_TELL_SUPPORT,
    ),
    "grants_refused": Words(
        title=_("%(Server)s no longer accepts this site's access"),
        advice=_TELL_SUPPORT,
    ),
    "encounter_missing": Words(
        title=_("No visit was selected"),
        advice=_(
            "This page shows a single visit. Open the app again from one of the "
            "patient's visits (encounters)."
        ),
    ),
    # The page that asks
    "decision_refused": Words(title=_("This question is closed"), advice=_AGAIN),
    "decision_unknown": Words(
        title=_("There is no question to answer here"),
        advice=_(
            "The question was asked in another browser, or someone has signed out "
            "since. Open the app again from the patient's chart, or connect your "
            "records again."
        ),
    ),
    "decision_expired": Words(
        title=_("This question is closed"),
        advice=_(
            "This question was already answered, or it expired after five minutes. "
            "Open the app again from the patient's chart, or connect your records "
            "again."
        ),
    ),
    "decision_declined": Words(
        title=_("You canceled"),
        advice=_(
            "Nothing was changed. To continue, open the app again from the patient's "
            "chart, or connect your records again."
        ),
    ),
    # The connection between the two systems
    "transport_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "server_unreachable": Words(
        title=_("%(Server)s cannot be reached"), advice=_TRY_LATER
    ),
    "server_timeout": Words(
        title=_("%(Server)s took too long to respond"), advice=_TRY_LATER
    ),
    "address_refused": Words(
        title=_("%(Server)s points to an address inside this site's own network"),
        advice=_TELL_SUPPORT,
    ),
    "discovery_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "discovery_status": Words(
        title=_("%(Server)s did not send its connection settings"), advice=_TRY_LATER
    ),
    "discovery_busy": Words(
        title=_("The connection settings of %(server)s are still loading"),
        advice=_TRY_LATER,
    ),
    # The way back from the EHR
    "authorization_response_invalid": Words(title=_UNUSABLE, advice=_AGAIN),
    "state_invalid": Words(title=_("This sign-in link is incomplete"), advice=_AGAIN),
    "state_unknown": Words(
        title=_("This sign-in link is no longer valid"), advice=_AGAIN
    ),
    "state_used": Words(
        title=_("This sign-in was already completed"),
        advice=_(
            "If you used the Back button, go forward again. Otherwise, open the app "
            "or connect your records again."
        ),
    ),
    "state_in_use": Words(
        title=_("This sign-in is still being completed"),
        advice=ByKind(
            ehr=_(
                "If nothing opens within a minute, go back to the patient's chart and "
                "open the app again."
            ),
            standalone=_(
                "If nothing opens within a minute, connect your records again."
            ),
            unknown=_(
                "If nothing opens within a minute, open the app again from the "
                "patient's chart, or connect your records again."
            ),
        ),
    ),
    "state_failed": Words(title=_("This sign-in did not succeed"), advice=_AGAIN),
    "state_withdrawn": Words(
        title=_("You signed out, so this was canceled"), advice=_AGAIN
    ),
    "too_many_pending": Words(
        title=_("Too many apps were opened at once, so this one was closed"),
        advice=_AGAIN,
    ),
    "state_expired": Words(title=_("Signing in took too long"), advice=_AGAIN),
    "callback_mismatch": Words(
        title=_("The response came from an unexpected server"), advice=_AGAIN
    ),
    "state_foreign": Words(
        title=_("This was started in another browser or window"),
        advice=ByKind(
            ehr=_(
                "Open the app again from the patient's chart. If it happens again, "
                "allow cookies for this site."
            ),
            standalone=_(
                "Start again in this browser. If it happens again, allow cookies for "
                "this site."
            ),
            unknown=_(
                "Open the app or connect your records again in this browser. If it "
                "happens again, allow cookies for this site."
            ),
        ),
    ),
    "access_denied": Words(
        title=_("Access was denied"),
        advice=ByKind(
            ehr=_(
                "To use the app, open it again from the patient's chart and approve "
                "the access it asks for."
            ),
            standalone=_("If you change your mind, you can start again at any time."),
            unknown=_(
                "To use the app, open it again and approve the access it asks for."
            ),
        ),
    ),
    "authorization_refused": Words(
        title=_REFUSED,
        advice=_TELL_SUPPORT,
        turn=_EHRS_TURN,
    ),
    "issuer_not_known": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "server_moved": Words(
        title=_("Sign-in with %(server)s is temporarily disabled"),
        advice=_TELL_SUPPORT,
    ),
    "issuer_mismatch": Words(
        title=_("The response came from an unexpected server"),
        advice=_(
            "For your safety, it was discarded. Contact this site's support and "
            "include the code at the end of this page."
        ),
        turn=_SITES_TURN,
    ),
    "token_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "token_refused": Words(
        title=_("%(Server)s refused access to this app"), advice=_AGAIN
    ),
    "token_server_error": Words(
        title=_("%(Server)s is unavailable at the moment"), advice=_TRY_LATER
    ),
    # The user's identity
    "id_token_invalid": Words(
        title=_("%(Server)s could not prove who you are"),
        advice=_TELL_SUPPORT,
        turn=_EHRS_TURN,
    ),
    "id_token_key_unknown": Words(
        title=_("%(Server)s could not prove who you are"), advice=_TRY_LATER
    ),
    "identity_refused": Words(
        title=_("You cannot sign in with this account"), advice=_ASK_ADMINISTRATOR
    ),
    "identity_in_use": Words(
        title=_("This account is connected to another user of this site"),
        advice=_(
            "Sign out here and sign in with this account instead, or ask this site's "
            "support to unlink it from that user."
        ),
    ),
    "user_changed": Words(
        title=_("Another user signed in meanwhile"),
        advice=_("Check who is signed in here, then start again."),
    ),
    "user_signed_out": Words(
        title=_("You were signed out"),
        advice=_("Sign in again, then open the app or connect your records again."),
    ),
    "user_inactive": Words(
        title=_("Your account here is deactivated"), advice=_ASK_ADMINISTRATOR
    ),
    "user_refused": Words(
        title=_("You do not have an account here"),
        advice=_("Ask the administrators of this site to create one for you."),
        turn=_SITES_TURN,
    ),
    # Access that was given earlier
    "grant_unusable": Words(
        title=_("The access to %(server)s cannot be used at the moment"),
        advice=_TRY_LATER,
    ),
    "grant_missing": Words(
        title=_("This page needs a connection to your records"),
        advice=_("Connect your records, or open the app from a patient's chart."),
    ),
    "grant_ambiguous": Words(
        title=_("More than one connection matches"),
        advice=_("Open the app from the chart of the patient you want to see."),
    ),
    "grant_lost": Words(
        title=_("The connection to %(server)s has ended"), advice=_AGAIN
    ),
    "refresh_busy": Words(
        title=_("%(Server)s took too long to respond"), advice=_TRY_LATER
    ),
    "refresh_in_transaction": Words(
        title=_("The access to %(server)s could not be renewed"), advice=_TELL_SUPPORT
    ),
    "context_changed": Words(
        title=_("%(Server)s switched to another patient"),
        advice=ByKind(
            ehr=_(
                "This page was closed to prevent a mix-up. Open the app again from the "
                "patient's chart."
            ),
            standalone=_(
                "This page was closed to prevent a mix-up. Connect your records again."
            ),
            unknown=_(
                "This page was closed to prevent a mix-up. Open the app from the "
                "patient's chart, or connect your records again."
            ),
        ),
    ),
    "scope_insufficient": Words(
        title=_("%(Server)s did not grant enough access for this page"),
        advice=ByKind(
            ehr=_(
                "Open the app again from the patient's chart and approve everything "
                "it asks for. If you were not asked, contact this site's support."
            ),
            standalone=_("Connect again and approve everything this page needs."),
            unknown=_("Open the app again and approve everything it asks for."),
        ),
    ),
    # The records themselves
    "fhir_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "fhir_request_invalid": Words(
        title=_("This page made an invalid request"), advice=_TELL_SUPPORT
    ),
    "fhir_model_version": Words(
        title=_("This page made an invalid request"), advice=_TELL_SUPPORT
    ),
    "bearer_boundary": Words(
        title=_("%(Server)s pointed to an address on another server"),
        advice=_(
            "For safety, nothing was sent there. Contact this site's support and "
            "include the code at the end of this page."
        ),
        turn=_SITES_TURN,
    ),
    "too_many_results": Words(
        title=_("%(Server)s has more records than this page can show"),
        advice=_(
            "To avoid showing an incomplete list, this page shows none of them. "
            "Contact this site's support and include the code at the end of this page."
        ),
        turn=_SITES_TURN,
    ),
    "patient_foreign": Words(
        title=_("This site could not confirm that this belongs to the patient"),
        advice=_(
            "For safety, nothing was changed or shown. Go back and try again. If it "
            "happens again, contact this site's support and include the code at the "
            "end of this page."
        ),
    ),
    "fhir_status": Words(
        title=_("%(Server)s refused this page's request"), advice=_TELL_SUPPORT
    ),
    "fhir_unauthorized": Words(
        title=_("The access to %(server)s has ended"), advice=_AGAIN
    ),
    "fhir_forbidden": Words(
        title=_("%(Server)s does not let this app see that"),
        advice=_(
            "The access you approved or your own permissions there do not cover it. "
            "If you need it, ask the administrators there."
        ),
        turn=_EHRS_TURN,
    ),
    "fhir_not_found": Words(
        title=_("%(Server)s did not find what this page asked for"),
        advice=_("It may have been moved or deleted, or you may not have access."),
        turn=_EHRS_TURN,
    ),
    "patient_replaced": Words(
        title=_("%(Server)s sent the record of another patient"),
        advice=ByKind(
            ehr=_(
                "Two records may have been merged, so nothing is shown here. Open the "
                "app again from the patient's chart."
            ),
            standalone=_(
                "Two records may have been merged, so nothing is shown here. Connect "
                "your records again."
            ),
            unknown=_(
                "Two records may have been merged, so nothing is shown here. Open the "
                "app from the patient's chart, or connect your records again."
            ),
        ),
    ),
    "fhir_gone": Words(
        title=_("This was deleted at %(server)s"),
        advice=_("If you need it, look for it there."),
        turn=_EHRS_TURN,
    ),
    "fhir_unavailable": Words(
        title=_("%(Server)s is too busy at the moment"), advice=_TRY_LATER
    ),
    "fhir_conflict": Words(
        title=_("Someone else has changed this at %(server)s"), advice=_LOOK_AGAIN
    ),
    "fhir_precondition_failed": Words(
        title=_("Someone else has changed this at %(server)s"), advice=_LOOK_AGAIN
    ),
    "app_state_unsupported": Words(
        title=_("%(Server)s does not store settings for this app"),
        advice=_("They cannot be saved there. Contact this site's support."),
        turn=_SITES_TURN,
    ),
    # Tasks
    "task_launch_invalid": Words(
        title=_("This task does not open an app"), advice=_TELL_SUPPORT
    ),
    "task_url_foreign": Words(
        title=_("This task points to an address outside this site"),
        advice=_TELL_SUPPORT,
    ),
}
"""By code; a code without an entry uses the words of its nearest parent class."""
