"""What the doctor can find: each with how bad it is, and why it matters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["KINDS", "Finding", "Severity", "build_finding"]


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"


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

    def to_json(self) -> dict[str, str]:
        """As ``smart_doctor --json`` prints it."""
        return asdict(self)


_E, _W = Severity.ERROR, Severity.WARNING
_NO_LAUNCH = "Launches and sign-in fail there until it is mended."
_REFUSED = "The server refuses the launch, or gives less than the app needs."
_DATA_IN_THE_CLEAR = (
    "Codes, tokens and the data of patients can be read and changed on the way."
)

#: By code: how bad it is, and why it matters.
KINDS: dict[str, tuple[Severity, str]] = {
    # The server
    "server_inactive": (_W, "Nobody can launch from it, or connect to it."),
    "plain_http": (_E, _DATA_IN_THE_CLEAR),
    "certificate_untrusted": (
        _E,
        "Somebody on the way could pose as the server, so nothing is sent to it.",
    ),
    "server_unreachable": (_E, _NO_LAUNCH),
    "server_failing": (_E, _NO_LAUNCH),
    "base_url_wrong": (
        _E,
        "An EHR launch names its base URL letter for letter, and everything else is "
        "found below it.",
    ),
    "base_url_not_fhir": (
        _E,
        "An EHR launch names its base URL letter for letter, and everything else is "
        "found below it.",
    ),
    "configuration_missing": (
        _E,
        "Without it, nobody can know where to send people and where to get tokens.",
    ),
    "configuration_unusable": (_E, _NO_LAUNCH),
    "clock_off": (
        _E,
        "ID tokens and signed token requests carry times: those out of the leeway are "
        "refused, here or there.",
    ),
    "endpoint_unreachable": (_E, _NO_LAUNCH),
    "endpoint_wrong": (_E, _NO_LAUNCH),
    "id_token_keys_unusable": (
        _E,
        "ID tokens cannot be checked, so nobody can sign in with openid.",
    ),
    # What the registration needs, and the server offers
    "registration_missing": (_W, "Nobody can launch from it, or connect to it."),
    "method_not_offered": (_E, "The token endpoint refuses this client."),
    "algorithm_not_offered": (_E, "The token endpoint refuses this client."),
    "authorization_endpoint_missing": (_E, _NO_LAUNCH),
    "s256_not_offered": (
        _E,
        "Without S256, a code that is stolen on its way through the browser can be "
        "used; SMART App Launch 2.2 requires it.",
    ),
    "grant_type_not_offered": (_E, "The token endpoint refuses this client."),
    "ehr_launch_not_offered": (_E, _REFUSED),
    "standalone_launch_not_offered": (_E, _REFUSED),
    "v1_scopes_not_offered": (_E, _REFUSED),
    "v2_scopes_not_offered": (_E, _REFUSED),
    "online_access_not_offered": (_E, _REFUSED),
    "scopes_not_offered": (
        _W,
        "What is not granted is missing later, and pages that need it are refused.",
    ),
    "refresh_not_offered": (
        _E,
        "Access ends with the first access token, mostly within the hour.",
    ),
    "offline_access_missing": (
        _W,
        "Access ends with the sign-out, so nothing is read in the background.",
    ),
    # The registration itself
    "issuer_disputed": (
        _E,
        "Nobody can sign in there: whoever controls an issuer's keys can impersonate "
        "its users.",
    ),
    "callback_shared": (
        _W,
        "A server of this group that is taken over can pass on another one's "
        "responses, and sign people in at the others as somebody else.",
    ),
    "redirect_uri_wrong": (
        _E,
        "People are sent to an address that does not finish their launch.",
    ),
    "secret_missing": (_E, "The token endpoint refuses this client."),
    "key_missing": (_E, "The token endpoint refuses this client."),
    "credentials_refused": (
        _E,
        "People approve at the EHR, and then their launch fails.",
    ),
    "cookies_unfit_for_frames": (
        _E,
        "Browsers keep cookies in another site's frame only if they are Secure and "
        "SameSite=None, so the launch is lost.",
    ),
    # This site, as the outside sees it
    "jwks_unreachable": (
        _E,
        "Where the EHR cannot reach it either, it cannot check this site's "
        "signatures; nor do people get to this site.",
    ),
    "jwks_wrong": (_E, "The EHR cannot check this site's signatures with it."),
    "jwks_outdated": (
        _E,
        "The EHR refuses signatures of a key that it does not find there.",
    ),
    "jwks_cached_too_long": (
        _E,
        "After a rotation EHRs still hold the old keys, and refuse this site until "
        "they ask again.",
    ),
    "proxy_header_missing": (
        _E,
        "Cookies lose their protection, secure redirects turn in circles, and forms "
        "are refused.",
    ),
    "proxy_host_lost": (
        _E,
        "Redirects and forms go to the wrong host, or are refused.",
    ),
    # What runs in the background
    "key_ending": (
        _W,
        "A key that is changed in a hurry is one that EHRs do not know yet.",
    ),
    "beat_missing": (
        _E,
        "Grants are not refreshed and end, keys are not rotated, and EHRs are not "
        "told what has ended.",
    ),
    "refresh_overdue": (
        _E,
        "Access tokens end before they are refreshed, and refresh tokens with a "
        "limited life are lost.",
    ),
    "refresh_failing": (
        _W,
        "If it goes on, the refresh tokens run out and people have to connect again.",
    ),
    "revocation_overdue": (
        _W,
        "The EHR still honours tokens that have ended here.",
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
