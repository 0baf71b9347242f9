"""
A deployment in simulated time: what happens to it, and what must be true of it.

The package's own code claims, leases, sends, stores and schedules.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from unittest import mock

from django.contrib.auth import get_user_model
from django.db import DatabaseError, connections
from django.test import override_settings
from django.utils import timezone

from django_smart import transport
from django_smart.exceptions import SMARTError
from django_smart.grants.ending import supersede_grants
from django_smart.grants.refresh import get_access_token, renew_access_token
from django_smart.grants.stopping import resume_refreshes
from django_smart.models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from django_smart.schedule import BEAT_SCHEDULE
from django_smart.servers.signing_keys import create_signing_key
from tests.celery import app as celery_app
from tests.simulation.parts import (
    Broker,
    Database,
    Job,
    Message,
    Rotation,
    Server,
    Servers,
)
from tests.simulation.scheduler import EPOCH, Killed, Process, Scheduler

__all__ = ["Scenario", "ViolationError", "World"]

_KINDS = (
    *("fast", "fast", "fast", "fast", "limited", "slow"),
    *("dead", "flapping", "storm", "rest", "late", "broken", "still", "mixed"),
)
# What happens to processes, database, connections and messages, and how often.
_FAULTS = {"kill": 10, "stop": 10, "away": 2, "cut": 3, "broker": 3}
_LIFETIMES = (600, 1800, 3600)
# Seconds by which the clocks of hosts are wrong.
_CLOCKS = (0.0, 600.0, -400.0, 15.0)
_SCOPE = "patient/Patient.rs offline_access"

# A claim, a tick, and a batch before it in the queue.
_BOUND = 90.0
_LEASE = 30.0
_GRACE = 2.0
# Of a lease is left when the last request of its batch leaves.
_SHORTEST = 19.0
_TICK = 60.0
# Grants that a storm may end until the registration is stopped.
_LOST_AT_ONCE = 20
# What a batch that does not know yet of a pause goes on for.
_BATCH = 16.0


class ViolationError(Exception):
    """The package did what it promises not to do."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """
    What is simulated.

    Attributes:
        seconds: in which faults happen.
        calm: seconds after them.
        every: seconds between two faults, on average.
        backlog: share of the grants that are due at the beginning.
        pages: seconds between two pages, on average.
        renewals: share of the pages whose token was refused.
    """

    seed: int
    seconds: float = 6000.0
    calm: float = 1200.0
    grants: int = 500
    workers: int = 4
    every: float = 40.0
    backlog: float = 0.3
    pages: float = 20.0
    renewals: float = 0.1
    lifetimes: tuple[int, ...] = _LIFETIMES
    kinds: tuple[str, ...] = _KINDS
    faults: tuple[str, ...] = tuple(_FAULTS)


class World:
    """One run."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler(scenario.seed)
        self.random = self.scheduler.random
        self.database = Database(self)
        self.broker = Broker(self)
        self.jobs: dict[Process, Job] = {}
        self.tally: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self.recent: deque[str] = deque(maxlen=20_000)
        self._running: dict[str, Process] = {}
        self._excused: dict[int, float] = {}
        self._excused_all = 0.0
        self._stopped: set[Server] = set()
        self._replaced: dict[int, float] = {}
        self._latest = 0.0
        self._is_calm = False
        self.servers = [
            Server(self, number, kind, self.random.choice(scenario.lifetimes))
            for number, kind in enumerate(scenario.kinds)
        ]

    def run(self) -> World:
        """
        Let all happen; returns itself.

        Raises:
            ViolationError: with what was done at last.
        """
        before = logging.root.manager.disable
        logging.disable()
        settings = {
            "CELERY_TASK_ALWAYS_EAGER": False,
            "SMART_DISCOVERY_LIFETIME": 10**9,
        }
        eager = celery_app.conf.task_always_eager
        try:
            with ExitStack() as stack:
                stack.enter_context(override_settings(**settings))
                stack.enter_context(self.database.patched())
                stack.enter_context(
                    mock.patch.object(celery_app, "send_task", self.broker.send_task)
                )
                named = {each.slug: each for each in self.servers}
                adapter = Servers(self, named)
                for slug in named:
                    url = f"https://{slug}.example.org"
                    stack.enter_context(transport.mounted(url, adapter))
                celery_app.set_current()
                celery_app.loader.import_module("django_smart.tasks")
                celery_app.finalize()
                celery_app.conf.task_always_eager = False
                self.scheduler.run(self._direct)
        finally:
            celery_app.conf.task_always_eager = eager
            logging.disable(before)
            self.database.shared.close()
        return self

    # What is written down

    def note(self, *words: object) -> None:
        """An event, for the trace."""
        line = f"{self.scheduler.now:.6f} {self.scheduler.process.name} " + " ".join(
            map(str, words)
        )
        self.trace.update(line.encode())
        self.recent.append(line)
        self.tally["events"] += 1

    def fail(self, text: str) -> None:
        """Report a violation, and end the run."""
        seed, at = self.scenario.seed, self.scheduler.now
        error = ViolationError(f"{text} (seed {seed}, second {at:.1f})")
        self.scheduler.fail(error)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call *function* then."""
        self.scheduler.spawn(self.scheduler.world, function, after=seconds)

    # What happens

    def _direct(self) -> None:
        connections["default"] = self.database.connect()
        self.database.prepare()
        self._begin_at(1.0)
        self._make_rows()
        self._begin_at(2.0)
        for server in self.servers:
            self._choose_moods(server)
        for number in range(self.scenario.workers):
            ahead = _CLOCKS[number % len(_CLOCKS)]
            self._start(f"worker{number}", ahead, self._work)
        for number in range(1 + self.scenario.seed % 2):
            self._start(f"beat{number}", _CLOCKS[number + 1], self._beat)
        self._start("web0", 600.0, self._serve)
        self.later(0.0, self._watch)
        ends_at = self.scheduler.now + self.scenario.seconds
        while (left := ends_at - self.scheduler.now) > 0:
            pause = self.random.expovariate(1 / self.scenario.every)
            self.scheduler.wait(min(pause, left))
            self._strike()
        self._be_calm()
        self.scheduler.wait(self.scenario.calm)
        self._judge_end()

    def _begin_at(self, seconds: float) -> None:
        """Forget what a first run in a process does besides."""
        self.scheduler.wait(seconds - self.scheduler.now)
        self.random.seed(self.scenario.seed + seconds)

    def _make_rows(self) -> None:
        now = timezone.now()
        create_signing_key("ES384")
        registrations = []
        owner = get_user_model().objects.create(username="owner")
        for server in self.servers:
            base_url = f"https://{server.slug}.example.org/r4"
            row = FHIRServer.objects.create(
                slug=server.slug,
                name=server.slug,
                base_url=base_url,
                quirks={"rate_limit": server.rate_limit},
            )
            ServerState.objects.filter(pk=row.pk).update(
                configuration={
                    "authorization_endpoint": f"{base_url}/authorize",
                    "token_endpoint": f"{base_url}/token",
                    "capabilities": [],
                    "grant_types_supported": ["authorization_code"],
                    "code_challenge_methods_supported": ["S256"],
                },
                configuration_fetched_at=now,
            )
            method = "private_key_jwt" if server.reads_assertions else "none"
            registration = ClientRegistration.objects.create(
                server=row,
                client_id="client",
                token_endpoint_auth_method=method,
                signing_algorithm="ES384",
            )
            registrations.append(registration)
        self.random.seed(self.scenario.seed)
        grants = []
        for number in range(1, self.scenario.grants + 1):
            server = self.get_server(number)
            life = timedelta(seconds=server.lifetime)
            due_at = now + 0.75 * life * self.random.random()
            if self.random.random() < self.scenario.backlog:
                due_at = now
            grant = TokenGrant(
                pk=number,
                registration=registrations[server.number],
                user=owner,
                patient_id=str(number),
                is_offline=True,
                scope=_SCOPE,
                scope_granted=_SCOPE,
                received_at=due_at - 0.75 * life,
                expires_at=due_at + 0.25 * life,
                refresh_due_at=due_at,
            )
            grant.set_tokens(access_token="access", refresh_token=f"{number}-0")
            grants.append(grant)
        TokenGrant.objects.bulk_create(grants)

    def get_server(self, grant_id: int) -> Server:
        """Whose grant it is."""
        return self.servers[grant_id % len(self.servers)]

    def _choose_moods(self, server: Server) -> None:
        ends_at = self.scheduler.now + self.scenario.seconds
        uniform = self.random.uniform
        lengths = {
            "dead": (600, 1800, 600, 3600),
            "flapping": (20, 120, 5, 90),
            "storm": (1200, 2400, 600, 900),
            "rest": (120, 600, 20, 300),
            "late": (60, 300, 60, 300),
            "broken": (300, 1200, 20, 120),
        }
        if server.kind not in lengths:
            return
        least, most, shortest, longest = lengths[server.kind]
        mood = {"flapping": "503", "broken": "rest"}.get(server.kind, server.kind)
        at = self.scheduler.now + uniform(0, most)
        while at < ends_at:
            until = min(at + uniform(shortest, longest), ends_at)
            server.moods.append((at, until, mood))
            if mood == "storm":
                self.later(until + 60 - self.scheduler.now, self._resume)
            at = until + uniform(least, most)

    def _start(
        self, name: str, ahead: float, function: Callable[[Process], None]
    ) -> None:
        """Start a process, and again whenever it was killed."""
        process = self._running[name] = Process(name, ahead=ahead)

        def run() -> None:
            connections["default"] = self.database.connect()
            try:
                function(process)
            except Killed:
                after = self.random.uniform(2, 10)
                self.later(after, lambda: self._start(name, ahead, function))
                raise

        self.scheduler.spawn(process, run)

    def _work(self, process: Process) -> None:
        scheduler = self.scheduler
        while True:
            message: Message = self.broker.queue.get()
            task = celery_app.tasks[message.name]
            wall = scheduler.now + process.ahead
            if message.expires_at is not None and message.expires_at < wall:
                self.note("discarded")
                continue
            try:
                scheduler.wait(0.002)
                grant_ids = self._get_grants(message)
                self._do(process, message.name, grant_ids, partial(task, *message.args))
            except Killed:
                if task.acks_late and not self.scheduler.is_ending:
                    self.broker.deliver(message, self.random.uniform(1, 20))
                raise

    def _get_grants(self, message: Message) -> tuple[int, ...]:
        """Those that the message is about: all of its server."""
        if not message.args:
            return ()
        server = self.servers[message.args[0] - 1]
        first = server.number or len(self.servers)
        return tuple(range(first, self.scenario.grants + 1, len(self.servers)))

    def _beat(self, _: Process) -> None:
        entry = BEAT_SCHEDULE["django_smart.refresh_due_grants"]
        while True:
            self.scheduler.wait(entry["schedule"].seconds)
            self.broker.send_task(entry["task"], (), **entry.get("options", {}))

    def _serve(self, process: Process) -> None:
        """People open pages that need a token, and some of these are refused."""
        while True:
            self.scheduler.wait(self.random.expovariate(1 / self.scenario.pages))
            grant_id = self.random.randrange(1, self.scenario.grants + 1)
            if self.get_server(grant_id).rate_limit:
                continue  # people do not wait for their turn

            def open_page(grant_id: int = grant_id) -> None:
                grants = TokenGrant.objects.usable().select_related(
                    "registration__server"
                )
                if (grant := grants.filter(pk=grant_id).first()) is None:
                    return
                received_at = str(grant.received_at.replace(tzinfo=None))
                self.jobs[process].seen = grant_id, received_at
                if self.random.random() < self.scenario.renewals:
                    renew_access_token(grant, grant.access_token)
                else:
                    get_access_token(grant)

            self._do(process, "page", (grant_id,), open_page)

    def _do(
        self,
        process: Process,
        name: str,
        grant_ids: tuple[int, ...],
        function: Callable[[], object],
    ) -> None:
        name = name.rpartition(".")[2]
        job = self.jobs[process] = Job(name=name, process=process, grant_ids=grant_ids)
        self.note("begins", name, *grant_ids[:1])
        try:
            function()
            self.tally[name] += 1
            job.has_succeeded = True
        except (SMARTError, DatabaseError) as exc:
            self.tally[f"{name}: {type(exc).__name__}"] += 1
            connections["default"].close()
        job.is_over, job.ended_at = True, self.scheduler.now
        self.note("ends", name, job.has_succeeded)

    def _strike(self) -> None:
        """One fault."""
        random, now = self.random, self.scheduler.now
        if not self.scenario.faults:
            return
        weights = [_FAULTS[fault] for fault in self.scenario.faults]
        (fault,) = random.choices(self.scenario.faults, weights)
        self.tally[fault] += 1
        self.note("fault", fault)
        if fault in {"kill", "stop"}:
            process = self._running[random.choice(sorted(self._running))]
            process.calls_left = random.randint(1, 80)
            seconds = random.uniform(5, 90)
            process.fate = lambda: self._hit(process, fault, seconds)
        elif fault == "away":
            seconds = random.choice((random.uniform(1, 30), random.uniform(30, 150)))
            self.database.away_until = now + seconds
            self._excuse_all(now + seconds)
        elif fault == "cut":
            self.database.cut_share = 0.02
            self.later(30, self._mend_connections)
            self._excuse_all(now + 30)
        else:
            self.broker.shares = (0.1, 0.1, 0.2)
            self.later(60, self._mend_broker)

    def _mend_connections(self) -> None:
        self.database.cut_share = 0.0

    def _mend_broker(self) -> None:
        self.broker.shares = (0.0, 0.0, 0.0)

    def _hit(self, process: Process, fault: str, seconds: float) -> None:
        """At the call of a seam: end the process, or stop it for a while."""
        now = self.scheduler.now
        job = self.jobs.get(process)
        self.note(fault, process.name)
        back_at = now + (seconds if fault == "stop" else 10)
        if fault == "stop":
            process.stopped_until = process.resumed_at = back_at
        else:
            self.scheduler.kill(process)
        if job is not None and not job.is_over:
            for rotation in job.rotations if fault == "kill" else ():
                rotation.was_stored = self._is_stored(rotation)
            for grant_id in job.grant_ids:
                self._excuse(grant_id, back_at + _LEASE)
            if job.name == "refresh_due_grants":
                self._excuse_all(back_at + _TICK)
        for kind, least in (("worker", 2), ("beat", 1)):
            up = [
                each
                for name, each in self._running.items()
                if name.startswith(kind)
                and not each.is_dead
                and each.stopped_until <= now
            ]
            if len(up) < least:
                self._excuse_all(back_at)

    def _be_calm(self) -> None:
        self._is_calm = True
        self.note("calm")
        for process in self._running.values():
            process.fate = None
        self._mend_broker()
        self._mend_connections()
        self._resume()

    def _resume(self) -> None:
        """An operator resumes what the brake has stopped."""
        self._stopped.clear()
        connections["default"] = self.database.connect()
        while True:
            try:
                for registration in ClientRegistration.objects.order_by("pk"):
                    if resume_refreshes(registration, by_operator=True):
                        self.note("resumed", registration.pk)
                        self.tally["resumed"] += 1
                return
            except DatabaseError:
                connections["default"].close()
                self.scheduler.wait(10)

    # What must be true

    def _excuse(self, grant_id: int, until: float) -> None:
        self._excused[grant_id] = max(until, self._excused.get(grant_id, 0.0))

    def _excuse_all(self, until: float) -> None:
        self._excused_all = max(until, self._excused_all)

    def excuse(self, message: Message, *, until: float = 0.0) -> None:
        """Its grants come later."""
        until = max(until, self.scheduler.now)
        for grant_id in self._get_grants(message):
            self._excuse(grant_id, until)
        if not message.args:
            self._excuse_all(until)

    def _watch(self) -> None:
        while True:
            self.scheduler.wait(5.0)
            self._see_stops()
            self._see_losses()
            self._judge_owners()
            self._judge_lateness()

    def _see_stops(self) -> None:
        """
        Have the operator resume a healthy server's registration after a minute.

        Of a strict one, killed processes may cost so many grants that it is stopped.
        """
        rows = self.database.query(
            "SELECT id FROM django_smart_clientregistration "
            "WHERE refresh_stopped_at IS NOT NULL"
        )
        for (number,) in rows:
            server = self.servers[number - 1]
            if not server.is_healthy():
                continue
            if server not in self._stopped:
                self._stopped.add(server)
                self.tally["stopped"] += 1
                self.later(60.0, self._resume)
            for grant_id in range(1, self.scenario.grants + 1):
                if self.get_server(grant_id) is server:
                    self._excuse(grant_id, self.scheduler.now)

    def _see_losses(self) -> None:
        """Have the owners of some grants that are lost connect again."""
        lost = self.database.query(
            "SELECT id FROM django_smart_tokengrant WHERE id <= ? AND status = ?",
            *(self.scenario.grants, "needs_reauthorization"),
        )
        for (grant_id,) in lost:
            if grant_id not in self._replaced and self.random.random() < 0.2:
                self._replaced[grant_id] = self.scheduler.now
                self.later(0.0, partial(self._reconnect, grant_id))

    def _reconnect(self, grant_id: int) -> None:
        connections["default"] = self.database.connect()
        try:
            grant = TokenGrant.objects.get(pk=grant_id)
            grant.pk, grant.refresh_due_at = None, None
            grant.status, grant.ended_at = TokenGrant.Status.ACTIVE, None
            grant.set_tokens(access_token="new", refresh_token="new")
            grant.save(force_insert=True)
            # As a callback does, in case an operator has restored it meanwhile.
            supersede_grants(grant, now=timezone.now())
            self.tally["reconnected"] += 1
        except DatabaseError:
            del self._replaced[grant_id]

    def _judge_owners(self) -> None:
        """No grant is in use that its owner has replaced, or for another patient."""
        now = self.scheduler.now
        foreign = {each for server in self.servers for each in server.foreign}
        for grant_id, token in self.database.query(
            "SELECT id, refresh_token_digest FROM django_smart_tokengrant "
            "WHERE status = 'active' AND id <= ?",
            self.scenario.grants,
        ):
            if token in foreign:
                self.fail(f"grant {grant_id} has the tokens of another patient")
            if self._replaced.get(grant_id, now) + 5 < now:
                self.fail(f"grant {grant_id} is active, and was replaced")

    def _judge_lateness(self) -> None:
        """No grant of a healthy server is due for longer than the bound."""
        now = self.scheduler.now
        if self.database.is_away:
            return
        due = self._get_due()
        queued = Counter(self.get_server(grant_id) for grant_id, _ in due)
        for server in self.servers:
            server.queued.append(queued[server])
        for grant_id, due_at in due:
            server = self.get_server(grant_id)
            if not server.is_healthy() or server.fails_for(grant_id):
                continue
            since = max(
                *(due_at, self._excused_all, server.get_fine_since()),
                self._excused.get(grant_id, 0.0),
            )
            waited = now - since - server.get_seconds_of_queue()
            self._latest = max(self._latest, waited)
            if waited > _BOUND:
                self.fail(f"grant {grant_id} is due for {now - since:.0f} s")

    def _get_due(self) -> list[tuple[int, float]]:
        rows = self.database.query(
            "SELECT id, refresh_due_at FROM django_smart_tokengrant "
            "WHERE status = 'active' AND refresh_due_at <= ?",
            str(self.scheduler.get_time().replace(tzinfo=None)),
        )
        return [(grant_id, _parse(due_at)) for grant_id, due_at in rows]

    def get_digest(self) -> str:
        """A name for all that happened: the same of two runs with one seed."""
        return self.trace.hexdigest()

    @property
    def latest(self) -> float:
        """Seconds for which a grant of a healthy server was due, at most."""
        return self._latest

    def judge_request(self, server: Server, job: Job) -> None:
        """A server meets no more than its limit, and nothing while it rests."""
        self.tally["requests"] += 1
        now = self.scheduler.now
        if job.name == "page":
            self._judge_page(job)
            return
        if server.rate_limit and job.process.resumed_at + 1 < now:
            server.sent.append(now)
            if len(server.sent) > server.rate_limit and now - server.sent[0] < 1:
                self.fail(f"{server.slug} meets more than its limit")
        if server.rest is not None:
            told, _, until = server.rest
            if told.has_succeeded and told.ended_at + _BATCH < now < until - 1:
                self.fail(f"{server.slug} is asked although it rests")

    def _judge_page(self, job: Job) -> None:
        """A page refreshes no grant that was just refreshed."""
        assert job.seen is not None
        grant_id, received_at = job.seen
        ((stored, expires_at),) = self.database.query(
            "SELECT received_at, expires_at FROM django_smart_tokengrant WHERE id = ?",
            grant_id,
        )
        is_fresh = _parse(expires_at) > self.scheduler.now + 10
        if is_fresh and str(stored) != received_at:
            self.fail(f"grant {grant_id} is refreshed again by a page")

    def judge_reuse(self, server: Server, grant_id: int, count: int, job: Job) -> None:
        """No refresh token is sent twice but in the windows that the docs name."""
        rotation = server.find_rotation(grant_id, count)
        window = self._find_window(rotation) if rotation is not None else ""
        self.note("reuse", f"{grant_id}-{count}", window)
        if not window:
            self.fail(f"refresh token {grant_id}-{count} is sent twice by {job.name}")
        self.tally[f"reuse: {window}"] += 1

    def _find_window(self, rotation: Rotation) -> str:
        job, now = rotation.job, self.scheduler.now
        if rotation.is_lost:
            return "lost"
        if job.process.is_dead:
            return "" if rotation.was_stored else "killed"
        # The lease of a process that could not store anything has run out.
        if (
            job.is_over
            or now - rotation.sent_at < _SHORTEST
            or self._is_stored(rotation)
        ):
            return ""
        if job.process.resumed_at > rotation.sent_at:
            return "stopped"
        away_until = self.database.away_until
        # The process that waited for the database has a moment to store them first.
        is_away = away_until > rotation.sent_at and now - away_until > _GRACE
        return "away" if is_away else ""

    def _is_stored(self, rotation: Rotation) -> bool:
        return self.database.holds(rotation.grant_id, rotation.new)

    def _judge_end(self) -> None:
        """What is due is refreshed, and what is lost has a reason."""
        now = self.scheduler.now
        late = [
            (grant_id, now - due_at)
            for grant_id, due_at in self._get_due()
            if now - due_at > _BOUND
            and not self.get_server(grant_id).fails_for(grant_id)
        ]
        if late:
            self.fail(f"{len(late)} grants are due, {late[0]} for one")
        rows = self.database.query(
            "SELECT id, status, expires_at, ended_at FROM django_smart_tokengrant "
            "WHERE id <= ?",  # later ones hold tokens that came too late
            self.scenario.grants,
        )
        lost: dict[Server, list[float]] = defaultdict(list)
        for grant_id, status, expires_at, ended_at in rows:
            server = self.get_server(grant_id)
            is_over = status == "active" and _parse(expires_at) < now
            if is_over and not server.fails_for(grant_id):
                self.fail(f"the token of grant {grant_id} has ended")
            if status != "active":
                self.tally["lost"] += 1
                if grant_id not in server.ended:
                    lost[server].append(_parse(ended_at))
        for server, times in lost.items():
            storms = [start for start, _, mood in server.moods if mood == "storm"]
            number = Counter(bisect(storms, at) for at in times)
            if number[0] or max(number.values()) > _LOST_AT_ONCE:
                self.fail(f"{len(times)} grants of {server.slug} are lost")


def _parse(moment: datetime) -> float:
    return (moment - EPOCH.replace(tzinfo=None)).total_seconds()
