"""Pages on the settings, addresses and views of a site, put into one as they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from logging import Formatter, LogRecord, makeLogRecord
from logging.config import DictConfigurator
from types import ModuleType
from typing import Any

import click
import pytest
from celery.bin.celery import celery as celery_command
from cryptography.fernet import Fernet
from django.core.checks import run_checks
from django.shortcuts import render
from django.template import engines
from django.test import Client, RequestFactory
from django.urls import include, path, reverse
from django.utils import timezone
from gunicorn.config import Config
from kombu.transport.redis import Channel as RedisChannel
from prometheus_client import REGISTRY

import tests
from django_smart import transport
from django_smart.clients import build_fhir_client
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.schedule import BEAT_SCHEDULE
from django_smart.servers.discovery import fetch_configuration
from django_smart.signals import launch_completed
from django_smart.testing import EHRSimulator
from tests.celery import app as celery_app
from tests.docs.blocks import Block, apply, do, execute, read_blocks
from tests.ehr import CLIENT_ID, PATIENT, SITE, connect, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db
_BACKGROUND = "how-to/keep-access-fresh.rst"
_VIEWS = "how-to/views.rst"
_LIBRARIES = "how-to/other-libraries.rst"
_LOGS = "how-to/keys-and-logs.rst"


@pytest.fixture
def _own_celery() -> Iterator[None]:
    """A page's Celery app is this process's for the test alone."""
    yield
    celery_app.set_current()
    celery_app.set_default()


def parse_celery(words: list[str]) -> dict[str, Any]:
    """Options of a command line of Celery's, which has to know them."""
    assert words[:3] == ["celery", "-A", "clinic"]
    command = celery_command.commands[words[3]]
    parser = command.make_parser(click.Context(command))
    options, rest, _ = parser.parse_args(words[4:])
    assert rest == []
    return dict(options)


# How-to pages


def test_add_to_a_site(settings, monkeypatch, put_urls, put_templates):
    install, conf, local, *blocks = read_blocks("how-to/add-to-a-site.rst")
    urls, prepare, register, view, page_of_view, links, live = blocks
    (class_,) = read_blocks(_VIEWS, "Class-based views")
    asynchronous, *_ = read_blocks(_VIEWS, "Async views")
    assert install.commands == [["pip", "install", "django-smart"]]
    apply(settings, conf, local)
    for words in prepare.commands:
        do(words)
    del settings.SMART_INSECURE_HTTP_HOSTS
    apply(settings, conf)
    settings.SILENCED_SYSTEM_CHECKS = ["mail.E001"]  # of the tests' own mail
    for words in (*prepare.commands, *live.commands):
        do(words)

    ehr = EHRSimulator(base_url="https://ehr.example.org/fhir")
    monkeypatch.setenv("EHR_SECRET", "from the vendor")
    ((*words,),) = register.commands
    with transport.mounted("https://ehr.example.org", ehr.adapter()):
        printed = do(words).json
        ehr.register_client(
            "my-app",
            client_secret="from the vendor",
            redirect_uris=[printed["redirect_uri"]],
        )
        names = execute(view, class_, asynchronous)
        put_urls(
            [
                *execute(urls)["urlpatterns"],
                path("patient/", names["a1c"]),
                path("class/", names["A1cView"].as_view()),
                path("banner/", names["banner"]),
            ]
        )
        put_templates(
            a1c=page_of_view.code,
            banner="{{ patient.id }}",
        )
        browser = make_browser()
        launch_id = ehr.create_launch("my-app", patient=PATIENT)
        answer = browser.get(
            "/smart/launch/", {"iss": ehr.base_url, "launch": launch_id}
        )
        page = browser.get(ehr.authorize(answer["Location"]), follow=True)
        prefix, _, _ = page.redirect_chain[-1][0].rpartition("patient/")
        assert prefix.startswith("/~")
        assert b": 9.4" in page.content
        assert browser.get(f"{prefix}class/").status_code == 200
        assert browser.get(f"{prefix}banner/").content.decode() == PATIENT
    assert Client().get("/class/").status_code == 403
    assert Client().get("/banner/").status_code == 403
    html = engines["django"].from_string(links.code)
    content = html.render({}, RequestFactory().get("/"))
    assert 'href="/smart/connections/"' in content
    assert 'action="/smart/logout/"' in content


@pytest.fixture
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMART_ENCRYPTION_KEYS", raising=False)


@pytest.mark.usefixtures("_clean_environment")
def test_deploy_behind_a_proxy(settings, monkeypatch):
    secure, name, cookie, cache, keys, make, private, compose, check = read_blocks(
        "how-to/deploy-behind-a-proxy.rst"
    )
    logs, _ = read_blocks(_LOGS, "Logs")
    reports, _ = read_blocks(_LOGS, "Error reports")
    ((_, *words),) = make.commands
    made = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv("SMART_ENCRYPTION_KEYS", made.stdout.strip())
    del settings.SMART_SITE_URL
    settings.LOGIN_URL = "admin:login"
    settings.LOGGING = {}
    before = {each.id for each in run_checks(include_deployment_checks=True)}
    assert {"django_smart.W033", "django_smart.W041"} <= before
    apply(settings, secure, name, cookie, cache, keys, logs, reports, private)
    assert settings.SMART_SITE_URL == SITE
    after = {str(each.id) for each in run_checks(include_deployment_checks=True)}
    assert {each for each in after if each.startswith("django_smart")} == set()
    assert check.commands == [["python", "manage.py", "check", "--deploy"]]
    assert compose.commands[-1][-4:] == check.commands[0]


def test_keep_secrets_out_of_logs(settings):
    logs, access = read_blocks(_LOGS, "Logs")
    reports, _ = read_blocks(_LOGS, "Error reports")
    settings.LOGGING = {}

    def told() -> set[str]:
        found = run_checks(include_deployment_checks=True)
        return {str(each.id) for each in found if "redaction" in str(each.hint)}

    assert len(told()) == 2
    apply(settings, logs, reports)
    assert told() == set()
    configurator = DictConfigurator(settings.LOGGING)
    redact = configurator.configure_filter(settings.LOGGING["filters"]["redaction"])
    record = makeLogRecord({"msg": "GET /smart/callback/?code=hush&state=hush"})
    filtered = redact.filter(record)
    line = filtered if isinstance(filtered, LogRecord) else record
    assert "hush" not in line.getMessage()
    ((program, *words),) = access.commands
    options = Config().parser().parse_args(words)
    assert (program, options.accesslog, options.args) == (
        "gunicorn",
        "-",
        ["clinic.wsgi"],
    )


def test_sentry_sees_no_request_to_the_ehr(monkeypatch):
    _, block = read_blocks(_LOGS, "Error reports")
    options: dict[str, Any] = {}
    sdk: Any = ModuleType("sentry_sdk")
    sdk.init = options.update
    stdlib: Any = ModuleType("sentry_sdk.integrations.stdlib")
    # The integration that records requests of http.client, as of version 2.75.
    stdlib.StdlibIntegration = type("StdlibIntegration", (), {})
    for module in (sdk, ModuleType("sentry_sdk.integrations"), stdlib):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    execute(block)
    (disabled,) = options["disabled_integrations"]
    assert isinstance(disabled, stdlib.StdlibIntegration)
    assert options["include_local_variables"] is False
    assert options["max_request_body_size"] == "never"


@pytest.mark.usefixtures("_own_celery")
def test_celery(settings, monkeypatch):
    app, package, schedule, start, redis, rabbitmq, routes, queue = read_blocks(
        "how-to/celery.rst"
    )
    monkeypatch.setitem(os.environ, "DJANGO_SETTINGS_MODULE", "tests.settings")
    apply(settings, schedule, routes)
    clinic = ModuleType("clinic")
    clinic.__path__ = []  # a package
    module: Any = ModuleType("clinic.celery")
    exec(app.code, module.__dict__)
    monkeypatch.setitem(sys.modules, "clinic", clinic)
    monkeypatch.setitem(sys.modules, "clinic.celery", module)
    exec(package.code, {"__name__": "clinic", "__package__": "clinic"})
    conf = module.app.conf
    # As a worker does when it starts.
    module.app.loader.import_default_modules()
    assert conf.beat_schedule == BEAT_SCHEDULE
    assert conf.broker_url == "redis://localhost:6379/0"
    assert {each["task"] for each in conf.beat_schedule.values()} <= set(
        module.app.tasks
    )
    route = module.app.amqp.router.route({}, "django_smart.tasks.refresh_grants")
    assert route["queue"].name == "smart"

    worker, beat = map(parse_celery, start.commands)
    assert (worker, beat) == ({"concurrency": "2"}, {})
    ((*words,),) = queue.commands
    assert parse_celery(words) == {"queues": "smart", "concurrency": "2"}
    options = execute(redis)["CELERY_BROKER_TRANSPORT_OPTIONS"]
    assert options.keys() <= set(RedisChannel.from_transport_options)
    for block, transport_name in ((redis, "redis"), (rabbitmq, "amqp")):
        url = execute(block)["CELERY_BROKER_URL"]
        broker = module.app.connection_for_write(url)
        assert broker.transport_cls == transport_name


def test_keep_access_fresh(ehr: EHRSimulator):
    use, use_all = read_blocks(_BACKGROUND, "With a user's access")
    registration = make_registration(
        standalone_scope="openid fhirUser launch/patient offline_access "
        "patient/Observation.rs"
    )
    row = connect(make_browser(), ehr, patient=PATIENT)
    TokenGrant.objects.update(expires_at=timezone.now(), refresh_due_at=timezone.now())
    do(["python", "manage.py", "smart_refresh"])
    grant = TokenGrant.objects.get()
    assert grant.expires_at > timezone.now()
    found = execute(use)["latest_a1c"](row.user, registration.server, PATIENT)
    assert len(list(found)) > 10
    ((name, values),) = execute(use_all)["latest_a1c_of_all"](row.user)
    assert (name, len(list(values))) == ("Harbour Hospital", len(list(found)))


def test_monitor(settings, monkeypatch, put_urls, registration: ClientRegistration):
    urls, answer, install, app, *traces, logs = read_blocks("how-to/monitor.rst")
    monkeypatch.setenv("HEALTH_TOKEN", "a token of the monitor's")
    put_urls(execute(urls)["urlpatterns"])
    page = Client().get(
        "/health/grants/", headers={"Authorization": "Bearer a token of the monitor's"}
    )
    shown = json.loads(answer.code)
    assert page.json().keys() == shown.keys()
    assert page.json()["servers"][0].keys() == shown["servers"][0].keys()
    assert Client().get("/health/grants/").status_code in {401, 403}

    assert install.commands == [["pip", "install", "django-smart[prometheus]"]]
    clinic: Any = execute(app)["ClinicConfig"]("clinic", tests)
    known = set(REGISTRY._collector_to_names)
    clinic.ready()
    (collector,) = set(REGISTRY._collector_to_names) - known
    REGISTRY.unregister(collector)

    install_traces, exclude = traces
    assert install_traces.commands == [["pip", "install", "django-smart[otel]"]]
    (_, assignment), (_, disabled) = exclude.commands
    excluded = assignment.partition("=")[2].split(",")
    for name in ("launch", "login"):
        assert any(
            re.search(each, reverse(f"django_smart:{name}")) for each in excluded
        )
    # fhir.session is a requests.Session, whose URLs contain patient IDs.
    assert disabled == "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=requests,urllib3"

    apply(settings, logs)
    formatter = settings.LOGGING["formatters"]["fields"]
    lines = Formatter(formatter["format"], style="{", defaults=formatter["defaults"])
    plain = makeLogRecord({"msg": "hello", "levelname": "INFO"})
    assert lines.format(plain) == "INFO hello grant= "
    ours = makeLogRecord({"msg": "x", "levelname": "INFO", "smart_grant": 5})
    assert "grant=5" in lines.format(ours)


def test_rotate_encryption_keys(settings, registration: Any):
    make, announce, first, move, check = read_blocks(
        _LOGS, "Rotate the encryption keys"
    )
    keys = {
        "OLD_KEY": Fernet.generate_key().decode(),
        "NEW_KEY": Fernet.generate_key().decode(),
    }
    assert make.commands[0][:2] == ["python", "-c"]

    def export(block: Block) -> None:
        printed = subprocess.run(
            ["sh", "-c", f"{block.code[2:]}printenv SMART_ENCRYPTION_KEYS"],
            env={**os.environ, **keys},
            capture_output=True,
            text=True,
            check=True,
        )
        settings.SMART_ENCRYPTION_KEYS = printed.stdout.strip().split(",")

    settings.SMART_ENCRYPTION_KEYS = [keys["OLD_KEY"]]
    registration.client_secret = "hush"
    registration.save()
    for block in (announce, first):
        export(block)
        registration.refresh_from_db()
        assert registration.client_secret == "hush"
    assert [keys["NEW_KEY"], keys["OLD_KEY"]] == settings.SMART_ENCRYPTION_KEYS

    def ran(block: Block) -> None:
        command, shown = block.code.splitlines()
        said = do(command.removeprefix("$ ").split()).out
        without_numbers = str.maketrans("", "", "0123456789")
        assert said.strip().translate(without_numbers) == shown.translate(
            without_numbers
        )

    ran(move)
    ran(check)
    settings.SMART_ENCRYPTION_KEYS = [keys["NEW_KEY"]]
    registration.refresh_from_db()
    assert registration.client_secret == "hush"


# With the launch's client


def test_fhir_in_the_browser(
    settings, put_urls, put_templates, ehr: EHRSimulator, registration: Any
):
    urls, html, _script, notes = read_blocks("how-to/fhir-in-the-browser.rst")
    proxy = execute(notes)["NotesProxyView"]
    put_urls(
        [
            *execute(urls)["urlpatterns"],
            path("notes/<path:path>", proxy.as_view()),
            path("smart/", include("django_smart.urls")),
            path("page/", lambda request: render(request, "page.html")),
        ]
    )
    put_templates(page=html.code)

    browser = make_browser()
    row = launch(browser, ehr)
    page = browser.get(f"/~{row.key}/page/").content.decode()
    assert f'data-fhir="/~{row.key}/fhir/"' in page
    assert f'data-patient="{PATIENT}"' in page
    read = browser.get(f"/~{row.key}/fhir/Patient/{PATIENT}")
    assert read.json()["id"] == PATIENT
    assert browser.get(f"/~{row.key}/notes/Patient/{PATIENT}").status_code == 200
    refused = browser.get(f"/~{row.key}/notes/Observation?patient={PATIENT}")
    assert refused.status_code == 403


def test_other_libraries(ehr: EHRSimulator, registration: Any, capsys):
    (models,) = read_blocks(_LIBRARIES, "Models of ``fhir.resources``")
    fhirpy, fhirclient = read_blocks(_LIBRARIES, "``fhirpy`` and ``fhirclient``")
    (session,) = read_blocks(
        _LIBRARIES, "Any library that accepts a ``requests.Session``"
    )
    grant = launch(make_browser(), ehr).grant
    assert grant is not None
    known = {"fhir": build_fhir_client(grant), "patient_id": PATIENT}
    assert execute(models, **known)["patient"].id == PATIENT
    assert len(capsys.readouterr().out.splitlines()) > 10
    assert len(execute(fhirpy, **known)["observations"]) > 10
    assert len(execute(fhirclient, **known)["observations"]) > 10
    assert execute(session, **known)["response"].json()["id"] == PATIENT


# Reference and explanation


def test_signals(ehr: EHRSimulator, registration: Any, caplog):
    (block,) = read_blocks("reference/signals.rst")
    receive = execute(block)["note_launch"]
    try:
        with caplog.at_level("INFO", logger="audit"):
            row = launch(make_browser(), ehr)
    finally:
        launch_completed.disconnect(receive)
    assert f"launch {row.pk} by user {row.user_id}" in caplog.messages


def test_views(put_urls, ehr: EHRSimulator, registration: Any):
    block, legacy = read_blocks("reference/views.rst")
    assert "callback_id=" in legacy.code
    put_urls(execute(block)["urlpatterns"])
    for intent, suffix in (("order", "/?order=1"), (None, "/")):
        browser = make_browser()
        launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT, intent=intent)
        answer = browser.get(
            "/smart/launch/", {"iss": ehr.base_url, "launch": launch_id}
        )
        done = browser.get(ehr.authorize(answer["Location"]))
        assert done["Location"].endswith(suffix), done["Location"]


def test_discovery(ehr: EHRSimulator, registration: Any):
    (block,) = read_blocks(
        "how-to/odd-servers.rst", "What your site reads from a server"
    )
    fetch_configuration(registration.server)
    *statements, ehr_launch = block.code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(statements), names)
    assert eval(ehr_launch, names) is True
