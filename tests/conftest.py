"""Fixtures for every test, and the two rules no test may break."""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import caches
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck
from hypothesis import settings as examples

from django_smart.models import ClientRegistration, FHIRServer, Launch, TokenGrant
from django_smart.models.clock import DatabaseNow
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.id_tokens import SigningKey
from tests.celery import Broker
from tests.celery import app as celery_app
from tests.clocks import HostClock
from tests.ehr import PATIENT, connect, ehr, make_browser, registration
from tests.factories import make_user, reload_grant
from tests.services import require, requirements_of
from tests.transport.servers import Server, answer

__all__ = ["celery_app", "ehr", "registration"]

# How much Hypothesis tries. No deadline: machines that run the tests are shared.
# All examples of a test share its fixtures.
_COMMON = examples(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
examples.register_profile("default", _COMMON, max_examples=200)
examples.register_profile("ci", _COMMON, max_examples=1000)
examples.register_profile("few", _COMMON, max_examples=20)
examples.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_LONG = {"browser", "process", "timeout"}
_DATABASE_FIXTURES = {"db", "live_server", "transactional_db"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer ``--database-tests``."""
    parser.addoption(
        "--database-tests",
        action="store_true",
        help="run only the tests that use the database (set DATABASE_URL to choose it)",
    )


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """
    Wait, on a busy machine, until closed sessions have left PostgreSQL.

    A thread that a test left behind may keep its own: that is ended here, as else no
    test could drop the database.
    """
    if connection.vendor != "postgresql":
        yield
        return
    patch = pytest.MonkeyPatch()
    patch.setattr(connection.ops, "sql_flush", _delete_all)
    yield
    patch.undo()
    others = (
        "FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + 20
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(f"SELECT count(*) {others}")
            if cursor.fetchone() == (0,):
                return
            time.sleep(0.2)
        cursor.execute(f"SELECT pg_terminate_backend(pid) {others}")


def _delete_all(_: object, tables: Iterable[str], **kwargs: object) -> list[str]:
    """
    Empty *tables*, in which a test has left some rows, in a few milliseconds.

    Django truncates, for which PostgreSQL makes each table and index anew on the disk.
    In one transaction the order is of no matter: foreign keys are checked at its end.
    """
    return [f"DELETE FROM {connection.ops.quote_name(each)}" for each in tables]


def _uses_database(item: pytest.Item) -> bool:
    """Whether *item* asks for the database, by marker or through any fixture."""
    return item.get_closest_marker("django_db") is not None or bool(
        _DATABASE_FIXTURES.intersection(getattr(item, "fixturenames", ()))
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name, the test whose service is missing."""
    for service in requirements_of(item):
        require(service)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Refuse a test that claims more requirements than it can show; order the rest."""
    if config.getoption("--database-tests"):
        others = [item for item in items if not _uses_database(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _uses_database(item)]
    for item in items:
        for marker in item.iter_markers("compliance"):
            if not 1 <= len(marker.args) <= 4:
                raise pytest.UsageError(
                    f"{item.nodeid}: compliance() takes one to four ids, "
                    f"got {len(marker.args)}"
                )
    if hasattr(config, "workerinput"):
        _put_the_longest_first(items)


def _put_the_longest_first(items: list[pytest.Item]) -> None:
    """Modules that wait, and those with a time limit of their own: none ends late."""
    tests_of = Counter(item.path for item in items)
    items.sort(
        key=lambda item: (
            item.path.name != "test_databases.py",
            not _LONG.intersection(marker.name for marker in item.iter_markers()),
            -tests_of[item.path],
            item.path,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``--numprocesses auto`` is one more than there are cores: many tests wait."""
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    """Make the folder of this run, and collect garbage seldom."""
    gc.set_threshold(50_000, 20, 50)
    settings.RUN_DIR.mkdir(exist_ok=True)


def pytest_unconfigure() -> None:
    """Take it away."""
    if settings.configured:
        shutil.rmtree(settings.RUN_DIR, ignore_errors=True)


def _is_loopback(host: object) -> bool:
    """Whether *host*, a name or an address, stays on this machine."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    if text.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Let sockets reach this machine alone; a look-up of a name counts as network."""
    patch = pytest.MonkeyPatch()
    connect = socket.socket.connect
    look_up = socket.getaddrinfo

    def guarded_connect(self, address, /):
        if self.family != socket.AF_UNIX and not _is_loopback(address[0]):
            raise RuntimeError(f"a test tried to connect to {address[0]!r}")
        return connect(self, address)

    def guarded_look_up(host, *args, **kwargs):
        if not _is_loopback(host):
            raise RuntimeError(f"a test tried to look up {host!r}")
        return look_up(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    """No test sees what another one put into a cache."""
    yield
    for each in caches.all(initialized_only=True):
        each.clear()


@pytest.fixture
def host_clock(monkeypatch: pytest.MonkeyPatch) -> HostClock:
    """The monotonic clock; time_machine has the one that tells the date."""
    clock = HostClock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def _set_database_clock(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], datetime]
) -> None:
    def tell(self: DatabaseNow, _: Any, connection: Any, **__: Any) -> Any:
        time = read() + timedelta(microseconds=self._microseconds)
        is_mysql = connection.vendor == "mysql"
        sql = "CAST(%s AS DATETIME(6))" if is_mysql else "%s"
        return sql, [connection.ops.adapt_datetimefield_value(time)]

    for vendor in ("postgresql", "mysql", "sqlite"):
        monkeypatch.setattr(DatabaseNow, f"as_{vendor}", tell)


@pytest.fixture
def database_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time_machine move the database's clock as well, whatever the database."""
    _set_database_clock(monkeypatch, timezone.now)


@pytest.fixture
def database_stays(database_travels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the database's clock: only the host's is wrong, on SQLite as well."""
    now = timezone.now()
    _set_database_clock(monkeypatch, lambda: now)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept, without sleeping."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Broker]:
    """A broker that keeps what it is sent; no task is run at once."""
    broker = Broker()
    celery_app.set_current()  # a page of the documentation may have made another
    monkeypatch.setattr(celery_app, "send_task", broker.send_task)
    # Celery 5.4 prefers the setting; later versions the app's configuration.
    settings.CELERY_TASK_ALWAYS_EAGER = False
    celery_app.conf.task_always_eager = False
    yield broker
    celery_app.conf.task_always_eager = True


@pytest.fixture
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for by chance is waited for as long as may be."""
    monkeypatch.setattr(random, "uniform", lambda _, most: most)


@pytest.fixture
def server(registration: ClientRegistration) -> FHIRServer:
    """The registered server, of which nothing is known yet."""
    return registration.server


@pytest.fixture
def user(db: None) -> User:
    """Somebody with an account here."""
    return make_user()


@cache
def _make_signing_key() -> SigningKey:
    return SigningKey.generate("RS256")


@pytest.fixture
def opened(ehr: EHRSimulator, registration: ClientRegistration) -> Launch:
    """The launch."""
    return connect(make_browser(), ehr, patient=PATIENT)


@pytest.fixture
def grant(opened: Launch) -> TokenGrant:
    """Its grant, as the database has it."""
    return reload_grant(opened.grant_id)


@pytest.fixture
def quick_keys(ehr: EHRSimulator) -> None:
    """One key for all: making it takes longer than a launch."""
    ehr.signing_keys = [_make_signing_key()]


@pytest.fixture(scope="session")
def listener() -> Iterator[Server]:
    """A server at another origin, which records what comes."""
    with Server(answer()) as server:
        yield server


@pytest.fixture
def elsewhere(ehr: EHRSimulator, listener: Server, settings: Any) -> Iterator[Server]:
    """The other origin that faults lead to, which gets no ``Authorization``."""
    ehr.foreign_origin = f"http://127.0.0.1:{listener.port}"
    # Nothing but our own rules keeps a request from going there.
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    listener.requests.clear()
    yield listener
    assert not [each for each in listener.requests if b"authorization" in each.lower()]
