"""A newcomer: a project made with ``startproject``, the built wheel, and the README."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from contextlib import ExitStack
from email import message_from_bytes
from pathlib import Path

import pytest
import requests
import yaml

import django_smart
from tests.docs.blocks import Block, read_blocks
from tests.known import PATIENT
from tests.processes import get_free_port
from tests.projects import launch_from_ehr, run, running

pytestmark = pytest.mark.process

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be released: the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # With the setuptools that are here: nothing is fetched.
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", folder, _ROOT, cwd=folder)
    return folder


@pytest.fixture
def wheel(packages: Path) -> Path:
    (wheel,) = packages.glob("*.whl")
    return wheel


class _Newcomer:
    """Does what the README says, in a project of their own, and nothing else."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.servers = ExitStack()
        self.port, self.ehr_port = get_free_port(), get_free_port()
        self._wheel = wheel
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        self.python = folder / "venv" / "bin" / "python"
        self.project = folder / "mysite"

    def do(self, block: Block) -> None:
        if block.language == "python":
            self._write(block)
        else:
            for command in block.commands:
                self._type([self._adapt(word) for word in command])

    def _adapt(self, text: str) -> str:
        """The README's ports may be taken here."""
        ports = {"8000": str(self.port), "8010": str(self.ehr_port)}
        return re.sub("|".join(ports), lambda match: ports[match[0]], text)

    def _write(self, block: Block) -> None:
        (name,) = re.findall(r"``(\w+\.py)``", block.before)
        # "# ..." stands for what the list has already.
        code = re.sub(
            r"^(\w+) = \[$((?:\n    .*)*?)\n    # \.\.\.$",
            r"\1 = [\2\n    *\1,",
            self._adapt(block.code),
            flags=re.MULTILINE,
        )
        assert "# ..." not in code
        with (self.project / "mysite" / name).open("a") as file:
            file.write(f"\n{code}")

    def _type(self, command: list[str]) -> None:
        if command[0] == "pip":
            assert command[1:] == ["install", "django-smart[testing]"]
            package = f"{self._wheel}[testing]"
            pip = (self.python, "-m", "pip", "install", "--quiet", package)
            run(*pip, cwd=self.project.parent)
            start = (self.python, "-m", "django", "startproject", "mysite")
            run(*start, cwd=self.project.parent)
            return
        assert command[:2] == ["python", "manage.py"]
        typed: list[str | Path] = [self.python, *command[1:]]
        if "smart_simulator" in command:
            self._start(f"http://localhost:{self.ehr_port}", typed)
        elif "runserver" in command:
            self._start(f"http://127.0.0.1:{self.port}/a1c/", [*typed, "--noreload"])
        else:
            run(*typed, cwd=self.project)

    def _start(self, url: str, command: list[str | Path]) -> None:
        self.servers.enter_context(running(url, *command, cwd=self.project))


@pytest.mark.timeout(900)
def test_new_project_with_the_wheel_completes_a_launch(
    tmp_path: Path, wheel: Path
) -> None:
    newcomer = _Newcomer(tmp_path, wheel)
    url = f"http://127.0.0.1:{newcomer.port}"
    with newcomer.servers, requests.Session() as browser:
        for block in read_blocks("../README.rst"):
            newcomer.do(block)
        refused = browser.get(f"{url}/a1c/")
        opened = launch_from_ehr(browser, f"http://localhost:{newcomer.ehr_port}")
        check = (newcomer.python, "manage.py", "check", "--fail-level", "WARNING")
        run(*check, cwd=newcomer.project)

    assert refused.status_code == 403
    assert opened.status_code == 200, opened.text
    assert re.fullmatch(rf"{url}/~[\w-]{{22,}}/a1c/", opened.url)
    assert opened.json()["patient"] == PATIENT
    assert len(opened.json()["values"]) > 10


@pytest.mark.timeout(900)
def test_release_tries_the_package_alone_in_a_new_project(
    tmp_path: Path, packages: Path
) -> None:
    workflow = (_ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    script: str = yaml.safe_load(workflow)["jobs"]["try"]["steps"][-1]["run"]
    (tmp_path / "dist").symlink_to(packages)
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    activate = f"PATH={tmp_path / 'venv' / 'bin'}:$PATH\n"
    script = activate + script.replace("${{ matrix.package }}", "*.whl")
    run("bash", "-e", "-c", script, cwd=tmp_path)


def _files(folder: Path) -> set[str]:
    """Paths of the files below *folder*, from the repository on."""
    return {
        str(path.relative_to(_ROOT))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        about = message_from_bytes(archive.read(metadata))
    assert {name for name in names if ".dist-info/" not in name} == _files(
        _ROOT / "django_smart"
    )
    for part in (
        "templates/django_smart/error.html",
        "locale/de/LC_MESSAGES/django.mo",
    ):
        assert f"django_smart/{part}" in names
    assert about["Name"] == "django-smart"
    assert about["Version"] == django_smart.__version__
    assert about["License"] == "BSD-3-Clause"
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/x-rst"
    readme = (_ROOT / "README.rst").read_text(encoding="utf-8")
    assert str(about.get_payload()).strip() == readme.strip()


def test_sdist_has_what_a_packager_needs(packages: Path) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("django_smart", "docs/how-to", "example_project", "tests/protocol"):
        assert _files(_ROOT / folder) <= names
    for name in ("LICENSE", "CHANGELOG.rst", "Makefile", "setup.cfg", "tests/urls.py"):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or "_build" in name]
