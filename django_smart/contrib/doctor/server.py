"""What is wrong between this site and one server: address, TLS, discovery, clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from django.utils import timezone

from ...conf import conf
from ...exceptions import (
    DiscoveryError,
    InsecureURLError,
    IssuerDisputedError,
    ServerUnreachableError,
    SMARTError,
    TransportError,
)
from ...models import ClientRegistration, FHIRServer
from ...protocol.configuration import SMARTConfiguration
from ...protocol.discovery import (
    build_capability_statement_request,
    build_discovery_request,
)
from ...protocol.json import parse_json_object
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...servers.discovery import (
    check_dispute,
    fetch_configuration,
    fetch_jwks,
)
from .asking import ask
from .findings import Finding, Severity, build_finding
from .registration import examine_registration

__all__ = ["examine_server"]


class _StopError(Exception):
    """What was found makes every further question pointless."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.code)
        self.finding = finding


def examine_server(server: FHIRServer) -> list[Finding]:
    """
    Ask *server*, and hold its active registrations against what it says.

    What it says is stored, as with every discovery, if the server is.
    """
    if not server.is_active:
        return [_build_inactive(server)]
    findings = list(_find_plain_http(server))
    if any(each.severity == Severity.ERROR for each in findings):
        return findings
    try:
        answer = _ask(server)
        findings += _find_clock_fault(server, answer)
        configuration = _discover(server, answer)
    except _StopError as stop:
        return [*findings, stop.finding]
    registrations = _get_registrations(server)
    if any(each.is_for_launches for each in registrations):
        findings += _find_endpoint_fault(server, configuration)
    if any("openid" in _get_launch_scopes(each) for each in registrations):
        findings += _find_key_fault(server)
    if server.pk and not registrations:
        findings.append(
            build_finding(
                "registration_missing",
                subject=server.slug,
                what="The server has no active client registration.",
                fix="Register this site there and enter the client id it gives, in "
                "the admin or with smart_register.",
            )
        )
    for registration in registrations:
        findings += examine_registration(registration, configuration)
    return findings


def _get_registrations(server: FHIRServer) -> list[ClientRegistration]:
    if not server.pk:
        return []
    registrations = list(server.registrations.filter(is_active=True))
    for registration in registrations:
        registration.server = server
    return registrations


def _get_launch_scopes(registration: ClientRegistration) -> list[str]:
    return f"{registration.ehr_scope} {registration.standalone_scope}".split()


def _find_plain_http(server: FHIRServer) -> Iterator[Finding]:
    if not server.base_url.lower().startswith("http:"):
        return
    host = (urlsplit(server.base_url).hostname or "").strip("[]")
    yield build_finding(
        "plain_http",
        subject=server.slug,
        severity=(
            # For development, and on purpose.
            Severity.WARNING
            if host in conf.SMART_INSECURE_HTTP_HOSTS
            else Severity.ERROR
        ),
        what="The base URL is plain http.",
        fix="Enter the https address of the server as its base URL; its vendor tells "
        "it.",
    )


def _build_inactive(server: FHIRServer) -> Finding:
    return build_finding(
        "server_inactive",
        subject=server.slug,
        what="The server is switched off here, so it was not asked.",
        fix="Tick “active” on the page of the server if it is to be used.",
    )


def _ask(server: FHIRServer) -> HTTPResponse:
    """The answer to discovery, whatever it is."""
    try:
        return ask(
            build_discovery_request(
                server.base_url, headers=server.discovery_headers or {}
            )
        )
    except TransportError as exc:
        raise _StopError(_explain_failure(server, exc)) from exc


def _explain_failure(server: FHIRServer, error: TransportError) -> Finding:
    if isinstance(error, InsecureURLError):
        return build_finding(
            "base_url_wrong",
            subject=server.slug,
            what=f"Nothing may be sent to the base URL: {error}",
            fix="Enter the https address of the server as its base URL.",
        )
    if isinstance(error, ServerUnreachableError) and error.is_untrusted:
        return build_finding(
            "certificate_untrusted",
            subject=server.slug,
            what=f"{_begin(str(error))}.",
            fix="Have the server send its whole chain of certificates.  If it is "
            "signed by an authority of its own, name that authority's file in the "
            "environment variable REQUESTS_CA_BUNDLE of web processes and workers.",
        )
    return build_finding(
        "server_unreachable",
        subject=server.slug,
        what=f"The server cannot be reached: {error}.",
        fix="See whether the host in the base URL is right, whether this machine may "
        "connect to it (firewall, proxy in HTTPS_PROXY), and whether the server is up.",
    )


def _find_clock_fault(server: FHIRServer, answer: HTTPResponse) -> Iterator[Finding]:
    there = _read_date(answer)
    if there is None:
        return
    seconds = (timezone.now() - there).total_seconds()
    leeway = conf.SMART_CLOCK_LEEWAY.total_seconds()
    if abs(seconds) > leeway:
        yield build_finding(
            "clock_off",
            subject=server.slug,
            what=f"The clock of this machine is {abs(seconds):.0f} s "
            f"{'ahead of' if seconds > 0 else 'behind'} the server's, and "
            f"{leeway:.0f} s are allowed for.",
            fix="Set the clock of this machine by NTP.  If it is right, tell the "
            "server's operator, and raise SMART_CLOCK_LEEWAY until it is mended.",
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


def _discover(server: FHIRServer, answer: HTTPResponse) -> SMARTConfiguration:
    try:
        configuration = fetch_configuration(server, save=server.pk is not None)
        check_dispute(server)
    except TransportError as exc:
        raise _StopError(_explain_failure(server, exc)) from exc
    except IssuerDisputedError as exc:
        raise _StopError(_explain_dispute(server, exc)) from exc
    except DiscoveryError as exc:
        raise _StopError(_explain_discovery(server, answer, exc)) from exc
    return configuration


def _explain_dispute(server: FHIRServer, error: IssuerDisputedError) -> Finding:
    what, _, fix = str(error).partition(": ")
    return build_finding(
        "issuer_disputed",
        subject=server.slug,
        what=f"{what}.",
        fix=fix[:1].upper() + fix[1:],
    )


def _explain_discovery(
    server: FHIRServer, answer: HTTPResponse, error: DiscoveryError
) -> Finding:
    if answer.status_code >= 500:
        return build_finding(
            "server_failing",
            subject=server.slug,
            what=f"The server answers with status {answer.status_code}.",
            fix="Try again later; if it stays, tell the server's operator.",
        )
    if answer.status_code == 200 and _is_json(answer):
        return build_finding(
            "configuration_unusable",
            subject=server.slug,
            what=f"What the server says of itself cannot be used: {error}",
            fix="Tell the server's operator.  What its vendor documents can be entered "
            "in place of what it says, on the page of the server.",
        )
    statement = _ask_for_statement(server)
    if statement is not None and _is_json(statement, kind="CapabilityStatement"):
        return build_finding(
            "configuration_missing",
            subject=server.slug,
            what=f"There is a FHIR server, and it has no SMART configuration: {error}",
            fix="Have SMART App Launch switched on there, or enter the endpoints that "
            "its vendor documents, on the page of the server.",
        )
    if answer.status_code == 404 and (
        statement is None or statement.status_code == 404
    ):
        return build_finding(
            "base_url_wrong",
            subject=server.slug,
            what="The host answers, and has nothing at the base URL (status 404).",
            fix="Compare the base URL with the one that the vendor tells, letter for "
            "letter; its path mostly ends in /R4, /r4 or /fhir.",
        )
    return build_finding(
        "base_url_not_fhir",
        subject=server.slug,
        what="What answers at the base URL is no FHIR server.",
        fix="Enter the FHIR base URL, not the address of a portal or of the "
        "authorization server; /metadata below it has to answer with a "
        "CapabilityStatement.",
    )


def _ask_for_statement(server: FHIRServer) -> HTTPResponse | None:
    with suppress(TransportError):
        return ask(
            build_capability_statement_request(
                server.base_url, headers=server.discovery_headers or {}
            )
        )
    return None


def _is_json(answer: HTTPResponse, *, kind: str | None = None) -> bool:
    try:
        document = parse_json_object(answer.body, error=DiscoveryError, what="answer")
    except DiscoveryError:
        return False
    return kind is None or document.get("resourceType") == kind


def _find_endpoint_fault(
    server: FHIRServer, configuration: SMARTConfiguration
) -> Iterator[Finding]:
    """Where browsers are sent, asked for once without any parameter."""
    url = configuration.authorization_endpoint
    if url is None:
        return  # told of with the registration that needs it
    try:
        answer = ask(HTTPRequest(method="GET", url=url))
    except SMARTError as exc:
        yield build_finding(
            "endpoint_unreachable",
            subject=server.slug,
            # Browsers may get there by another way than this machine.
            severity=Severity.WARNING,
            what=f"The authorization endpoint cannot be reached from here: {exc}.",
            fix="See whether a browser can reach it; if not, tell the server's "
            "operator.",
        )
        return
    if answer.status_code == 404:
        yield build_finding(
            "endpoint_wrong",
            subject=server.slug,
            what="There is nothing at the authorization endpoint (status 404).",
            fix="Tell the server's operator, or correct the authorization endpoint on "
            "the page of the server if it was entered by hand.",
        )


def _find_key_fault(server: FHIRServer) -> Iterator[Finding]:
    try:
        fetch_jwks(server, save=server.pk is not None)
    except SMARTError as exc:
        yield build_finding(
            "id_token_keys_unusable",
            subject=server.slug,
            what=f"The keys that the server signs ID tokens with cannot be had: {exc}",
            fix="Tell the server's operator; or leave openid and fhirUser out of the "
            "scopes if nobody signs in with its accounts.",
        )


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]
