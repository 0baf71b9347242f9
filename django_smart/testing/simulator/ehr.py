"""``EHRSimulator``: the simulated EHR, as tests use it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import requests
from werkzeug.wrappers import Request, Response

from django_smart.testing.simulator import authorize as authorization
from django_smart.testing.simulator.adapter import SimulatorAdapter
from django_smart.testing.simulator.app import App
from django_smart.testing.simulator.bulk import Bulk
from django_smart.testing.simulator.clients import Client
from django_smart.testing.simulator.data import Resources
from django_smart.testing.simulator.errors import AuthorizationError
from django_smart.testing.simulator.exchange import (
    Exchange,
    RecordedRequest,
    browser_request,
)
from django_smart.testing.simulator.faults import FaultSet
from django_smart.testing.simulator.id_tokens import SigningKey, get_first_key
from django_smart.testing.simulator.people import users
from django_smart.testing.simulator.serving import running_server
from django_smart.testing.simulator.state import Launch, Store, new_id
from django_smart.testing.simulator.versions import Version, Versions

if TYPE_CHECKING:
    from django_smart.testing.simulator.consent import PendingConsent
    from django_smart.testing.simulator.fhir import SavedSearch
    from django_smart.testing.simulator.pages import Session

__all__ = ["CHECKS", "QUIRKS", "EHRSimulator"]

CHECKS = frozenset({"compartment", "if_match", "scope_query"})
"""
Which record a resource belongs to, which version a change is based on, and the search
parameters of a scope; a server may omit any of these checks.
"""

# Any app must refuse or tolerate a fault; a quirk is handled by a field of the server,
# and the EHR refuses an app that is not configured for it.
QUIRKS: dict[str, str] = {
    "aud_slash": "accepts only the base URL with a trailing slash as aud",
    "context_in_access_token": "returns the context only in the access token, a JWT",
    "patient_in_fhir_user": "names the patient only in fhirUser",
    "scopes_trimmed": "grants neither Patient nor Observation",
    "offline_refused": "ignores offline_access and issues no refresh token",
    "parameter_wanted": "requires the authorization parameter tenant=harbour",
    "header_wanted": "requires X-Api-Key: s3cret-key for tokens and FHIR",
    "basic_form_encoded": "accepts Basic credentials only form-encoded (RFC 6749)",
    "basic_raw": "accepts Basic credentials only unencoded",
    "assertion_client_id": "refuses client assertions without client_id, silently",
    "assertion_token_endpoint": "accepts client assertions only for the token endpoint",
    "discovery_wrong": "publishes wrong methods and capabilities but no JWK Set URL",
}
"""Every quirk, by name."""

Interceptor = Callable[[Callable[[Request], Response], Request], Response]


class EHRSimulator:
    """
    A SMART App Launch 2.2 server and FHIR R4 API over synthetic patients.

    Use it in process (``adapter()``, ``authorize()``) or over sockets (``serve()``).
    It is strict: it refuses whatever an app does wrong, with the reason in the
    response. ``requests`` contains the received requests; ``faults`` makes it
    misbehave.

    Args:
        base_url: the FHIR base, the ``iss`` and ``aud`` of a launch.
        clock: returns seconds since the epoch; by default, ``time.time``.
        access_token_lifetime: seconds.
        code_lifetime: seconds.
        refresh_token_lifetime: seconds; ``None`` for tokens that do not expire.
        rotate_refresh_tokens: issue a new refresh token with each refresh; a second use
            of an old one revokes the grant.
        echo_offline_access: list ``offline_access`` in the response to the code, too.
        issuer: of the ID tokens; by default, the base URL without its last segment.
        id_token_algorithm: RS256, RS384, ES256 or ES384.
        page_path: path outside the base for further pages of a search.
        control: offer the JSON control API at ``/_control/``.
        initial_access_token: required for registration; ``None`` for none.
        lenient: skip all of ``CHECKS``, to show what the app itself checks.
    """

    def __init__(
        self,
        base_url: str = "https://ehr.example.org/v/r4/sim/demo/fhir",
        *,
        clock: Callable[[], float] | None = None,
        access_token_lifetime: int = 3600,
        code_lifetime: int = 60,
        refresh_token_lifetime: int | None = None,
        rotate_refresh_tokens: bool = True,
        echo_offline_access: bool = True,
        issuer: str | None = None,
        id_token_algorithm: str = "RS256",  # noqa: S107 (a name, not a password)
        page_path: str | None = None,
        control: bool = False,
        initial_access_token: str | None = None,
        lenient: bool = False,
    ) -> None:
        self.base_url: str = base_url
        self._issuer = issuer
        self._page_path = page_path
        # Looked up at each call: a test may replace it, as freezegun does.
        self.clock = clock or (lambda: time.time())
        self.access_token_lifetime = access_token_lifetime
        self.code_lifetime = code_lifetime
        self.refresh_token_lifetime = refresh_token_lifetime
        self.rotate_refresh_tokens = rotate_refresh_tokens
        self.echo_offline_access = echo_offline_access
        self.id_token_algorithm = id_token_algorithm
        self.control = control
        self.initial_access_token = initial_access_token
        self.checks: frozenset[str] = frozenset() if lenient else CHECKS
        """The active ``CHECKS``."""
        self.launch_lifetime = 600
        """Seconds within which a launch must reach the authorization endpoint."""
        self.foreign_origin: str = "https://elsewhere.example.net"
        """The target of faults that lead the app to another host."""
        self.pace = 1.0
        """Duration of one second of a slow fault; tests shorten it."""
        self.versions = Versions(self)
        self.users = users()
        """Everybody who can sign in, by reference."""
        self.clients: dict[str, Client] = {}
        self.store = Store()
        self.saved_searches: dict[str, SavedSearch] = {}
        self.bulk = Bulk()
        self.sessions: dict[str, Session] = {}
        self.pending_consents: dict[str, PendingConsent] = {}
        self.requests: list[RecordedRequest] = []
        self.on_request: Callable[[RecordedRequest], None] | None = None
        """Called with each request after the response."""
        self.interceptors: list[Interceptor] = []
        """Called with the handler and the request; each may respond differently."""
        self.reused_refresh_tokens = 0
        """The number of times a used refresh token was received again."""
        self._stopping = threading.Event()
        self._faults = FaultSet()
        self._quirks: frozenset[str] = frozenset()
        self._signing_keys: list[SigningKey] = []
        self.wsgi_app = App(self)

    @property
    def data(self) -> Resources:
        """Resources by type and id."""
        return self.versions.data

    @property
    def written(self) -> list[Version]:
        """Each version that a request stored, including deletions, in order."""
        return self.versions.written

    def register_client(
        self,
        client_id: str,
        *,
        client_secret: str | None = None,
        auth_method: str = "client_secret_basic",
        redirect_uris: Iterable[str] = (),
        launch_url: str | None = None,
        jwks: dict[str, Any] | None = None,
        jwks_url: str | None = None,
        name: str | None = None,
        scope: str | None = None,
    ) -> Client:
        """
        Register an app.

        Args:
            client_id: the app's id.
            client_secret: for ``client_secret_basic`` and ``client_secret_post``.
            auth_method: one of those, ``private_key_jwt`` or ``none``.
            redirect_uris: complete URLs, compared character for character.
            launch_url: where an EHR launch is sent; the chart then shows a button.
            jwks: the public keys of a ``private_key_jwt`` client.
            jwks_url: where they are published, instead of *jwks*.
            name: the displayed name.
            scope: the maximum scope for the app; ``None`` for no limit.
        """
        client = Client(
            client_id=client_id,
            name=name or client_id,
            auth_method=auth_method,
            client_secret=client_secret,
            redirect_uris=tuple(redirect_uris),
            launch_url=launch_url,
            jwks=jwks,
            jwks_url=jwks_url,
            scope=scope,
        )
        self.clients[client_id] = client
        return client

    def create_launch(
        self,
        client_id: str,
        *,
        patient: str | None,
        encounter: str | None = None,
        user: str | None = None,
        need_patient_banner: bool = True,
        intent: str | None = None,
        tenant: str | None = None,
        fhir_context: list[dict[str, Any]] | None = None,
        smart_style_url: str | None = None,
        app_context: str | None = None,
    ) -> str:
        """
        Prepare an EHR launch, like a click in the chart.

        Args:
            client_id: the app to open.
            patient: id of the patient, or ``None`` for a launch outside of a chart.
            encounter: id of the encounter.
            user: reference of the user who clicked; by default, the first clinician.
            need_patient_banner: whether the app must show who the patient is.
            intent: the purpose of the launch.
            tenant: the organization.
            fhir_context: further resources in context.
            smart_style_url: by default the simulator's own style.
            app_context: text of the card or Task that requested the launch.

        Returns:
            The opaque ``launch`` value, valid for one use within ten minutes.
        """
        if client_id not in self.clients:
            raise ValueError(f"no such client: {client_id}")
        if patient is not None and patient not in self.versions.get_ids("Patient"):
            raise ValueError(f"no such patient: {patient}")
        user = next(iter(self.users)) if user is None else user
        if user not in self.users:
            raise ValueError(f"no such user: {user}")
        context = {
            "need_patient_banner": need_patient_banner,
            "smart_style_url": smart_style_url or f"{self.origin}/smart-style.json",
            "intent": intent,
            "tenant": tenant,
            "fhirContext": fhir_context,
            "appContext": app_context,
        }
        launch = Launch(
            launch_id=new_id(),
            client_id=client_id,
            patient=patient,
            encounter=encounter,
            user=user,
            context={name: one for name, one in context.items() if one is not None},
            expires_at=self.clock() + self.launch_lifetime,
        )
        self.store.launches[launch.launch_id] = launch
        return launch.launch_id

    def launch_url(self, client_id: str, launch_id: str) -> str:
        """Return the URL with which the EHR opens the app."""
        url = self.clients[client_id].launch_url
        if url is None:
            raise ValueError(f"{client_id} has no launch URL")
        query = urlencode({"iss": self.base_url, "launch": launch_id})
        return f"{url}{'&' if '?' in url else '?'}{query}"

    def authorize(
        self,
        authorization_url: str,
        *,
        form: Iterable[tuple[str, str]] | None = None,
        approve: bool = True,
        user: str | None = None,
        patient: str | None = None,
        scope: str | None = None,
    ) -> str:
        """
        Act as the user on the authorization page.

        Args:
            authorization_url: where the app sent the browser.
            form: the parameters of a POST; ``None`` for a GET.
            approve: approve the request; otherwise, deny it.
            user: who signs in for a standalone launch; by default, the first clinician.
            patient: the patient a clinician selects; by default, the first one.
            scope: the approved part of the requested scope; by default, all of it.

        Returns:
            The URL to which the browser is redirected, with ``code`` or ``error``.

        Raises:
            AuthorizationPageError: the client or the redirect URI is wrong, so the
                browser stays on an error page.
        """
        request = browser_request(authorization_url, form)
        exchange = Exchange(ehr=self, request=request, name="authorize")
        pairs = exchange.query if form is None else exchange.form
        exchange.client_id = dict(pairs).get("client_id")
        try:
            asked = authorization.validate(self, pairs)
        except AuthorizationError as exc:
            self.record(exchange, 302)
            return authorization.error_redirect(self, exc)
        except Exception:
            self.record(exchange, 400)
            raise
        self.record(exchange, 302)
        if not approve:
            return authorization.deny(self, asked)
        if asked.launch is not None:
            user = asked.launch.user
        return authorization.approve(
            self,
            asked,
            user=user or next(iter(self.users)),
            patient=patient or next(iter(self.versions.get_ids("Patient"))),
            scope=scope,
        )

    # URLs, which all follow from the base URL

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def base_path(self) -> str:
        return urlsplit(self.base_url).path.rstrip("/")

    # The base path without its last segment; ``/auth/…`` is below it.
    @property
    def root_path(self) -> str:
        return self.base_path.rpartition("/")[0]

    @property
    def page_path(self) -> str:
        return self.base_path if self._page_path is None else self._page_path

    # The start of the links in a Bundle.
    @property
    def page_url(self) -> str:
        if self._page_path is None:
            return self.base_url
        return f"{self.origin}{self._page_path}"

    @property
    def issuer(self) -> str:
        return self._issuer or f"{self.origin}{self.root_path}"

    @property
    def authorization_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/authorize"

    @property
    def token_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/token"

    @property
    def revocation_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/revoke"

    @property
    def introspection_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/introspect"

    @property
    def jwks_uri(self) -> str:
        return f"{self.origin}{self.root_path}/auth/jwks"

    @property
    def registration_endpoint(self) -> str:
        return f"{self.origin}{self.root_path}/auth/register"

    # Access

    def adapter(self) -> SimulatorAdapter:
        """Return an adapter for ``requests`` that needs no socket."""
        return SimulatorAdapter(self)

    @contextmanager
    def serve(
        self,
        host: str = "localhost",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Iterator[str]:
        """
        Serve over sockets, from a background thread; yields the origin.

        In the meantime, scheme, host and port of ``base_url`` (and of ``issuer``, if
        equal) are the real ones; paths are kept. ``ssl_context`` is for https.
        """
        before = self.base_url, self._issuer
        with running_server(self.wsgi_app, host, port, ssl_context) as bound:
            scheme = "https" if ssl_context else "http"
            origin = f"{scheme}://{host}:{bound}"
            if self._issuer is not None and self._issuer.startswith(self.origin):
                self._issuer = origin + self._issuer.removeprefix(self.origin)
            self.base_url = origin + self.base_url.removeprefix(self.origin)
            try:
                yield origin
            finally:
                # Slow responses of a fault must not delay the end.
                self._stopping.set()
                self.base_url, self._issuer = before
        self._stopping.clear()

    # Recorded requests and current tokens

    def record(self, exchange: Exchange, status: int) -> None:
        """Record a request."""
        recorded = exchange.record(status)
        self.requests.append(recorded)
        if self.on_request is not None:
            self.on_request(recorded)

    def record_elsewhere(self, environ: dict[str, Any]) -> None:
        """Record a request to another origin."""
        exchange = Exchange(ehr=self, request=Request(environ), name="elsewhere")
        self.record(exchange, 0)

    def clear_requests(self) -> None:
        """Clear the recorded requests and stored versions."""
        self.requests.clear()
        self.written.clear()

    def requests_to(self, exchange: str) -> list[RecordedRequest]:
        """
        The recorded requests of one kind, in order.

        Kinds are ``smart-configuration``, ``openid-configuration``, ``jwks``,
        ``metadata``, ``authorize``, ``token`` (of which ``refresh`` are those with that
        grant type), ``revoke``, ``introspect``, ``register``, ``fhir``, ``page`` and
        ``elsewhere``.
        """
        if exchange == "refresh":
            grant_type = ("grant_type", "refresh_token")
            return [one for one in self.requests_to("token") if grant_type in one.form]
        return [one for one in self.requests if one.exchange == exchange]

    def expire_access_tokens(self) -> None:
        """Expire every access token now."""
        with self.store.lock:
            for token in self.store.access_tokens.values():
                token.expires_at = min(token.expires_at, self.clock())

    def revoke_grant(self, token: str) -> None:
        """Revoke everything issued for the authorization of *token*."""
        grant = self.store.grant_of(token)
        if grant is None:
            raise ValueError("no grant has this token")
        grant.revoked = True

    def patient_of(self, access_token: str) -> str | None:
        """Return the patient of an access token, valid or not."""
        token = self.store.access_tokens.get(access_token)
        return token.grant.patient if token is not None else None

    # Keys and faults

    @property
    def signing_keys(self) -> list[SigningKey]:
        """The published keys; the last one signs."""
        with self.store.lock:
            if not self._signing_keys:
                key = get_first_key(self.base_url, self.id_token_algorithm)
                self._signing_keys = [key]
            return list(self._signing_keys)

    @signing_keys.setter
    def signing_keys(self, keys: Iterable[SigningKey]) -> None:
        self._signing_keys = list(keys)

    def rotate_signing_key(self) -> None:
        """Sign with a new key; the previous one stays published."""
        with self.store.lock:
            self._signing_keys = [
                *self._signing_keys[-1:],
                SigningKey.generate(self.id_token_algorithm),
            ]

    def fetch_jwks(self, url: str) -> Any:
        """GET a client's ``jwks_url``; replace it to answer without a network."""
        response = requests.get(
            url,
            headers={"Accept": "application/json"},
            timeout=5,
            allow_redirects=False,
        )
        if response.status_code != 200:
            raise OSError(f"{url} answered {response.status_code}")
        return response.json()

    def wait(self, seconds: float) -> bool:
        """Wait for a slow fault; return ``False`` as soon as serving ends."""
        return not self._stopping.wait(seconds * self.pace)

    @property
    def faults(self) -> FaultSet:
        """The names of the active faults; see ``FAULTS``."""
        return self._faults

    @faults.setter
    def faults(self, names: Iterable[str]) -> None:
        self._faults = FaultSet(names)

    @property
    def quirks(self) -> frozenset[str]:
        """The names of the active quirks; see ``QUIRKS``."""
        return self._quirks

    @quirks.setter
    def quirks(self, names: Iterable[str]) -> None:
        found = frozenset(names)
        if unknown := sorted(found - QUIRKS.keys()):
            raise ValueError(f"no such quirk: {', '.join(unknown)}")
        self._quirks = found
