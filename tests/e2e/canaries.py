"""Values that must not get out, and every place where they could have."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus

from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core import mail
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.utils.html import escape
from kombu.transport.memory import Channel

from django_smart.testing import EHRSimulator

__all__ = ["Canaries", "Everywhere", "WatchedBrowser", "dump_database", "spell"]

_TOKENS = ("access_token", "refresh_token", "id_token")
_TO_THE_EHR = re.compile(
    r'<form[^>]* action="https://ehr\.example\.org/.*?</form>', re.DOTALL
)
_SHORTEST = 6  # characters of a value that is looked for


def spell(value: str) -> set[str]:
    """*value* as it is, and as URLs, JSON, HTML, ``repr`` and base64 have it."""
    spellings = {
        value,
        quote(value, safe=""),
        quote_plus(value),
        quote(quote(value, safe=""), safe=""),
        json.dumps(value)[1:-1],
        json.dumps(json.dumps(value))[3:-3],
        escape(value),
        repr(value)[1:-1],
    }
    raw = value.encode()
    for before in range(3):  # what stands in front moves the bits
        whole = (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * before + raw).decode()
            spellings.add(text[(0, 2, 3)[before] : whole])
    return spellings


class Canaries:
    """The values of one test, with names for the messages of failures."""

    def __init__(self, **values: str) -> None:
        self._names: dict[str, str] = {}
        self._spellings: dict[str, set[str]] = {}
        for name, value in values.items():
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Look for *value* too."""
        if len(value) >= _SHORTEST and value not in self._names:
            self._names[value] = name
            self._spellings[value] = spell(value)

    @property
    def names(self) -> set[str]:
        """What kinds of values there are."""
        return set(self._names.values())

    def find(self, text: str) -> set[str]:
        """Names of the values that *text* holds in any spelling."""
        return {
            self._names[value]
            for value, spellings in self._spellings.items()
            if any(spelling in text for spelling in spellings)
        }

    def learn(self, ehr: EHRSimulator) -> None:
        """All that *ehr* gave out or was told until now."""
        for code in ehr.store.codes:
            self.add("code", code)
        for token in ehr.store.access_tokens:
            self.add("access_token", token)
        for token in ehr.store.refresh_tokens:
            self.add("refresh_token", token)
        for launch_id in ehr.store.launches:
            self.add("launch", launch_id)
        for request in ehr.requests:
            for name, value in [*request.query, *request.form]:
                if name in {"state", "code_verifier", "client_assertion"}:
                    self.add(name, value)

    @contextmanager
    def watching_answers(self, ehr: EHRSimulator) -> Iterator[None]:
        """Learn the tokens of answers, those of faults among them."""

        def watch(respond: Any, request: Any) -> Any:
            response = respond(request)
            if request.path.endswith("/auth/token") and not response.is_streamed:
                self._learn_answer(response.get_data())
            return response

        ehr.interceptors.append(watch)
        yield
        ehr.interceptors.remove(watch)

    def _learn_answer(self, body: bytes) -> None:
        try:
            answer = json.loads(body)
        except ValueError:
            return
        if isinstance(answer, dict):
            for name in _TOKENS:
                if isinstance(answer.get(name), str):
                    self.add(name, answer[name])


class WatchedBrowser(Client):
    """
    A browser by https that keeps what it was sent, but for where it was sent on.

    Forms that lead to the EHR are kept apart from the pages.
    """

    def __init__(self) -> None:
        super().__init__(
            HTTP_HOST="app.example.org",
            HTTP_SEC_FETCH_SITE="same-origin",
            raise_request_exception=False,
        )
        self.pages: list[str] = []
        self.forms: list[str] = []
        self.cookies_set: list[str] = []

    def request(self, **request: Any) -> Any:
        response: Any = super().request(**{**request, "wsgi.url_scheme": "https"})
        headers = {**response.headers}
        location = headers.pop("Location", "")
        if not location.startswith("https://ehr.example.org/"):
            # Codes and states go to the EHR; anywhere else they are out of place.
            headers["Location"] = location
        page = response.content.decode()
        # What a form takes there is looked at by itself.
        self.forms += _TO_THE_EHR.findall(page)
        self.pages.append(f"{headers}\n{_TO_THE_EHR.sub('', page)}")
        for cookie in response.cookies.values():
            self.cookies_set.append(f"{cookie.OutputString()} {_unsign(cookie.value)}")
        return response


class Everywhere:
    """What logs, mails, caches, sessions, broker and database hold of a test."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.browsers: list[WatchedBrowser] = []

    def browser(self) -> WatchedBrowser:
        """A new browser that is watched."""
        self.browsers.append(WatchedBrowser())
        return self.browsers[-1]

    @contextmanager
    def logging_everything(self) -> Iterator[None]:
        """Every logger at DEBUG, without any filter; SQL too."""
        handler = _Collector(self.lines)
        names = [None, *logging.root.manager.loggerDict]
        loggers = [logging.getLogger(name) for name in names]
        before = [(each, each.level, each.disabled) for each in loggers]
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            logger.disabled = False
            # Once each: those that do not hand on have the handler themselves.
            if logger is logging.root or not logger.propagate:
                logger.addHandler(handler)
        connection.force_debug_cursor = True
        try:
            yield
        finally:
            connection.force_debug_cursor = False
            for logger, level, disabled in before:
                logger.setLevel(level)
                logger.disabled = disabled
                logger.removeHandler(handler)

    def read(self) -> dict[str, str]:
        """The text of each place."""
        return {
            "logs": "\n".join(self.lines),
            "pages": _join(page for each in self.browsers for page in each.pages),
            "cookies": _join(
                cookie for each in self.browsers for cookie in each.cookies_set
            ),
            "sessions": _join(_read_session(each) for each in self.browsers),
            "mails": _join(_read_mail(message) for message in mail.outbox),
            "cache": _read_cache(),
            "broker": read_broker(),
            "database": dump_database(),
        }


class _Collector(logging.Handler):
    """Keeps lines with their arguments, as collectors of logs do."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{self.format(record)} {record.args!r}")


def read_broker() -> str:
    """Messages that wait in memory, with their bodies unpacked."""
    texts = []
    for queue in Channel.queues.values():
        for message in list(queue.queue):
            texts.append(json.dumps(message, default=str))
            texts.append(base64.b64decode(message["body"]).decode())
    return "\n".join(texts)


def dump_database() -> str:
    """Every column of every row, as the database has it."""
    rows = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            rows += [f"{table} {row}" for row in cursor.fetchall()]
    return "\n".join(rows)


def _read_cache() -> str:
    """Entries of the cache in memory, packed and unpacked."""
    cache: Any = caches["default"]
    stored: dict[str, bytes] = cache._cache
    return "\n".join(
        f"{key} {value!r} {pickle.loads(value)!r}" for key, value in stored.items()
    )


def _read_session(browser: Client) -> str:
    return repr(dict(browser.session.items()))


def _read_mail(message: Any) -> str:
    return _join(
        [message.subject, message.body, *(str(a) for a in message.alternatives)]
    )


def _unsign(value: str) -> str:
    """What a signed value holds, if it is one."""
    if not re.fullmatch(r"[\w.=-]+:[\w-]+:[\w-]+", value):
        return ""
    return repr(SessionStore(value).load())


def _join(texts: Iterable[str]) -> str:
    return "\n".join(texts)
