"""Browsers of people at outside servers: redirects and forms, as far as this site."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import requests

from tests.known import SITE

__all__ = ["go", "submit"]

_TIMEOUT = 10  # seconds


class _Form(HTMLParser):
    """The first form of a page, with what it has in its inputs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.inputs: dict[str, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = values.get("action", "")
        elif tag == "input" and values.get("name"):
            self.inputs[values["name"]] = values.get("value", "")


def go(
    session: requests.Session, method: str, url: str, **values: Any
) -> requests.Response:
    """Ask, and follow redirects; the last answer is a page, or leads to this site."""
    options = {"allow_redirects": False, "timeout": _TIMEOUT}
    answer = session.request(method, url, **values, **options)  # type: ignore[arg-type]
    while answer.is_redirect:
        target = urljoin(answer.url, answer.headers["Location"])
        if target.startswith(SITE):
            break
        answer = session.get(target, **options)  # type: ignore[arg-type]
    return answer


def submit(
    session: requests.Session, page: requests.Response, **values: str
) -> requests.Response:
    """Fill in the form of *page*, and go where it leads."""
    assert page.status_code == 200, (page.status_code, page.text)
    form = _Form(page.text)
    assert form.action is not None, page.text
    url = urljoin(page.url, form.action)
    return go(session, "POST", url, data={**form.inputs, **values})
