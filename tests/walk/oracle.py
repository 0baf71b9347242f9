"""
What must be true, from knowledge that the site has no part in.

Two sources: which launch a person opened in which tab, and the EHR's own record of
which access token it gave for which patient.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from html import unescape
from urllib.parse import parse_qs, urlsplit

from django_smart.testing import EHRSimulator, RecordedRequest
from tests.walk import site

__all__ = ["MismatchError", "Opened", "Oracle", "get_key", "read_charts"]


class MismatchError(AssertionError):
    """Something of one patient where another one's was due."""


@dataclass(eq=False)
class Opened:
    """A launch, as the person remembers it who opened it."""

    number: int
    patient: str
    user: str
    key: str
    is_live: bool = True
    #: Whether its EHR may have taken its tokens back.
    may_fail: bool = False


def get_key(url: str) -> str:
    """The key of the launch whose prefix an address has, or nothing."""
    return url.partition("/~")[2].partition("/")[0]


def read_charts(text: str) -> list[tuple[str, str]]:
    """Address and words of the charts that a refusal offers."""
    found = re.findall(r'<a class="smart-chart" href="([^"]+)">(.*?)</a>', text, re.S)
    return [
        (unescape(url), unescape(re.sub(r"<[^>]+>|\s+", " ", words)))
        for url, words in found
    ]


class Oracle:
    """Looks at what a step did: the page, the notes, and the requests to the EHR."""

    def __init__(self, ehr: EHRSimulator) -> None:
        self.ehr = ehr
        self.forget()

    def forget(self) -> None:
        """A new step begins."""
        self.ehr.clear_requests()
        self.began = self.ehr.clock()
        site.notes.clear()

    def judge(
        self, text: str, expected: Opened | None, live: Collection[Opened]
    ) -> bool:
        """
        Judge what came of a step.

        Args:
            text: the page.
            expected: the launch that the tab shows.
            live: what is open in the browser, which a refusal may offer.

        Returns:
            Whether the page is a patient's, and not a refusal.

        Raises:
            MismatchError: something belongs to another launch, or to none.
        """
        right = {expected.patient} if expected and expected.is_live else set()
        is_shown = self.judge_page(text, right, live)
        self.judge_traces(self.get_allowed(text, right, live), noted=right)
        return is_shown

    def judge_page(
        self, text: str, right: Collection[str], live: Collection[Opened]
    ) -> bool:
        """As :meth:`judge`, for a page alone; *right* are patients."""
        shown = set(re.findall(r'data-patient="([^"]*)"', text))
        shown |= set(re.findall(r'name="patient" value="([^"]*)"', text))
        self._compare("the page", shown, right)
        self._judge_charts(read_charts(text), live)
        return bool(shown)

    @staticmethod
    def judge_names(url: str, text: str) -> None:
        """Judge that links and forms which were built by name stay in the launch."""
        key = get_key(url)
        built = re.findall(r'(?:href|action|hx-get)="([^"]+)" data-by-name', text)
        if key and not all(f"/~{key}/" in each for each in built):
            raise MismatchError(f"a link of {url} leads out of its launch")

    @staticmethod
    def get_allowed(
        text: str, right: Collection[str], live: Collection[Opened]
    ) -> set[str]:
        """Whom a page may ask the EHR about: a refusal asks for the open charts."""
        return {each.patient for each in live} if read_charts(text) else set(right)

    def judge_traces(self, allowed: Collection[str], *, noted: Collection[str]) -> None:
        """Judge what the step has written, and each request to the EHR."""
        for named, written in site.notes:
            self._compare("a note", {named, written}, noted)
        for request in self.ehr.requests_to("fhir"):
            late = f"{request.at - self.began:.1f} s after the step's begin"
            what = f"a request to the EHR ({request.method} {request.path}, {late})"
            self._compare(what, self._patients_of(request), allowed)
            if len(self._patients_of(request)) != 1:
                raise MismatchError(
                    f"one patient's token asked for another: {request.path}"
                )

    def _patients_of(self, request: RecordedRequest) -> set[str]:
        """Who the token is for, and who was asked for."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = urlsplit(request.url)
        asked = parse_qs(parts.query).get("patient", [])
        if "/Patient/" in parts.path:
            asked.append(parts.path.rpartition("/")[2])
        return {str(self.ehr.patient_of(token)), *asked}

    def _judge_charts(
        self, charts: list[tuple[str, str]], live: Collection[Opened]
    ) -> None:
        by_key = {each.key: each for each in live}
        for url, words in charts:
            opened = by_key.get(get_key(url))
            if opened is None:
                raise MismatchError(
                    f"a chart is offered that is not open here: {words}"
                )
            named = {
                patient
                for patient, resource in self.ehr.data["Patient"].items()
                if resource["name"][0]["family"] in words
            }
            self._compare("a name to choose", named, {opened.patient})

    @staticmethod
    def _compare(what: str, found: set[str], right: Collection[str]) -> None:
        if not found <= set(right):
            raise MismatchError(f"{what} is of {sorted(found)}, not of {sorted(right)}")
