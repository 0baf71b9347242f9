"""A walk by Chromium: tabs, frames of this site's own, and frames inside the EHR."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote, urlsplit

from django.utils import timezone
from playwright.sync_api import Browser, Frame, Page
from playwright.sync_api import Error as PlaywrightError

from django_smart.conf import conf
from django_smart.models import Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.known import CLIENT_ID
from tests.walk.oracle import MismatchError, Opened, Oracle, get_key, read_charts
from tests.walk.places import Jar, Person, Place
from tests.walk.traffic import Traffic

__all__ = ["ChromiumWalker"]

_Result = TypeVar("_Result")

# What the browser itself calls one place in a frame's history; a reload keeps it.
_ENTRY = "() => window.navigation?.currentEntry?.key ?? ''"
# Whether the page was there before, or came from the browser's own memory.
_MARK = "() => { window.wasThere = true; }"
_IS_OLD = """() => window.wasThere ||
performance.getEntriesByType("navigation")[0]?.transferSize === 0"""
_STATE = "() => [document.readyState, location.href]"
_PAGES = {"/", "/labs/", "/patient/"}
_TABS = 3
_EHR_TABS = 2
# How often a page that is on its way is looked at, and after how many milliseconds.
_TRIES = 1200
_PAUSE = 50
# How often in a row a page that has gone back has to be found at rest: of its frames
# each goes back by itself.
_AT_REST = 12


class ChromiumWalker:
    """
    Walks at random through real windows, and has each step judged.

    Args:
        ehr: served at a port of its own.
        site_url: scheme, host and port of the site.
        traffic: counts what the two of them have to answer.
        seed: makes the same choices again.
    """

    def __init__(
        self,
        browser: Browser,
        ehr: EHRSimulator,
        site_url: str,
        traffic: Traffic,
        *,
        seed: int,
    ) -> None:
        self.ehr = ehr
        self.site_url = site_url
        self.traffic = traffic
        self.random = random.Random(seed)
        self.oracle = Oracle(ehr)
        self.patients = list(ehr.data["Patient"])
        self.clinicians = [each for each in ehr.users if each.startswith("Pract")]
        self.steps: list[str] = []
        self.served = {"shown": 0, "refused": 0}
        # Playwright has a loop in this thread, where Django would refuse to query.
        self.queries = ThreadPoolExecutor(1)
        one, other = (Person(browser.new_context()) for _ in range(2))
        tabs, frames = Jar("tabs", one), Jar("frames", one)
        new_page = one.context.new_page
        self.tabs = [Place(f"tab {n}", tabs, new_page()) for n in range(_TABS)]
        page = new_page()
        self.beside = [Place(f"frame {n}", tabs, page, n) for n in range(2)]
        self.framed = [
            Place(f"frame in the EHR {n}", frames, new_page(), 0)
            for n in range(_EHR_TABS)
        ]
        self.others = [
            Place("tab of another browser", Jar("others", other), page)
            for page in [other.context.new_page()]
        ]
        self.places = [*self.tabs, *self.beside, *self.framed, *self.others]
        self.place = self.places[0]
        self.launches = 0
        #: What a script has got in this step.
        self.part = ""
        #: Whether the browser has hidden what this step led to.
        self.is_blocked = False

    def walk(self, steps: int) -> None:
        """
        Take *steps*.

        Raises:
            MismatchError: a step brought something of another launch; with the steps.
        """
        kinds: dict[Callable[[], list[Place]], int] = {
            self.launch: 6,
            self.launch_as_another: 1,
            self.connect: 1,
            self.show_side_by_side: 2,
            self.follow_link: 12,
            self.choose_chart: 3,
            self.type_address: 3,
            self.open_in_another_tab: 3,
            self.submit: 8,
            self.ask_for_part: 6,
            self.go_back: 5,
            self.reload: 4,
            self.sign_out: 2,
            self.expire: 2,
            self.use_anothers_address: 2,
        }
        while len(self.steps) < steps:
            self.place = self.random.choice(self.places)
            step = self.random.choices(list(kinds), list(kinds.values()))[0]
            self.oracle.forget()
            self.steps.append(f"{len(self.steps)}: {self.place.name}: {step.__name__}")
            self.part, self.is_blocked = "", False
            try:
                touched = step()
                for page in {place.page for place in touched}:
                    self._settle(page)
                self._judge(touched)
                if not (touched or self.is_blocked or step == self.expire):
                    # There was no such link, form or chart.
                    self.steps.pop()
            except Exception as exc:
                exc.add_note("\n".join(self.steps))
                raise

    # Steps: each gives the places where it has changed what is shown.

    def launch(self, *, user: str = "") -> list[Place]:
        """From a chart: in this tab, or in the frame that the EHR shows it in."""
        if self.place in self.beside:
            # The EHR's pages do not go on in a frame of another site's.
            self.place = self.random.choice(self.tabs)
        place = self.place
        patient = self.random.choice(self.patients)
        user = user or place.jar.person.ehr_user or self.random.choice(self.clinicians)
        self._sign_in_at_ehr(user)
        if place.number is None:
            launch_id = self.ehr.create_launch(CLIENT_ID, patient=patient, user=user)
            place.page.goto(self.ehr.launch_url(CLIENT_ID, launch_id))
        else:
            place.page.goto(f"{self.ehr.origin}/chart/{patient}/frame?app={CLIENT_ID}")
        self._approve(patient, user)
        return [place]

    def launch_as_another(self) -> list[Place]:
        """Somebody else uses the EHR, and the same browser."""
        known = self.place.jar.person.ehr_user
        return self.launch(
            user=self.random.choice(sorted({*self.clinicians} - {known}))
        )

    def connect(self) -> list[Place]:
        """From a page of the site, by its button if somebody is signed in."""
        place = self.place
        if place.number is not None:
            return []
        user = place.jar.user or self.random.choice(self.clinicians)
        self._sign_in_at_ehr(user)
        place.page.goto(f"{self.site_url}/smart/login/?server=harbour")
        if self._is_at_site(place):
            self._click("form:has([name=server]) button", 0)
        patient = self.random.choice(self.patients)
        self._click(f'button[value="{patient}"]')
        self._approve(patient, user)
        return [place]

    def show_side_by_side(self) -> list[Place]:
        """Two of the open charts, in frames of a page of this site's own."""
        self.place = self.beside[0]
        opened = self.place.jar.live
        if not opened:
            return []
        chosen = self.random.choices(opened, k=2)
        urls = [f"/~{each.key}/patient/" for each in chosen]
        query = "&".join(f"url={quote(url)}" for url in urls)
        self.place.page.goto(f"{self.site_url}/beside/?{query}")
        for place, each in zip(self.beside, chosen, strict=True):
            place.opened = each
        return self.beside

    def follow_link(self) -> list[Place]:
        """A link of the page, built by name, relative or written by hand."""
        if not self._is_at_a_chart():
            return []
        # Not the links of a refusal that a script has put into the page.
        selector = "a:not(#part a)"
        if self.place.number is None:
            return self._click(selector)
        # In an EHR's frame, the browser shows only pages that belong to the launch.
        frame = self.place.frame
        assert frame is not None
        paths = frame.locator(selector).evaluate_all(
            "links => links.map(each => each.pathname)"
        )
        own = [n for n, path in enumerate(paths) if path.startswith("/~")]
        return self._click(selector, self.random.choice(own)) if own else []

    def choose_chart(self) -> list[Place]:
        """A chart that a refusal offers; the place is that chart's from then on."""
        place, frame = self.place, self.place.frame
        charts = read_charts(frame.content()) if frame else []
        if not charts or self._is_at_a_chart():
            return []
        number = self.random.randrange(len(charts))
        place.opened = place.jar.find(get_key(charts[number][0]))
        return self._click("a.smart-chart", number)

    def type_address(self) -> list[Place]:
        """A bookmark: the site without a launch, from nowhere."""
        path = self.random.choice(["/patient/", "/labs/?page=2", "/moved/"])
        if self.place.number is not None:
            return []
        self.place.page.goto(f"{self.site_url}{path}")
        return [self.place]

    def open_in_another_tab(self) -> list[Place]:
        """The page of this place once more, in another tab of the browser."""
        frame, opened = self.place.frame, self.place.opened
        if (
            frame is None
            or self.place.jar is not self.tabs[0].jar
            or not self._is_at_a_chart()
        ):
            return []
        self.place = self.random.choice(self.tabs)
        self.place.opened = opened
        self.place.page.goto(frame.url)
        return [self.place]

    def submit(self) -> list[Place]:
        """A form of the page, as old as it may be."""
        if not self._is_at_a_chart():
            return []
        return self._click("form:has([name=patient]) button")

    def ask_for_part(self) -> list[Place]:
        """The page stays, and a part of it is filled by a script."""
        frame = self.place.frame
        if frame is None or not self._is_at_a_chart():
            return []
        script = "n => load(document.querySelectorAll('[hx-get]')[n])"
        self.part = frame.evaluate(script, self.random.randrange(2))
        return [self.place]

    def go_back(self) -> list[Place]:
        """By the browser's button, which is that of all frames of a page."""
        page = self.place.page
        before = self._count_pages(page)
        if before == 0:
            return []
        for frame in page.frames:
            frame.evaluate(_MARK)
        page.evaluate("() => void setTimeout(() => history.back())")
        while self._count_pages(page) >= before:
            page.wait_for_timeout(_PAUSE)
        self._settle(page, times=_AT_REST)
        around = [each for each in self.places if each.page is page]
        for each in around:
            if each.frame is not None and self._is_at_site(each):
                entry = each.frame.evaluate(_ENTRY)
                by_address = each.jar.find(get_key(each.frame.url))
                each.opened = each.entries.get(entry, by_address)
        return [
            each for each in around if each.frame and not each.frame.evaluate(_IS_OLD)
        ]

    def reload(self) -> list[Place]:
        """The same once more."""
        frame = self.place.frame
        if frame is None or not self._is_at_site(self.place):
            return []
        with frame.expect_navigation():
            frame.evaluate("() => location.reload()")
        return [self.place]

    def sign_out(self) -> list[Place]:
        """By the button of the page."""
        if not self._is_at_a_chart():
            return []
        touched = self._click("form[action$='/logout/'] button")
        if not touched:
            return []
        frame = self.place.frame
        # A page that is older than the last sign-in cannot be sent.
        if frame is not None and not frame.url.endswith("/logout/"):
            self.place.jar.end_all()
            self.place.jar.user = ""
        return touched

    def expire(self) -> list[Place]:
        """Every token ends; the site finds it out by its clock, or by a 401."""
        self.ehr.expire_access_tokens()
        if self.random.random() < 0.5:
            then = timezone.now() - timedelta(hours=2)
            self._query(
                lambda: TokenGrant.objects.active().update(
                    received_at=then, expires_at=then + timedelta(hours=1)
                )
            )
        return []

    def use_anothers_address(self) -> list[Place]:
        """The key of one browser's launch in another one."""
        self.place = place = self.others[0]
        opened = [*self.tabs[0].jar.opened, *self.framed[0].jar.opened]
        if not opened:
            return []
        place.page.goto(f"{self.site_url}/~{self.random.choice(opened).key}/patient/")
        place.opened = None
        return [place]

    # What steps are made of

    def _is_at_site(self, place: Place) -> bool:
        frame = place.frame
        return frame is not None and frame.url.startswith(f"{self.site_url}/")

    @staticmethod
    def _insist(page: Page, ask: Callable[[], _Result]) -> _Result:
        """What *ask* gives, as soon as *page* is not on its way to another one."""
        for _ in range(_TRIES):
            try:
                return ask()
            except PlaywrightError:
                page.wait_for_timeout(_PAUSE)
        return ask()

    def _count_pages(self, page: Page) -> int:
        """How often one can go back."""

        def ask() -> int:
            session = page.context.new_cdp_session(page)
            history = session.send("Page.getNavigationHistory")
            session.detach()
            return int(history["currentIndex"])

        return self._insist(page, ask)

    def _settle(self, page: Page, *, times: int = 1) -> None:
        """Wait until all frames are there and nothing is asked for."""

        def ask() -> None:
            for number in range(times):
                if number:
                    page.wait_for_timeout(_PAUSE)
                if self.traffic.under_way or not all(map(_is_there, page.frames)):
                    raise PlaywrightError("on its way")

        self._insist(page, ask)

    def _read(self, frame: Frame) -> str:
        """What it shows, as soon as that stays."""

        def ask() -> str:
            if not _is_there(frame):
                raise PlaywrightError("on its way")
            return frame.content()

        return self._insist(frame.page, ask)

    def _is_at_a_chart(self) -> bool:
        frame = self.place.frame
        return (
            frame is not None
            and self._is_at_site(self.place)
            and frame.locator("h1[data-patient]").count() > 0
        )

    def _click(self, selector: str, number: int | None = None) -> list[Place]:
        frame = self.place.frame
        assert frame is not None
        found = frame.locator(selector)
        if number is None:
            number = self.random.randrange(found.count())
        try:
            with frame.expect_navigation():
                # By script: Chromium ignores a click into a frame that just appeared.
                found.nth(number).evaluate("each => each.click()")
        except PlaywrightError as exc:
            # An EHR's frame does not show pages outside the launch, such as the one
            # that follows a form written by hand.
            if frame is frame.page.main_frame or "BLOCKED_BY_RESPONSE" not in str(exc):
                raise
            self.is_blocked = True
            return []
        return [self.place]

    def _sign_in_at_ehr(self, user: str) -> None:
        person, page = self.place.jar.person, self.place.page
        if person.ehr_user == user:
            return
        page.goto(self.ehr.origin)
        if person.ehr_user:
            with page.expect_navigation():
                page.get_by_role("button", name="Sign out").click()
        with page.expect_navigation():
            page.locator(f'button[value="{user}"]').click()
        person.ehr_user = user
        for jar in {each.jar for each in self.places if each.jar.person is person}:
            for opened in jar.opened:
                # What is good for as long as one is signed in there, and no longer.
                opened.may_fail = True

    def _approve(self, patient: str, user: str) -> None:
        """Press Approve, and remember what was opened where."""
        self._click("button[value=approve]")
        place, frame = self.place, self.place.frame
        if frame and "/smart/decide/" in frame.url:
            # Somebody else goes on, who was here before or never was.
            self._click("button[value=no]")
            frame = place.frame
        key = get_key(frame.url) if frame else ""
        assert frame is not None
        assert key, f"{frame.url}: {frame.content()[:3000]}"
        if place.jar.user != user:
            place.jar.end_all()
            place.jar.user = user
        self.launches += 1
        place.opened = Opened(self.launches, patient, user, key)
        place.jar.opened.append(place.opened)
        self._notice_the_limit(place.jar)

    def _notice_the_limit(self, jar: Jar) -> None:
        """Of too many open launches the site ends one: which, only it can tell."""
        surplus = len(jar.live) - conf.SMART_LAUNCHES_PER_BROWSER
        if surplus > 0:
            keys = self._query(
                lambda: set(Launch.objects.open().values_list("key", flat=True))
            )
            ended = [each for each in jar.live if each.key not in keys]
            assert len(ended) == surplus
            assert jar.opened[-1] not in ended
            for each in ended:
                each.is_live = False

    def _query(self, function: Callable[[], _Result]) -> _Result:
        return self.queries.submit(function).result()

    # What came of a step

    def _judge(self, touched: list[Place]) -> None:
        """What the step did where it was taken, and that it did nothing elsewhere."""
        allowed: set[str] = set()
        noted: set[str] = set()
        if self.is_blocked and (opened := self.place.opened) and opened.is_live:
            # Its form may have been processed all the same.
            allowed, noted = {opened.patient}, {opened.patient}
        for place in self.places:
            frame, jar = place.frame, place.jar
            if frame is None or not self._is_at_site(place):
                continue
            if place.opened is None and len(jar.opened) == 1:
                # The one launch that this browser ever had, shown to a new tab.
                place.opened = jar.opened[0]
            opened = place.opened
            text = self._read(frame)
            if place not in touched or self.part:
                # It stays as it was, whatever has ended meanwhile.
                before = {opened.patient} if opened else set()
                self.oracle.judge_page(text, before, jar.opened)
            if place in touched:
                self.oracle.judge_names(frame.url, text)
                text = self.part or text
                right = {opened.patient} if opened and opened.is_live else set()
                is_shown = self.oracle.judge_page(text, right, jar.live)
                allowed |= self.oracle.get_allowed(text, right, jar.live)
                noted |= right
                place.entries[frame.evaluate(_ENTRY)] = opened
                self._note(place, frame.url, text, is_shown=is_shown)
        self.oracle.judge_traces(allowed, noted=noted)

    def _note(self, place: Place, url: str, text: str, *, is_shown: bool) -> None:
        opened = place.opened
        whose = f"launch {opened.number} ({opened.patient})" if opened else "no launch"
        kind = "shown" if is_shown else "refused"
        self.steps[-1] += f", {whose}: {url}, {kind}"
        self.served[kind] += 1
        if "Server Error" in text:
            raise MismatchError(f"{url} failed: {text[:2000]}")
        if (
            not is_shown
            and opened is not None
            and opened.is_live
            and not opened.may_fail
            and not self.part
            and urlsplit(url).path.partition(f"/~{opened.key}")[2] in _PAGES
        ):
            raise MismatchError(f"{url} was refused: {text[:2000]}")

    def close(self) -> None:
        """End what was started."""
        self.queries.shutdown()
        for person in {place.jar.person for place in self.places}:
            person.context.close()


def _is_there(frame: Frame) -> bool:
    state, url = frame.evaluate(_STATE)
    return bool(state == "complete" and url == frame.url)
