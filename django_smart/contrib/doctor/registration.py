"""Problems of one registration: its own, and with what the server supports."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import validate_host
from django.urls import NoReverseMatch, reverse
from django.utils.text import capfirst

from ...conf import conf
from ...launches.prefix import find_route
from ...models import ClientRegistration, TokenGrant
from ...protocol.capabilities import Capability
from ...protocol.configuration import SMARTConfiguration
from ...protocol.scopes import ScopeSet
from ...servers.registering import get_site_url
from ...servers.requirements import find_problems
from ...views.launches import CallbackView
from .credentials import try_credentials, try_other_encoding
from .findings import Finding, build_finding, collect
from .site import answers_at

__all__ = ["examine_registration"]


def examine_registration(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> list[Finding]:
    """Hold *registration* against *configuration*, and try its credentials."""
    findings = [
        build_finding(
            problem.code,
            what=f"{problem.what}.",
            fix=f"{capfirst(problem.fix)}.",
        )
        for problem in find_problems(registration, configuration)
    ]
    codes = {each.code for each in findings}
    both = registration, configuration
    findings += collect("scopes", _find_scopes_not_offered, *both)
    findings += collect("patient", _find_missing_launch_patient, *both)
    findings += collect("refresh", _find_refresh_faults, *both)
    findings += collect("redirect URI", _find_redirect_fault, registration)
    findings += collect("callback", _find_shared_callback, registration)
    findings += collect("cookies", _find_cookie_faults, registration)
    if not codes & {"method_not_offered", "algorithm_not_offered"}:
        findings += collect("credentials", try_credentials, *both)
        findings += collect("encoding of credentials", try_other_encoding, *both)
    return findings


def _find_scopes_not_offered(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    offered = ScopeSet.parse(" ".join(configuration.scopes_supported or ()))
    # The list need not be exhaustive; one without scopes for data, such as Epic's, only
    # has what is granted to every app.
    if not offered.resource_scopes:
        return
    wanted = ScopeSet.parse(
        f"{registration.ehr_scope} {registration.standalone_scope} "
        f"{registration.system_scope}"
    )
    missing = offered.missing(wanted)
    # Reported with refreshing, and more precisely.
    names = [each for each in str(missing).split() if not each.endswith("_access")]
    if names:
        yield build_finding(
            "scopes_not_offered",
            what="The server does not list these scopes of the registration as "
            f"supported: {', '.join(names)}.",
            fix="Remove them, correct their spelling, or enable them for this client "
            "in the vendor's form.",
        )


def _find_missing_launch_patient(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    scopes = ScopeSet.parse(registration.standalone_scope)
    if (
        scopes.are_for_patient
        and "launch/patient" not in scopes
        # Others may refuse the scope, and choose a patient in any case.
        and configuration.has(Capability.CONTEXT_STANDALONE_PATIENT)
        and not registration.server.patient_from_fhir_user
    ):
        yield build_finding(
            "launch_patient_missing",
            what="The scope for standalone launch has patient/ scopes, but not "
            "launch/patient, which the server supports.",
            fix="Add launch/patient, unless the server names a patient without it.",
        )


def _find_refresh_faults(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    if not registration.is_for_launches:
        return
    scopes = ScopeSet.parse(f"{registration.ehr_scope} {registration.standalone_scope}")
    if "offline_access" in scopes:
        # SMART App Launch lists no refresh_token in grant_types_supported.
        offers = configuration.has(Capability.PERMISSION_OFFLINE)
        if configuration.capabilities and not offers:
            yield build_finding(
                "refresh_not_offered",
                what="The registration requests offline_access, but the server "
                "does not support it: its capabilities do not include "
                "permission-offline.",
                fix="Ask the vendor to enable it for this client, or remove "
                "offline_access.",
            )
    elif "online_access" not in scopes and (reason := _expects_refresh(registration)):
        yield build_finding(
            "offline_access_missing",
            what=f"A refresh is expected because {reason}, but the registration "
            "does not request offline_access.",
            fix="Add offline_access to the scope for standalone launch or EHR "
            "launch. If nothing is read in the background, clear the server's "
            "refresh fields.",
        )


def _expects_refresh(registration: ClientRegistration) -> str:
    server = registration.server
    if server.refresh_token_lifetime is not None:
        return "the server has a refresh token lifetime"
    if server.min_refresh_interval is not None:
        return "the server has a minimum refresh interval"
    offline = TokenGrant.objects.active().offline()
    if offline.filter(registration=registration).exists():
        return "people have connected it for background access"
    return ""


def _find_redirect_fault(registration: ClientRegistration) -> Iterator[Finding]:
    if not registration.is_for_launches:
        return
    own = {"callback_id": registration.callback_id} if registration.callback_id else {}
    try:
        path = reverse("django_smart:callback", kwargs=own)
    except NoReverseMatch:
        return  # a system check reports that the URLs are not included
    uri = registration.redirect_uri
    parts = urlsplit(uri)
    host = parts.hostname or ""
    site = conf.SMART_SITE_URL
    origin = f"{parts.scheme}://{parts.netloc}"
    if parts.query or not (parts.path == path or _is_routed(registration, parts.path)):
        what = f"its path is not {path}, this site's callback"
    elif not validate_host(f"[{host}]" if ":" in host else host, _get_hosts()):
        what = "its host is not in ALLOWED_HOSTS"
    elif site and origin != site and not answers_at(origin):
        what = f"this site is {site} (SMART_SITE_URL) and does not respond there"
    else:
        return
    expected = f"{site or origin}{path}"
    yield build_finding(
        "redirect_uri_wrong",
        what=f"The redirect URI {uri} does not belong to this site: {what}.",
        fix=f"Enter {expected} as the redirect URI in the vendor's form and here, "
        "or correct SMART_SITE_URL and ALLOWED_HOSTS.",
    )


def _find_shared_callback(registration: ClientRegistration) -> Iterator[Finding]:
    if not registration.callback_group:
        return
    others = (
        ClientRegistration.objects.active()
        .filter(callback_group=registration.callback_group)
        .exclude(server=registration.server_id)
        .values_list("server__slug", flat=True)
    )
    if others:
        yield build_finding(
            "callback_shared",
            what="The registration shares its redirect URI with those at "
            f"{', '.join(sorted(others))} (callback group "
            f"{registration.callback_group}).",
            fix="If the vendor allows a redirect URI for each registration, give "
            "this one its own callback ID and clear its callback group.",
        )


def _is_routed(registration: ClientRegistration, path: str) -> bool:
    """Whether the site has a callback view with the registration's id at *path*."""
    match = find_route(path)
    if match is None:
        return False
    view = getattr(match.func, "view_class", None)
    if view is None or not issubclass(view, CallbackView):
        return False
    fixed = match.func.view_initkwargs.get("callback_id", view.callback_id)  # type: ignore[attr-defined]  # as_view()'s
    return match.kwargs.get("callback_id", fixed) == registration.callback_id  # type: ignore[no-any-return]


def _get_hosts() -> list[str]:
    hosts = list(settings.ALLOWED_HOSTS)
    # As Django itself has it.
    return hosts or ([".localhost", "127.0.0.1", "[::1]"] if settings.DEBUG else hosts)


def _find_cookie_faults(registration: ClientRegistration) -> Iterator[Finding]:
    if not registration.server.allow_embedding:
        return
    faults = []
    if not get_site_url(registration).startswith("https:"):
        faults.append("this site is not https")
    if not settings.SESSION_COOKIE_SECURE:
        faults.append("SESSION_COOKIE_SECURE is off")
    if not settings.CSRF_COOKIE_SECURE and not settings.CSRF_USE_SESSIONS:
        faults.append("CSRF_COOKIE_SECURE is off")
    if faults:
        yield build_finding(
            "cookies_unfit_for_frames",
            what="The server may show this site in a frame, but "
            f"{', and '.join(faults)}.",
            fix="Serve this site over https, and set SESSION_COOKIE_SECURE = True "
            "and CSRF_COOKIE_SECURE = True.",
        )
