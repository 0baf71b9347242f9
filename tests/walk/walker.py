"""A walk by Django's test client, through both of its stacks."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.utils import timezone

from django_smart.conf import conf
from django_smart.models import Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_ID, SITE, make_browser
from tests.walk.oracle import MismatchError, Opened, Oracle, get_key, read_charts

__all__ = ["Walker"]

#: Where it goes, and what is in it.
_Form = tuple[str, list[tuple[str, str]]]

_TABS = 4
#: 405: the address of a form, opened by itself.
_REFUSALS = {403, 404, 405, 409, 410}


@dataclass(frozen=True)
class Entry:
    """A place in a tab's history: where it is, and whose it is."""

    url: str
    text: str = ""
    opened: Opened | None = None
    #: How often the browser's person had changed when the page came.
    sign_ins: int = 0


@dataclass
class Tab:
    """A tab, and what "back" leads to."""

    number: int
    entry: Entry
    history: list[Entry] = field(default_factory=list)


class _AsyncBrowser(AsyncClient):
    """Django's test client, which knows the name of the site."""

    async def request(self, **request: Any) -> Any:
        host = urlsplit(SITE).netloc.encode()
        others = [each for each in request["headers"] if each[0] != b"host"]
        return await super().request(
            **request | {"headers": [(b"host", host), *others]}
        )


class Jar:
    """A browser: cookies, tabs, and what was opened in it."""

    def __init__(self, stacks: Sequence[str], number: int) -> None:
        self.number = number
        self.user: str | None = None
        self.opened: list[Opened] = []
        #: Since the last sign-out; without a prefix, only one of them is shown.
        self.counted: list[Opened] = []
        self.sign_ins = 0
        self.tabs = [Tab(each, Entry(f"{SITE}/")) for each in range(_TABS)]
        self._stacks = random.Random(number).choices(stacks, k=97)
        self._sent = 0
        client = make_browser()
        aclient = _AsyncBrowser()
        aclient.cookies = client.cookies
        self._clients: dict[str, Any] = {"wsgi": client, "asgi": aclient}
        for each in self._clients.values():
            each.handler.enforce_csrf_checks = True

    @property
    def live(self) -> list[Opened]:
        return [each for each in self.opened if each.is_live]

    def end_all(self) -> None:
        for each in self.opened:
            each.is_live = False
        self.counted = []

    def send(self, method: str, url: str, data: Any, headers: dict[str, str]) -> Any:
        """One request, as a browser sends it."""
        parts = urlsplit(url)
        target = parts._replace(scheme="", netloc="", fragment="").geturl()
        given: dict[str, Any] = {"headers": headers}
        if method == "POST":
            given |= {"data": data}
        stack = self._stacks[self._sent % len(self._stacks)]
        self._sent += 1
        call = getattr(self._clients[stack], method.lower())
        if stack == "asgi":
            return async_to_sync(call)(target, secure=True, **given)
        return call(target, **given)


class Walker:
    """
    Walks at random, and has each step judged.

    Args:
        stacks: ``wsgi``, ``asgi`` or both, of which each request takes one.
        seed: makes the walk the same again.
    """

    def __init__(self, ehr: EHRSimulator, *, stacks: Sequence[str], seed: int) -> None:
        self.ehr = ehr
        self.random = random.Random(seed)
        self.oracle = Oracle(ehr)
        self.patients = list(ehr.data["Patient"])
        self.clinicians = [each for each in ehr.users if each.startswith("Pract")]
        self.jars = [Jar(stacks, each) for each in range(2)]
        self.steps: list[str] = []
        self.served: dict[str, int] = {}
        self.jar = self.jars[0]
        self.tab = self.jar.tabs[0]
        self.was_taken = False

    def walk(self, steps: int) -> None:
        """
        Take *steps*.

        Raises:
            MismatchError: a step brought something of another launch; with the steps.
        """
        kinds = {
            self.launch: 3,
            self.launch_again: 1,
            self.launch_as_another: 1,
            self.connect: 1,
            self.follow_link: 10,
            self.choose_chart: 3,
            self.type_address: 3,
            self.open_in_new_tab: 3,
            self.submit: 6,
            self.ask_for_part: 5,
            self.go_back: 4,
            self.reload: 4,
            self.sign_out: 1,
            self.expire: 2,
            self.use_anothers_address: 1,
        }
        while len(self.steps) < steps:
            self.jar = self.random.choices(self.jars, [5, 1])[0]
            self.tab = self.random.choice(self.jar.tabs)
            step = self.random.choices(list(kinds), list(kinds.values()))[0]
            self.oracle.forget()
            self.steps.append(
                f"{len(self.steps)}: browser {self.jar.number}, "
                f"tab {self.tab.number}: {step.__name__}"
            )
            self.was_taken = False
            try:
                step()
            except Exception as exc:
                exc.add_note("\n".join(self.steps))
                raise
            if not self.was_taken:
                # There was no such link, form or chart.
                self.steps.pop()

    # Steps

    def launch(self, *, patient: str = "", user: str = "") -> None:
        """From a chart of the EHR, in this tab."""
        patient = patient or self.random.choice(self.patients)
        user = user or self._get_clinician()
        launch_id = self.ehr.create_launch(CLIENT_ID, patient=patient, user=user)
        response = self._send(
            "GET", self.ehr.launch_url(CLIENT_ID, launch_id), referer=""
        )
        self._complete(self.ehr.authorize(response["Location"]), patient, user)

    def launch_again(self) -> None:
        """Another patient, in a tab that shows one."""
        if self.tab.entry.opened is not None:
            others = set(self.patients) - {self.tab.entry.opened.patient}
            self.launch(patient=self.random.choice(sorted(others)))

    def launch_as_another(self) -> None:
        """Somebody else uses the EHR, and the same browser."""
        others = [each for each in self.clinicians if each != self.jar.user]
        self.launch(user=self.random.choice(others))

    def connect(self) -> None:
        """From a page of the site, by its form if somebody is signed in."""
        patient, user = self.random.choice(self.patients), self._get_clinician()
        response = self._send("GET", f"{SITE}/smart/login/?server=harbour")
        if response.status_code == 200:
            forms = self._read_forms(f"{SITE}/smart/login/", response.content.decode())
            # The other one signs out.
            action, data = next(each for each in forms if each[0].endswith("/login/"))
            response = self._send("POST", action, data=data)
            # A page that was rendered for nobody cannot be sent by somebody.
            if response.status_code == 403:
                return
        url = self.ehr.authorize(response["Location"], user=user, patient=patient)
        self._complete(url, patient, user)

    def follow_link(self) -> None:
        """A link of the page, built by name, relative or written by hand."""
        links = re.findall(r'<a href="([^"]+)"', self.tab.entry.text)
        if links:
            self._open(unescape(self.random.choice(links)))

    def choose_chart(self) -> None:
        """A chart that a refusal offers; the tab is that chart's from then on."""
        charts = read_charts(self.tab.entry.text)
        if charts:
            url, _ = self.random.choice(charts)
            by_key = {each.key: each for each in self.jar.opened}
            self._open(url, by_key[get_key(url)])

    def type_address(self) -> None:
        """A bookmark: the site without a launch, from nowhere."""
        path = self.random.choice(["/patient/", "/labs/", "/labs/?page=2", "/moved"])
        self._open(f"{SITE}{path}", referer="")

    def open_in_new_tab(self) -> None:
        """The page of this tab once more, in another one."""
        entry = self.tab.entry
        self.tab = self.random.choice(self.jar.tabs)
        self._open(entry.url, entry.opened, referer=entry.url)

    def submit(self) -> None:
        """A form of the page, as old as it may be."""
        entry = self.tab.entry
        forms = [
            form
            for form in self._read_forms(entry.url, entry.text)
            if "patient" in dict(form[1])
        ]
        if not forms:
            return
        url, data = self.random.choice(forms)
        response = self._send("POST", url, data=data)
        if entry.sign_ins == self.jar.sign_ins and self._must_work(url, entry.opened):
            assert response.status_code == 302, response.status_code
        self._arrive(url, response, entry.opened)

    def ask_for_part(self) -> None:
        """As htmx does: the page stays, and a part of it is filled."""
        entry = self.tab.entry
        paths = re.findall(r'hx-get="([^"]+)"', entry.text)
        if not paths:
            return
        url = urljoin(entry.url, self.random.choice(paths))
        response = self._send(
            "GET",
            url,
            headers={
                "hx-request": "true",
                "hx-current-url": entry.url,
                "sec-fetch-dest": "empty",
            },
        )
        self._judge(response, url, entry.opened)

    def go_back(self) -> None:
        """To what this tab showed before: kept by the browser, or asked for anew."""
        if self.tab.history:
            self.was_taken = True
            entry = self.tab.history.pop()
            self.tab.entry = entry
            if self.random.random() < 0.5:
                self._open(entry.url, entry.opened, keep=False, referer="")

    def reload(self) -> None:
        """The same once more."""
        entry = self.tab.entry
        self._open(entry.url, entry.opened, keep=False, referer="")

    def sign_out(self) -> None:
        """By the button of the page."""
        entry = self.tab.entry
        forms = [
            each
            for each in self._read_forms(entry.url, entry.text)
            if each[0].endswith("/logout/")
        ]
        if not forms:
            return
        response = self._send("POST", forms[0][0], data=forms[0][1])
        if response.status_code == 302:
            self.jar.end_all()
            self.jar.user = None
        else:
            # Of a page that is older than the last sign-in.
            assert response.status_code == 403
            assert entry.sign_ins != self.jar.sign_ins

    def expire(self) -> None:
        """Every token ends; the site finds it out by its clock, or by a 401."""
        self.was_taken = True
        self.ehr.expire_access_tokens()
        if self.random.random() < 0.5:
            then = timezone.now() - timedelta(hours=2)
            TokenGrant.objects.active().update(
                received_at=then, expires_at=then + timedelta(hours=1)
            )

    def use_anothers_address(self) -> None:
        """The key of one browser's launch in the other one."""
        other = self.random.choice([each for each in self.jars if each is not self.jar])
        if other.opened:
            key = self.random.choice(other.opened).key
            url = f"{SITE}/~{key}/patient/"
            response = self._send("GET", url, referer="")
            self._judge(response, url, None)
            if response.status_code not in _REFUSALS:
                raise MismatchError(f"{url} was answered to another browser")

    # What steps are made of

    @staticmethod
    def _read_forms(
        page_url: str, text: str
    ) -> list[tuple[str, list[tuple[str, str]]]]:
        """Where the forms of a page go, and what is in them."""
        forms = re.findall(
            r'<form[^>]* action="([^"]*)"[^>]*>(.*?)</form>', text, re.DOTALL
        )
        return [
            (
                urljoin(page_url, unescape(action)),
                [
                    (name, unescape(value))
                    for name, value in re.findall(
                        r'<input[^>]* name="([^"]+)" value="([^"]*)"', inner
                    )
                ],
            )
            for action, inner in forms
        ]

    def _get_clinician(self) -> str:
        return self.jar.user or self.random.choice(self.clinicians)

    def _send(
        self,
        method: str,
        url: str,
        *,
        data: Any = (),
        headers: dict[str, str] | None = None,
        referer: str | None = None,
    ) -> Any:
        """A request from this tab's page; some browsers hide where it comes from."""
        self.was_taken = True
        sent = dict(headers or {})
        if referer is None:
            referer = self.tab.entry.url if self.random.random() < 0.75 else ""
        if referer:
            sent["referer"] = referer
        if method == "POST":
            # Django wants either of the two.
            sent["origin"] = SITE
        return self.jar.send(method, url, dict(data), sent)

    def _complete(self, callback_url: str, patient: str, user: str) -> None:
        response = self._send("GET", callback_url, referer="")
        assert response.status_code == 302, response.content
        url = urljoin(callback_url, response["Location"])
        if "/smart/decide/" in url:
            answer = self._decide(url)
            if answer is None:
                return
            url = urljoin(url, answer)
        if self.jar.user != user:
            self.jar.end_all()
            self.jar.sign_ins += 1
            self.jar.user = user
        number = sum(len(jar.opened) for jar in self.jars)
        key = get_key(url) or Launch.objects.latest("completed_at").key
        opened = Opened(number, patient, user, key)
        self.jar.opened.append(opened)
        self.jar.counted.append(opened)
        self._notice_the_limit()
        self._open(url, opened, referer="")

    def _decide(self, url: str) -> str | None:
        """Where the person goes on; ``None`` if they stay who they are."""
        page = self._send("GET", url, referer="").content.decode()
        # A known clinician takes over, or one who was never here.
        choice = "cancel" if self.random.random() < 0.25 else "no"
        action, values = self._read_forms(url, page)[-1]
        data = [*values, ("choice", choice)]
        response = self._send("POST", action, data=data)
        return None if choice == "cancel" else str(response["Location"])

    def _notice_the_limit(self) -> None:
        """Of too many open launches the site ends one: which, only it can tell."""
        live = self.jar.live
        surplus = len(live) - conf.SMART_LAUNCHES_PER_BROWSER
        if surplus > 0:
            keys = set(Launch.objects.open().values_list("key", flat=True))
            ended = [each for each in live if each.key not in keys]
            assert len(ended) == surplus
            assert live[-1] not in ended
            for each in ended:
                each.is_live = False

    def _open(
        self,
        url: str,
        opened: Opened | None = None,
        *,
        keep: bool = True,
        referer: str | None = None,
    ) -> None:
        """Go to *url*; the tab stays with its launch unless another one is chosen."""
        url = urljoin(self.tab.entry.url, url)
        response = self._send("GET", url, referer=referer)
        opened = opened or self.tab.entry.opened
        if keep:
            self.tab.history = [*self.tab.history[-9:], self.tab.entry]
        self._arrive(url, response, opened)

    def _arrive(self, url: str, response: Any, opened: Opened | None) -> None:
        for _ in range(5):
            if response.status_code not in {301, 302}:
                break
            url = urljoin(url, response["Location"])
            response = self._send("GET", url)
        if opened is None and len(self.jar.opened) == 1:
            # The one launch that this browser ever had, shown to a new tab.
            opened = self.jar.opened[0]
        self._judge(response, url, opened)
        self.tab.entry = Entry(
            url, response.content.decode(), opened, self.jar.sign_ins
        )

    def _judge(self, response: Any, url: str, opened: Opened | None) -> None:
        if not conf.SMART_LAUNCH_PREFIX:
            counted = self.jar.counted
            opened = counted[0] if len(counted) == 1 else None
        text = response.content.decode()
        status = response.status_code
        whose = f"launch {opened.number}" if opened else "no launch"
        self.steps[-1] += f", {whose}: {url}, {status}"
        is_shown = self.oracle.judge(text, opened, self.jar.live)
        self.oracle.judge_names(url, text)
        if is_shown != (status == 200) or (not is_shown and status not in _REFUSALS):
            raise MismatchError(f"{url} was answered with {status}: {text[:2000]}")
        if not is_shown and status != 405 and self._must_work(url, opened):
            raise MismatchError(f"{url} was refused ({status}): {text[:2000]}")
        kind = "shown" if is_shown else "refused"
        self.served[kind] = self.served.get(kind, 0) + 1

    def _must_work(self, url: str, opened: Opened | None) -> bool:
        """Whether the site may not refuse: the address names a launch that is open."""
        return opened is not None and opened.is_live and f"/~{opened.key}/" in url
