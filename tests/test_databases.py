"""
The tests whose outcome may depend on the database, once more on each that we support.

They are about locks and races, clocks, constraints, statements that databases plan and
execute differently, migrations, and text that a column may refuse. Other tests read and
write rows on their way alone: what that does to the database, these show too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services import SERVICES, mariadb_url, postgresql_url

_ROOT = Path(__file__).resolve().parent.parent
_TAIL = 60  # lines of output shown when the run fails
_SELECTION = (
    *("contrib/brands/test_importing.py", "contrib/records", "contrib/test_metrics.py"),
    *("grants", "models"),
    *(
        f"launches/test_{name}.py"
        for name in (
            *("begin", "complete", "decide", "lifetimes", "near_values", "open_charts"),
            *("parallel_launches", "purge", "records", "sign_in", "sign_out"),
            "two_clients",
        )
    ),
    *(f"management/test_smart_{name}.py" for name in ("keys", "reencrypt", "refresh")),
    *(
        f"servers/test_{name}.py"
        for name in (
            *("discovery", "discovery_lifetime", "issuer_keys", "registering"),
            "signing_keys",
        )
    ),
    *(
        f"test_{name}.py"
        for name in (
            *("admin", "admin_large", "backends", "clients", "connections", "fields"),
            *("health_view", "migrations", "picker", "statements", "tasks", "views"),
        )
    ),
)
# What an EHR answers, and what is asked of it, is the same whatever stores it.
_SAME_EVERYWHERE = (
    *("assertion_audience", "client_id_with_assertion", "faults", "log_fields"),
    "pacing",
)
_ALL = (
    *(f"tests/{path}" for path in _SELECTION),
    *("-m", "not browser and not process and not long"),
    *(f"--ignore=tests/grants/test_{name}.py" for name in _SAME_EVERYWHERE),
)


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, _Suite]]:
    """The runs, side by side: each waits for its server for much of its time."""
    folder = tmp_path_factory.mktemp("databases")
    urls = {"postgresql": postgresql_url, "mariadb": mariadb_url}
    running = {
        name: _Suite(build_url(_unique_name()), folder / name)
        for name, build_url in urls.items()
        if SERVICES[name].fault is None
    }
    yield running
    for suite in running.values():
        suite.stop()


class _Suite:
    """The database tests at one address, in a process of their own."""

    def __init__(self, database_url: str, log: Path, *selection: str) -> None:
        self._url, self._log = database_url, log
        environment = os.environ | {
            "DATABASE_URL": database_url,
            "HYPOTHESIS_PROFILE": "few",
        }
        # What measures or filters this run is not meant for the inner one.
        for name in list(environment):
            if name.startswith(("PYTEST_", "COV_", "COVERAGE_")):
                del environment[name]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", *(selection or _ALL)),
                    *("--database-tests", "-q", "-p", "no:cacheprovider"),
                ],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def check(self) -> None:
        """Wait for the end, and fail with the last lines if it was not a good one."""
        if self._process.wait():
            tail = "\n".join(self._log.read_text().splitlines()[-_TAIL:])
            pytest.fail(f"the tests at {self._url} failed:\n{tail}", pytrace=False)

    def stop(self) -> None:
        """End it, where a test did not wait for it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _unique_name() -> str:
    """Name of a database that no run beside this one uses."""
    return f"smart_{uuid.uuid4().hex[:12]}"


@pytest.mark.postgresql
@pytest.mark.process
@pytest.mark.timeout(2700)
def test_suite_on_postgresql(suites: dict[str, _Suite]) -> None:
    suites["postgresql"].check()


@pytest.mark.mariadb
@pytest.mark.process
@pytest.mark.timeout(2700)
def test_suite_on_mariadb(suites: dict[str, _Suite]) -> None:
    suites["mariadb"].check()


@pytest.mark.process
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "module",
    [
        pytest.param("tests/test_picker.py", id="search of large tables"),
        pytest.param("tests/adversary", id="a hostile server"),
        pytest.param("tests/grants/test_refresh_races.py", id="threads that refresh"),
        pytest.param(
            "tests/grants/test_refresh_processes.py", id="processes that refresh"
        ),
        pytest.param(
            "tests/contrib/records/test_killed.py", id="a record whose reader is killed"
        ),
    ],
)
@pytest.mark.parametrize(
    "build_url",
    [
        pytest.param(postgresql_url, marks=pytest.mark.postgresql, id="postgresql"),
        pytest.param(mariadb_url, marks=pytest.mark.mariadb, id="mariadb"),
    ],
)
def test_what_takes_minutes(
    build_url: Callable[[str], str], module: str, tmp_path: Path
) -> None:
    suite = _Suite(build_url(_unique_name()), tmp_path / "log", module, "-m", "long")
    suite.check()
