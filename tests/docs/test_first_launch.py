"""The tutorial, done as it says."""

from __future__ import annotations

import configparser
import json
import re
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.docs.blocks import DOCS, Block, read_blocks
from tests.processes import get_free_port
from tests.projects import build_environment, launch_from_ehr, run, running

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = "tutorial/first-launch.rst"
_SANDBOX = "tutorial/first-sandbox.rst"


class _Reader:
    """Somebody who does what the page says, with the ports that are free here."""

    def __init__(self, folder: Path, ports: Mapping[str, object]) -> None:
        self.folder = folder
        self.servers = ExitStack()
        self._ports = dict(ports)

    def do(self, block: Block) -> None:
        """Type the commands of *block*, or put its code where the page says."""
        if block.language == "console":
            for words in block.commands:
                self._type([self.adapt(word) for word in words])
        else:
            name = re.findall(r"``(\S+\.py)``", block.before)[-1]
            mode = "a" if "at the end of" in block.before else "w"
            with (self.folder / name).open(mode) as file:
                file.write(self.adapt(block.code))

    def adapt(self, text: str) -> str:
        # All at once: a port that is free may hold another one's digits.
        found = "|".join(map(re.escape, self._ports))
        return re.sub(found, lambda match: str(self._ports[match[0]]), text)

    def _type(self, words: list[str]) -> None:
        if words[0] == "cd":
            self.folder /= words[1]
        elif words[1:3] == ["-m", "venv"]:
            _make_environment(self.folder / words[3])
        elif "install" in words:
            _check_extra(words[-1])
        elif "smart_doctor" in words:
            self._ask_doctor(words)
        elif "runserver" in words:
            url = f"http://127.0.0.1:{words[-1]}/patient/"
            self._start(url, [*words, "--noreload"])
        elif "smart_simulator" in words:
            port = words[words.index("--port") + 1]
            self._start(f"http://localhost:{port}/", words)
        else:
            run(*words, cwd=self.folder)

    def _ask_doctor(self, words: list[str]) -> None:
        """It tells of what the page says, and of nothing else."""
        done = subprocess.run(
            [*words, "--json"],
            cwd=self.folder,
            env=build_environment(),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        codes = {each["code"] for each in json.loads(done.stdout)["findings"]}
        assert codes == set(), done.stdout

    def replace(self, text: str, other: str) -> None:
        """Read *other* where the pages say *text*."""
        self._ports[text] = other

    def _start(self, url: str, words: list[str]) -> None:
        self.servers.enter_context(running(url, *words, cwd=self.folder))


def _make_environment(folder: Path) -> None:
    """An environment that has what this one has, without a download."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [
        f"import site; site.addsitedir({each!r})" for each in site.getsitepackages()
    ]
    (packages / "these.pth").write_text("\n".join(lines))
    (folder / "bin" / "django-admin").write_text(
        f"#!{folder}/bin/python\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line()\n"
    )
    (folder / "bin" / "django-admin").chmod(0o755)


def _check_extra(requirement: str) -> None:
    """What the page installs is this package, with an extra that it has."""
    parser = configparser.ConfigParser()
    parser.read(_ROOT / "setup.cfg", encoding="utf-8")
    name, extra = re.fullmatch(r"([\w-]+)\[(\w+)\]", requirement).groups()  # type: ignore[union-attr]
    assert name == parser["metadata"]["name"]
    assert extra in parser["options.extras_require"]


@pytest.mark.process
@pytest.mark.timeout(900)
def test_reader_of_the_tutorial_sees_the_patient(tmp_path: Path) -> None:
    ports = {"8000": get_free_port(), "8010": get_free_port()}
    reader = _Reader(tmp_path, ports)
    with reader.servers, requests.Session() as browser:
        for block in read_blocks(_PAGE):
            reader.do(block)
        page = launch_from_ehr(browser, reader.adapt("http://localhost:8010"))
    _check_page(page, reader)
    # Both servers are stopped, as the next page says.
    with _sandbox(reader) as ehr, reader.servers, requests.Session() as browser:
        for block in read_blocks(_SANDBOX):
            reader.do(block)
        url = reader.adapt("http://127.0.0.1:8000/smart/login/?server=epic-sandbox")
        assert "/smart/login/?server=epic-sandbox" in (DOCS / _SANDBOX).read_text()
        # As a browser sends for a URL that someone has typed.
        typed = {"Sec-Fetch-Site": "none"}
        answer = browser.get(url, allow_redirects=False, headers=typed)
        page = browser.get(ehr.authorize(answer.headers["Location"]))
    _check_page(page, reader)


@contextmanager
def _sandbox(reader: _Reader) -> Iterator[EHRSimulator]:
    """The simulator in the vendor's place."""
    register, *_ = read_blocks(_SANDBOX)
    ((*words,),) = register.commands
    address = words[words.index("--base-url") + 1]
    ehr = EHRSimulator(address)
    with ehr.serve():
        reader.replace(address, ehr.base_url)
        ehr.register_client(
            words[words.index("--client-id") + 1],
            auth_method="none",
            redirect_uris=[
                reader.adapt("http://127.0.0.1:8000/smart/callback/epic-sandbox/")
            ],
        )
        yield ehr


def _check_page(page: requests.Response, reader: _Reader) -> None:
    assert page.status_code == 200, page.text
    assert re.fullmatch(
        reader.adapt(r"http://127\.0\.0\.1:8000/~[\w-]{22,}/patient/"), page.url
    )
    (name,) = re.findall(r"<h1>(.+)</h1>", page.text)
    assert re.fullmatch(r"[\w. -]+", name)
    results = re.findall(r"<li>(.+)</li>", page.text)
    assert len(results) > 1
    for each in results:
        assert re.fullmatch(r"[A-Z]\w+\.? \d+, \d{4}: \d+\.?\d* %", each), each
