"""The EHR's own pages: sign in, the list of patients, a chart, the app's frame."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.template import Context, Engine
from werkzeug.exceptions import NotFound
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from django_smart.testing.simulator import chart

if TYPE_CHECKING:
    from django_smart.testing.simulator.clients import Client
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.people import User

__all__ = [
    "COOKIE",
    "Session",
    "error_page",
    "get_session",
    "render",
    "routes",
    "sign_in_page",
    "stale_form",
]

COOKIE = "harbour_session"
"""Not the app's name: cookies ignore ports, and both may be on one host."""

_FOLDER = Path(__file__).parent
_STATIC_TYPES = {
    "harbour.css": "text/css; charset=utf-8",
    "harbour.svg": "image/svg+xml",
}
# No "form-action": a form here ends in a redirect to the app, which it would stop.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-src http: https:; "
    "base-uri 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(slots=True)
class Session:
    """One browser; ``user`` is ``None`` until somebody signs in."""

    user: User | None = None
    session_id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    csrf_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def accepts(self, csrf_token: str | None) -> bool:
        """Return whether a form was created for this session."""
        return hmac.compare_digest(self.csrf_token, csrf_token or "")


def get_session(exchange: Exchange) -> Session:
    """Return the browser's session, or a new one without a user."""
    session_id = exchange.request.cookies.get(COOKIE, "")
    return exchange.ehr.sessions.get(session_id) or Session()


def _set_cookie(ehr: EHRSimulator, session: Session, response: Response) -> Response:
    """Store *session*, and set the cookie."""
    ehr.sessions[session.session_id] = session
    response.set_cookie(
        COOKIE,
        session.session_id,
        path="/",
        httponly=True,
        samesite="Lax",
        secure=ehr.origin.startswith("https:"),
    )
    return response


def _end_session(ehr: EHRSimulator, session: Session) -> None:
    """
    Sign out.

    Grants from this session with only ``online_access`` end with it, since that scope
    lasts as long as the user is online.
    """
    ehr.sessions.pop(session.session_id, None)
    with ehr.store.lock:
        for grant in ehr.store.grants():
            online_only = "offline_access" not in grant.scopes
            if grant.session == session.session_id and online_only:
                grant.revoked = True


def routes() -> Routes:
    """Path, method and handler of each page."""
    yield "/", "GET", _home
    yield "/sign-in", "POST", _sign_in
    yield "/sign-out", "POST", _sign_out
    yield "/chart/<patient_id>", "GET", _chart
    yield "/chart/<patient_id>/open", "POST", _open_app
    yield "/chart/<patient_id>/frame", "GET", _frame_app
    yield "/static/<name>", "GET", _static


@cache
def _engine() -> Engine:
    return Engine(dirs=[str(_FOLDER / "templates")], autoescape=True)


def render(name: str, context: dict[str, Any], *, status: int = 200) -> Response:
    """The page *name* as a response; needs Django, but no settings."""
    # Left at None, these two would be looked up in Django's settings.
    values = Context(context, use_l10n=False, use_tz=False)
    page = _engine().get_template(name).render(values)
    return Response(
        page, status=status, content_type="text/html; charset=utf-8", headers=_HEADERS
    )


def error_page(exchange: Exchange, title: str, text: str, *, status: int) -> Response:
    """A page that says what went wrong."""
    context = {"title": title, "text": text, "framed": exchange.is_framed}
    return render("message.html", context, status=status)


def sign_in_page(
    exchange: Exchange,
    session: Session,
    *,
    next_path: str = "/",
    only: User | None = None,
) -> Response:
    """Let somebody sign in: anybody, or just the person who started a launch."""
    ehr = exchange.ehr
    people = [only] if only is not None else list(ehr.users.values())
    context = {
        "session": session,
        "framed": exchange.is_framed,
        "next": next_path,
        "only": only,
        "groups": {
            "Clinicians": [one for one in people if one.patient_id is None],
            "Patients": [one for one in people if one.patient_id is not None],
        },
    }
    return _set_cookie(ehr, session, render("sign_in.html", context))


def _home(exchange: Exchange) -> Response:
    ehr = exchange.ehr
    session = get_session(exchange)
    if session.user is None:
        return sign_in_page(exchange, session)
    if session.user.patient_id is not None:
        return redirect(f"/chart/{session.user.patient_id}", 303)
    context = {"session": session, "patients": chart.list_patients(ehr)}
    return render("patients.html", context)


def _sign_in(exchange: Exchange) -> Response:
    ehr = exchange.ehr
    form = dict(exchange.form)
    session = get_session(exchange)
    if not session.accepts(form.get("csrf_token")):
        return stale_form(exchange)
    user = ehr.users.get(form.get("user", ""))
    if user is None:
        return error_page(
            exchange, "Nobody here has that name", "Please sign in again.", status=400
        )
    path = form.get("next", "/")
    if not path.startswith("/") or path.startswith(("//", "/\\")):
        path = "/"
    # The ID from before somebody signed in becomes invalid.
    _end_session(ehr, session)
    return _set_cookie(ehr, Session(user=user), redirect(path, 303))


def _sign_out(exchange: Exchange) -> Response:
    session = get_session(exchange)
    if not session.accepts(dict(exchange.form).get("csrf_token")):
        return stale_form(exchange)
    _end_session(exchange.ehr, session)
    return redirect("/", 303)


def _chart(exchange: Exchange, patient_id: str) -> Response:
    ehr = exchange.ehr
    session = get_session(exchange)
    if session.user is None:
        return sign_in_page(exchange, session, next_path=f"/chart/{patient_id}")
    if not _may_see(ehr, session, patient_id):
        return _no_such_chart(exchange)
    apps = [one for one in ehr.clients.values() if one.launch_url is not None]
    context = {
        "session": session,
        "patient": chart.summarize(ehr, patient_id),
        "apps": apps,
    }
    return render("chart.html", context)


def _open_app(exchange: Exchange, patient_id: str) -> Response:
    """Send a new tab to the app."""
    ehr = exchange.ehr
    session = get_session(exchange)
    form = dict(exchange.form)
    if not session.accepts(form.get("csrf_token")):
        return stale_form(exchange)
    client = _launchable(ehr, form.get("app"))
    if client is None or not _may_see(ehr, session, patient_id):
        return _no_such_chart(exchange)
    return redirect(_launch(ehr, session, client, patient_id, framed=False), 303)


def _frame_app(exchange: Exchange, patient_id: str) -> Response:
    """Show the app below the EHR's own header; each load is a launch of its own."""
    ehr = exchange.ehr
    session = get_session(exchange)
    client = _launchable(ehr, dict(exchange.query).get("app"))
    if client is None or not _may_see(ehr, session, patient_id):
        return _no_such_chart(exchange)
    context: dict[str, Any] = {
        "session": session,
        "patient": chart.summarize(ehr, patient_id),
        "app": client,
        "base_url": ehr.base_url,
        "origin": ehr.origin,
        "url": _launch(ehr, session, client, patient_id, framed=True),
    }
    return render("frame.html", context)


def _launch(
    ehr: EHRSimulator,
    session: Session,
    client: Client,
    patient_id: str,
    *,
    framed: bool,
) -> str:
    launch_id = ehr.create_launch(
        client.client_id,
        patient=patient_id,
        encounter=chart.latest_encounter(ehr, patient_id),
        user=session.user.reference if session.user is not None else None,
        # Around a frame the EHR shows who the patient is; in a tab the app has to.
        need_patient_banner=not framed,
    )
    return ehr.launch_url(client.client_id, launch_id)


def _launchable(ehr: EHRSimulator, client_id: str | None) -> Client | None:
    client = ehr.clients.get(client_id or "")
    return client if client is not None and client.launch_url is not None else None


def _may_see(ehr: EHRSimulator, session: Session, patient_id: str) -> bool:
    """Clinicians see every chart, patients their own."""
    if session.user is None or patient_id not in ehr.data["Patient"]:
        return False
    return session.user.patient_id in {None, patient_id}


def _static(exchange: Exchange, name: str) -> Response:
    content_type = _STATIC_TYPES.get(name)
    if content_type is None:
        return Response.from_app(NotFound().get_response(), exchange.request.environ)
    return Response(
        (_FOLDER / "static" / name).read_bytes(),
        content_type=content_type,
        headers={"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"},
    )


def stale_form(exchange: Exchange) -> Response:
    """The page for a form whose session is over."""
    return error_page(
        exchange,
        "This page was out of date",
        "It was made before you signed in or out. Go back, reload it, and try again.",
        status=403,
    )


def _no_such_chart(exchange: Exchange) -> Response:
    return error_page(
        exchange,
        "There is nothing to show",
        "No such chart or app is open to you. You may have been signed out.",
        status=404,
    )
