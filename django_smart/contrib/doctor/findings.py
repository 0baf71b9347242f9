"""What the doctor can find: each with how bad it is, and why it matters."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial

from ...conf import build_docs_url
from ...redaction import redact
from ...servers.http import send

__all__ = [
    "KINDS",
    "Finding",
    "Severity",
    "ask",
    "build_finding",
    "build_unexamined",
    "collect",
]

logger = logging.getLogger(__name__)

#: Sends a request, and waits less long than a launch would: a person may be waiting.
ask = partial(send, within=5.0, max_body=sys.maxsize)


class Severity(StrEnum):
    """How bad a finding is; a note is nothing bad, and good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """
    One thing that is wrong, or soon will be.  No member holds a secret.

    Attributes:
        code: a word that stays, or the id of a system check.
        subject: the server's slug; empty for the site itself.
        what: what was found.
        why: what comes of it.
        fix: what to do.
    """

    code: str
    severity: Severity
    subject: str
    what: str
    why: str
    fix: str

    @property
    def docs_url(self) -> str:
        """The place in the reference that describes this code."""
        is_check = self.code.startswith("django_smart.")
        return build_docs_url("checks" if is_check else "doctor", self.code)

    def to_json(self) -> dict[str, str]:
        """Return what ``smart_doctor --json`` prints."""
        return {**asdict(self), "docs_url": self.docs_url}


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_NO_LAUNCH = "Launches and sign-in at this server fail until this is fixed."
_WRONG_BASE_URL = (
    "An EHR launch sends its base URL, which must match exactly, and all other URLs "
    "are derived from it."
)
_REFUSED = "The server refuses the launch, or grants less than the app needs."
_DATA_IN_THE_CLEAR = (
    "Codes, tokens and patient data can be read and modified in transit."
)

#: By code: how bad it is, and why it matters.
KINDS: dict[str, tuple[Severity, str]] = {
    # The server
    "server_inactive": (_W, "No one can launch from this server or connect to it."),
    "plain_http": (_E, _DATA_IN_THE_CLEAR),
    "certificate_untrusted": (
        _E,
        "An attacker in the network path could impersonate the server, so "
        "nothing is sent to it.",
    ),
    "server_unreachable": (_E, _NO_LAUNCH),
    "server_failing": (_E, _NO_LAUNCH),
    "base_url_wrong": (_E, _WRONG_BASE_URL),
    "base_url_not_fhir": (_E, _WRONG_BASE_URL),
    "configuration_missing": (
        _E,
        "Without it, the endpoints for authorization and tokens are unknown.",
    ),
    "configuration_unusable": (_E, _NO_LAUNCH),
    "quirk_unknown": (
        _W,
        "The server may need a quirk that this version ignores, so launches or "
        "refreshes there may fail.",
    ),
    "configuration_overruled": (
        _W,
        "The values entered here are used even after the server changes its own.",
    ),
    "server_moved": (
        _E,
        "No one can sign in there: whoever controls an issuer's keys can "
        "impersonate its users.",
    ),
    "values_shared": (
        _N,
        "Each server signs in only its own users, but people who use several of them "
        "get an account for each.",
    ),
    "clock_off": (
        _E,
        "ID tokens and signed token requests contain times; if these are "
        "outside the leeway, this site or the server refuses them.",
    ),
    "endpoint_unreachable": (_E, _NO_LAUNCH),
    "endpoint_wrong": (_E, _NO_LAUNCH),
    "authorization_refused": (
        _W,
        "People who start here get an error from the EHR, or return with one.",
    ),
    "id_token_keys_unusable": (
        _E,
        "ID tokens cannot be verified, so no one can sign in with openid.",
    ),
    # What the registration needs, and the server offers
    "registration_missing": (
        _W,
        "No one can launch from this server or connect to it.",
    ),
    "method_not_offered": (_E, "The token endpoint refuses this client."),
    "algorithm_not_offered": (_E, "The token endpoint refuses this client."),
    "authorization_endpoint_missing": (_E, _NO_LAUNCH),
    "s256_not_offered": (
        _E,
        "Without S256, an authorization code that is stolen in the browser "
        "can be used; SMART App Launch 2.2 requires S256.",
    ),
    "grant_type_not_offered": (_E, "The token endpoint refuses this client."),
    "ehr_launch_not_offered": (_E, _REFUSED),
    "standalone_launch_not_offered": (_E, _REFUSED),
    "v1_scopes_not_offered": (_E, _REFUSED),
    "v2_scopes_not_offered": (_E, _REFUSED),
    "online_access_not_offered": (_E, _REFUSED),
    "scopes_not_offered": (
        _W,
        "Scopes that are not granted are missing later, and pages that need "
        "them are refused.",
    ),
    "launch_patient_missing": (
        _W,
        "Launches from this site fail (patient_missing) if the server chooses no "
        "patient.",
    ),
    "refresh_not_offered": (
        _E,
        "Access ends with the first access token, usually within an hour.",
    ),
    "offline_access_missing": (
        _W,
        "Access ends at sign-out, so nothing can be read in the background.",
    ),
    # The registration itself
    "callback_shared": (
        _W,
        "A compromised server in this group can pass on another server's "
        "responses, and sign people in at the others as someone else.",
    ),
    "redirect_uri_wrong": (
        _E,
        "People are sent to a URL that does not complete their launch.",
    ),
    "secret_missing": (_E, "The token endpoint refuses this client."),
    "key_missing": (_E, "The token endpoint refuses this client."),
    "deployment_not_adopted": (_E, "No grants are refreshed here."),
    "refresh_stopped": (
        _E,
        "Its grants are kept but not refreshed: access ends when the access "
        "tokens expire.",
    ),
    "credentials_refused": (
        _W,
        "If the server refuses the client, people approve access at the EHR "
        "and then their launch fails.",
    ),
    "credentials_unproven": (
        _N,
        "A wrong client ID or secret would not be noticed until the first launch.",
    ),
    "basic_encoding_wrong": (
        _E,
        "People approve access at the EHR, and then their launch fails.",
    ),
    "client_id_wanted": (
        _E,
        "People approve access at the EHR, and then their launch fails.",
    ),
    "cookies_unfit_for_frames": (
        _E,
        "In another site's frame, browsers keep cookies only if they are "
        "Secure and SameSite=None, so the launch is lost.",
    ),
    # This site, as the outside sees it
    "jwks_unreachable": (
        _E,
        "If the EHR cannot reach it either, the EHR cannot verify this site's "
        "signatures, and people cannot reach this site.",
    ),
    "jwks_wrong": (_E, "The EHR cannot verify this site's signatures."),
    "jwks_outdated": (
        _E,
        "The EHR refuses signatures made with a key that is not in the JWK Set.",
    ),
    "jwks_cached_too_long": (
        _E,
        "After a rotation, EHRs still have the old keys, and refuse this site "
        "until they fetch the new ones.",
    ),
    "proxy_header_missing": (
        _E,
        "Cookies lose their protection, redirects to https loop, and forms "
        "are refused.",
    ),
    "proxy_host_lost": (
        _E,
        "Redirects and forms go to the wrong host, or are refused.",
    ),
    # A dry run of a launch
    "session_not_kept": (_E, "No one stays signed in."),
    "page_broken": (
        _W,
        "People who encounter an error see a page without a way to continue, "
        "or no page.",
    ),
    "page_empty": (
        _E,
        "People who encounter an error or have to make a choice see an empty page.",
    ),
    "url_blocked": (_E, "Launches fail before they reach this app."),
    "landing_page_missing": (_E, "Launches succeed but end on a “not found” page."),
    "cookie_hidden": (
        _E,
        "People return from the EHR as someone else, or signed out.",
    ),
    "hosts_differ": (_E, "Launches fail with state_foreign."),
    "debug_on": (
        _E,
        "Every error shows anyone the code, the settings and data of patients.",
    ),
    "staff_server_unknown": (_W, "Staff cannot sign in through the EHR."),
    # The database, and the doctor itself
    "database_unusable": (_E, "Nothing works without the database."),
    "migrations_missing": (
        _E,
        "Pages, tasks and commands fail because of the missing tables.",
    ),
    "database_read_only": (
        _E,
        "Launches and tokens cannot be stored, so no one can launch or sign in.",
    ),
    "secret_unreadable": (
        _E,
        "Requests that need it fail: launches, refreshes or FHIR requests.",
    ),
    "not_examined": (_E, "Problems there would not be noticed."),
    # What runs in the background
    "key_ending": (
        _W,
        "If a key must be replaced quickly, EHRs do not know the new one yet.",
    ),
    "beat_missing": (
        _E,
        "Grants expire without being refreshed, keys are not rotated, and "
        "EHRs are not notified of ended grants.",
    ),
    "broker_unusable": (
        _E,
        "Workers receive no tasks: grants are not refreshed, and sign-outs "
        "are not revoked at the EHR.",
    ),
    "refresh_overdue": (
        _E,
        "Access tokens expire before they are refreshed, and refresh tokens "
        "with a limited lifetime are lost.",
    ),
    "refresh_failing": (
        _W,
        "If this continues, the refresh tokens expire and people have to "
        "connect again.",
    ),
    "revocation_overdue": (
        _W,
        "The EHR still accepts tokens that have ended here.",
    ),
}


def build_finding(
    code: str,
    *,
    what: str,
    fix: str,
    subject: str = "",
    severity: Severity | None = None,
) -> Finding:
    """A finding of one of :data:`KINDS`."""
    usual, why = KINDS[code]
    return Finding(
        code=code,
        severity=severity or usual,
        subject=subject,
        what=what,
        why=why,
        fix=fix,
    )


def collect(
    part: str, look: Callable[..., Iterable[Finding]], *args: object, subject: str = ""
) -> list[Finding]:
    """
    What *look* finds; what keeps it from looking is a finding too.

    Args:
        part: name of the examined part, for people.
        subject: the slug of the server that all of it is about; empty otherwise.
    """
    findings: list[Finding] = []
    try:
        findings.extend(look(*args))
    except Exception as exc:  # noqa: BLE001 (whatever is wrong is to be told)
        findings.append(build_unexamined(part, exc))
    return [replace(each, subject=subject or each.subject) for each in findings]


def build_unexamined(part: str, error: Exception) -> Finding:
    """The finding that *error* kept the doctor from examining *part*."""
    logger.debug("The doctor cannot examine the %s", part, exc_info=error)
    text = redact(str(error)).strip().partition("\n")[0][:300]
    return build_finding(
        "not_examined",
        what=f"The {part} could not be examined: {type(error).__name__}"
        f"{f': {text}' if text else ''}.",
        fix="Fix the other reported problems, then run smart_doctor again. If "
        "this finding remains, report it with the traceback that the logger "
        "django_smart writes at level DEBUG.",
    )
