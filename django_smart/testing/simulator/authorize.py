"""
The authorization endpoint's rules; the pages are in ``consent``.

Spec: SMART App Launch 2.2, "Obtain authorization code"; RFC 6749 sections 3.1 and
4.1; RFC 7636; RFC 9207.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django_smart.testing.simulator import scopes
from django_smart.testing.simulator.chart import latest_encounter
from django_smart.testing.simulator.errors import (
    AuthorizationError,
    AuthorizationPageError,
)
from django_smart.testing.simulator.state import Code, Grant, new_id

if TYPE_CHECKING:
    from django_smart.testing.simulator.clients import Client
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.state import Launch

__all__ = ["AuthorizationRequest", "approve", "deny", "error_redirect", "validate"]

_S256_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_SINGLE = frozenset(
    [
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "state",
        "aud",
        "code_challenge",
        "code_challenge_method",
        "launch",
        "nonce",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """A valid request, which the user approves or denies."""

    client: Client
    redirect_uri: str
    state: str
    scopes: list[str]
    code_challenge: str
    nonce: str | None
    launch: Launch | None

    @property
    def needs_patient(self) -> bool:
        """True if the user has to choose a patient."""
        asks = {item.partition("?")[0] for item in self.scopes}
        return self.launch is None and bool(
            asks & {"launch/patient", "launch/encounter"}
        )

    def refuse(self, error: str, description: str) -> AuthorizationError:
        """Return the error for a request that was valid."""
        return AuthorizationError(
            error, description, redirect_uri=self.redirect_uri, state=self.state
        )


def validate(ehr: EHRSimulator, pairs: list[tuple[str, str]]) -> AuthorizationRequest:
    """
    Check an authorization request.

    Args:
        pairs: its parameters, decoded, in order.

    Raises:
        AuthorizationPageError: unknown client or redirect URI; nothing is sent there.
        AuthorizationError: anything else; the app is told at its redirect URI.
    """
    # RFC 6749 section 3.1: a parameter without a value counts as left out.
    params = {name: value for name, value in pairs if value}
    counts = Counter(name for name, _ in pairs)
    repeated = sorted(name for name in counts if counts[name] > 1 and name in _SINGLE)
    client, redirect_uri = _check_client(ehr, params, repeated)

    def refuse(error: str, description: str) -> AuthorizationError:
        state = None if "state" in repeated else params.get("state")
        return AuthorizationError(
            error, description, redirect_uri=redirect_uri, state=state
        )

    if repeated:
        raise refuse("invalid_request", f"given more than once: {', '.join(repeated)}")
    _check_fixed_parameters(ehr, params, refuse)
    asked = _check_scope(client, params, refuse)
    launch = _check_launch(ehr, client, params, asked, refuse)
    return AuthorizationRequest(
        client=client,
        redirect_uri=redirect_uri,
        state=params["state"],
        scopes=asked,
        code_challenge=params["code_challenge"],
        nonce=params.get("nonce"),
        launch=launch,
    )


def _check_client(
    ehr: EHRSimulator, params: dict[str, str], repeated: list[str]
) -> tuple[Client, str]:
    for name in ("client_id", "redirect_uri"):
        if name in repeated:
            raise AuthorizationPageError(f"{name} is given more than once")
        if name not in params:
            raise AuthorizationPageError(f"{name} is missing")
    client = ehr.clients.get(params["client_id"])
    if client is None:
        raise AuthorizationPageError("no app is registered with this client_id")
    if params["redirect_uri"] not in client.redirect_uris:
        raise AuthorizationPageError("this redirect_uri is not registered for the app")
    return client, params["redirect_uri"]


def _check_fixed_parameters(
    ehr: EHRSimulator, params: dict[str, str], refuse: Any
) -> None:
    if "response_type" not in params:
        raise refuse("invalid_request", "response_type is missing")
    if params["response_type"] != "code":
        raise refuse("unsupported_response_type", "response_type must be code")
    if "request" in params:
        raise refuse("request_not_supported", "request objects are not supported")
    if "request_uri" in params:
        raise refuse("request_uri_not_supported", "request_uri is not supported")
    if "state" not in params:
        raise refuse("invalid_request", "state is missing")
    aud = f"{ehr.base_url}/" if "aud_slash" in ehr.quirks else ehr.base_url
    if params.get("aud") != aud:
        raise refuse("invalid_request", f"aud must be {aud}")
    if "parameter_wanted" in ehr.quirks and params.get("tenant") != "harbour":
        raise refuse("invalid_request", "tenant must be harbour")
    if params.get("code_challenge_method") != "S256":
        raise refuse("invalid_request", "code_challenge_method must be S256")
    if not _S256_CHALLENGE.fullmatch(params.get("code_challenge", "")):
        raise refuse("invalid_request", "code_challenge must be a SHA-256 in base64url")


def _check_scope(client: Client, params: dict[str, str], refuse: Any) -> list[str]:
    """Return the requested scopes for which the app is registered."""
    try:
        asked = scopes.split_scope(params.get("scope", ""))
        parsed = [scopes.parse_scope(item) for item in asked]
        if client.scope is not None:
            allowed = client.scope.split()
            asked = [item for item in asked if scopes.covers(allowed, item)]
    except scopes.ScopeError as exc:
        raise refuse("invalid_scope", str(exc)) from exc
    if not asked:
        raise refuse("invalid_scope", "the app is registered for none of these scopes")
    levels = {scope.level for scope in parsed if scope is not None}
    if "system" in levels:
        raise refuse("invalid_scope", "system/ scopes are for client_credentials")
    launch_scopes = {item.partition("?")[0] for item in asked}
    if "patient" in levels and not launch_scopes & {"launch", "launch/patient"}:
        raise refuse("invalid_scope", "patient/ scopes need launch or launch/patient")
    if "fhirUser" in asked and "openid" not in asked:
        raise refuse("invalid_scope", "fhirUser needs openid")
    return asked


def _check_launch(
    ehr: EHRSimulator,
    client: Client,
    params: dict[str, str],
    asked: list[str],
    refuse: Any,
) -> Launch | None:
    launch_id = params.get("launch")
    if launch_id is None:
        if "launch" in asked:
            raise refuse("invalid_request", "the scope launch needs a launch parameter")
        return None
    if "launch" not in asked:
        raise refuse("invalid_request", "the launch parameter needs the scope launch")
    launch = ehr.store.launches.get(launch_id)
    if launch is None or launch.client_id != client.client_id:
        raise refuse("invalid_request", "launch is not known")
    if launch.used:
        raise refuse("invalid_request", "launch has been used")
    if launch.expires_at <= ehr.clock():
        raise refuse("invalid_request", "launch has expired")
    return launch


def approve(
    ehr: EHRSimulator,
    request: AuthorizationRequest,
    *,
    user: str,
    patient: str | None = None,
    scope: str | None = None,
    session: str | None = None,
) -> str:
    """
    Record the person's consent, and return where the browser is sent.

    Args:
        user: reference of the person, such as ``Practitioner/1``.
        patient: id of the patient they picked, for a standalone launch.
        scope: what they allow, within what was asked; all of it by default.
        session: the EHR session it happens in.

    Raises:
        ValueError: unknown user or patient, a patient who may not be picked, or a scope
            that was not requested.
    """
    granted = list(request.scopes) if scope is None else scope.split()
    for item in granted:
        if not scopes.covers(request.scopes, item):
            raise ValueError(f"scope was not requested: {item}")
    dropped = [
        *(["Patient.", "Observation."] if "scopes_trimmed" in ehr.quirks else []),
        *(["offline_access"] if "offline_refused" in ehr.quirks else []),
    ]
    granted = [each for each in granted if not any(word in each for word in dropped)]
    grant = _make_grant(ehr, request, user=user, patient=patient, granted=granted)
    grant.session = session
    code = new_id()
    with ehr.store.lock:
        if request.launch is not None:
            if request.launch.used:
                error = request.refuse("invalid_request", "launch has been used")
                return error_redirect(ehr, error)
            request.launch.used = True
        ehr.store.codes[code] = Code(
            grant=grant,
            redirect_uri=request.redirect_uri,
            code_challenge=request.code_challenge,
            expires_at=ehr.clock() + ehr.code_lifetime,
        )
    return _redirect(
        ehr, request.redirect_uri, [("code", code), ("state", request.state)]
    )


def _make_grant(
    ehr: EHRSimulator,
    request: AuthorizationRequest,
    *,
    user: str,
    patient: str | None,
    granted: list[str],
) -> Grant:
    person = ehr.users.get(user)
    if person is None:
        raise ValueError(f"no such user: {user}")
    context: dict[str, Any] = {}
    if request.launch is not None:
        patient = request.launch.patient
        context = dict(request.launch.context)
        if request.launch.encounter is not None:
            context["encounter"] = request.launch.encounter
    elif request.needs_patient:
        patient = person.patient_id or patient
        if patient is None or patient not in ehr.versions.get_ids("Patient"):
            raise ValueError(f"no such patient: {patient}")
        context = _standalone_context(ehr, patient, request.scopes)
    else:
        patient = None
    if patient is not None:
        context = {"patient": patient, **context}
    return Grant(
        client_id=request.client.client_id,
        user=user,
        patient=patient,
        scopes=granted,
        context=context,
        nonce=request.nonce,
    )


def _standalone_context(
    ehr: EHRSimulator, patient: str, asked: list[str]
) -> dict[str, Any]:
    context: dict[str, Any] = {
        "need_patient_banner": True,
        "smart_style_url": f"{ehr.origin}/smart-style.json",
    }
    if any(item.partition("?")[0] == "launch/encounter" for item in asked):
        context["encounter"] = latest_encounter(ehr, patient)
    return {name: value for name, value in context.items() if value is not None}


def deny(ehr: EHRSimulator, request: AuthorizationRequest) -> str:
    """Return where the browser is redirected if the user denies."""
    text = "The person did not allow the app to use the record."
    return error_redirect(ehr, request.refuse("access_denied", text))


def error_redirect(ehr: EHRSimulator, error: AuthorizationError) -> str:
    """Return the redirect that reports *error* to the app."""
    params = [("error", error.error), ("error_description", error.description)]
    if error.state is not None:
        params.append(("state", error.state))
    return _redirect(ehr, error.redirect_uri, params)


def _redirect(
    ehr: EHRSimulator, redirect_uri: str, params: list[tuple[str, str]]
) -> str:
    params = [*params, ("iss", ehr.issuer)]
    for fault in ehr.faults.active("redirects", "authorize"):
        params = fault.function(ehr, params)
    separator = "&" if "?" in redirect_uri else "?"
    return redirect_uri + separator + urlencode(params)
