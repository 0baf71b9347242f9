"""
The authorization endpoint's pages.

A request that is in order becomes a page of its own: sign in if needed, pick a
patient if needed, then approve or deny.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from werkzeug.utils import redirect

from django_smart.testing.simulator import authorize as authorization
from django_smart.testing.simulator import chart
from django_smart.testing.simulator.errors import (
    AuthorizationError,
    AuthorizationPageError,
)
from django_smart.testing.simulator.pages import (
    Session,
    error_page,
    get_session,
    render,
    sign_in_page,
    stale_form,
)
from django_smart.testing.simulator.scopes import ResourceScope, parse_scope

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.authorize import AuthorizationRequest
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.people import User

__all__ = ["PendingConsent", "authorize", "describe_scopes", "routes"]

_LIFETIME = 600  # seconds in which the person has to decide
# Scopes in words, for the person who is asked.
_PLAIN = {
    "launch": "Know which chart it was opened from",
    "launch/patient": "Know which patient is chosen",
    "launch/encounter": "Know which visit is chosen",
    "openid": "Recognize you when you come back",
    "fhirUser": "See your own entry: who you are here",
    "profile": "See your name",
    "online_access": "Keep access for as long as you are signed in here",
    "offline_access": "Keep access when you are away, until it is taken back",
}
_TYPES = {
    "*": "everything in the record",
    "AllergyIntolerance": "allergies",
    "Condition": "problems and diagnoses",
    "DocumentReference": "documents",
    "Encounter": "visits",
    "MedicationRequest": "prescriptions",
    "Observation": "measurements and test results",
    "Organization": "organizations",
    "Patient": "name, birth date, address and phone",
    "Practitioner": "clinicians",
}
_VERBS = {"c": "add", "r": "read", "u": "change", "d": "delete", "s": "search"}
_LEVELS = {
    "patient": "of this patient",
    "user": "of every patient that you can see",
    "system": "of all patients",
}


@dataclass(slots=True, kw_only=True)
class PendingConsent:
    """A request that waits for the user's decision."""

    request: AuthorizationRequest
    path: str
    expires_at: float
    session_id: str | None = None
    """The first browser session that opened it; only it may decide."""
    patient: str | None = None


def routes(root_path: str) -> Routes:
    """Path, method and handler of the consent page."""
    yield f"{root_path}/auth/consent/<consent_id>", "GET", _show
    yield f"{root_path}/auth/consent/<consent_id>", "POST", _decide


def authorize(exchange: Exchange) -> Response:
    """
    Answer ``GET`` and ``POST <authorization_endpoint>``.

    The redirect to the page matters for POST: a form that comes from another site
    brings no cookie along, the GET that follows does.
    """
    ehr = exchange.ehr
    is_post = exchange.request.method == "POST"
    pairs = exchange.form if is_post else exchange.query
    exchange.client_id = dict(pairs).get("client_id")
    try:
        request = authorization.validate(ehr, pairs)
    except AuthorizationPageError as exc:
        return error_page(
            exchange, "This app cannot be connected", f"Reason: {exc}.", status=400
        )
    except AuthorizationError as exc:
        return redirect(authorization.error_redirect(ehr, exc), 303 if is_post else 302)
    consent_id = secrets.token_urlsafe(24)
    path = f"{ehr.root_path}/auth/consent/{consent_id}"
    ehr.pending_consents[consent_id] = PendingConsent(
        request=request, path=path, expires_at=ehr.clock() + _LIFETIME
    )
    return redirect(path, 303)


def _show(exchange: Exchange, consent_id: str) -> Response:
    ehr = exchange.ehr
    session = get_session(exchange)
    pending = _find(ehr, consent_id)
    if pending is None:
        return _gone(exchange)
    exchange.client_id = pending.request.client.client_id
    launch = pending.request.launch
    if launch is not None:
        expected = ehr.users[launch.user]
        if session.user != expected:
            return sign_in_page(
                exchange, session, next_path=pending.path, only=expected
            )
    if session.user is None:
        return sign_in_page(exchange, session, next_path=pending.path)
    if pending.session_id not in {None, session.session_id}:
        return _gone(exchange)
    pending.session_id = session.session_id
    patient_id = _patient_of(pending, session.user)
    if patient_id is None and pending.request.needs_patient:
        return _pick_patient_page(exchange, session, pending)
    patient = chart.summarize(ehr, patient_id) if patient_id is not None else None
    context = {
        "session": session,
        "framed": exchange.is_framed,
        "app": pending.request.client,
        "scopes": describe_scopes(pending.request.scopes),
        "patient": patient,
        "can_switch": launch is None,
    }
    return render("consent.html", context)


def _decide(exchange: Exchange, consent_id: str) -> Response:
    ehr = exchange.ehr
    session = get_session(exchange)
    form = dict(exchange.form)
    pending = _find(ehr, consent_id)
    if pending is None or session.user is None:
        return _gone(exchange)
    exchange.client_id = pending.request.client.client_id
    if pending.session_id != session.session_id:
        return _gone(exchange)
    if not session.accepts(form.get("csrf_token")):
        return stale_form(exchange)
    if "patient" in form:
        if form["patient"] not in ehr.data["Patient"]:
            return _gone(exchange)
        pending.patient = form["patient"]
        return redirect(pending.path, 303)
    if form.get("decision") == "switch":
        pending.session_id = pending.patient = None
        return sign_in_page(exchange, session, next_path=pending.path)
    ehr.pending_consents.pop(consent_id, None)
    if form.get("decision") != "approve":
        return redirect(authorization.deny(ehr, pending.request), 303)
    location = authorization.approve(
        ehr,
        pending.request,
        user=session.user.reference,
        patient=_patient_of(pending, session.user),
        session=session.session_id,
    )
    return redirect(location, 303)


def _find(ehr: EHRSimulator, consent_id: str) -> PendingConsent | None:
    pending = ehr.pending_consents.get(consent_id)
    if pending is None or pending.expires_at <= ehr.clock():
        return None
    return pending


def _patient_of(pending: PendingConsent, user: User) -> str | None:
    """Whose record it is about: the launch's, one's own, or the one picked."""
    if pending.request.launch is not None:
        return pending.request.launch.patient
    if not pending.request.needs_patient:
        return None
    return user.patient_id or pending.patient


def _pick_patient_page(
    exchange: Exchange, session: Session, pending: PendingConsent
) -> Response:
    context = {
        "session": session,
        "app": pending.request.client,
        "framed": exchange.is_framed,
        "patients": chart.list_patients(exchange.ehr),
    }
    return render("pick_patient.html", context)


def _gone(exchange: Exchange) -> Response:
    return error_page(
        exchange,
        "This request is over",
        "It was decided before, waited too long, or was started in another browser. "
        "Go back to the app and start again.",
        status=404,
    )


def describe_scopes(scopes: list[str]) -> list[dict[str, Any]]:
    """For each scope: the ``text`` to show, the ``scope`` itself, and ``writes``."""
    described = []
    for item in scopes:
        resource = parse_scope(item)
        described.append(
            {
                "scope": item,
                "text": _describe(item, resource),
                "writes": resource is not None
                and bool(set("cud") & {*resource.letters}),
            }
        )
    return described


def _describe(item: str, resource: ResourceScope | None) -> str:
    if resource is None:
        bare = item.partition("?")[0]
        return _PLAIN.get(bare, f"Know which {bare.removeprefix('launch/')} is chosen")
    verbs = [_VERBS[letter] for letter in resource.letters]
    *first, last = verbs
    phrase = f"{', '.join(first)} and {last}" if first else last
    kind = _TYPES.get(resource.resource_type, f"{resource.resource_type} entries")
    text = f"{phrase.capitalize()} {kind} {_LEVELS[resource.level]}"
    if resource.params:
        limits = [
            f"{name} is {value.rpartition('|')[2]}" for name, value in resource.params
        ]
        text += f", only where {' and '.join(limits)}"
    return text
