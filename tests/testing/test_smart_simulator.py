"""``manage.py smart_simulator`` in a process of its own."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from django.core.management import CommandError, call_command, load_command_class

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.faults import FAULTS

_ROOT = Path(__file__).parent.parent.parent
_START = "from django.core.management import execute_from_command_line as run; "


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    script = f"{_START}import sys; run(['manage.py', *sys.argv[1:]])"
    with subprocess.Popen(
        [
            *(sys.executable, "-c", script, "smart_simulator", "--port", "0"),
            *("--path", "sim/fhir", "--access-token-lifetime", "5"),
            *("--redirect-uri", "http://127.0.0.1:9/a", "--fault", "token_500"),
        ],
        cwd=_ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        yield running
        running.kill()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(
    process: subprocess.Popen[str], number: int
) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Stop with"):
            break
    greeting = "".join(lines)
    found = re.search(r"FHIR base URL: (\S+)", greeting)
    assert found is not None, greeting
    base_url = found[1]
    assert base_url.endswith("/sim/fhir")
    (printed,) = re.findall(r"python manage.py (smart_register .*)", greeting)
    command, *options = shlex.split(printed)
    parser = load_command_class("django_smart", command).create_parser("", command)
    assert parser.parse_args(options).base_url == base_url
    assert "http://127.0.0.1:9/a" in greeting
    document = requests.get(f"{base_url}/.well-known/smart-configuration").json()
    form = {"grant_type": "authorization_code"}
    assert requests.post(document["token_endpoint"], data=form).status_code == 500
    origin = base_url.removesuffix("/sim/fhir")
    assert len(requests.get(f"{origin}/_control/requests").json()) == 2
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "200 GET /sim/fhir/.well-known/smart-configuration" in rest
    assert "Traceback" not in rest


def test_faults_are_listed_with_what_an_app_does() -> None:
    out = io.StringIO()
    call_command("smart_simulator", "--list-faults", stdout=out)
    lines = out.getvalue().splitlines()
    assert len(lines) == len(FAULTS)
    starts = [line.split()[:3] for line in lines]
    assert ["id_token_alg_none", "id_token", "refuse"] in starts
    assert ["revoke_204", "revoke", "tolerate"] in starts
    assert ["client_credentials_503", "client_credentials", "refuse"] in starts
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fault", "unknown"],
        ["--auth-method", "none", "--client-secret", "x"],
        ["--auth-method", "mtls"],
    ],
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("smart_simulator", *arguments, "--port", "0")


def test_taken_port_is_told() -> None:
    with EHRSimulator().serve() as origin:
        port = origin.rpartition(":")[2]
        with pytest.raises(CommandError, match=f"localhost:{port}"):
            call_command("smart_simulator", "--port", port)
