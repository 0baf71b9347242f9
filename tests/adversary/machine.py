"""
The moves: what people do, and what somebody does who owns a registered server.

Every choice is a small number, so that Hypothesis can repeat and shorten a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from itertools import cycle
from typing import Any, ClassVar
from urllib.parse import urlencode

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from django_smart import tasks
from django_smart.models import ClientRegistration, FHIRServer, Identity, TokenGrant
from django_smart.testing import EHRSimulator
from tests.adversary.servers import (
    CLIENT_IDS,
    HONEST,
    TENANTS,
    Hostile,
    get_redirect_uri,
)
from tests.adversary.world import (
    EVIL,
    LAIR,
    TRUSTED,
    VICTIMS,
    Browser,
    Pending,
    ViolationError,
    World,
)
from tests.factories import make_due
from tests.known import SITE

__all__ = ["Adversary"]

BROWSERS = st.sampled_from((*VICTIMS, LAIR))
VICTIM = st.sampled_from(VICTIMS)
SERVERS = st.sampled_from((*HONEST, EVIL))
# What the site records of a server.
PINNED = ("issuer", "jwks_uri", "token_endpoint")
SOME = st.integers(0, 7)
METADATA = (
    *("issuer", "jwks_uri", "token_endpoint", "authorization_endpoint"),
    "revocation_endpoint",
)
PERHAPS = st.booleans()
MOSTLY = st.sampled_from((True, True, True, False))


def _pick(items: Any, number: int) -> Any:
    """One of the newest *items*, or ``None``."""
    return items[-1 - number % len(items)] if items else None


def move(**choices: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule, after which the world is judged."""

    def decorate(function: Callable[..., None]) -> Any:
        @wraps(function)
        def step(self: Adversary, **chosen: Any) -> None:
            if function.__name__ in self.without:
                return
            function(self, **chosen)
            self.tally["steps"] += 1
            self.world.judge()

        return rule(**choices)(step)

    return decorate


class Adversary(RuleBasedStateMachine):
    """One example; ``World.judge`` after each step."""

    ehrs: ClassVar[dict[str, EHRSimulator]]
    hostile: ClassVar[Hostile]
    tally: ClassVar[Counter[str]] = Counter()
    """How often what came of a callback, and the steps."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Moves that are left out, to find what the others do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.ehrs, self.hostile, self.tally)

    @initialize(switches=PERHAPS, poses=PERHAPS, relays=PERHAPS, who=SOME)
    def choose_a_policy(
        self, switches: bool, poses: bool, relays: bool, who: int
    ) -> None:
        """
        What is so from the beginning.

        Where people share workstations, an EHR launch may switch the user.  The hostile
        server may be the first that the site reads, and pose as its neighbour then.
        """
        if switches:
            self.world.switching.add(TRUSTED)
            ClientRegistration.objects.filter(server__slug=TRUSTED).update(
                user_switch=ClientRegistration.UserSwitch.SWITCH
            )
        if poses and relays:
            self.relay_an_id_token(name=LAIR, who=who, posts=False, poses=True)
        elif poses:
            self.pose_as_an_honest_server(name=LAIR, of="meadow", who=who, anew=False)

    # What people do

    @move(
        name=BROWSERS,
        server=st.sampled_from(HONEST),
        who=SOME,
        anew=PERHAPS,
        goes=MOSTLY,
    )
    def click_in_a_chart(
        self, name: str, server: str, who: int, anew: bool, goes: bool
    ) -> None:
        """An EHR launch by whoever sits there, perhaps the next one."""
        browser = self._take(name, anew=anew)
        self._launch(browser, server, self.world.get_person(browser, who), who, goes)

    @move(name=BROWSERS, who=SOME, anew=PERHAPS, behaves=MOSTLY, goes=MOSTLY)
    def follow_a_launch_link_of_evil(
        self, name: str, who: int, anew: bool, behaves: bool, goes: bool
    ) -> None:
        """One link, in a mail perhaps; the hostile server knows everybody's names."""
        if behaves:
            self.hostile.behave()
            self.world.forget_discovery(EVIL)
        browser = self._take(name, anew=anew)
        self._launch(browser, EVIL, self.world.people[who % 3], who, goes)

    def _take(self, name: str, *, anew: bool) -> Browser:
        browser = self.world.browsers[name]
        if anew:
            self.world.sign_out(browser)
        return browser

    def _launch(
        self, browser: Browser, server: str, person: str, who: int, goes: bool
    ) -> None:
        ehr, user = self.ehrs[server], browser.user
        patient = self.world.patients[who % len(self.world.patients)]
        launch = ehr.create_launch(CLIENT_IDS[server], patient=patient, user=person)
        query = urlencode({"iss": ehr.base_url, "launch": launch})
        response = self.world.get(browser, f"/smart/launch/?{query}")
        self.world.expect_service(server, response)
        started = self.world.note_start(browser, server, response, user=user)
        self._go(started, who, goes)

    @move(
        name=BROWSERS,
        server=SERVERS,
        who=SOME,
        posts=PERHAPS,
        anew=PERHAPS,
        goes=MOSTLY,
    )
    def log_in_or_connect(
        self,
        name: str,
        server: str,
        who: int,
        posts: bool,
        anew: bool,
        goes: bool,
    ) -> None:
        """A link; whoever is signed in gets a page with a button."""
        self._take(name, anew=anew and not posts)
        self._go(self._start(name, server, posts=posts), who, goes)

    @move(
        name=BROWSERS,
        number=SOME,
        choice=st.sampled_from(("", "no", "no", "yes", "cancel")),
    )
    def answer_a_question(self, name: str, number: int, choice: str) -> None:
        """The page that asks before a launch goes on, in the right browser or not."""
        world, held = self.world, _pick(self.world.held, number)
        if held is None:
            return
        browser = world.browsers[name] if number % 3 == 0 else held.browser
        if browser is held.browser and held.way is not None:
            world.step.ways[browser] = held.way
        url = f"/smart/decide/{held.key}/"
        if not choice:
            response = world.get(browser, url)
        else:
            world.step.decided.add(browser)
            if choice == "no":
                # Their account may be one that signs no one in.
                world.step.signed_out.add(browser)
            if choice == "yes":
                world.step.connecting[browser] = browser.user
            response = world.post(browser, url, choice=choice)
        if browser is held.browser:
            world.note_answer(browser, response)
        elif response.status_code < 400:
            raise ViolationError(f"{browser.name} is asked what others are to answer")

    def _start(
        self,
        name: str,
        server: str,
        *,
        posts: bool,
        is_tampered: bool = False,
    ) -> Pending | None:
        browser = self.world.browsers[name]
        user = browser.user
        if posts:
            values = {"server": server, "user": user or ""}
            response = self.world.post(browser, "/smart/login/", **values)
        else:
            response = self.world.get(browser, f"/smart/login/?server={server}")
        if not is_tampered:
            self.world.expect_service(server, response)
        connects = posts and user is not None
        return self.world.note_start(
            browser, server, response, user=user, connects=connects
        )

    def _go(self, started: Pending | None, who: int, goes: bool) -> None:
        if started is not None and goes:
            self.world.proven.append((started.server, who))
            response = self._authorize(started.browser, started.url, who, arrives=True)
            if response is not None:
                self.world.expect_service(started.server, response)

    def _authorize(self, browser: Browser, url: str, who: int, *, arrives: bool) -> Any:
        """Returns what the site answers to the callback, if it gets there."""
        callback = self.world.authorize(browser, url, who, patient=who)
        if callback is None or not callback.startswith(SITE):
            return None
        if arrives:
            return self.world.visit_callback(browser, callback)
        self.world.callbacks.append((browser, callback))
        return None

    @move(number=SOME, who=SOME, arrives=PERHAPS)
    def go_on_at_the_server(self, number: int, who: int, arrives: bool) -> None:
        """A request that was held back reaches its server."""
        if (started := _pick(self.world.pending, number)) is not None:
            self._authorize(started.browser, started.url, who, arrives=arrives)

    @move(number=SOME)
    def come_back(self, number: int) -> None:
        """A callback that was held back reaches the site."""
        if self.world.callbacks:
            found = _pick(self.world.callbacks, number)
            self.world.callbacks.remove(found)
            self.world.visit_callback(*found)

    @move(name=BROWSERS, who=st.sampled_from(("carla", "root")), long_ago=PERHAPS)
    def sign_in_with_password(self, name: str, who: str, long_ago: bool) -> None:
        """The site's own sign-in, now or a quarter of an hour ago."""
        browser = self.world.browsers[name]
        username = who if browser.is_victim else "mallory"
        self.world.sign_in(browser, username, long_ago=long_ago)

    @move(name=BROWSERS, server=SERVERS, who=SOME, lends=PERHAPS, launches=PERHAPS)
    def sign_in_and_connect(
        self, name: str, server: str, who: int, lends: bool, launches: bool
    ) -> None:
        """What somebody does who has an account here; perhaps they use it at once."""
        browser = self.world.browsers[name]
        if browser.user is None:
            username = ("carla", "root")[who % 2] if browser.is_victim else "mallory"
            self.world.sign_in(browser, username)
        self._go(self._start(name, server, posts=True), who, goes=True)
        if lends:
            self._lend(browser, server)
        if launches:
            self.world.judge()
            person = self.world.get_person(browser, who)
            self._launch(browser, server, person, who, goes=True)

    @move(name=BROWSERS, number=SOME, is_other=PERHAPS)
    def come_again(self, name: str, number: int, is_other: bool) -> None:
        """
        An account that was used before, in a browser with nobody in it.

        Perhaps that of the same name at the tenant beside the hostile server.
        """
        if (used := _pick(self.world.proven, number)) is not None:
            server, who = used
            if is_other and server == EVIL:
                server = "meadow"
            self._take(name, anew=True)
            self._go(self._start(name, server, posts=False), who, goes=True)

    @move(
        name=VICTIM,
        who=SOME,
        tenants=st.permutations(TENANTS),
        first=st.sampled_from(("connect", "lend")),
        then=st.lists(
            st.sampled_from(("connect", "lend", "log in")), min_size=2, max_size=3
        ),
    )
    def use_tenants_of_one_vendor(
        self, name: str, who: int, tenants: list[str], first: str, then: list[str]
    ) -> None:
        """One account, which is known at each of them."""
        for tenant, how in zip(cycle(tenants), [first, *then], strict=False):
            browser = self._take(name, anew=how == "log in")
            if how != "log in" and browser.user is None:
                self.world.sign_in(browser, "carla")
            started = self._start(name, tenant, posts=how != "log in")
            self._go(started, who, goes=True)
            self.world.judge()
            if how == "lend":
                self._lend(browser, tenant)

    @move(name=BROWSERS)
    def sign_out(self, name: str) -> None:
        """A click."""
        self.world.sign_out(self.world.browsers[name])

    @move(name=BROWSERS, number=SOME)
    def look_at_a_page(self, name: str, number: int) -> None:
        """Any key, in any browser."""
        key = _pick(list(self.world.opened), number) or "nothing"
        self.world.look(self.world.browsers[name], key)

    @move(name=BROWSERS, number=SOME)
    def disconnect(self, name: str, number: int) -> None:
        """The button on the page of connections; any number may be typed."""
        browser = self.world.browsers[name]
        grants = TokenGrant.objects.active().offline().order_by("pk")
        own = grants.filter(user_id=browser.user or 0)
        grant = _pick(list(own if number % 4 else grants), number)
        if grant is not None:
            self.world.disconnect(browser, grant)

    @move(name=BROWSERS, number=SOME)
    def open_a_connection(self, name: str, number: int) -> None:
        """The button of a record on the page of connections; as above."""
        grants = TokenGrant.objects.filter(is_offline=True).order_by("-pk")
        if (grant := _pick(list(grants), number)) is not None:
            browsers = self.world.browsers
            own = (each for each in browsers.values() if each.user == grant.user_id)
            browser = next(own, browsers[name]) if number % 4 else browsers[name]
            self.world.open_connection(browser, grant)

    @move(name=BROWSERS, number=SOME, lends=PERHAPS)
    def choose_whether_it_signs_in(self, name: str, number: int, lends: bool) -> None:
        """The buttons for an account that its user has connected; as above."""
        browser = self.world.browsers[name]
        identities = Identity.objects.filter(is_connected=True).order_by("pk")
        own = identities.filter(user_id=browser.user or 0)
        identity = _pick(list(own if number % 4 else identities), number)
        if identity is not None:
            self.world.choose(browser, identity, lends=lends)

    def _lend(self, browser: Browser, server: str) -> None:
        """The same, for the account that was connected last."""
        self.world.judge()
        own = Identity.objects.filter(user_id=browser.user or 0, is_connected=True)
        if (identity := own.filter(server__slug=server).last()) is not None:
            self.world.choose(browser, identity, lends=True)

    # What time does

    @move(number=SOME)
    def refresh(self, number: int) -> None:
        """A worker refreshes a grant."""
        grants = TokenGrant.objects.offline().active().order_by("pk")
        if (grant := _pick(list(grants), number)) is not None:
            make_due(grant.pk)
            tasks.refresh_grants(grant.registration.server_id)

    @move(number=SOME)
    def revoke_at_the_ehr(self, number: int) -> None:
        """An EHR takes a grant back."""
        grants = TokenGrant.objects.active().order_by("pk")
        grant = _pick(list(grants.select_related("registration__server")), number)
        if grant is not None:
            ehr = self.ehrs[grant.registration.server.slug]
            if ehr.store.grant_of(grant.access_token) is not None:
                ehr.revoke_grant(grant.access_token)

    @move(server=SERVERS)
    def let_a_day_pass(self, server: str) -> None:
        """What is known of a server is out of date."""
        self.world.forget_discovery(server)

    @move(name=VICTIM, number=SOME, is_home=PERHAPS)
    def come_back_tomorrow(self, name: str, number: int, is_home: bool) -> None:
        """A night passes; then a patient opens what they have connected."""
        browser = self.world.browsers[name]
        if not is_home:
            self.world.sign_out(browser)
        self.world.let_a_night_pass()
        if browser.user is None:
            self.world.sign_in(browser, "carla")
        own = TokenGrant.objects.offline().filter(user_id=browser.user or 0)
        if (grant := _pick(list(own.order_by("pk")), number)) is not None:
            self.world.open_connection(browser, grant)

    # What the attacker does

    @move(
        member=st.sampled_from(METADATA),
        of=st.sampled_from((*HONEST, *HONEST, EVIL, None)),
        is_read=MOSTLY,
    )
    def change_metadata(self, member: str, of: str | None, is_read: bool) -> None:
        """The hostile server names what is another one's, or nothing."""
        value = None if of is None else getattr(self.ehrs[of], member)
        self.hostile.claims[member] = value
        if is_read:
            self.world.forget_discovery(EVIL)

    @move(name=BROWSERS, of=st.sampled_from(HONEST))
    def lead_a_revocation_astray(self, name: str, of: str) -> None:
        """The hostile server names an honest token endpoint, and somebody leaves."""
        self.hostile.claims["token_endpoint"] = self.ehrs[of].token_endpoint
        self.world.forget_discovery(EVIL)
        browser = self.world.browsers[name]
        grants = TokenGrant.objects.active().offline().order_by("pk")
        grant = grants.filter(
            user_id=browser.user or 0, registration__server__slug=EVIL
        )
        if (found := grant.last()) is not None:
            self.world.disconnect(browser, found)
        self.world.sign_out(browser)

    @move(name=BROWSERS, of=st.sampled_from(HONEST), who=SOME, anew=MOSTLY)
    def pose_as_an_honest_server(
        self, name: str, of: str, who: int, anew: bool
    ) -> None:
        """Its ID tokens are of an honest issuer, about somebody whom that one knows."""
        self.hostile.claims["issuer"] = self.ehrs[of].issuer
        self.world.forget_discovery(EVIL)
        self._take(name, anew=anew)
        self._go(self._start(name, EVIL, posts=False), who, goes=True)

    @move(
        name=VICTIM,
        server=st.sampled_from(HONEST),
        who=SOME,
        behaves=MOSTLY,
        posts=PERHAPS,
        takes_nonce=PERHAPS,
        takes_state=MOSTLY,
    )
    def mix_up(
        self,
        name: str,
        server: str,
        who: int,
        behaves: bool,
        posts: bool,
        takes_nonce: bool,
        takes_state: bool,
    ) -> None:
        """
        The victim's state in a request of the attacker's own (RFC 9700 section 4.4).

        The victim comes to the hostile server's authorization page, which sends the
        browser on with the attacker's challenge: their own launch has its verifier.
        """
        if behaves:
            self.hostile.behave()
            self.world.forget_discovery(EVIL)
        theirs = self._start(LAIR, server, posts=posts)
        victims = self._start(name, EVIL, posts=posts)
        if theirs is None or victims is None:
            return
        members = {}
        if takes_state:
            members["state"] = victims.query["state"]
        if takes_nonce:
            members["nonce"] = victims.query["nonce"]
        self._authorize(victims.browser, theirs.build(**members), who, arrives=True)

    @move(name=VICTIM, member=st.sampled_from(PINNED), who=SOME)
    def tamper_with_a_configuration(self, name: str, member: str, who: int) -> None:
        """
        Once, Harbour's configuration names a service of the attacker on its host.

        Whoever writes it before the site has ever read it is believed.
        """
        if not FHIRServer.objects.get(slug="harbour").state.pinned:
            return
        self.hostile.tampered = {member: getattr(self.hostile.den, member)}
        self.world.forget_discovery("harbour")
        started = self._start(name, "harbour", posts=False, is_tampered=True)
        if started is not None:
            self._authorize(started.browser, started.url, who, arrives=True)
        self.hostile.tampered = {}
        self.world.forget_discovery("harbour")

    @move(
        name=VICTIM,
        server=st.sampled_from(HONEST),
        was_left=MOSTLY,
        lends=MOSTLY,
        disconnects=PERHAPS,
        goes_home=MOSTLY,
    )
    def sit_down_at_an_open_session(
        self,
        name: str,
        server: str,
        was_left: bool,
        lends: bool,
        disconnects: bool,
        goes_home: bool,
    ) -> None:
        """The attacker connects an account of their own there, and leaves."""
        browser = self.world.browsers[name]
        if browser.user is None:
            self.world.sign_in(browser, "carla", long_ago=was_left)
        started = self._start(name, server, posts=True)
        if started is not None:
            callback = self.world.authorize(browser, started.url, 0, is_attacker=True)
            if callback is not None:
                self.world.visit_callback(browser, callback)
                self.world.judge()
        if lends:
            self._lend(browser, server)
        grants = TokenGrant.objects.active().offline().order_by("pk")
        grant = grants.filter(user_id=browser.user or 0).last()
        if disconnects and grant is not None:
            self.world.disconnect(browser, grant)
        if goes_home:
            self._take(LAIR, anew=True)
            self._go(self._start(LAIR, server, posts=False), 0, goes=True)

    @move(name=VICTIM, server=st.sampled_from(HONEST))
    def deliver_a_callback_of_the_attacker(self, name: str, server: str) -> None:
        """An unused code and its state, both the attacker's, in a victim's browser."""
        lair = self._take(LAIR, anew=True)
        started = self._start(LAIR, server, posts=False)
        if started is not None:
            callback = self.world.authorize(lair, started.url, 0)
            if callback is not None:
                self.world.visit_callback(self.world.browsers[name], callback)

    @move(name=BROWSERS, who=SOME, posts=PERHAPS)
    def forward_to_their_own_app(self, name: str, who: int, posts: bool) -> None:
        """The attacker's app, at an honest server, has this site's callback."""
        started = self._start(name, EVIL, posts=posts)
        if started is not None:
            meadow = self.ehrs["meadow"]
            scope = started.query["scope"].replace(" fhirUser", "")
            query = started.query | {"aud": meadow.base_url, "scope": scope}
            url = f"{meadow.authorization_endpoint}?{urlencode(query)}"
            self._authorize(started.browser, url, who, arrives=True)

    @move(name=BROWSERS, who=SOME, posts=PERHAPS, poses=PERHAPS)
    def relay_an_id_token(self, name: str, who: int, posts: bool, poses: bool) -> None:
        """A victim uses the attacker's app, which asks with a nonce of this site."""
        if poses:
            self.hostile.claims["issuer"] = self.ehrs["meadow"].issuer
            self.world.forget_discovery(EVIL)
        started = self._start(name, EVIL, posts=posts)
        if started is not None:
            person = self.world.people[who % 3]
            self.hostile.capture(started.query["nonce"], person)
            self._authorize(started.browser, started.url, who, arrives=True)

    @move(name=BROWSERS, of_code=SOME, of_state=SOME, server=SERVERS, iss=SERVERS)
    def make_up_a_callback(
        self, name: str, of_code: int, of_state: int, server: str, iss: str
    ) -> None:
        """Code, state, issuer and path, each from somewhere; any browser follows."""
        query = {"iss": self.ehrs[iss].issuer}
        if code := _pick(self._get_codes(), of_code):
            query["code"] = code
        known = _pick(self._get_known(of=(*VICTIMS, LAIR)), of_state)
        query["state"] = known.query["state"] if known else "junk"
        if of_state == 7:
            query["state"] = "junk"
        if iss == "meadow":
            del query["iss"]
        url = f"{get_redirect_uri(server)}?{urlencode(query)}"
        self.world.visit_callback(self.world.browsers[name], url)

    @move(name=BROWSERS, number=SOME)
    def replay_a_callback(self, name: str, number: int) -> None:
        """From the history of any browser, in any browser."""
        if (used := _pick(self.world.used, number)) is not None:
            self.world.visit_callback(self.world.browsers[name], used[1])

    @move(name=VICTIM, number=SOME, who=SOME)
    def follow_a_request_of_the_attacker(
        self, name: str, number: int, who: int
    ) -> None:
        """The victim authorizes what the attacker has begun."""
        theirs = _pick(self._get_known(of=LAIR), number)
        if theirs is not None:
            browser = self.world.browsers[name]
            self._authorize(browser, theirs.url, who, arrives=True)

    @move(
        name=VICTIM,
        server=SERVERS,
        path=st.sampled_from(("login", "logout", "decide/key")),
    )
    def post_from_another_site(self, name: str, server: str, path: str) -> None:
        """A form that a hostile page sends has no token."""
        client = self.world.browsers[name].client
        client.handler.enforce_csrf_checks = True
        try:
            response = client.post(f"/smart/{path}/", {"server": server})
        finally:
            client.handler.enforce_csrf_checks = False
        assert response.status_code == 403

    @move(name=VICTIM, who=SOME, goes=MOSTLY)
    def note_cookies(self, name: str, who: int, goes: bool) -> None:
        """At a shared machine, before somebody opens a chart there."""
        browser = self.world.browsers[name]
        is_used = any(
            each.is_live and each.browser is browser
            for each in self.world.opened.values()
        )
        if browser.user is None and not is_used:
            if not browser.jar:
                self._start(name, "harbour", posts=False)
            self.world.jars.append(browser.jar)
            if goes:
                person = self.world.get_person(browser, who)
                self._launch(browser, "meadow", person, who, goes)

    @move(number=SOME)
    def use_noted_cookies(self, number: int) -> None:
        """In the attacker's own browser."""
        if (jar := _pick(self.world.jars, number)) is not None:
            lair = self.world.browsers[LAIR]
            lair.client.cookies.clear()
            lair.client.cookies.load(jar)
            self.world.sessions[lair] = None
            self.world.step.active.add(lair)

    # What it knows

    def _get_known(
        self, *, of: tuple[str, ...] | str, to: tuple[str, ...] = (*HONEST, EVIL)
    ) -> list[Pending]:
        """Requests that its owner saw: its own browser's, and those sent to it."""
        return [
            each
            for each in self.world.pending
            if each.browser.name in of
            and each.server in to
            and (each.browser.name == LAIR or self._passed(each))
        ]

    def _passed(self, pending: Pending) -> bool:
        endpoint = pending.url.partition("?")[0]
        return endpoint == self.ehrs[EVIL].authorization_endpoint

    def _get_codes(self) -> list[str]:
        """Codes that its owner has: the server's own, and those of their own login."""
        own = [
            code
            for code, (_, browser) in self.world.given.items()
            if not browser.is_victim
        ]
        return [*self.ehrs[EVIL].store.codes, *own]
