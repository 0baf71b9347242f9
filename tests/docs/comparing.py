"""Runs the tasks of a page in three libraries, also at a server in trouble."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import requests
from fhirclient.server import FHIRServer
from fhirpy import AsyncFHIRClient as AsyncPy
from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import BaseFHIRError

from django_smart import transport
from django_smart.exceptions import FHIRError
from django_smart.fhir import AsyncFHIRClient, FHIRClient
from django_smart.fhir.guard import RecordRules
from django_smart.fhir.json import dump_json
from django_smart.protocol.scopes import ScopeSet
from tests.docs.blocks import Block, execute, read_blocks
from tests.fhir.servers import Carrier, Tokens
from tests.transport.servers import LOOPBACK, Server

__all__ = ["CODE", "Asked", "Chart", "Task", "judge", "measure", "observe", "quantity"]

CODE = "../tests/docs/twenty-tasks.rst"
LIBRARIES = ("django_smart", "fhirpy", "fhirclient")
# What a program can catch and tell apart, and no mishap of the code.
ERRORS = (BaseFHIRError, FHIRError, ValueError, requests.RequestException)


@dataclass
class Asked:
    """A request, as the server sees it."""

    method: str
    path: str
    target: str
    params: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Chart:
    """What a server of one task answers, and what it was asked."""

    task: Task
    is_troubled: bool = False
    #: Where the other server is.
    elsewhere: str = ""
    asked: list[Asked] = field(default_factory=list)
    has_failed: bool = False

    def handle(self, sock: socket.socket, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines)
        }
        url = urlsplit(target)
        path, query = url.path.removeprefix("/fhir/"), url.query
        if path.endswith("/_search"):
            method, path, query = "GET", path.removesuffix("/_search"), body.decode()
            body = b""
        asked = Asked(
            method=method,
            path=path,
            target=target,
            params=dict(parse_qsl(query, keep_blank_values=True)),
            headers=headers,
            body=json.loads(body) if body else None,
        )
        self.asked.append(asked)
        answer = self.task.trouble(self, asked) if self.is_troubled else None
        status, value, *more = answer or self.task.answer(self, asked)
        text = value if isinstance(value, bytes) else b""
        if not isinstance(value, bytes | None):
            text = dump_json(value)
        if not any(each.startswith("Content-Type:") for each in more):
            more.append("Content-Type: application/fhir+json")
        start = [f"HTTP/1.1 {status} X", f"Content-Length: {len(text)}", *more]
        sock.sendall("\r\n".join([*start, "", ""]).encode() + text)

    def fail_once(self) -> bool:
        is_first, self.has_failed = not self.has_failed, True
        return is_first


class Task:
    """A task of the page, its server, and what is right."""

    title: str
    arguments: tuple[Any, ...] = ()
    expected: Any
    #: The same where something has gone wrong; an error if it is None.
    expected_in_trouble: Any
    #: What was granted; unknown if it is empty.
    scope: ClassVar[str] = ""

    def answer(self, chart: Chart, asked: Asked) -> tuple[Any, ...]:
        raise NotImplementedError

    def trouble(self, chart: Chart, asked: Asked) -> tuple[Any, ...] | None:
        """Answer in another way than as a rule; ``None`` for the rule."""
        raise NotImplementedError

    def get_arguments(self) -> tuple[Any, ...]:
        return self.arguments

    def read(self, result: Any) -> Any:
        """What has to be equal of a result."""
        return result

    def perform(
        self, library: str, blocks: list[Block], *, is_troubled: bool
    ) -> tuple[str, int]:
        """Run the code; how it ended and how many requests it sent."""
        names = execute(blocks[0])
        functions = (
            each
            for each in ast.parse(blocks[0].code).body
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        function = next(functions)
        is_async = isinstance(function, ast.AsyncFunctionDef)
        chart, other = Chart(self, is_troubled), Chart(self)
        with _serving(other) as elsewhere, _serving(chart) as host:
            chart.elsewhere = elsewhere
            client = self.build_client(library, f"http://{host}/fhir", is_async)

            def call() -> Any:
                result = names[function.name](client, *self.get_arguments())
                return asyncio.run(result) if is_async else result

            try:
                outcome = judge(self, call, is_troubled=is_troubled)
            finally:
                if library == "fhirclient":
                    client.session.close()
        if any("authorization" in asked.headers for asked in other.asked):
            outcome = "wrong"
        return outcome, len(chart.asked)

    def build_client(self, library: str, base_url: str, is_async: bool) -> Any:
        token = "Bearer token-1"
        if library == "fhirpy":
            return (AsyncPy if is_async else SyncFHIRClient)(base_url, token)
        if library == "fhirclient":
            server = FHIRServer(None, base_uri=base_url)
            server.session.headers["Authorization"] = token
            return server
        send = partial(transport.send, **_LIMITS)
        stream = partial(transport.open_stream, **_LIMITS)
        fhir = FHIRClient(
            base_url=base_url,
            tokens=Tokens(
                lambda: "token-1",
                lambda used: "token-2",
                lambda: ScopeSet.parse(self.scope) if self.scope else None,
            ),
            transport=Carrier(send, stream),
            patient_id="1",
            record_rules=RecordRules(),
        )
        return AsyncFHIRClient(fhir) if is_async else fhir


_LIMITS: dict[str, Any] = {
    "timeouts": transport.Timeouts(),
    "max_body": 1_000_000,
    "insecure_hosts": LOOPBACK,
}


@contextmanager
def _serving(chart: Chart) -> Iterator[str]:
    try:
        with Server(chart.handle) as server:
            yield f"127.0.0.1:{server.port}"
    finally:
        transport.close()


def judge(task: Task, call: Callable[[], Any], *, is_troubled: bool) -> str:
    expected = task.expected_in_trouble if is_troubled else task.expected
    try:
        result = call()
    except Exception as exc:
        if not is_troubled:
            raise
        return "right" if expected is None and isinstance(exc, ERRORS) else "raises"
    try:
        return "right" if task.read(result) == expected else "wrong"
    except (KeyError, TypeError):
        return "wrong"


def observe(number: int, **members: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": str(number),
        "status": "final",
        "code": {"text": "HbA1c"},
        "subject": {"reference": f"Patient/{number % 2 + 1}"},
        **members,
    }


def quantity(value: float, **members: Any) -> dict[str, Any]:
    return {"valueQuantity": {"value": value, "unit": "%", **members}}


def _read_code(task: Task) -> dict[str, list[Block]]:
    """The blocks of *task*, by library."""
    code: dict[str, list[Block]] = {}
    library = ""
    for block in read_blocks(CODE, task.title):
        if block.before:
            library = block.before.removeprefix("With ").removesuffix(":")
        code.setdefault(library, []).append(block)
    assert set(code) == set(LIBRARIES)
    return code


def _count_lines(blocks: list[Block]) -> int:
    """Lines with something on them, without imports."""
    count = 0
    for block in blocks:
        assert all(len(line) <= 88 for line in block.code.splitlines())
        count += len(re.findall(r"^ *[^ #\n]", block.code, re.MULTILINE))
        if block.language == "python":
            count -= sum(
                isinstance(each, ast.Import | ast.ImportFrom)
                for each in ast.parse(block.code).body
            )
    return count


def measure(task: Task) -> str:
    """Run *task* in every library; the row of the page's table that this makes."""
    cells = []
    lines: dict[str, int] = {}
    for library, code in _read_code(task).items():
        lines[library] = _count_lines(code)
        outcome, sent = task.perform(library, code, is_troubled=False)
        assert outcome == "right", (task.title, library, outcome)
        outcome, _ = task.perform(library, code, is_troubled=True)
        cells.append(f'"{lines[library]}, {sent}, {outcome}"')
        assert outcome == "right" or library != "django_smart", task.title
    assert lines["django_smart"] == min(lines.values()), task.title
    return f'   "{task.title}", {", ".join(cells)}'
