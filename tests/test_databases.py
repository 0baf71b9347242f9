"""
The tests that use the database, once more on each server we support.

Left out is what looks at pages, headers and documentation, at keys and at slow answers,
and reads or writes rows on its way alone: what that does to the database, the tests of
grants, launches, servers and models do too.
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
_ON_ITS_WAY = (
    *("contrib/doctor", "docs", "example", "fhir", "redaction", "sites", "testing"),
    *("walk", "e2e/test_canary.py", "e2e/test_client_types.py"),
    *("contrib/test_app_state.py", "servers/test_key_rotation.py"),
    *(
        f"launches/test_{name}.py"
        for name in (
            *("authorize_post", "browser", "changed_context", "faults_fhir"),
            *("faults_slow", "frames", "launch_context", "messages", "prefix_pages"),
        )
    ),
    *(
        f"test_{name}.py"
        for name in (
            *("admin_doctor", "admin_support", "audit", "decorators", "error_pages"),
            *("fhir_proxy", "jwks", "mixins", "open_redirects", "pages"),
            *("results_in_templates", "translations", "trouble"),
        )
    ),
)
_ALL = (
    "tests",
    *("-m", "not browser and not process and not long"),
    *(f"--ignore=tests/{path}" for path in _ON_ITS_WAY),
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
        environment = os.environ | {"DATABASE_URL": database_url}
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
