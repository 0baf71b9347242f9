"""What is wrong with one registration: by itself, and beside what the server offers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import validate_host
from django.urls import (
    NoReverseMatch,
    Resolver404,
    get_script_prefix,
    resolve,
    reverse,
)
from django.utils import timezone

from ...conf import conf
from ...exceptions import (
    CredentialsError,
    SMARTError,
    TokenResponseError,
    TokenServerError,
    TransportError,
)
from ...models import ClientRegistration, TokenGrant
from ...protocol.capabilities import Capability
from ...protocol.configuration import SMARTConfiguration
from ...protocol.messages import HTTPResponse
from ...protocol.scopes import ScopeSet
from ...protocol.token import build_token_request, process_token_response
from ...servers.http import build_client_authentication
from ...servers.registering import get_site_url
from ...servers.requirements import find_problems
from ...views.launches import CallbackView
from .asking import ask
from .findings import Finding, build_finding
from .site import answers_at

__all__ = ["examine_registration"]

_NO_CODE = "no-code-the-doctor-is-asking"
_AuthMethod = ClientRegistration.AuthMethod


def examine_registration(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> list[Finding]:
    """Hold *registration* against *configuration*, and try its credentials."""
    findings = [
        build_finding(
            problem.code,
            subject=registration.server.slug,
            what=f"{problem.what}.",
            fix=f"{problem.fix[:1].upper()}{problem.fix[1:]}.",
        )
        for problem in find_problems(registration, configuration)
    ]
    codes = {each.code for each in findings}
    findings += _find_scopes_not_offered(registration, configuration)
    findings += _find_refresh_faults(registration, configuration)
    findings += _find_redirect_fault(registration)
    findings += _find_shared_callback(registration)
    findings += _find_cookie_faults(registration)
    if not codes & {"method_not_offered", "algorithm_not_offered"}:
        findings += _try_credentials(registration, configuration)
    return findings


def _get_scopes(registration: ClientRegistration) -> ScopeSet:
    return ScopeSet.parse(
        f"{registration.ehr_scope} {registration.standalone_scope} "
        f"{registration.system_scope}"
    )


def _find_scopes_not_offered(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    offered = configuration.scopes_supported
    if not offered:
        return
    missing = ScopeSet.parse(" ".join(offered)).missing(_get_scopes(registration))
    # Told of where refreshing is looked at, and more exactly.
    names = [each for each in str(missing).split() if not each.endswith("_access")]
    if names:
        yield build_finding(
            "scopes_not_offered",
            subject=registration.server.slug,
            what="The server does not list these scopes of the registration among "
            f"those it supports: {', '.join(names)}.",
            fix="Leave them out, correct their spelling, or have them allowed for "
            "this client in the vendor's form.",
        )


def _find_refresh_faults(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    if not registration.is_for_launches:
        return
    server = registration.server
    scopes = f"{registration.ehr_scope} {registration.standalone_scope}".split()
    if "offline_access" in scopes:
        reasons = []
        types = configuration.grant_types_supported
        if types and "refresh_token" not in types:
            reasons.append("its grant types have no refresh_token")
        capabilities = configuration.capabilities
        if capabilities and not configuration.has(Capability.PERMISSION_OFFLINE):
            reasons.append("its capabilities have no permission-offline")
        if reasons:
            yield build_finding(
                "refresh_not_offered",
                subject=server.slug,
                what="The registration asks for offline_access, and the server does "
                f"not offer it: {' and '.join(reasons)}.",
                fix="Have it switched on there for this client, or leave "
                "offline_access out.",
            )
    elif "online_access" not in scopes and (reason := _expects_refresh(registration)):
        yield build_finding(
            "offline_access_missing",
            subject=server.slug,
            what=f"Refreshing is expected, as {reason}, and the registration does not "
            "ask for offline_access.",
            fix="Add offline_access to the scope for standalone launch, or for EHR "
            "launch.  If nothing is read in the background, empty the server's "
            "refresh columns.",
        )


def _expects_refresh(registration: ClientRegistration) -> str:
    server = registration.server
    if server.refresh_token_lifetime is not None:
        return "the server has a refresh token lifetime"
    if server.min_refresh_interval is not None:
        return "the server has a least refresh interval"
    offline = TokenGrant.objects.active().offline()
    if offline.filter(registration=registration).exists():
        return "people have connected it for background access"
    return ""


def _find_redirect_fault(registration: ClientRegistration) -> Iterator[Finding]:
    if not registration.is_for_launches:
        return
    try:
        path = reverse(
            "django_smart:callback",
            kwargs=(
                {"callback_id": registration.callback_id}
                if registration.callback_id
                else {}
            ),
        )
    except NoReverseMatch:
        return  # a system check tells that the URLs are not included
    uri = registration.redirect_uri
    parts = urlsplit(uri)
    host = parts.hostname or ""
    site = conf.SMART_SITE_URL
    origin = f"{parts.scheme}://{parts.netloc}"
    if parts.query or not (parts.path == path or _is_routed(registration, parts.path)):
        what = f"its path is not {path}, where this site answers"
    elif not validate_host(f"[{host}]" if ":" in host else host, _get_hosts()):
        what = "ALLOWED_HOSTS does not have its host"
    elif site and origin != site and not answers_at(origin):
        what = f"this site is {site} (SMART_SITE_URL), and does not answer there"
    else:
        return
    expected = f"{site or origin}{path}"
    yield build_finding(
        "redirect_uri_wrong",
        subject=registration.server.slug,
        what=f"The redirect URI {uri} is not one of this site: {what}.",
        fix=f"Enter {expected} as redirect URI in the vendor's form and here, or "
        "correct SMART_SITE_URL and ALLOWED_HOSTS.",
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
            subject=registration.server.slug,
            what="The registration shares its redirect URI with those at "
            f"{', '.join(sorted(others))} (callback group "
            f"{registration.callback_group}).",
            fix="If the vendor allows a redirect URI for each, give the registration "
            "a callback id of its own and empty its callback group.",
        )


def _is_routed(registration: ClientRegistration, path: str) -> bool:
    """Whether the site has a callback view with the registration's id at *path*."""
    try:
        match = resolve("/" + path.removeprefix(get_script_prefix()))
    except Resolver404:
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
            subject=registration.server.slug,
            what="The server may show this site in a frame, and "
            f"{', and '.join(faults)}.",
            fix="Serve this site by https, and set SESSION_COOKIE_SECURE = True and "
            "CSRF_COOKIE_SECURE = True.",
        )


def _try_credentials(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """
    Ask for a token with a code that nobody gave.

    A server looks at the client first: it refuses either the client or the code.
    """
    subject = registration.server.slug
    try:
        request = build_token_request(
            token_endpoint=configuration.token_endpoint,
            code=_NO_CODE,
            redirect_uri=registration.redirect_uri or get_site_url(registration),
            code_verifier=secrets.token_urlsafe(64),
            client_authentication=build_client_authentication(
                registration, token_endpoint=configuration.token_endpoint
            ),
        )
    except CredentialsError as exc:
        yield _explain_credentials(registration, exc)
        return
    try:
        answer = ask(request)
    except TransportError as exc:
        yield build_finding(
            "endpoint_unreachable",
            subject=subject,
            what=f"The token endpoint cannot be reached: {exc}.",
            fix="See whether this machine may connect to its host, which may be "
            "another than the FHIR server's; if so, tell the server's operator.",
        )
        return
    if reason := _find_refusal(answer):
        yield build_finding(
            "credentials_refused",
            subject=subject,
            what=f"The token endpoint refuses this client ({reason}), which "
            f"authenticates with {registration.token_endpoint_auth_method}.",
            fix=_get_credentials_fix(registration),
        )
    elif answer.status_code in {404, 405} or answer.status_code >= 500:
        yield build_finding(
            "endpoint_wrong",
            subject=subject,
            what=f"The token endpoint answers with status {answer.status_code}.",
            fix="Try again later; if it stays, tell the server's operator, or correct "
            "the token endpoint on the page of the server if it was entered by hand.",
        )


def _find_refusal(answer: HTTPResponse) -> str:
    """How the client itself is refused; empty if it is not."""
    try:
        process_token_response(answer, requested=ScopeSet.parse(""), now=timezone.now())
    except TokenResponseError as exc:
        if exc.error in {"invalid_client", "unauthorized_client"}:
            return exc.error
        return "status 401" if exc.status_code == 401 else ""
    except TokenServerError as exc:
        return "status 401" if exc.status_code == 401 else ""
    except SMARTError:
        pass
    return ""


def _get_credentials_fix(registration: ClientRegistration) -> str:
    if registration.uses_private_key:
        return (
            "Enter this site's JWK Set URL in the vendor's form, or upload what "
            "smart_keys export prints, and wait until the server has read it; compare "
            "the client id."
        )
    if registration.token_endpoint_auth_method == _AuthMethod.NONE:
        return (
            "Compare the client id, and have the client registered there as public; "
            "or enter the secret and method that it was given."
        )
    return (
        "Compare client id and authentication method with the vendor's form, and "
        "enter the client secret again; some vendors activate a new one only after "
        "minutes."
    )


def _explain_credentials(
    registration: ClientRegistration, error: CredentialsError
) -> Finding:
    subject = registration.server.slug
    if registration.uses_private_key:
        return build_finding(
            "key_missing",
            subject=subject,
            what=f"Token requests cannot be signed: {error}",
            fix="Run smart_keys generate --algorithm "
            f"{registration.signing_algorithm}, and have the server read the JWK Set.",
        )
    if variable := registration.client_secret_env:
        fix = (
            f"Set {variable} where web processes and workers are started, and here "
            "too if they are started elsewhere."
        )
    elif path := registration.client_secret_file:
        fix = f"Put the secret into {path}, readable for this site's processes."
    else:
        fix = "Enter the client secret on the page of the registration."
    return build_finding(
        "secret_missing",
        subject=subject,
        what=f"The client secret cannot be had: {error}",
        fix=fix,
    )
