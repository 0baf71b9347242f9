"""What is simulated around the package: the database, the broker and the servers."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import jwt
import requests
from django.apps import apps
from django.db import OperationalError
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.backends.sqlite3.features import DatabaseFeatures
from django.db.backends.sqlite3.operations import DatabaseOperations
from requests.adapters import BaseAdapter

from django_smart.fields import digest
from django_smart.models.clock import DatabaseNow
from tests.simulation.scheduler import Process, Queue

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["Broker", "Database", "Job", "Message", "Rotation", "Server", "Servers"]


@dataclass(eq=False, kw_only=True)
class Job:
    """One message or request, with a process."""

    name: str
    process: Process
    grant_ids: tuple[int, ...]
    rotations: list[Rotation] = field(default_factory=list)
    is_over: bool = False
    has_succeeded: bool = False
    ended_at: float = 0.0
    seen: tuple[int, str] | None = None
    """Of a page: the grant, and when its tokens as it has read them were received."""


# The database


class _Features(DatabaseFeatures):
    # Transactions never overlap here, which is what locks are for.
    has_select_for_update = True
    has_select_for_update_skip_locked = True


class _Operations(DatabaseOperations):
    def for_update_sql(self, *_: Any, **__: Any) -> str:
        return ""


class _Moment:
    """The database's clock, read when the statement is executed."""

    def __init__(self, offset: timedelta) -> None:
        self.offset = offset


class _Connection(DatabaseWrapper):
    """A process's connection; all lead to one database in memory."""

    features_class = _Features
    ops_class = _Operations

    def __init__(self, database: Database, settings: dict[str, Any]) -> None:
        super().__init__(settings, "default")
        self._database = database
        self.execute_wrappers.append(self._execute)

    def get_new_connection(self, conn_params: Any) -> Any:
        if self._database.is_away:
            raise sqlite3.OperationalError("connection refused")
        return self._database.shared

    def _close(self) -> None:
        """Leave it to the others."""

    def is_usable(self) -> bool:
        return not self._database.is_away

    def _execute(
        self, execute: Any, sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        world = self._database.world
        if self.in_atomic_block:
            world.scheduler.check_alive()
        else:
            world.scheduler.wait(world.random.uniform(0.0002, 0.002))
        if self._database.is_away:
            raise OperationalError("the server closed the connection")
        now = world.scheduler.get_time()
        adapt = self.ops.adapt_datetimefield_value
        read = [
            adapt(now + each.offset) if type(each) is _Moment else each
            for each in params or ()
        ]
        result = execute(sql, read if params else params, many, context)
        # A transaction that nobody knows of would be everybody's here.
        if sql[:5] != "BEGIN" and self._database.breaks():
            raise OperationalError("the connection broke before the result came")
        return result


class Database:
    """
    SQLite with a clock of its own, which can be away.

    Attributes:
        away_until: cannot be reached before.
        cut_share: of statements that are done, and whose result is lost.
    """

    _template: sqlite3.Connection | None = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.away_until = 0.0
        self.cut_share = 0.0
        self.shared = self._open()
        self._settings = _get_settings()

    def _open(self) -> Any:
        return _Connection(self, _get_settings()).Database.connect(
            ":memory:",
            check_same_thread=False,
            detect_types=sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES,
            isolation_level=None,
        )

    def prepare(self) -> None:
        """Make the tables; the first time as Django does, then as a copy."""
        template = type(self)._template
        if template is not None:
            template.backup(self.shared)
            return
        connection = self.connect()
        connection.execute_wrappers.clear()
        with connection.schema_editor() as editor:
            for model in apps.get_models():
                editor.create_model(model)
        type(self)._template = self._open()
        self.shared.backup(self._template)

    def connect(self) -> DatabaseWrapper:
        """A connection for one process."""
        return _Connection(self, self._settings)

    @property
    def is_away(self) -> bool:
        """Whether nobody reaches it."""
        return self.world.scheduler.now < self.away_until

    def breaks(self) -> bool:
        """Whether a connection breaks now."""
        return self.cut_share > 0 and self.world.random.random() < self.cut_share

    def query(self, sql: str, *params: Any) -> list[Any]:
        """Rows, beside all that is simulated."""
        return list(self.shared.execute(sql, params).fetchall())

    def holds(self, grant_id: int, token: str) -> bool:
        """Whether *token* is the stored refresh token."""
        (row,) = self.query(
            "SELECT refresh_token_digest FROM django_smart_tokengrant WHERE id = ?",
            grant_id,
        )
        return bool(row[0] == digest(token))

    @staticmethod
    @contextmanager
    def patched() -> Iterator[None]:
        """Let the clock of the database be no host's."""

        def as_sqlite(now: Any, *_: Any, **__: Any) -> Any:
            return "%s", [_Moment(timedelta(microseconds=now._microseconds))]

        with mock.patch.object(DatabaseNow, "as_sqlite", as_sqlite):
            yield


def _get_settings() -> dict[str, Any]:
    from django.db import connections

    handler = type(connections)({"default": {"ENGINE": "django.db.backends.sqlite3"}})
    return {**handler.settings["default"], "NAME": ":memory:"}


# The broker


@dataclass(frozen=True, kw_only=True)
class Message:
    """A task for a worker; ``expires_at`` is by the clock of who sent it."""

    name: str
    args: tuple[Any, ...]
    expires_at: Any = None


class Broker:
    """
    One queue, first in, first out.

    Attributes:
        shares: of messages that are lost, doubled, late.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue = Queue(world.scheduler)
        self.shares = (0.0, 0.0, 0.0)

    def send_task(self, name: str, args: Any = (), *_: Any, **options: Any) -> None:
        """In place of Celery's."""
        world, expires = self.world, options.get("expires")
        world.scheduler.wait(world.random.uniform(0.001, 0.005))
        message = Message(
            name=name,
            args=tuple(args or ()),
            expires_at=None
            if expires is None
            else world.scheduler.now + world.scheduler.process.ahead + expires,
        )
        lost, doubled, late = (world.random.random() < each for each in self.shares)
        world.note("message", name.rpartition(".")[2], lost, doubled, late)
        if lost:
            world.excuse(message)
            return
        for _number in range(1 + doubled):
            self.deliver(message, world.random.uniform(1, 90) if late else 0.002)

    def deliver(self, message: Message, after: float) -> None:
        """Put *message* into the queue later."""
        if after > 1:
            self.world.excuse(message, until=self.world.scheduler.now + after)
        self.world.later(after, lambda: self.queue.put(message))


# The servers

# Of the answers of a ``mixed`` server are about another patient.
_MIXED = 0.05


@dataclass(eq=False, kw_only=True)
class Rotation:
    """A refresh token that was taken back for the next one."""

    grant_id: int
    new: str
    job: Job
    sent_at: float
    is_lost: bool = False
    """Whether the answer did not come."""
    was_stored: bool = False
    """Of a process that was killed."""


class Server:
    """
    One EHR, which rotates refresh tokens, unless it is ``still``.

    Attributes:
        kind: what is wrong with it, at times; ``fast`` if nothing ever is.
        foreign: digests of refresh tokens for another patient than the grant's.
        is_strict: an old token ends its grant.
        reads_assertions: clients authenticate with ``private_key_jwt``.
        moods: begin, end and what it does then.
        queued: how many of its grants were due lately, every five seconds.
    """

    def __init__(self, world: World, number: int, kind: str, lifetime: int) -> None:
        self.world, self.number, self.kind = world, number, kind
        self.slug = f"{kind}{number}"
        self.lifetime = lifetime
        self.is_strict = number % 2 == 0
        self.reads_assertions = number == 1
        self.rate_limit = 5 if kind == "limited" else None
        self.moods: list[tuple[float, float, str]] = []
        self.counts: dict[int, int] = defaultdict(int)
        self.ended: set[int] = set()
        self.foreign: list[str] = []
        self.rotations: dict[int, deque[Rotation]] = {}
        self.sent: deque[float] = deque(maxlen=(self.rate_limit or 0) + 1)
        self.rest: tuple[Job, float, float] | None = None
        self.queued: deque[int] = deque(maxlen=60)
        self.number_sent = 0

    def get_seconds_of_queue(self) -> float:
        """How long its limit alone keeps the last of those that were due waiting."""
        return max(self.queued) / self.rate_limit if self.rate_limit else 0.0

    def get_mood(self) -> str:
        """What it does now."""
        now = self.world.scheduler.now
        found = (mood for start, end, mood in self.moods if start <= now < end)
        return next(found, "fine")

    def get_fine_since(self) -> float:
        """The end of its last mood; of one that goes on, what is to come."""
        now = self.world.scheduler.now
        return max((end for start, end, _ in self.moods if start <= now), default=0.0)

    def is_healthy(self) -> bool:
        """Whether nothing was wrong with it, ever; for most of its grants at least."""
        return self.kind in {"fast", "limited", "broken", "still", "mixed"}

    def fails_for(self, grant_id: int) -> bool:
        """Whether it has lost something that this grant needs, and others do not."""
        turn = grant_id // len(self.world.servers)
        return self.kind == "broken" and turn % 5 == 0

    def get_seconds(self) -> float:
        """How long an answer takes."""
        most = 0.15 if self.kind != "slow" else 9.0
        return self.world.random.uniform(0.9 * most if most > 1 else 0.03, most)

    def answer(
        self, form: dict[str, list[str]], job: Job
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body; an ``OSError`` without an answer."""
        world, mood = self.world, self.get_mood()
        if mood == "dead":
            raise OSError("no route")
        if mood == "503":
            return 503, {}, {}
        if mood == "rest" and world.random.random() < 0.3:
            return 503, {}, {}
        if mood == "rest":
            return 429, self._ask_for_rest(job), {}
        if self.reads_assertions and not self._accepts(form["client_assertion"][0]):
            return 401, {}, {"error": "invalid_client"}
        (token,) = form["refresh_token"]
        grant_id, count = (int(each) for each in token.split("-"))
        if self.fails_for(grant_id):
            return 500, {}, {}
        if mood == "storm" or grant_id in self.ended:
            return 400, {}, {"error": "invalid_grant"}
        if self.kind == "still":
            self.number_sent += 1
            return self._grant(f"{grant_id}-{count}", f"still-{self.number_sent}")
        if count < self.counts[grant_id]:
            world.judge_reuse(self, grant_id, count, job)
            if self.is_strict:
                self.ended.add(grant_id)
                return 400, {}, {"error": "invalid_grant"}
        else:
            self.counts[grant_id] += 1
            rotation = Rotation(
                grant_id=grant_id,
                new=f"{grant_id}-{self.counts[grant_id]}",
                job=job,
                sent_at=world.scheduler.now,
            )
            job.rotations.append(rotation)
            self.rotations.setdefault(grant_id, deque(maxlen=4)).append(rotation)
        new = f"{grant_id}-{self.counts[grant_id]}"
        if self.kind != "mixed" or world.random.random() > _MIXED:
            return self._grant(new, new)
        self.foreign.append(digest(new))
        self.ended.add(grant_id)
        return self._grant(new, new, patient="another")

    def _grant(
        self, refresh_token: str, name: str, **members: str
    ) -> tuple[int, dict[str, str], Any]:
        document = {
            "token_type": "Bearer",
            "scope": "patient/Patient.rs offline_access",
            "access_token": f"access-{name}",
            "refresh_token": refresh_token,
            "expires_in": self.lifetime,
            **members,
        }
        return 200, {}, document

    def _accepts(self, assertion: str) -> bool:
        """Whether it is valid now, without leeway; its signature is not of interest."""
        claims = jwt.decode(assertion, options={"verify_signature": False})
        now = self.world.scheduler.get_time().timestamp()
        is_valid = bool(claims["iat"] <= now < claims["exp"])
        if not is_valid:
            since, until = claims["iat"] - now, claims["exp"] - now
            self.world.fail(
                f"{self.slug} refuses an assertion that is valid from {since:.0f} s "
                f"to {until:.0f} s"
            )
        return is_valid

    def _ask_for_rest(self, job: Job) -> dict[str, str]:
        """``Retry-After`` until the mood ends; a date by this server's own clock."""
        now = self.world.scheduler.now
        ends_at = next(end for start, end, _ in self.moods if start <= now < end)
        seconds = int(ends_at - now)
        self.rest = job, now, now + seconds
        if self.world.random.random() < 0.5:
            return {"Retry-After": str(seconds)}
        mine = self.world.scheduler.get_time() + timedelta(hours=5, minutes=7)
        return {
            "Date": format_datetime(mine, usegmt=True),
            "Retry-After": format_datetime(
                mine + timedelta(seconds=seconds), usegmt=True
            ),
        }

    def find_rotation(self, grant_id: int, count: int) -> Rotation | None:
        """What took the token back, if it is not long ago."""
        new = f"{grant_id}-{count + 1}"
        for rotation in self.rotations[grant_id]:
            if rotation.new == new:
                return rotation
        return None


class Servers(BaseAdapter):
    """The way to all servers, which a request can be lost on."""

    def __init__(self, world: World, servers: dict[str, Server]) -> None:
        super().__init__()
        self._world, self._servers = world, servers

    def send(
        self, request: requests.PreparedRequest, *_: Any, **options: Any
    ) -> requests.Response:
        world, scheduler = self._world, self._world.scheduler
        job = world.jobs[scheduler.process]
        server = self._servers[str(urlsplit(str(request.url)).hostname).split(".")[0]]
        body = request.body or b""
        form = parse_qs(body.decode() if isinstance(body, bytes) else body)
        token = form["refresh_token"][0]
        limit = float(options["timeout"][1])
        scheduler.check_alive()
        world.judge_request(server, job)
        seconds, mood = server.get_seconds(), server.get_mood()
        is_late = mood == "late" and world.random.random() < 0.05
        is_cut = mood == "late" and world.random.random() < 0.05
        # The server takes what was sent, whatever becomes of the process.
        number, status = len(job.rotations), 0
        try:
            status, headers, document = server.answer(form, job)
        except OSError:
            world.note("sent", server.slug, token, "unreachable")
            scheduler.wait(min(world.random.uniform(0.01, 3), limit))
            raise requests.ConnectionError("no route") from None
        world.note("sent", server.slug, token, status, is_late, is_cut)
        seconds = limit + 2 if is_late else seconds
        rotations = job.rotations[number:]
        for each in rotations:
            each.is_lost = is_cut or seconds > limit
        started = scheduler.now
        scheduler.wait(min(seconds, limit))
        if scheduler.now - started > limit:
            # It was stopped meanwhile, and does not look whether something came.
            for each in rotations:
                each.is_lost = True
            if server.rest is not None and server.rest[0] is job:
                server.rest = None
        if seconds > limit:
            raise requests.ReadTimeout("too late")
        if is_cut:
            raise requests.ConnectionError("reset")
        response = requests.Response()
        response.status_code = status
        response.headers.update({"Content-Type": "application/json", **headers})
        response.raw = BytesIO(json.dumps(document).encode())
        response.url = str(request.url)
        response.request = request
        return response

    def close(self) -> None:
        """Nothing is held."""
