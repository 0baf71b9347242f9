"""The benchmarks: what they wrote down is what they measured, and they still run."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest
import requests

from benchmarks.harness import Report, Variant, compare, measure, slope
from benchmarks.load import run_load
from benchmarks.notes import NOTES, REACHES
from benchmarks.questions import QUESTIONS, choose, is_large
from benchmarks.questions.tls import trusted_certificate
from benchmarks.render import passes, render
from benchmarks.site.stalls import Watched
from benchmarks.stub import running_stub
from benchmarks.visits import apply_visits
from benchmarks.workday import Ward

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "benchmarks"
_RESULTS = json.loads((_FOLDER / "results.json").read_text(encoding="utf-8"))
_PAGE = (_FOLDER / "RESULTS.rst").read_text(encoding="utf-8")


def test_results_are_rendered_from_the_numbers_beside_them():
    assert render(_RESULTS) == _PAGE


def test_every_question_was_answered_and_has_its_own_module():
    answered = [each["question"] for each in _RESULTS["answers"]]
    # What only "make bench-large" measures may be missing.
    expected = [each for each in QUESTIONS if each in answered or not is_large(each)]
    assert answered == expected
    assert list(REACHES) == list(QUESTIONS)
    modules = {path.stem for path in (_FOLDER / "questions").glob("[!_]*.py")}
    assert modules == set(QUESTIONS)


def test_row_behind_its_reach_says_why():
    behind = {
        (answer["question"], check["key"])
        for answer in _RESULTS["answers"]
        for check in answer["checks"]
        if passes(check) is False
    }
    assert behind <= set(NOTES)


def test_verdict_is_the_only_use_of_its_word():
    lines = [line for line in _PAGE.splitlines() if re.search("short", line, re.I)]
    others = [
        line for line in lines if not re.search(r"^ +- short$|, short of [≤≥] ", line)
    ]
    assert not others


def test_pictures_of_the_page_are_there():
    names = re.findall(r"image:: \.\./docs/images/(\S+)", _PAGE)
    assert names
    for name in names:
        assert (_ROOT / "docs" / "images" / name).is_file()


def test_versions_and_commit_are_written_down():
    environment = _RESULTS["environment"]
    assert re.match(r"[0-9a-f]{12}\b", environment["commit"])
    versions = environment["versions"]
    for name in ("Python", "Django", "Authlib", "django-allauth", "fhirclient"):
        assert re.match(r"\d+\.\d+", versions[name])


@pytest.mark.parametrize("path", sorted(_FOLDER.rglob("*.py")), ids=lambda p: p.stem)
def test_module_can_be_read_in_one_sitting(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 400, "split it"


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_says_what_is_measured(question):
    module = import_module(f"benchmarks.questions.{question}")
    assert module.TEXT.strip().endswith(".")
    assert callable(module.run)


def test_ways_are_timed_in_every_round_and_compared_round_by_round(monkeypatch):
    # Each measurement begins with it; in a long run of tests it takes half a second.
    collections: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(None))
    done = {"one": 0, "two": 0}

    def count(name):
        def add(number):
            done[name] += number

        return add

    variants = [
        Variant(name="one", run=count("one")),
        Variant(name="two", run=count("two"), every=2, operations=3),
    ]
    times = measure(variants, rounds=4, operations=5)
    assert done == {"one": 5 + 4 * 5, "two": 3 + 2 * 3}
    assert len(collections) == 1 + 4 + 1 + 2
    assert None not in times["one"]
    assert [each is None for each in times["two"]] == [False, True, False, True]
    known: dict[str, list[float | None]] = {
        "base": [1.0, 2.0, 4.0],
        "way": [2.0, None, 4.0],
    }
    ratio = compare(known, "way", "base")
    assert (ratio.low, ratio.median, ratio.high) == (1.25, 1.5, 1.75)
    assert compare(known, "way", "base", inverse=True).median == 0.75


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[10, 3.0], [100, 3.0]], 0.0),
        ([[10, 3.0], [100, 30.0], [1000, 300.0]], 1.0),
        ([[10, 1.0], [1000, 10.0]], 0.5),
        ([[10, 2.0], [100, 1.0]], -0.301),
    ],
)
def test_slope_is_the_power_that_a_line_grows_with(points, expected):
    assert slope(points) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"at_most": 1.2}, True),
        ({"at_most": 1.1}, False),
        ({"at_least": 1.2}, True),
        ({"at_least": 1.3}, False),
        ({}, None),
    ],
)
def test_verdict_is_that_of_the_limit(limits, expected):
    report = Report(question="any")
    report.check("key", "what", 1.2, **limits)
    assert passes(report.checks[0]) is expected


def test_large_question_is_left_out_unless_asked_for(monkeypatch):
    module = import_module("benchmarks.questions.growth")
    monkeypatch.setattr(module, "IS_LARGE", True, raising=False)
    usual = choose([], large=False, smoke=False)
    large = choose([], large=True, smoke=False)
    assert "growth" in large
    assert "growth" not in usual
    assert sorted(usual + large) == sorted(QUESTIONS)
    assert choose(["growth", "login"], large=False, smoke=False) == ["login", "growth"]
    assert choose([], large=False, smoke=True) == list(QUESTIONS)


async def _work_once(patients: dict[str, str]) -> Ward:
    """One clinician's day at a site that shows *patients* by the chart opened."""
    opened: list[str] = []

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        target = head.split(b" ", 2)[1].decode()
        path = target.partition("?")[0]
        location = "/"
        if path == "/smart/launch/":
            location = "http://ehr/authorize?state=s&nonce=n"
        elif path == "/smart/callback/":
            opened.append(parse_qs(target.partition("?")[2])["code"][0].split(".")[1])
            location = f"/~{opened[-1]}/plain/"
        elif path.endswith("/chart/"):
            body = patients[path[2:4]]
            writer.write(
                f"HTTP/1.1 200 OK\r\nX-Statements: 3\r\nContent-Length: {len(body)}\r\n"
                f"Connection: close\r\n\r\n{body}".encode()
            )
            writer.close()
            return
        writer.write(
            f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nConnection: close\r\n"
            "Set-Cookie: csrftoken=c; Path=/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        ward = Ward(server.sockets[0].getsockname()[1], "http://ehr/fhir", pace=0)
        await ward.work(1, until=0)
    return ward


def test_clinician_opens_two_charts_and_signs_out():
    ward = asyncio.run(_work_once({"p1": "p1", "p2": "p2"}))
    assert ward.errors == []
    done = {name: len(seconds) for name, seconds in ward.seconds.items()}
    assert done == {"launch": 2, "page": 7, "sign-out": 1}
    assert ward.statements == [3] * 7


def test_page_with_the_patient_of_the_other_chart_is_an_error():
    ward = asyncio.run(_work_once({"p1": "p1", "p2": "p1"}))
    (error,) = ward.errors
    assert "the chart of p2" in error
    assert not ward.seconds["sign-out"]


def test_load_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
        run_load("benchmarks.load", 1, "/", "", 1, 1)


@pytest.mark.process
def test_handshakes_of_the_stub_are_counted(monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "")  # restored afterwards
    with running_stub() as plain, urlopen(f"{plain.origin}/counts") as answer:
        assert answer.status == 200  # urllib keeps the opener
    with (
        trusted_certificate() as certificate,
        running_stub(certificate=certificate) as stub,
    ):
        url = f"{stub.base_url}/Patient/p1"
        assert url.startswith("https:")
        with requests.Session() as session:
            for _ in range(3):
                assert session.get(url, timeout=20).json()["id"] == "p1"
        assert requests.get(url, timeout=20).ok
        assert stub.take_counts() == {"/fhir/Patient/p1": 4, "connections": 2}
        with requests.Session() as session:
            session.trust_env = False
            with pytest.raises(requests.exceptions.SSLError):
                session.get(url, timeout=20)


@pytest.mark.process
def test_visits_are_timed_and_must_succeed():
    with running_stub() as stub:
        port = urlsplit(stub.origin).port
        assert port
        visits = [("/fhir/Patient/p1", {"a": "1", "b": "2"})] * 3
        answer = apply_visits(port, visits, pages=7)
        assert len(answer["each"]) == 7
        assert 0 < max(answer["each"]) <= answer["taken"]
        assert stub.take_counts() == {"/fhir/Patient/p1": 7, "connections": 3}
        with pytest.raises(RuntimeError, match="404"):
            apply_visits(port, [("/missing/", {})], pages=1)


def test_stalls_of_an_event_loop_are_reported():
    sent = []

    async def site(_scope, _receive, _send):
        time.sleep(0.2)  # noqa: ASYNC251  # a view that blocks

    async def send(message):
        sent.append(message)

    async def use():
        watched = Watched(site)
        await watched({"path": "/stalls/"}, None, send)
        await asyncio.sleep(0.03)
        await watched({"path": "/"}, None, send)
        await asyncio.sleep(0.03)
        await watched({"path": "/stalls/"}, None, send)

    asyncio.run(use())
    before, after = (json.loads(each["body"]) for each in sent[1::2])
    assert before == []
    assert max(after) > 0.15


def _run(*questions: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", *questions],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
def test_benchmarks_run():
    done = _run("login")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.process
@pytest.mark.postgresql
@pytest.mark.redis
@pytest.mark.timeout(900)
def test_every_benchmark_runs():
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr


def test_unknown_question_is_refused():
    done = _run("everything")
    assert done.returncode == 2
    assert "choose from fhir_read" in done.stderr
