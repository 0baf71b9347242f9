"""
The deployment of the documentation, without containers.

The commands of ``compose.yaml`` run as processes behind nginx with its configuration;
only addresses and folders differ.  PostgreSQL and Redis are those of this machine.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import requests
import trustme
import yaml
from cryptography.fernet import Fernet
from requests.adapters import HTTPAdapter

from django_smart.testing import EHRSimulator
from tests.docs.blocks import DOCS
from tests.e2e.canaries import Canaries
from tests.factories import register_at
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT
from tests.processes import copy_example, get_free_port, stop, wait_for
from tests.services import nginx_path, postgresql_url, redis_url

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.postgresql,
    pytest.mark.process,
    pytest.mark.redis,
]

FILES = DOCS / "how-to" / "deploy"
HOST = "app.example.org"
SITE = f"https://{HOST}"
DATABASE = "smart_deployment"
BROKER, CACHE = redis_url(11), redis_url(12)
SCOPE = (
    "launch openid fhirUser patient/Patient.rs patient/Observation.rs offline_access"
)


class _ToNginx(HTTPAdapter):
    """Connects to nginx on this machine, as DNS would have it."""

    def __init__(self, port: int) -> None:
        self._address = f"https://127.0.0.1:{port}"
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"server_hostname": HOST, "assert_hostname": HOST}
        super().init_poolmanager(*args, **kwargs)

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        moved = request.copy()
        moved.url = request.url.replace(SITE, self._address)
        moved.headers["Host"] = HOST
        response = super().send(moved, *args, **kwargs)
        response.url, response.request = request.url, request
        return response


class Deployment:
    """The compose file's services as processes in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_example(folder)
        self.logs = folder / "logs"
        self.logs.mkdir()
        authority = trustme.CA()
        self.authority = str(folder / "authority.pem")
        authority.cert_pem.write_to_path(self.authority)
        self.certificate = authority.issue_cert(HOST, "localhost")
        for pem in self.certificate.cert_chain_pems:
            pem.write_to_path(folder / "fullchain.pem", append=True)
        self.certificate.private_key_pem.write_to_path(folder / "privkey.pem")
        # Where a service listens in its container, and where it does here.
        self.ports = {port: get_free_port() for port in ("80", "443", "8000", "8001")}
        self.settings = self._read_settings()
        compose = (FILES / "compose.yaml").read_text()
        filled_in = string.Template(compose).substitute(self.settings)
        self.services = yaml.safe_load(filled_in)["services"]

    def _read_settings(self) -> dict[str, str]:
        """The example of ``.env``, with a value for each variable."""
        lines = (FILES / "env.example").read_text().splitlines()
        named = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
        generated = {
            "SECRET_KEY": os.urandom(40).hex(),
            "SMART_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "POSTGRES_PASSWORD": os.urandom(8).hex(),
        }
        assert {name for name, value in named.items() if not value} == set(generated)
        return named | generated

    def _localize(self, text: str) -> str:
        """Replace the containers' addresses with those of this machine."""
        for inside, here in self.ports.items():
            text = re.sub(
                rf"(?:0\.0\.0\.0|\bweb(?:-async)?):{inside}\b",
                f"127.0.0.1:{here}",
                text,
            )
            text = re.sub(rf"--port={inside}\b", f"--port={here}", text)
            text = re.sub(rf"\blisten {inside}\b", f"listen 127.0.0.1:{here}", text)
        return text.replace("--host=0.0.0.0", "--host=127.0.0.1")

    def environment(self, service: str) -> dict[str, str]:
        """Only what a program needs to start, and what the compose file sets."""
        kept = ("HOME", "LANG", "PYTHONPATH")
        addresses = {
            self._database_in_compose(): postgresql_url(DATABASE),
            "redis://redis:6379/0": BROKER,
            "redis://redis:6379/1": CACHE,
        }
        set_by_compose = self.services[service]["environment"]
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "REQUESTS_CA_BUNDLE": self.authority,
            "SMART_PRIVATE_HOSTS": "localhost",
            **self.settings,
            **{name: addresses[url] for name, url in set_by_compose.items()},
        }

    def _database_in_compose(self) -> str:
        """The URL of the database that the service ``db`` creates."""
        db = self.services["db"]["environment"]
        user, password = db["POSTGRES_USER"], db["POSTGRES_PASSWORD"]
        return f"postgres://{user}:{password}@db:5432/{db['POSTGRES_DB']}"

    def run(
        self, *command: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* to its end, as ``docker compose run web`` does."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment("web") | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @contextmanager
    def running(self, *services: str) -> Iterator[None]:
        """Run the commands of *services* until the block ends."""
        with ExitStack() as stack:
            started = []
            for name in services:
                command = map(self._localize, self.services[name]["command"])
                environment = self.environment(name)
                started.append(self._start(name, *command, environment=environment))
                stack.callback(stop, started[-1])
            # They end at the same time.
            for process in started:
                stack.callback(process.terminate)
            yield

    @contextmanager
    def nginx(self) -> Iterator[None]:
        """Run nginx with the configuration, which ``nginx -t`` accepts."""
        text = self._localize((FILES / "nginx.conf").read_text())
        text = text.replace("/etc/nginx/certificates", str(self.folder))
        text = text.replace("/var/log/nginx", str(self.logs))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{each}_temp_path {self.folder}/{each};\n" for each in kinds)
        file = self.folder / "nginx.conf"
        file.write_text(
            "daemon off; master_process off;\n"
            f"pid {self.folder}/nginx.pid; error_log {self.logs}/main.log notice;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{folders}{text}}}\n"
        )
        command = [str(nginx_path()), "-c", str(file), "-p", str(self.folder)]
        checked = subprocess.run(
            [*command, "-t"], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        process = self._start("nginx", *command, environment=dict(os.environ))
        try:
            yield
        finally:
            stop(process)

    def _start(
        self, name: str, *command: str, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def browser(self) -> requests.Session:
        """A browser that trusts the certificate."""
        browser = requests.Session()
        browser.mount(SITE, _ToNginx(self.ports["443"]))
        browser.verify = self.authority
        browser.trust_env = False  # REQUESTS_CA_BUNDLE would take precedence
        return browser

    def answers(self) -> bool:
        """Whether both servers answer; nginx would leave out one that does not yet."""
        headers = {"Host": HOST, "X-Forwarded-Proto": "https"}
        urls = [f"http://127.0.0.1:{self.ports[port]}" for port in ("8000", "8001")]
        try:
            return all(
                requests.get(url, headers=headers, timeout=30).ok for url in urls
            )
        except requests.RequestException:
            return False

    def read_log(self, name: str) -> str:
        """What was written to one log until now."""
        return (self.logs / f"{name}.log").read_text()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """The deployment, with a new database and nothing in Redis."""
    statement = f'DROP DATABASE IF EXISTS "{DATABASE}" WITH (FORCE)'
    with (
        psycopg.connect(postgresql_url("postgres"), autocommit=True) as connection,
        redis.Redis.from_url(BROKER) as broker,
        redis.Redis.from_url(CACHE) as cache,
    ):
        for each in (broker, cache):
            each.flushdb()
        connection.execute(statement)
        connection.execute(f'CREATE DATABASE "{DATABASE}"')
        yield Deployment(tmp_path)
        connection.execute(statement)
        for each in (broker, cache):
            each.flushdb()


@pytest.fixture
def ehr_with_tls(deployment: Deployment) -> Iterator[EHRSimulator]:
    """An EHR that the site reaches by https, as in production."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    deployment.certificate.configure_cert(context)
    with ehr.serve(ssl_context=context):
        yield ehr


def _register(deployment: Deployment, ehr: EHRSimulator) -> None:
    printed = deployment.run(
        *("python", "manage.py", "smart_register", "--base-url", ehr.base_url),
        *("--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET),
        *("--ehr-scope", SCOPE),
    )
    assert printed.returncode == 0, printed.stderr
    register_at(ehr, json.loads(printed.stdout)["redirect_uri"])


def _launch(browser: requests.Session, ehr: EHRSimulator) -> str:
    """Open a chart; returns the URL of the callback."""
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    query = {"iss": ehr.base_url, "launch": launch_id}
    started = browser.get(f"{SITE}/smart/launch/", params=query, allow_redirects=False)
    assert started.status_code == 302, started.text
    callback = ehr.authorize(started.headers["Location"])
    assert callback.startswith(f"{SITE}/smart/callback/")
    page = browser.get(callback)
    assert page.status_code == 200, page.text
    assert page.url.startswith(f"{SITE}/~")
    return callback


def test_compose_file_names_only_what_exists(deployment: Deployment) -> None:
    for service in deployment.services.values():
        assert set(service.get("depends_on", ())) <= set(deployment.services)
        if build := service.get("build"):
            root = FILES / build["context"]
            dockerfile = (root / build["dockerfile"]).read_text()
            for line in re.findall(r"^COPY (.+)", dockerfile, re.MULTILINE):
                *sources, _ = line.split()
                assert all((root / each).exists() for each in sources)
    mounted = deployment.services["nginx"]["volumes"]
    sources = {volume.partition(":")[0] for volume in mounted}
    assert sources == {"./nginx.conf", "./certificates"}
    assert (FILES / "nginx.conf").exists()


def test_deployment_checks_are_clean(deployment: Deployment) -> None:
    check = ("python", "manage.py", "check", "--deploy", "--fail-level=INFO")
    clean = deployment.run(*check)
    assert clean.returncode == 0, clean.stderr
    assert "no issues" in clean.stdout
    # Without the proxy's header, the site takes each request for plain http.
    assert deployment.run(*check, BEHIND_PROXY="0").returncode != 0


def test_deployment_launches_and_logs_no_secret(
    deployment: Deployment, ehr_with_tls: EHRSimulator
) -> None:
    ehr = ehr_with_tls
    canaries = Canaries(client_secret=CLIENT_SECRET, **_secrets(deployment))
    migrated = deployment.run(*deployment.services["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    _register(deployment, ehr)
    with deployment.nginx(), canaries.watching_answers(ehr):
        browser = deployment.browser()
        with deployment.running("web", "web-async", "worker", "beat"):
            wait_for(deployment.answers, what=f"an answer, see {deployment.logs}")
            # Three requests each: every step is once at the one and once at the other.
            used, _ = (_launch(browser, ehr) for _ in range(2))
            assert {cookie.secure for cookie in browser.cookies} == {True}
            assert browser.get(used).status_code == 409
            # The longest request line that the documentation promises.
            long = {"iss": ehr.base_url, "launch": "launch-" + "a" * 7900}
            canaries.add("launch", long["launch"])
            for _ in range(2):
                assert browser.get(f"{SITE}/smart/launch/", params=long).ok
            plain = requests.get(
                f"http://127.0.0.1:{deployment.ports['80']}{used.removeprefix(SITE)}",
                headers={"Host": HOST},
                allow_redirects=False,
                timeout=60,
            )
            assert (plain.status_code, plain.headers["Location"]) == (301, used)
            wait_for(
                lambda: "Task django_smart.tasks." in deployment.read_log("worker"),
                what=f"a task of beat, see {deployment.logs}",
            )
        # What nginx writes when nobody answers.
        for url in (used, f"{SITE}/"):
            assert browser.get(url).status_code == 502
    canaries.learn(ehr)
    assert {
        *("access_token", "client_secret", "code", "code_verifier", "launch"),
        *("refresh_token", "state", "SECRET_KEY"),
    } <= canaries.names
    for name in ("web", "web-async"):
        text = deployment.read_log(name)
        for path in ("launch", "callback"):
            assert f"/smart/{path}/?[hidden]" in text
    assert '"GET /smart/callback/" 502' in deployment.read_log("access")
    assert '"GET /smart/callback/" 301' in deployment.read_log("access")
    assert 'request: "GET / HTTP/1.1"' in deployment.read_log("error")
    for log in deployment.logs.iterdir():
        assert canaries.find(log.read_text()) == set(), log


def _secrets(deployment: Deployment) -> dict[str, str]:
    names = ("SECRET_KEY", "SMART_ENCRYPTION_KEYS", "POSTGRES_PASSWORD")
    return {name: deployment.settings[name] for name in names}
