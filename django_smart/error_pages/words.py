"""The texts of error pages: for each error code, and for each reason of an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from ..exceptions import SMARTError
from ..models import Launch

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["DEFAULT", "ENDINGS", "WORDS", "ByKind", "Words", "find_words"]

ENDINGS: Mapping[str, StrOrPromise] = {
    "context_changed": _(
        "The EHR has changed to another patient. It was closed so that nothing is "
        "mixed up."
    ),
    "disconnected": _("The access it used was ended."),
    "ended_by_staff": _("The staff of this site ended it."),
    "idle": _("Nobody used it for a long time."),
    "lifetime": _("It was open for a long time."),
    "signed_out": _("You signed out."),
    "too_many_open": _(
        "Many were open in this browser, and this one had been left alone for longest."
    ),
    "user_changed": _("Another user signed in here."),
}
"""Why a launch ended, by the reason it has; other reasons need no explanation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ByKind:
    """Advice by how the launch began (``Launch.Kind``)."""

    ehr: StrOrPromise
    standalone: StrOrPromise
    unknown: StrOrPromise

    def get(self, kind: str) -> StrOrPromise:
        """The advice for *kind*; empty if it is not known."""
        if kind == Launch.Kind.EHR:
            return self.ehr
        return self.standalone if kind == Launch.Kind.STANDALONE else self.unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """
    The texts of one error code.

    Attributes:
        title: a sentence without a full stop; ``%(Server)s`` at its beginning and
            ``%(server)s`` further on stand for the organisation.
        advice: what to do next.
    """

    title: StrOrPromise
    advice: StrOrPromise | ByKind

    def get_title(self, server_name: str) -> str:
        """The title, with the organisation or, if that is not known, "the EHR"."""
        return str(self.title) % {
            "Server": server_name or pgettext("at the beginning", "The EHR"),
            "server": server_name or pgettext("in a sentence", "the EHR"),
        }

    def get_advice(self, kind: str) -> str:
        """The advice for a launch of this kind."""
        advice = self.advice
        return str(advice.get(kind) if isinstance(advice, ByKind) else advice)


def find_words(error: SMARTError, code: str = "") -> Words:
    """
    The words for *code*, or else for the error's code or the nearest class above it.
    """
    above = (getattr(each, "code", "") for each in type(error).__mro__)
    codes = [code] if code else [error.code, *above]
    return next((WORDS[each] for each in codes if each in WORDS), DEFAULT)


_AGAIN = ByKind(
    ehr=_("Go back to the patient's chart and open the app again."),
    standalone=_("Connect your records again."),
    unknown=_(
        "Start again where you came from: open the app from the patient's chart, or "
        "connect your records on this site."
    ),
)
_TRY_LATER = _(
    "Wait a minute and try again. If it goes on, tell the support of this site."
)
_TELL_SUPPORT = _(
    "You did nothing wrong. Tell the support of this site the code at the end of this "
    "page."
)
_UNUSABLE = _("%(Server)s gave an answer that cannot be used")
_LOOK_AGAIN = _(
    "Nothing was saved. Open the page again, look at what is there now, and make your "
    "change anew if it is still right."
)
_ASK_ADMINISTRATOR = _("Ask the administrators of this site.")

DEFAULT = Words(title=_("That did not work"), advice=_TELL_SUPPORT)
"""For errors that no page should meet; a test lists them."""

WORDS: Mapping[str, Words] = {
    # Before anything was sent
    "launch_request_invalid": Words(
        title=_("The app cannot be opened like this"), advice=_AGAIN
    ),
    "missing_parameter": Words(
        title=_("This address works only from inside an EHR"),
        advice=_(
            "Open the app from a patient's chart. To connect your own records, start "
            "on this site's own pages."
        ),
    ),
    "unknown_server": Words(
        title=_("This organisation is not registered here"),
        advice=_("Tell the support of this site which organisation you come from."),
    ),
    "registration_inactive": Words(
        title=_("This app is switched off for %(server)s"),
        advice=_("Ask the support of this site when it will be available."),
    ),
    "server_unsupported": Words(
        title=_("%(Server)s does not offer what this app needs"), advice=_TELL_SUPPORT
    ),
    "credentials_unusable": Words(
        title=_("This site is not set up for %(server)s"), advice=_TELL_SUPPORT
    ),
    # Open charts
    "launch_unavailable": Words(title=_("This page cannot be opened"), advice=_AGAIN),
    "launch_unknown": Words(title=_("There is no such page here"), advice=_AGAIN),
    "launch_foreign": Words(
        title=_("This page was opened by someone else"),
        advice=ByKind(
            ehr=_(
                "It belongs to another browser or another user. Go back to the "
                "patient's chart and open the app yourself."
            ),
            standalone=_(
                "It belongs to another browser or another user. Connect your own "
                "records."
            ),
            unknown=_(
                "It belongs to another browser or another user. Open the app yourself "
                "from the patient's chart, or connect your records on this site."
            ),
        ),
    ),
    "launch_ended": Words(title=_("This page was closed"), advice=_AGAIN),
    "no_launch": Words(
        title=_("No patient's chart is open here"),
        advice=_("Open the app from inside your EHR, or connect your records."),
    ),
    "ambiguous": Words(
        title=_("Which chart do you mean?"),
        advice=_(
            "More than one was opened in this browser, and the address does not say "
            "which. Choose one that is still open, or open the app again from the "
            "chart in your EHR."
        ),
    ),
    "patient_missing": Words(
        title=_("No patient was chosen"),
        advice=ByKind(
            ehr=_("Open the app again from inside a patient's chart."),
            standalone=_("Connect your records again, and choose a patient."),
            unknown=_(
                "Open the app from inside a patient's chart, or connect your records "
                "again and choose a patient."
            ),
        ),
    ),
    "encounter_missing": Words(
        title=_("No visit was chosen"),
        advice=_(
            "This page is about one visit. Open the app again from inside a visit "
            "(an encounter) of the patient."
        ),
    ),
    # The connection between the two systems
    "transport_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "server_unreachable": Words(
        title=_("%(Server)s cannot be reached"), advice=_TRY_LATER
    ),
    "server_timeout": Words(
        title=_("%(Server)s takes too long to answer"), advice=_TRY_LATER
    ),
    "discovery_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "discovery_status": Words(
        title=_("%(Server)s does not tell how to connect to it"), advice=_TRY_LATER
    ),
    # The way back from the EHR
    "authorization_response_invalid": Words(title=_UNUSABLE, advice=_AGAIN),
    "state_invalid": Words(title=_("This address is not complete"), advice=_AGAIN),
    "state_unknown": Words(
        title=_("This address is not known, or no longer"), advice=_AGAIN
    ),
    "state_used": Words(
        title=_("This was finished already"),
        advice=_(
            "If you came here by the Back button, go forward again. Otherwise start "
            "again where you came from."
        ),
    ),
    "state_expired": Words(title=_("This took too long"), advice=_AGAIN),
    "callback_mismatch": Words(
        title=_("The answer came from another place than expected"), advice=_AGAIN
    ),
    "state_foreign": Words(
        title=_("This was started in another browser or window"),
        advice=ByKind(
            ehr=_(
                "Open the app again from the patient's chart. If it happens again, "
                "allow cookies for this site."
            ),
            standalone=_(
                "Start again in this one. If it happens again, allow cookies for this "
                "site."
            ),
            unknown=_(
                "Start again in this one, where you came from. If it happens again, "
                "allow cookies for this site."
            ),
        ),
    ),
    "access_denied": Words(
        title=_("Access was not given"),
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
        title=_("%(Server)s refused to open this app"), advice=_TELL_SUPPORT
    ),
    "issuer_not_known": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "issuer_disputed": Words(
        title=_("Sign-in with %(Server)s is switched off for now"),
        advice=_TELL_SUPPORT,
    ),
    "issuer_mismatch": Words(
        title=_("The answer came from another place than expected"),
        advice=_(
            "For your safety it was not used. Tell the support of this site the code "
            "at the end of this page."
        ),
    ),
    "token_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "token_refused": Words(
        title=_("%(Server)s refused to give this app access"), advice=_AGAIN
    ),
    "token_server_error": Words(
        title=_("%(Server)s cannot do this at the moment"), advice=_TRY_LATER
    ),
    # Who somebody is
    "id_token_invalid": Words(
        title=_("%(Server)s could not prove who you are"), advice=_TELL_SUPPORT
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
            "Sign out here and sign in with this account instead, or ask the support "
            "of this site to separate it from that user."
        ),
    ),
    "user_changed": Words(
        title=_("Another user signed in meanwhile"),
        advice=_("Check who is signed in here, and start again."),
    ),
    "user_inactive": Words(
        title=_("Your account here is switched off"), advice=_ASK_ADMINISTRATOR
    ),
    "user_refused": Words(
        title=_("You have no account here"),
        advice=_("Ask the administrators of this site to give you one."),
    ),
    # Access that was given earlier
    "grant_unusable": Words(
        title=_("The access to %(server)s cannot be used at the moment"),
        advice=_TRY_LATER,
    ),
    "grant_missing": Words(
        title=_("Nothing is connected that could be used here"),
        advice=_("Connect your records, or open the app from a patient's chart."),
    ),
    "grant_ambiguous": Words(
        title=_("More than one connection could be meant"),
        advice=_("Open the app from the chart of the patient that you mean."),
    ),
    "grant_lost": Words(
        title=_("The connection to %(server)s has ended"), advice=_AGAIN
    ),
    "refresh_busy": Words(
        title=_("%(Server)s takes too long to answer"), advice=_TRY_LATER
    ),
    "refresh_in_transaction": Words(
        title=_("The access to %(server)s could not be renewed"), advice=_TELL_SUPPORT
    ),
    "context_changed": Words(
        title=_("%(Server)s has changed to another patient"),
        advice=ByKind(
            ehr=_(
                "So that nothing is mixed up, this page was closed. Open the app again "
                "from the patient's chart."
            ),
            standalone=_(
                "So that nothing is mixed up, this page was closed. Connect your "
                "records again."
            ),
            unknown=_(
                "So that nothing is mixed up, this page was closed. Start again where "
                "you came from."
            ),
        ),
    ),
    "scope_insufficient": Words(
        title=_("%(Server)s did not give enough access for this page"),
        advice=ByKind(
            ehr=_(
                "Open the app again from the patient's chart and approve all that it "
                "asks for. If you were not asked, tell the support of this site."
            ),
            standalone=_("Connect again and approve all that this page needs."),
            unknown=_("Open the app again and approve all that it asks for."),
        ),
    ),
    # The records themselves
    "fhir_failed": Words(title=_UNUSABLE, advice=_TELL_SUPPORT),
    "fhir_request_invalid": Words(
        title=_("This page asked for something that cannot be"), advice=_TELL_SUPPORT
    ),
    "bearer_boundary": Words(
        title=_("%(Server)s pointed to an address outside itself"),
        advice=_(
            "For safety nothing was sent there. Tell the support of this site the code "
            "at the end of this page."
        ),
    ),
    "fhir_status": Words(
        title=_("%(Server)s refused what this page asked for"), advice=_TELL_SUPPORT
    ),
    "fhir_unauthorized": Words(
        title=_("The access to %(server)s has ended"), advice=_AGAIN
    ),
    "fhir_forbidden": Words(
        title=_("%(Server)s does not let this app see that"),
        advice=_(
            "The access that was given, or your own rights there, do not cover it. "
            "Ask the people who run it if you need that."
        ),
    ),
    "fhir_not_found": Words(
        title=_("%(Server)s does not have what this page asked for"),
        advice=_("It may have been moved or deleted, or may not be meant for you."),
    ),
    "fhir_gone": Words(
        title=_("This was deleted at %(server)s"),
        advice=_("Look it up there if you need to know what it was."),
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
        title=_("%(Server)s does not keep the settings of this app"),
        advice=_("They cannot be saved there. Tell the support of this site."),
    ),
    # Tasks
    "task_launch_invalid": Words(
        title=_("This task does not open an app"), advice=_TELL_SUPPORT
    ),
    "task_url_foreign": Words(
        title=_("This task leads to an address outside this site"), advice=_TELL_SUPPORT
    ),
}
"""By code; a code without an entry has the words of the nearest class above it."""
