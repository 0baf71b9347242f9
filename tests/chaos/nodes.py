"""Databases and brokers of the test's own, on free ports, which it may kill."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.processes import get_free_port, wait_for

__all__ = ["Node", "PostgreSQLNode", "RabbitMQNode", "RedisNode", "find_program"]


def find_program(name: str, *folders: str) -> str:
    """Path of a program; the test is skipped by its name, or fails, without it."""
    paths = [
        *(str(path) for folder in folders for path in sorted(Path("/").glob(folder))),
        os.environ.get("PATH", ""),
    ]
    found = shutil.which(name, path=os.pathsep.join(paths))
    if found is None:
        reason = f"needs the program {name}"
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


class Node:
    """A server in a folder of its own."""

    name = ""

    def __init__(self) -> None:
        # Not below the folders of pytest, which nobody else may enter.
        self.folder = Path(tempfile.mkdtemp(prefix=f"django-smart-{self.name}-"))
        self.port = get_free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, until it answers."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._get_command(),
                cwd=self.folder,
                env=os.environ | self._get_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._become(),
            )
        wait_for(self._answers, what=f"{self.name}, see {self.folder}")

    def kill(self) -> None:
        """End it at once, whatever it was doing."""
        if self._process is not None:
            self._end(self._process)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End it, and take its folder away."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def _get_command(self) -> list[str]:
        raise NotImplementedError

    def _get_environment(self) -> dict[str, str]:
        return {}

    def _become(self) -> Callable[[], None] | None:
        return None

    def _answers(self) -> bool:
        raise NotImplementedError


class RedisNode(Node):
    """A broker that forgets its messages when it is killed."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__()
        self._program = find_program("redis-server", "usr/sbin")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _get_command(self) -> list[str]:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [self._program, "--port", str(self.port), *options]

    def _answers(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


class RabbitMQNode(Node):
    """A broker that keeps its messages on disk."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        # Not the script of that name that changes the user.
        self._program = find_program("rabbitmq-server", "usr/lib/rabbitmq/bin")
        self._dist_port = get_free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        (self.folder / "plugins").write_text("[].")

    def _get_command(self) -> list[str]:
        return [self._program]

    def _get_environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"chaos{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
        }

    def _answers(self) -> bool:
        import kombu

        try:
            with kombu.Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except Exception:  # noqa: BLE001 (any of the driver's)
            return False
        return True


class PostgreSQLNode(Node):
    """A database server that may be killed; what it has committed it keeps."""

    name = "postgres"

    def __init__(self) -> None:
        super().__init__()
        where = "usr/lib/postgresql/*/bin"
        self._program = find_program("postgres", where)
        initdb = find_program("initdb", where)
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self._user is not None:
            # It refuses to be run by root.
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        subprocess.run(
            [initdb, "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            cwd=self.folder,
            preexec_fn=self._become(),
        )
        self.admin_url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def make_database(self, name: str) -> str:
        """Make it; returns its ``DATABASE_URL``."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgres://postgres@127.0.0.1:{self.port}/{name}"

    def _get_command(self) -> list[str]:
        data = str(self.folder / "data")
        options = ["-h", "127.0.0.1", "-k", "", "-p", str(self.port)]
        # It is killed, and not the machine: what is written is there afterwards.
        return [self._program, "-D", data, *options, "-c", "fsync=off"]

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # Its backends are not of its group; by this signal all end without a word.
        process.send_signal(signal.SIGQUIT)

    def _become(self) -> Callable[[], None] | None:
        user = self._user
        if user is None:
            return None

        def become() -> None:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)

        return become

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.admin_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
