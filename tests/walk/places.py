"""Browsers, their cookies, and the places where they show pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from playwright.sync_api import BrowserContext, Frame, Page

from tests.walk.oracle import Opened

__all__ = ["Jar", "Person", "Place"]

_PATIENCE = 60_000  # milliseconds that a page may take


class Person:
    """One who uses a browser, and whose EHR it is signed in to."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.ehr_user = ""
        context.set_default_timeout(_PATIENCE)


class Jar:
    """
    Cookies: those of a browser's tabs, or those of its frames inside the EHR.

    What was opened with them, and by whom.
    """

    def __init__(self, name: str, person: Person) -> None:
        self.name = name
        self.person = person
        self.user = ""
        self.opened: list[Opened] = []

    @property
    def live(self) -> list[Opened]:
        return [each for each in self.opened if each.is_live]

    def find(self, key: str) -> Opened | None:
        by_key = {each.key: each for each in self.opened}
        return by_key.get(key)

    def end_all(self) -> None:
        for each in self.opened:
            each.is_live = False


@dataclass(eq=False)
class Place:
    """Where pages of the site are shown: a tab, or a frame of one."""

    name: str
    jar: Jar
    page: Page
    #: Which frame of the page; ``None`` for the page itself.
    number: int | None = None
    opened: Opened | None = None
    #: Whose each entry of the history is.
    entries: dict[str, Opened | None] = field(default_factory=dict)

    @property
    def frame(self) -> Frame | None:
        """``None`` while the page around it has no such frame."""
        if self.number is None:
            return self.page.main_frame
        frames = self.page.main_frame.child_frames
        return frames[self.number] if self.number < len(frames) else None
