"""
Which services beside Python are there: databases, brokers, a browser.

A test says what it needs with a marker (``@pytest.mark.postgresql``). Where the service
is missing the test is skipped, and the reason names the service; with
``REQUIRE_SERVICES=1`` in the environment it fails instead.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest

__all__ = [
    "SERVICES",
    "Service",
    "chromium_path",
    "mariadb_url",
    "nginx_path",
    "postgresql_url",
    "rabbitmq_url",
    "redis_url",
    "require",
    "requirements_of",
]

_CONNECT_TIMEOUT = 30  # seconds
_HOST = "127.0.0.1"
_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def postgresql_url(database: str) -> str:
    """``DATABASE_URL`` of *database* on the local PostgreSQL server."""
    return f"postgres://postgres@{_HOST}:5432/{database}"


def mariadb_url(database: str) -> str:
    """``DATABASE_URL`` of *database* on the local MariaDB server."""
    return f"mysql://root@{_HOST}:3306/{database}"


def redis_url(database: int = 0) -> str:
    """URL of one numbered *database* of the local Redis server."""
    return f"redis://{_HOST}:6379/{database}"


def rabbitmq_url() -> str:
    """URL of the local RabbitMQ server's default virtual host."""
    return f"amqp://guest:guest@{_HOST}:5672//"


def chromium_path() -> str | None:
    """Path of Chromium, from ``CHROMIUM`` or the search path; None without one."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    return next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)


def nginx_path() -> str | None:
    """Path of nginx, which users other than root rarely have on theirs."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def _ping_postgresql() -> None:
    import psycopg

    with psycopg.connect(
        host=_HOST, user="postgres", connect_timeout=_CONNECT_TIMEOUT
    ) as connection:
        connection.execute("SELECT 1")


def _ping_mariadb() -> None:
    try:
        import MySQLdb  # the driver is compiled, and not everywhere
    except ImportError as exc:
        raise RuntimeError("its driver, mysqlclient, is not installed") from exc

    connection = MySQLdb.connect(
        host=_HOST, user="root", connect_timeout=_CONNECT_TIMEOUT
    )
    try:
        connection.ping()
    finally:
        connection.close()


def _ping_redis() -> None:
    import redis

    with redis.Redis.from_url(
        redis_url(), socket_connect_timeout=_CONNECT_TIMEOUT
    ) as client:
        client.ping()


def _ping_rabbitmq() -> None:
    import kombu

    with kombu.Connection(
        rabbitmq_url(), connect_timeout=_CONNECT_TIMEOUT
    ) as connection:
        connection.connect()


def _find_chromium() -> None:
    if chromium_path() is None:
        raise RuntimeError("not found: " + ", ".join(_CHROMIUM_NAMES))


def _find_nginx() -> None:
    if nginx_path() is None:
        raise RuntimeError("not found")


def _find_prometheus() -> None:
    for name in ("prometheus", "promtool"):
        if shutil.which(name) is None:
            raise RuntimeError(f"{name} not found")


def _install_node_servers() -> None:
    from tests.outside.node import install

    install()


@dataclass(frozen=True, kw_only=True)
class Service:
    """Something a test may need that ``pip`` does not install."""

    name: str
    #: None for a program, which is looked for and not connected to.
    port: int | None
    #: Raises any exception when the service cannot be used.
    ping: Callable[[], None]

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name} at {_HOST}:{self.port}"

    @functools.cached_property
    def fault(self) -> str | None:
        """Why the service cannot be used, or None; found out once."""
        try:
            if self.port is not None:
                socket.create_connection((_HOST, self.port), _CONNECT_TIMEOUT).close()
            self.ping()
        except Exception as exc:  # noqa: BLE001 - drivers have trees of their own
            return f"{type(exc).__name__}: {exc}".splitlines()[0]
        return None


#: By the name of the marker that asks for it.
SERVICES = {
    "browser": Service(name="Chromium", port=None, ping=_find_chromium),
    "mariadb": Service(name="MariaDB", port=3306, ping=_ping_mariadb),
    "nginx": Service(name="nginx", port=None, ping=_find_nginx),
    "node": Service(
        name="Node.js and what npm installs", port=None, ping=_install_node_servers
    ),
    "postgresql": Service(name="PostgreSQL", port=5432, ping=_ping_postgresql),
    "prometheus": Service(name="Prometheus", port=None, ping=_find_prometheus),
    "rabbitmq": Service(name="RabbitMQ", port=5672, ping=_ping_rabbitmq),
    "redis": Service(name="Redis", port=6379, ping=_ping_redis),
}


def require(service: Service) -> None:
    """Skip the running test, or fail it, unless *service* can be used."""
    if service.fault is None:
        return
    reason = f"needs {service}: {service.fault}"
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def requirements_of(item: pytest.Item) -> list[Service]:
    """The services that the markers of *item* ask for."""
    return [
        service
        for marker, service in SERVICES.items()
        if item.get_closest_marker(marker)
    ]
