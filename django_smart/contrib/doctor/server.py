"""What is wrong between this site and one server: address, TLS, discovery, clock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, urlsplit

from django.db import DatabaseError
from django.utils import timezone
from django.utils.text import capfirst

from ...conf import CLOCK_LEEWAY
from ...diagnoses import Finding, Severity, build_finding
from ...exceptions import (
    DiscoveryError,
    InsecureURLError,
    ServerMovedError,
    ServerUnreachableError,
    SMARTError,
    TransportError,
    UnsupportedServerError,
)
from ...launches.begin import build_request
from ...models import ClientRegistration, FHIRServer, Launch
from ...protocol.configuration import SMARTConfiguration
from ...protocol.discovery import (
    build_capability_statement_request,
    build_discovery_request,
)
from ...protocol.json import parse_json_object
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...protocol.scopes import ScopeSet
from ...protocol.urls import get_origin
from ...servers.discovery import check_moved, fetch_configuration, fetch_jwks
from .findings import ask, collect
from .registration import examine_registration

__all__ = ["BASE_URL_WRONG", "discover", "examine_server"]

#: The codes that say that the base URL itself is wrong.
BASE_URL_WRONG = frozenset({"base_url_wrong", "base_url_not_fhir"})

# What people paste in place of a base URL, and where base URLs mostly are.
_PASTED = ("/.well-known/smart-configuration", "/metadata")
_USUAL = ("/fhir", "/r4", "/R4", "/fhir/r4", "/fhir/R4", "/baseR4")


def examine_server(server: FHIRServer) -> list[Finding]:
    """
    Examine *server*, and compare its active registrations with its configuration.

    What it says is stored, as with every discovery, if the server is.
    """
    return collect("server", _examine, server, subject=server.slug)


def discover(server: FHIRServer, client_id: str = "") -> SMARTConfiguration | Finding:
    """
    Return *server*'s configuration, or why it is unavailable; nothing is stored.

    Args:
        client_id: whose configuration is returned, if it can differ between clients.
    """
    answer = _ask(server)
    if isinstance(answer, Finding):
        return answer
    return _discover(server, answer, client_id, save=False)


def _examine(server: FHIRServer) -> Iterator[Finding]:
    if not server.is_active:
        yield build_finding("server_inactive")
        return
    answer = _ask(server)
    if isinstance(answer, Finding):
        yield answer
        return
    yield from collect("clock", _find_clock_fault, answer)
    configuration = _discover(server, answer, save=server.pk is not None)
    if isinstance(configuration, Finding):
        yield configuration
        return
    yield from _find_overruled(server)
    yield from _find_shared(server)
    registrations: list[ClientRegistration] = []
    if server.pk:
        # Django gives each of them this very server, with what was just fetched.
        registrations = list(server.registrations.filter(is_active=True))
    scopes = [f"{each.ehr_scope} {each.standalone_scope}" for each in registrations]
    if any("openid" in ScopeSet.parse(each) for each in scopes):
        yield from collect("ID token keys", _find_key_fault, server)
    if server.pk and not registrations:
        yield build_finding("registration_missing")
    for registration in registrations:
        own = server.read_configuration(registration.client_id)
        both = registration, own or configuration
        yield from collect("authorization", _try_authorization, *both)
        yield from collect("registration", examine_registration, *both)


def _find_overruled(server: FHIRServer) -> Iterator[Finding]:
    document = server.discovered.configuration or {}
    differing = [
        f"{name}: the server sends {json.dumps(document.get(name))}, but "
        f"{json.dumps(value)} is used"
        for name, value in sorted(server.overrides.items())
        if document.get(name) != value
    ]
    if differing:
        yield build_finding(
            "configuration_overruled",
            what="Values entered here replace values in the server's SMART "
            f"configuration. {'; '.join(differing)}.",
        )


def _find_shared(server: FHIRServer) -> Iterator[Finding]:
    others = FHIRServer.objects.active().exclude(pk=server.pk).order_by("slug")
    if server.login_group:
        others = others.exclude(login_group=server.login_group)
    own = server.discovered.pinned.items()
    sharing = [
        slug
        for slug, pinned in others.values_list("slug", "state__pinned")
        if pinned and own & pinned.items()
    ]
    if sharing:
        yield build_finding(
            "values_shared",
            what="Other servers name the same issuer, key URL or token endpoint: "
            f"{', '.join(sharing)}.",
        )


def _ask(server: FHIRServer) -> HTTPResponse | Finding:
    """The answer to discovery, whatever it is; or why there is none."""
    try:
        return ask(
            build_discovery_request(
                server.base_url, headers=server.build_discovery_headers()
            ),
            server=server,
        )
    except TransportError as exc:
        return _explain_failure(exc)


def _explain_failure(error: TransportError) -> Finding:
    if error.code == "address_refused":
        what, _, fix = str(error).partition(": ")
        return build_finding("server_unreachable", what=f"{what}.", fix=capfirst(fix))
    if isinstance(error, InsecureURLError):
        return build_finding(
            "base_url_wrong",
            what=f"Nothing can be sent to the base URL: {error}",
            fix="Enter a base URL with https. Only for a server on your own machine, "
            "add its host to SMART_INSECURE_HTTP_HOSTS.",
        )
    if isinstance(error, ServerUnreachableError) and error.is_untrusted:
        return build_finding(
            "certificate_untrusted",
            what=f"{capfirst(str(error))}.",
        )
    return build_finding(
        "server_unreachable",
        what=f"The server cannot be reached: {error}.",
    )


def _find_clock_fault(answer: HTTPResponse) -> Iterator[Finding]:
    there = _read_date(answer)
    if there is None:
        return
    seconds = (timezone.now() - there).total_seconds()
    leeway = CLOCK_LEEWAY.total_seconds()
    if abs(seconds) > leeway:
        yield build_finding(
            "clock_off",
            what=f"The clock of this machine is {abs(seconds):.0f} s "
            f"{'ahead of' if seconds > 0 else 'behind'} the server's; the "
            f"leeway is {leeway:.0f} s.",
        )


def _read_date(answer: HTTPResponse) -> datetime | None:
    """What the server's clock says; an old answer of a cache is brought up to date."""
    try:
        there = parsedate_to_datetime(answer.headers.get("date", ""))
        age = int(answer.headers.get("age") or 0)
        # A time in GMT may come without saying so (RFC 9110 section 5.6.7).
        return there.replace(tzinfo=there.tzinfo or UTC) + timedelta(seconds=age)
    except (ValueError, OverflowError):
        return None


def _discover(
    server: FHIRServer, answer: HTTPResponse, client_id: str = "", *, save: bool
) -> SMARTConfiguration | Finding:
    try:
        try:
            configuration = fetch_configuration(server, client_id, save=save)
        except DatabaseError:  # The database has findings of its own.
            configuration = fetch_configuration(server, client_id, save=False)
        check_moved(server)
    except TransportError as exc:
        return _explain_failure(exc)
    except ServerMovedError as exc:
        what, _, fix = str(exc).rpartition(": ")
        return build_finding("server_moved", what=f"{what}.", fix=capfirst(fix))
    except DiscoveryError as exc:
        return _explain_discovery(server, answer, exc)
    return configuration


def _explain_discovery(
    server: FHIRServer, answer: HTTPResponse, error: DiscoveryError
) -> Finding:
    if answer.status_code >= 500:
        return build_finding("discovery_status", what=str(error))
    if answer.status_code == 200 and _is_json(answer):
        return build_finding(
            "discovery_malformed", what=f"The SMART configuration is unusable: {error}"
        )
    statement = _ask_for_statement(server, server.base_url)
    if statement is not None and _is_json(statement, kind="CapabilityStatement"):
        return build_finding(
            "configuration_missing",
            what="There is a FHIR server, but it has no SMART configuration: "
            + (
                "a web page is in its place."
                if "html" in answer.headers.get("content-type", "")
                else str(error)
            ),
        )
    better = _suggest_base_url(server)
    fix = (
        f"Change the base URL to {better}, where a FHIR server responds."
        if better
        else ""
    )
    if answer.status_code == 404 and (
        statement is None or statement.status_code == 404
    ):
        return build_finding(
            "base_url_wrong",
            what="The host responds, but there is nothing at the base URL (status "
            "404).",
            fix=fix,
        )
    return build_finding("base_url_not_fhir", fix=fix)


def _ask_for_statement(server: FHIRServer, base_url: str) -> HTTPResponse | None:
    with suppress(SMARTError):
        return ask(
            build_capability_statement_request(
                base_url, headers=server.build_discovery_headers()
            ),
            server=server,
        )
    return None


def _suggest_base_url(server: FHIRServer) -> str:
    """The base URL of the same host that was probably meant; empty if none answers."""
    origin = get_origin(server.base_url)
    base_url = asked = origin + urlsplit(server.base_url).path.rstrip("/")
    for ending in _PASTED:
        base_url = base_url.removesuffix(ending)
    above, path = [base_url], base_url.removeprefix(origin)
    while path := path.rpartition("/")[0]:
        above.append(origin + path)
    for candidate in dict.fromkeys(
        [*above, *(each + ending for each in (base_url, origin) for ending in _USUAL)]
    ):
        if candidate == asked:
            continue
        statement = _ask_for_statement(server, candidate)
        if statement is None:
            return ""
        if statement.status_code == 200 and _is_json(
            statement, kind="CapabilityStatement"
        ):
            return candidate
    return ""


def _is_json(answer: HTTPResponse, *, kind: str | None = None) -> bool:
    try:
        document = parse_json_object(answer.body, error=DiscoveryError, what="answer")
    except DiscoveryError:
        return False
    return kind is None or document.get("resourceType") == kind


def _try_authorization(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """Request authorization as a standalone launch does, without a browser."""
    url = configuration.authorization_endpoint
    if url is None or not registration.is_for_launches:
        return
    is_complete = registration.standalone_scope and registration.redirect_uri
    if is_complete:
        # It is not stored.
        launch = Launch(
            registration=registration, scope_asked=registration.standalone_scope
        )
        url = build_request(launch, configuration, state=secrets.token_urlsafe()).url
    try:
        answer = ask(HTTPRequest(method="GET", url=url), server=registration.server)
    except SMARTError as exc:
        yield build_finding(
            "endpoint_unreachable",
            # Browsers may get there by another way than this machine.
            severity=Severity.WARNING,
            what=f"The authorization endpoint cannot be reached from here: {exc}.",
        )
        return
    if answer.status_code == 404:
        yield build_finding(
            "endpoint_wrong",
            what="There is nothing at the authorization endpoint, "
            f"{configuration.authorization_endpoint} (status 404).",
        )
    elif is_complete and (
        what := _find_authorization_error(answer, registration.redirect_uri)
    ):
        yield build_finding(
            "authorization_refused",
            what=f"The authorization endpoint {what}.",
            fix="Compare client ID, scopes and the redirect URI "
            f"{registration.redirect_uri} with the vendor's form, character by "
            "character. To see the server's error message, launch once in a browser.",
        )


def _find_authorization_error(answer: HTTPResponse, redirect_uri: str) -> str:
    target = answer.headers.get("location", "")
    if target.partition("?")[0] == redirect_uri:
        error = dict(parse_qsl(urlsplit(target).query)).get("error", "")
        # These errors are correct: they only say that no one is signed in.
        if error and error not in {"login_required", "interaction_required"}:
            return f"redirects the browser back with the error {error[:60]}"
    elif answer.status_code in {400, 401, 403}:
        return (
            f"responds to a launch with status {answer.status_code} and does "
            "not redirect back: it does not know the client ID or its "
            "redirect URI, or refuses the request"
        )
    return ""


def _find_key_fault(server: FHIRServer) -> Iterator[Finding]:
    try:
        fetch_jwks(server, save=server.pk is not None)
    except UnsupportedServerError as exc:
        what, _, fix = str(exc).rpartition(": ")
        yield build_finding(
            "id_token_keys_unusable", what=f"{what}.", fix=capfirst(fix)
        )
    except SMARTError as exc:
        yield build_finding(
            "id_token_keys_unusable",
            what=f"The keys that sign the server's ID tokens are unavailable: {exc}",
        )
