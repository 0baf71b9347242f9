"""
Problems of one registration: its own, with what the server supports, and whether the
server accepts this client, as far as can be known without a launch.
"""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote_plus, urlsplit

from django.conf import settings
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http.request import validate_host
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from ...checks.structure import find_classes
from ...conf import conf
from ...diagnoses import Finding, Severity, build_finding
from ...exceptions import (
    CredentialsError,
    MalformedTokenResponseError,
    SMARTError,
    TokenResponseError,
    TransportError,
)
from ...launches.prefix import find_route
from ...models import ClientRegistration, TokenGrant
from ...protocol.configuration import Capability, SMARTConfiguration
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...protocol.scopes import ScopeSet
from ...protocol.token import (
    build_client_credentials_request,
    build_refresh_request,
    build_token_request,
    process_token_response,
)
from ...protocol.urls import LOOPBACK_HOSTS
from ...servers.http import build_client_authentication
from ...servers.registering import get_site_url
from ...servers.requirements import find_problems
from ...views.launches import CallbackView
from .findings import ask, collect
from .site import answers_at
from .stored_secrets import has_unreadable_secret

__all__ = ["examine_registration"]

_NO_CODE = "no-code-the-doctor-is-asking"
_CLIENT_REFUSED = {"invalid_client", "unauthorized_client"}
# An OAuth server would have sent its error (RFC 6749 section 5.2).
_GATEWAY = "status 401 without an OAuth error"
_AuthMethod = ClientRegistration.AuthMethod


def examine_registration(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> list[Finding]:
    """Hold *registration* against *configuration*, and try its credentials."""
    findings = find_problems(registration, configuration)
    codes = {each.code for each in findings}
    both = registration, configuration
    findings += collect("scopes", _find_scope_faults, *both)
    if registration.is_for_launches:
        findings += collect("redirect URI", _find_redirect_fault, registration)
        findings += collect("callback", _find_shared_callback, registration)
        findings += collect("landing page", _find_missing_landing_page, registration)
    is_refused = codes & {"method_not_offered", "algorithm_not_offered"}
    if not is_refused and not has_unreadable_secret(registration):
        findings += collect("credentials", _try_credentials, *both)
        findings += collect("form of credentials", _try_other_form, *both)
    return findings


def _find_scope_faults(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    scope = f"{registration.ehr_scope} {registration.standalone_scope}"
    wanted = ScopeSet.parse(f"{scope} {registration.system_scope}")
    offered = ScopeSet.parse(" ".join(configuration.scopes_supported or ()))
    missing = str(offered.missing(wanted)).split()
    # Reported with refreshing, and more precisely.
    missing = [each for each in missing if not each.endswith("_access")]
    # The list need not be exhaustive; one without scopes for data, such as Epic's, only
    # has what is granted to every app.
    if missing and offered.resource_scopes:
        yield build_finding(
            "scopes_not_offered",
            what="The server does not list these scopes of the registration as "
            f"supported: {', '.join(missing)}.",
        )
    standalone = ScopeSet.parse(registration.standalone_scope)
    if (
        standalone.are_for_patient
        and "launch/patient" not in standalone
        # Others may refuse the scope, and choose a patient in any case.
        and configuration.has(Capability.CONTEXT_STANDALONE_PATIENT)
        and not registration.server.quirks.patient_from_fhir_user
    ):
        yield build_finding("launch_patient_missing")
    if "offline_access" in wanted:
        # SMART App Launch lists no refresh_token in grant_types_supported.
        offers = configuration.has(Capability.PERMISSION_OFFLINE)
        if configuration.capabilities and not offers:
            yield build_finding("refresh_not_offered")
    elif "online_access" not in wanted and (reason := _expects_refresh(registration)):
        yield build_finding(
            "offline_access_missing",
            what=f"A refresh is expected because {reason}, but the registration "
            "does not request offline_access.",
        )
    scopes = (registration.ehr_scope, registration.standalone_scope)
    if find_classes(settings.MIDDLEWARE, LoginRequiredMiddleware) and any(
        each and "openid" not in each.split() for each in scopes
    ):
        yield build_finding("openid_missing")


def _expects_refresh(registration: ClientRegistration) -> str:
    if not registration.is_for_launches:
        return ""
    if registration.server.quirks.refresh_token_lifetime is not None:
        return "the server has a refresh token lifetime"
    offline = TokenGrant.objects.active().offline()
    if offline.filter(registration=registration).exists():
        return "people have connected it for background access"
    return ""


def _find_redirect_fault(registration: ClientRegistration) -> Iterator[Finding]:
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
    elif len({host, urlsplit(site).hostname} & LOOPBACK_HOSTS) > 1:
        what = (
            f"browsers treat it and {site} (SMART_SITE_URL) as different sites, so the "
            "callback does not receive the launch's cookie (state_foreign)"
        )
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


def _find_missing_landing_page(registration: ClientRegistration) -> Iterator[Finding]:
    page = registration.landing_page or conf.SMART_LAUNCH_REDIRECT_URL
    try:
        path = urlsplit(resolve_url(page)).path
    except NoReverseMatch:
        path = page
    if find_route(path, follow=True):
        return
    severity = None
    try:
        # Another program may serve it.
        url = get_site_url(registration) + path
        answer = ask(HTTPRequest(method="GET", url=url), server=None)
    except SMARTError:
        severity = Severity.WARNING
    if severity or answer.status_code in {404, 410}:
        yield build_finding(
            "landing_page_missing",
            severity=severity,
            what=f"There is no page at {path}, where people are sent after a launch.",
        )


def _find_shared_callback(registration: ClientRegistration) -> Iterator[Finding]:
    others = (
        ClientRegistration.objects.active()
        .filter(callback_group=registration.callback_group)
        .exclude(server=registration.server_id)
        .values_list("server__slug", flat=True)
    )
    if registration.callback_group and others:
        yield build_finding(
            "callback_shared",
            what="The registration shares its redirect URI with those at "
            f"{', '.join(sorted(others))} (callback group "
            f"{registration.callback_group}).",
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


def _try_credentials(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """
    Request tokens with a code, or a refresh token, that no server issued; a backend
    service requests one of its own, which is thrown away.

    Most servers look at the client first: of one that they accept, they refuse only the
    code.  What they answer to a client that does not exist as well proves nothing.
    """
    url = configuration.token_endpoint
    try:
        answer = _ask_for_tokens(registration, url)
        if what := _find_wrong_answer(answer):
            yield build_finding(
                "endpoint_wrong", what=f"The token endpoint, {url}, {what}."
            )
        elif not _has_worked(registration):
            yield from _judge_credentials(registration, url, answer)
    except CredentialsError as exc:
        fix = _get_missing_secret_fix(registration)
        yield build_finding("credentials_unusable", what=str(exc), fix=fix)
    except TransportError as exc:
        yield build_finding(
            "endpoint_unreachable",
            what=f"The token endpoint cannot be reached: {exc}.",
        )


def _judge_credentials(
    registration: ClientRegistration, url: str, answer: HTTPResponse
) -> Iterator[Finding]:
    refusal = _find_refusal(answer)
    if not registration.is_for_launches:
        # It has asked for tokens of its own, not with a code.
        if error := _read_error(answer):
            yield _build_refused(
                registration, getattr(error, "error", "") or refusal or error.code
            )
    elif refusal and (
        _find_refusal(_ask_for_tokens(registration, url, refresh=True))
        or not _is_refused(registration, url)
    ):
        # Otherwise this client is accepted; to a wrong code it says the same.
        yield _build_refused(registration, refusal)


def _build_refused(registration: ClientRegistration, reason: str) -> Finding:
    fix = _get_credentials_fix(registration)
    if reason == _GATEWAY:
        fix = (
            "Ask the EHR whether a gateway or firewall in front of its token endpoint "
            f"refuses this site's requests. {fix}"
        )
    if registration.is_for_launches:
        fix = f"Launch once. If that succeeds, ignore this finding. If it fails: {fix}"
    return build_finding(
        "credentials_refused",
        what=f"The token endpoint responds with {reason} to a request of this "
        f"client (authentication: {registration.token_endpoint_auth_method}).",
        fix=fix,
    )


def _ask_for_tokens(
    registration: ClientRegistration, url: str, *, refresh: bool = False
) -> HTTPResponse:
    authentication = build_client_authentication(registration, token_endpoint=url)
    if refresh:
        request = build_refresh_request(
            token_endpoint=url,
            refresh_token=_NO_CODE,
            client_authentication=authentication,
        )
    elif not registration.is_for_launches:
        request = build_client_credentials_request(
            token_endpoint=url,
            scope=registration.system_scope,
            client_authentication=authentication,
        )
    else:
        request = build_token_request(
            token_endpoint=url,
            code=_NO_CODE,
            redirect_uri=registration.redirect_uri or get_site_url(registration),
            code_verifier=secrets.token_urlsafe(64),
            client_authentication=authentication,
        )
    return ask(request, server=registration.server)


def _is_refused(registration: ClientRegistration, url: str) -> bool:
    """Whether a client that does not exist is refused, and told so."""
    nobody = copy.copy(registration)
    nobody.client_id = f"nobody-{secrets.token_hex(8)}"
    if nobody.token_endpoint_auth_method.startswith("client_secret_"):
        nobody.client_secret_env = nobody.client_secret_file = ""
        nobody.client_secret = secrets.token_urlsafe()
    return bool(_find_refusal(_ask_for_tokens(nobody, url, refresh=True)))


def _has_worked(registration: ClientRegistration) -> bool:
    """Whether this client got tokens since it was last changed here."""
    grants = TokenGrant.objects.filter(
        registration=registration, received_at__gte=registration.updated_at
    )
    return grants.exists()


def _read_error(answer: HTTPResponse) -> SMARTError | None:
    """What a launch would raise for *answer*."""
    try:
        process_token_response(answer, requested=ScopeSet.parse(""), now=timezone.now())
    except SMARTError as exc:
        return exc
    return None


def _find_refusal(answer: HTTPResponse) -> str:
    """How the client itself is refused; empty if it is not."""
    error = _read_error(answer)
    if isinstance(error, TokenResponseError) and error.error in _CLIENT_REFUSED:
        return error.error
    return _GATEWAY if answer.status_code == 401 else ""


def _find_wrong_answer(answer: HTTPResponse) -> str:
    """What it does that no token endpoint does; empty if nothing."""
    status = answer.status_code
    if status in {404, 405} or status >= 500:
        return f"responds with status {status}"
    error = _read_error(answer)
    if error is not None and error.code == "redirect_refused":
        return "redirects the request to another URL, as sign-in pages do"
    is_html = "html" in answer.headers.get("content-type", "")
    if isinstance(error, MalformedTokenResponseError) and is_html:
        return "responds with a web page, such as a sign-in page, instead of JSON"
    return ""


def _get_credentials_fix(registration: ClientRegistration) -> str:
    if registration.uses_private_key:
        return (
            "Enter this site's JWK Set URL in the vendor's form, or upload the output "
            "of smart_keys export, and wait until the server has read it. Check the "
            "client ID."
        )
    if registration.token_endpoint_auth_method == _AuthMethod.NONE:
        return (
            "Check the client ID, and register the client as public at the vendor, or "
            "enter the secret and authentication method that it was given."
        )
    return (
        "Check the client ID and authentication method in the vendor's form, and enter "
        "the client secret again. Some vendors activate a new secret only after a few "
        "minutes."
    )


def _get_missing_secret_fix(registration: ClientRegistration) -> str:
    if registration.uses_private_key:
        return (
            f"Run smart_keys generate --algorithm {registration.signing_algorithm}, "
            "and let the server read the JWK Set."
        )
    if variable := registration.client_secret_env:
        return (
            f"Set {variable} in the environment of web processes and workers, "
            "and of this command."
        )
    if path := registration.client_secret_file:
        return f"Put the secret into {path}, readable by this site's processes."
    return "Enter the client secret on the registration's admin page."


def _try_other_form(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """
    Send the credentials once as another server wants them, if these are refused.

    Only an answer about the code that nobody gave (``invalid_grant``) shows that a
    client is accepted; every other answer proves nothing.
    """
    url = configuration.token_endpoint
    quirks = registration.server.quirks
    encoding = "raw" if quirks.basic_credentials == "form_encoded" else "form_encoded"
    other = copy.copy(registration)
    other.server = copy.copy(registration.server)
    other.server.quirks = quirks.replace(
        {"basic_credentials": encoding, "client_id_with_assertion": True}
    )
    with suppress(SMARTError):  # reported where the credentials themselves are tried
        if (
            _is_sent_otherwise(registration)
            and not _is_accepted(registration, url)
            and _is_accepted(other, url)
        ):
            if registration.uses_private_key:
                yield build_finding("client_id_wanted")
            else:
                yield build_finding(
                    "basic_encoding_wrong",
                    what="The token endpoint refuses client ID and secret in the "
                    f"current encoding ({quirks.basic_credentials}) and accepts them "
                    f"as {encoding}.",
                    fix="Set basic_credentials on the server's admin page to "
                    f"{encoding}.",
                )


def _is_sent_otherwise(registration: ClientRegistration) -> bool:
    """Whether the other form of its credentials differs from what is sent."""
    if registration.uses_private_key:
        return not registration.server.quirks.client_id_with_assertion
    if registration.token_endpoint_auth_method != _AuthMethod.CLIENT_SECRET_BASIC:
        return False
    text = registration.client_id + registration.get_client_secret(os.environ)
    return quote_plus(text) != text


def _is_accepted(registration: ClientRegistration, url: str) -> bool:
    error = _read_error(_ask_for_tokens(registration, url))
    return isinstance(error, TokenResponseError) and error.error == "invalid_grant"
