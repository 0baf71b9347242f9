"""
What really happened, from knowledge that the site has no part in.

People sit at browsers and sign in to EHRs there; the EHRs remember what they gave to
whom.  After each step :meth:`World.judge` compares that with what the site did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import jwt
import time_machine
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.db.models import F
from django.test import Client
from django.utils import timezone

from django_smart.launches.purge import purge
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    ServerState,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.errors import AuthorizationPageError
from tests.adversary.servers import (
    BASE_URLS,
    CLIENT_IDS,
    EVERY_HONEST,
    HONEST,
    SECRET,
    TENANTS,
    Hostile,
    get_redirect_uri,
    register_clients,
)
from tests.adversary.site import CHANGED
from tests.ehr import make_browser
from tests.factories import make_registration

__all__ = ["EVIL", "VICTIMS", "Browser", "Pending", "ViolationError", "World"]

EVIL = "evil"
#: Whoever works at the hospital uses these two; the attacker has one of their own.
VICTIMS = ("desk", "home")
LAIR = "lair"
PASSWORD = "open"
#: The one whose word is enough for staff.
TRUSTED = "harbour"

_TOKEN = re.compile(rb"[A-Za-z0-9_-]{43}")
_JWT = re.compile(rb"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+")
_SCOPE = "patient/Patient.rs"
_SIGN_IN = f"openid fhirUser launch/patient {_SCOPE} offline_access"

Way = tuple[str, str]
"""A server and the reference of somebody there; of the hostile one nobody counts."""


class ViolationError(AssertionError):
    """The hostile server gained something."""


@dataclass(eq=False)
class Browser:
    """One cookie jar."""

    name: str
    client: Client = field(default_factory=make_browser)
    #: Whether its user has just signed in with a password.
    is_fresh: bool = False

    @property
    def is_victim(self) -> bool:
        return self.name in VICTIMS

    @property
    def user(self) -> int | None:
        """Who is signed in, as the session says."""
        cookie = self.client.cookies.get(settings.SESSION_COOKIE_NAME)
        if cookie is None or not cookie.value:
            return None
        store = import_module(settings.SESSION_ENGINE).SessionStore(cookie.value)
        found = store.get(SESSION_KEY)
        return None if found is None else int(found)

    @property
    def jar(self) -> dict[str, str]:
        """Its cookies."""
        return {name: each.value for name, each in self.client.cookies.items()}


@dataclass(eq=False)
class Pending:
    """An authorization request on its way, as the browser holds it."""

    browser: Browser
    server: str
    url: str
    user: int | None
    #: Whether the button "Connect" began it.
    connects: bool = False
    #: Whether a night has passed since.
    is_old: bool = False

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.url).query))

    def build(self, **members: str) -> str:
        """The request with other *members*."""
        query = urlencode(self.query | members)
        return urlsplit(self.url)._replace(query=query).geturl()


@dataclass(eq=False)
class Held:
    """A launch that waits for its person's answer."""

    key: str
    browser: Browser
    way: Way | None


@dataclass(eq=False)
class Opened:
    """A launch whose pages a browser was sent to."""

    key: str
    browser: Browser
    user: int | None
    server: str
    patient: str | None
    identity: int | None
    is_live: bool = True
    #: Whether a night has passed since, which ends every launch.
    is_old: bool = False


@dataclass
class Step:
    """What people and servers did since the last judgment."""

    #: Whom a code proved in which browser.
    ways: dict[Browser, Way] = field(default_factory=dict)
    #: Whose button "Connect" led to it.
    connecting: dict[Browser, int | None] = field(default_factory=dict)
    #: Whose form said yes to another user.
    decided: set[Browser] = field(default_factory=set)
    signed_out: set[Browser] = field(default_factory=set)
    active: set[Browser] = field(default_factory=set)


class World:
    """One example: rows, browsers, and the ground truth."""

    def __init__(
        self,
        ehrs: Mapping[str, EHRSimulator],
        hostile: Hostile,
        tally: Counter[str],
    ) -> None:
        self.ehrs, self.hostile, self.tally = ehrs, hostile, tally
        _empty_tables()
        hostile.forget()
        register_clients(ehrs, SigningKey.objects.as_jwks())
        for name in BASE_URLS:
            self._register(name)
        self.people = list(ehrs[EVIL].users)
        self.patients = list(ehrs[EVIL].data["Patient"])
        self.browsers = {name: Browser(name) for name in (*VICTIMS, LAIR)}
        self.passwords = {
            "carla": User.objects.create_user("carla", password=PASSWORD),
            "root": User.objects.create_superuser("root", password=PASSWORD),
            "mallory": User.objects.create_user("mallory", password=PASSWORD),
        }
        self.known_users = {user.pk for user in self.passwords.values()}
        #: Identities by the account that proved them, and those that sign in a user.
        self.accounts: dict[int, tuple[Way, int]] = {}
        self.granted: set[int] = set()
        #: Identities that somebody signed in has connected.
        self.connected: set[int] = set()
        self.pending: list[Pending] = []
        self.callbacks: list[tuple[Browser, str]] = []
        self.used: list[tuple[Browser, str]] = []
        self.proven: list[tuple[str, int]] = []
        self.held: list[Held] = []
        self.opened: dict[str, Opened] = {}
        self.switching: set[str] = set()
        self.jars: list[dict[str, str]] = []
        self.given: dict[str, tuple[Way, Browser]] = {}
        self.seen_rows = {Identity: 0, TokenGrant: 0}
        self.sessions: dict[Browser, int | None] = dict.fromkeys(self.browsers.values())
        self.step = Step()
        for name in ("Clinicians", "Patients"):
            Group.objects.create(name=name)
        for user in self.passwords.values():
            user.groups.set(Group.objects.filter(name="Clinicians"))
        self.groups = {user.pk: {"Clinicians"} for user in self.passwords.values()}
        CHANGED.clear()

    @staticmethod
    def _register(name: str) -> None:
        has_secret = name == "meadow"
        make_registration(
            server__slug=name,
            server__name=name.title(),
            server__base_url=BASE_URLS[name],
            server__login_group="vendor" if name in TENANTS else "",
            client_id=CLIENT_IDS[name],
            token_endpoint_auth_method=(
                "client_secret_basic" if has_secret else "private_key_jwt"
            ),
            client_secret=SECRET if has_secret else "",
            signing_algorithm="ES384",
            redirect_uri=get_redirect_uri(name),
            # Launches from Meadow's charts are without an identity.
            ehr_scope=(
                f"launch {_SCOPE}"
                if has_secret
                else f"launch openid fhirUser {_SCOPE} online_access"
            ),
            standalone_scope=_SIGN_IN,
            manage_groups=True,
        )

    # Who sits where

    def get_person(self, browser: Browser, number: int) -> str:
        """Who signs in to an honest EHR there: the attacker is a patient, too."""
        return self.people[number % 3] if browser.is_victim else self.people[3]

    # What browsers do

    def note_start(
        self,
        browser: Browser,
        server: str,
        response: Any,
        *,
        user: int | None,
        connects: bool = False,
    ) -> Pending | None:
        """The site's answer to a start: the request for the server, if there is one."""
        self.step.active.add(browser)
        url = response.get("Location", "")
        if response.status_code != 302 or "state=" not in url:
            return None
        started = Pending(browser, server, url, user, connects)
        self.pending.append(started)
        return started

    def authorize(
        self,
        browser: Browser,
        url: str,
        number: int,
        *,
        patient: int = 0,
        is_attacker: bool = False,
    ) -> str | None:
        """
        Open an authorization page in *browser*; whoever sits there approves.

        Args:
            is_attacker: the attacker does, with their own account.

        Returns:
            Where the browser is sent to, or ``None`` if the page refuses.
        """
        endpoint = url.partition("?")[0]
        name = next(
            (
                each
                for each, ehr in self.ehrs.items()
                if ehr.authorization_endpoint == endpoint
            ),
            None,
        )
        if name is None:
            return None
        ehr = self.ehrs[name]
        person = (
            self.people[number % 3]
            if name == EVIL
            else self.people[3]
            if is_attacker
            else self.get_person(browser, number)
        )
        launch = ehr.store.launches.get(
            dict(parse_qsl(urlsplit(url).query)).get("launch", "")
        )
        if name != EVIL and launch is not None and launch.user != person:
            return None  # their EHR knows who has clicked
        try:
            callback = ehr.authorize(
                url,
                user=person,
                patient=self.patients[patient % len(self.patients)],
            )
        except AuthorizationPageError:
            return None
        query = dict(parse_qsl(urlsplit(callback).query))
        if name != "harbour":
            query.pop("iss", None)
        if (code := query.get("code")) and name != EVIL:
            self.given[code] = (name, person), browser
        return callback.partition("?")[0] + "?" + urlencode(query)

    def get_pending(self, state: str) -> Pending | None:
        """The request with this state."""
        return next(
            (each for each in self.pending if each.query["state"] == state), None
        )

    def visit_callback(self, browser: Browser, url: str) -> Any:
        """Let *browser* follow a redirect to the site."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        way = self._get_way(browser, query)
        if way is not None:
            self.step.ways[browser] = way
        pending = self.get_pending(query.get("state", ""))
        if pending is not None and pending.connects:
            self.step.connecting[browser] = pending.user
        self.used.append((browser, url))
        response = self.get(browser, url)
        self.note_answer(browser, response)
        return response

    def expect_service(self, server: str, response: Any) -> None:
        """
        Judge what the site answers to people who do nothing but use *server*.

        Raises:
            ViolationError: it is out of service, though it does all that it should.
        """
        code = str((getattr(response, "context", None) or {}).get("code", ""))
        if server != EVIL and (response.status_code >= 500 or code == "server_moved"):
            raise ViolationError(f"{server} is out of service: {code}")

    def note_answer(self, browser: Browser, response: Any) -> None:
        """Where the site sends a browser that has proven somebody."""
        location, way = response.get("Location", ""), self.step.ways.get(browser)
        if location.startswith("/smart/connections/"):
            # May the account sign in?  The launch is open, and its page comes next.
            location = dict(parse_qsl(urlsplit(location).query)).get("next", "")
        if response.status_code == 302 and location.startswith("/~"):
            self._note_opened(browser, location, way)
        elif found := re.search(r"/decide/([^/]+)/", unquote(location)):
            if way is not None and found[1] not in {each.key for each in self.held}:
                self.tally["asked"] += 1
                self.held.append(Held(found[1], browser, way))
        else:
            context = getattr(response, "context", None) or {}
            self.tally[str(context.get("code", response.status_code))] += 1

    def _get_way(self, browser: Browser, query: Mapping[str, str]) -> Way | None:
        """Whom the code and the state prove, if both are what they should be."""
        pending = self.get_pending(query.get("state", ""))
        if pending is None or pending.is_old:
            return None
        if pending.server == EVIL:
            # It knows every code of its own, but not the victims' cookies.
            is_delivered = browser.is_victim and pending.browser is not browser
            return None if is_delivered else (EVIL, "")
        given = self.given.get(query.get("code", ""))
        if given is None:
            return None
        way, where = given
        return way if way[0] == pending.server and where is browser else None

    def _note_opened(self, browser: Browser, location: str, way: Way | None) -> None:
        key = location.split("/")[1].removeprefix("~")
        if way is None:
            raise ViolationError(
                f"{browser.name} completed a launch that proves nobody"
            )
        launch = Launch.objects.with_related().get(key=key)
        patient = None
        if way[0] in EVERY_HONEST and launch.grant is not None:
            patient = self.ehrs[way[0]].patient_of(launch.grant.access_token)
        self.tally[f"opened at {way[0]}"] += 1
        user = browser.user
        if key not in self.opened:
            self.opened[key] = Opened(
                key, browser, user, way[0], patient, launch.identity_id
            )

    def get(self, browser: Browser, url: str) -> Any:
        """Open a page of the site."""
        self.step.active.add(browser)
        parts = urlsplit(url)
        return browser.client.get(parts.path, parse_qsl(parts.query))

    def post(self, browser: Browser, path: str, **values: Any) -> Any:
        """Send a form of the site, as the person there."""
        self.step.active.add(browser)
        return browser.client.post(path, values)

    def sign_in(
        self, browser: Browser, username: str, *, long_ago: bool = False
    ) -> None:
        """With a password, perhaps a quarter of an hour ago; who was there goes."""
        age = timedelta(minutes=15 if long_ago else 0)
        with time_machine.travel(timezone.now() - age):
            self.post(browser, "/accounts/login/", username=username, password=PASSWORD)
        self.sessions[browser] = user = browser.user
        browser.is_fresh = not long_ago
        if user != self.passwords[username].pk:
            raise ViolationError(f"{username} could not sign in at {browser.name}")

    def sign_out(self, browser: Browser) -> None:
        """A click, which ends what was open there."""
        self.post(browser, "/smart/logout/")
        self.sessions[browser] = None
        browser.is_fresh = False
        for opened in self.opened.values():
            opened.is_live = opened.is_live and opened.browser is not browser

    def disconnect(self, browser: Browser, grant: TokenGrant) -> None:
        """Press the button of a connection, which may be another user's."""
        self.post(browser, "/smart/connections/", grant=str(grant.pk))
        if grant.user_id == browser.user:
            self._withdraw(grant.identity_id)

    def open_connection(self, browser: Browser, grant: TokenGrant) -> None:
        """
        Press the button that opens a record, which may be another user's.

        Raises:
            ViolationError: what opened is not a patient's own, or has ended.
        """
        response = self.post(browser, "/smart/connections/open/", grant=str(grant.pk))
        location = response.get("Location", "")
        if not location.startswith("/~"):
            self.tally["not opened again"] += 1
            return
        key = location.split("/")[1].removeprefix("~")
        launch = Launch.objects.with_related().get(key=key)
        used, user = launch.grant, browser.user
        if used is None or user is None or {user} != {used.user_id, launch.user_id}:
            raise ViolationError(f"{browser.name} opened a record of another user")
        if used.status != TokenGrant.Status.ACTIVE or not used.is_offline:
            raise ViolationError(f"{browser.name} opened a record that has ended")
        if not used.is_of_patient:
            raise ViolationError(f"{browser.name} opened a clinician's chart again")
        server = used.registration.server.slug
        patient = None
        if server in EVERY_HONEST:
            patient = self.ehrs[server].patient_of(used.access_token)
        self.tally["opened again"] += 1
        self.opened.setdefault(
            key, Opened(key, browser, user, server, patient, launch.identity_id)
        )

    def choose(self, browser: Browser, identity: Identity, *, lends: bool) -> None:
        """Press a button of an account, perhaps another user's: may it sign in?"""
        values = {"identity": str(identity.pk), "may_sign_in": "on" if lends else ""}
        self.post(browser, "/smart/connections/", **values)
        if identity.user_id == browser.user and identity.pk in self.connected:
            if not lends:
                self._withdraw(identity.pk)
            elif browser.is_fresh:
                for each in self._get_account(identity.pk):
                    self._lend(each)

    def let_a_night_pass(self) -> None:
        """Everything is a day older, and the site cleans up; nobody signs out."""
        night = timedelta(days=1)
        for model, names in (
            (Launch, ("completed_at", "last_used_at", "expires_at")),
            (TokenGrant, ("received_at", "expires_at", "refresh_due_at")),
        ):
            model.objects.update(**{name: F(name) - night for name in names})
        for browser in self.browsers.values():
            browser.is_fresh = False
            session = browser.client.session
            if noted := session.get("smart_signed_in"):
                noted[1] -= night.total_seconds()
                session["smart_signed_in"] = noted
                session.save()
        for opened in self.opened.values():
            opened.is_live, opened.is_old = False, True
        for pending in self.pending:
            pending.is_old = True
        for held in self.held:
            held.way = None
        purge()

    def _withdraw(self, identity: int | None) -> None:
        if identity is not None and identity in self.connected:
            self.granted -= self._get_account(identity)

    def _get_account(self, identity: int) -> set[int]:
        """Its user's connected identities of the same account, also at its tenants."""
        (server, person), user = self.accounts[identity]
        same = {
            each
            for each, (way, owner) in self.accounts.items()
            if owner == user and way[1] == person and {way[0], server} <= set(TENANTS)
        }
        return self.connected & {identity, *same}

    @staticmethod
    def forget_discovery(server: str) -> None:
        """Let what is known of *server* be out of date."""
        ServerState.objects.filter(server__slug=server).update(
            configuration_fetched_at=None,
            discovery_failed_at=None,
            jwks_fetched_at=None,
        )

    # What must be true

    def judge(self) -> None:
        """
        Compare the site with what happened.

        Raises:
            ViolationError: the site did what nobody there has a right to.
        """
        self._judge_requests()
        self._judge_identities()
        self._judge_hooks()
        self._judge_sessions()
        self._judge_grants()
        self._judge_pages()
        self.step = Step()

    def _judge_requests(self) -> None:
        """No code, token or assertion of an honest EHR reached the hostile one."""
        hostile = (self.ehrs[EVIL], self.hostile.den)
        requests = [request for ehr in hostile for request in ehr.requests]
        if not requests:
            return
        secrets = set(self._iter_secrets())
        for request in requests:
            sent = b" ".join(
                [
                    request.url.encode(),
                    request.body,
                    *(value.encode() for value in request.headers.values()),
                ]
            )
            if found := secrets.intersection(_TOKEN.findall(sent)):
                what = ", ".join(self._describe(each.decode()) for each in found)
                raise ViolationError(f"{what} reached the hostile server")
            for assertion in _JWT.findall(sent):
                self._judge_assertion(assertion.decode())
        for ehr in hostile:
            ehr.clear_requests()

    def _judge_assertion(self, assertion: str) -> None:
        claims = jwt.decode(assertion, options={"verify_signature": False})
        for name in HONEST:
            if str(claims.get("aud", "")).startswith(self.ehrs[name].issuer + "/"):
                raise ViolationError(
                    f"an assertion for {claims['aud']} reached the hostile server"
                )

    def _iter_secrets(self) -> Iterator[bytes]:
        """Codes of the honest, and every token that the site got for one."""
        for name in EVERY_HONEST:
            store = self.ehrs[name].store
            for code in store.codes:
                _, browser = self.given.get(code, (None, None))
                if (
                    browser is not None
                    and browser.is_victim
                    and self._is_ours(name, code)
                ):
                    yield code.encode()
            for value in (*store.access_tokens, *store.refresh_tokens):
                grant = store.grant_of(value)
                if grant is not None and grant.client_id == CLIENT_IDS[name]:
                    yield value.encode()

    def _is_ours(self, name: str, code: str) -> bool:
        grant = self.ehrs[name].store.codes[code].grant
        return grant.client_id == CLIENT_IDS[name]

    def _describe(self, secret: str) -> str:
        for name in EVERY_HONEST:
            if secret in self.ehrs[name].store.codes:
                return f"a code of {name}"
        return "a token of an honest EHR"

    def _judge_identities(self) -> None:
        """An identity is linked only by its own server, to whom it was proven for."""
        for identity in self._take_new(Identity):
            server, user = identity.server.slug, identity.user_id
            browser = self._find_prover(server, identity.subject)
            if browser is None:
                raise ViolationError(
                    f"an identity of {server} was linked that nobody proved there"
                )
            way = self.step.ways[browser]
            is_new = user not in self.known_users
            known = self._get_accounts_of_the_group(way)
            connecting = self.step.connecting.get(browser)
            is_connected = connecting == user == self.sessions[browser]
            signs_in = bool(known) and user in self._get_entitled(browser)
            # At another tenant, whoever is signed in opens what is theirs already.
            is_theirs = user == self.sessions[browser] and user in {
                self.accounts[each][1] for each in known
            }
            if not (is_new or is_connected or signs_in or is_theirs):
                raise ViolationError(f"user {user} was linked to {way} by nobody")
            self.known_users.add(user)
            self.accounts[identity.pk] = way, user
            if known & self.connected if known else not is_new:
                self.connected.add(identity.pk)
            if is_new or signs_in:
                self._lend(identity.pk)

    def _lend(self, identity: int) -> None:
        """From now on whoever proves *identity* may be signed in as its user."""
        (server, _), user = self.accounts[identity]
        if server == TRUSTED or user != self.passwords["root"].pk:
            self.granted.add(identity)

    def _get_accounts_of_the_group(self, way: Way) -> set[int]:
        """The identities of the same person, if *way* is one of the tenants."""
        if way[0] not in TENANTS:
            return set()
        return {
            each
            for each, (other, _) in self.accounts.items()
            if other[0] in TENANTS and other[1] == way[1]
        }

    def _find_prover(self, server: str, subject: str) -> Browser | None:
        for browser, (name, person) in self.step.ways.items():
            if name == server and (
                name == EVIL or self.ehrs[name].users[person].subject == subject
            ):
                return browser
        return None

    def _judge_hooks(self) -> None:
        """A user is changed only by the account that signs them in."""
        for user, server in CHANGED:
            if not any(
                user in self._get_entitled(browser)
                for browser, way in self.step.ways.items()
                if way[0] == server
            ):
                raise ViolationError(f"{server} has changed user {user}")
        CHANGED.clear()
        for known in self.passwords.values():
            names = set(known.groups.values_list("name", flat=True))
            changed = names != self.groups[known.pk]
            self.groups[known.pk] = names
            if changed and not any(
                known.pk in self._get_entitled(browser) for browser in self.step.ways
            ):
                raise ViolationError(f"user {known.pk} was put into groups: {names}")

    def _judge_sessions(self) -> None:
        """Whoever is signed in did so there; nobody is replaced without their form."""
        for browser, before in self.sessions.items():
            user = browser.user
            if user == before:
                continue
            self.sessions[browser] = user
            browser.is_fresh = False
            if user is None:
                if browser not in self.step.signed_out:
                    raise ViolationError(f"{browser.name} was signed out")
                continue
            if user not in self._get_entitled(browser):
                raise ViolationError(
                    f"{browser.name} is signed in as user {user}, who did not sign in "
                    "there"
                )
            way = self.step.ways.get(browser)
            switches = way is not None and way[0] in self.switching
            if not (before is None or browser in self.step.decided or switches):
                raise ViolationError(
                    f"{browser.name} was user {before}, and is user {user} without a "
                    "form"
                )

    def _get_entitled(self, browser: Browser) -> set[int]:
        """Whom a browser may turn out to be signed in as after this step."""
        way = self.step.ways.get(browser)
        if way is None:
            return set()
        own = {each for each, (other, _) in self.accounts.items() if other == way}
        known = own or self._get_accounts_of_the_group(way)
        if way[0] == EVIL:
            # It may name any of its own accounts.
            known &= self.granted
        elif not known <= self.granted:
            return set()
        return {self.accounts[each][1] for each in known}

    def _judge_grants(self) -> None:
        """A grant belongs to who signed in to its EHR, in the browser of the launch."""
        for grant in self._take_new(TokenGrant):
            name = grant.registration.server.slug
            if name == EVIL or grant.status != TokenGrant.Status.ACTIVE:
                continue
            known = self.ehrs[name].store.grant_of(grant.access_token)
            where = [
                browser
                for code, (_, browser) in self.given.items()
                if (found := self.ehrs[name].store.codes.get(code)) is not None
                and found.grant is known
            ]
            if not where or where[0] not in self.step.ways:
                raise ViolationError(f"a grant of {name} came from another browser")
            if grant.user_id != where[0].user:
                raise ViolationError(
                    f"a grant of {name} is user {grant.user_id}'s, and {where[0].name} "
                    f"is user {where[0].user}'s"
                )

    def _judge_pages(self) -> None:
        """What changed may be visible elsewhere: look."""
        for browser in self.step.active:
            self.look(browser)
            for opened in list(self.opened.values())[-2:]:
                self.look(browser, opened.key)
        if self.step.ways and self.opened:
            newest = list(self.opened)[-1]
            for browser in self.browsers.values():
                if browser not in self.step.active:
                    self.look(browser, newest)

    def look(self, browser: Browser, key: str = "") -> None:
        """
        Open the page of a launch; keys are no secret.

        Raises:
            ViolationError: it shows what was not opened in this browser, or not by
                who is signed in.
        """
        path = f"/~{key}/seen/" if key else "/seen/"
        response = browser.client.get(path)
        if response.status_code != 200:
            return
        shown = response.json()
        if shown["user"] != self.sessions[browser]:
            raise ViolationError(f"{browser.name} is shown user {shown['user']}")
        if shown["key"] is None:
            return
        self.tally["seen"] += 1
        opened = self.opened.get(shown["key"])
        if opened is None or opened.browser is not browser:
            raise ViolationError(f"{browser.name} is shown what others have opened")
        if opened.is_old:
            raise ViolationError(f"{browser.name} is shown what was open yesterday")
        if opened.user != shown["user"]:
            raise ViolationError(
                f"user {shown['user']} is shown what user {opened.user} has opened"
            )
        if opened.server in EVERY_HONEST and shown["patient"] != opened.patient:
            raise ViolationError(f"{browser.name} is shown another record")

    def _take_new(self, model: Any) -> list[Any]:
        new = list(model.objects.filter(pk__gt=self.seen_rows[model]).order_by("pk"))
        if new:
            self.seen_rows[model] = new[-1].pk
        return new


def _empty_tables() -> None:
    for model in (
        Session,
        Launch,
        TokenGrant,
        Identity,
        ClientRegistration,
        FHIRServer,
    ):
        model.objects.all().delete()
    User.objects.all().delete()
    Group.objects.all().delete()
    cache.clear()
    if not SigningKey.objects.exists():
        create_signing_key("ES384")
