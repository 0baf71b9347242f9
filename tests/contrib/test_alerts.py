"""The alerts of the operator's page, evaluated against the metrics endpoint."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from django.utils import timezone

from django_smart.contrib.monitoring import GrantCollector
from django_smart.grants.counting import Outcomes, count_lost
from django_smart.grants.deployment import adopt_grants, hold_grants
from django_smart.models import ClientRegistration, TaskRun
from django_smart.models.task_run import REFRESH
from tests.docs.blocks import DOCS
from tests.factories import make_grant, make_registration
from tests.processes import get_free_port, stop, wait_for
from tests.transport.servers import Server, answer

prometheus_client = pytest.importorskip(
    "prometheus_client", reason="needs the extra prometheus"
)

_RULES = DOCS / "how-to" / "alerts.yml"
_TEXT = _RULES.read_text()
_ALERTS: dict[str, str] = {
    name: re.sub(r"^\|\s+", "", expression)
    for name, expression in re.findall(
        r"- alert: (\w+)\n +expr: (.+?)\n +(?:for|labels):", _TEXT, re.S
    )
}
_SERVERS = (
    "fine",
    "late",
    "away",
    "paused",
    "refused",
    "stopped",
    "losing",
    "mistaken",
    "failing",
    "slow",
    "ending",
)


def _read_metrics() -> bytes:
    registry = prometheus_client.CollectorRegistry()
    registry.register(GrantCollector())
    text: bytes = prometheus_client.generate_latest(registry)
    return text


def _make_registrations() -> dict[str, ClientRegistration]:
    return {
        slug: make_registration(
            server__slug=slug, server__base_url=f"https://{slug}.example.org/fhir"
        )
        for slug in _SERVERS
    }


def _count(registration: ClientRegistration, code: str, seconds: float) -> None:
    outcomes = Outcomes(registration.server_id)
    outcomes.add(code, seconds=seconds, number=50)
    outcomes.write()


def _cause_trouble(registrations: dict[str, ClientRegistration]) -> None:
    """Each server gets the trouble that it is named for."""
    now = timezone.now()
    late: dict[str, Any] = {"refresh_due_at": now - timedelta(minutes=10)}
    make_grant(registrations["late"], **late)
    make_grant(registrations["away"], **late)
    state = registrations["away"].server.state
    state.paused_until = now + timedelta(minutes=5)
    state.save()
    registrations["paused"].server.paused = True
    registrations["paused"].server.save()
    for name, reason in (
        ("refused", "grants_refused"),
        ("stopped", "invalid_client"),
    ):
        registrations[name].refresh_stopped_at = now
        registrations[name].refresh_stop_reason = reason
        registrations[name].save()
    for _ in range(11):
        make_grant(
            registrations["losing"], status="needs_reauthorization", ended_at=now
        )
    count_lost(
        make_grant(registrations["mistaken"], status="revoked"), "context_changed"
    )
    for name in ("fine", "failing", "slow"):
        _count(registrations[name], "ok", 9.0 if name == "slow" else 0.2)
    _count(registrations["failing"], "token_server_error", 0.2)
    soon: dict[str, Any] = {"ends_at": now + timedelta(days=1), "ends_soon_at": now}
    make_grant(registrations["ending"], **soon)


@contextmanager
def _run_prometheus(folder: Path, port: int) -> Iterator[str]:
    """Prometheus, which scrapes *port* every second; its address."""
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"rule_files: ['{_RULES}']\n"
        "scrape_configs:\n"
        "  - job_name: site\n"
        "    scrape_protocols: ['PrometheusText0.0.4']\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    own = get_free_port()
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own}",
            "--log.level=warn",
        ]
    )
    try:
        yield f"http://127.0.0.1:{own}"
    finally:
        stop(process)


def _is_ready(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"{url}/-/ready", timeout=10).ok
    return False


def _find_firing(url: str) -> dict[str, set[str]]:
    """The alerts whose expression holds, with the servers that it holds for."""
    firing = {}
    for name, expression in _ALERTS.items():
        response = requests.get(
            f"{url}/api/v1/query", params={"query": expression}, timeout=10
        ).json()
        assert response["status"] == "success", response
        if found := response["data"]["result"]:
            firing[name] = {each["metric"].get("server", "") for each in found}
    return firing


@pytest.mark.process
@pytest.mark.prometheus
@pytest.mark.django_db
def test_each_alert_fires_for_its_trouble_and_for_nothing_else(
    tmp_path: Path,
) -> None:
    registrations = _make_registrations()
    # A failure of its kind before: the first one of all is no increase.
    _count(registrations["failing"], "token_server_error", 0.2)
    adopt_grants()
    TaskRun.objects.note(REFRESH)
    shown = [b""]

    def respond(connection: Any, request: bytes) -> None:
        answer(shown[0], headers=("Content-Type: text/plain; version=0.0.4",))(
            connection, request
        )

    def wait(url: str, expected: dict[str, set[str]]) -> None:
        shown[0] = _read_metrics()
        deadline = time.monotonic() + 120
        while _find_firing(url) != expected and time.monotonic() < deadline:
            time.sleep(0.5)
        assert _find_firing(url) == expected

    with (
        Server(respond) as endpoint,
        _run_prometheus(tmp_path, endpoint.port) as url,
    ):
        wait_for(lambda: _is_ready(url), what="Prometheus")
        assert _find_firing(url) == {"SMARTMetricsMissing": {""}}
        wait(url, {})
        _cause_trouble(registrations)
        trouble = {
            "SMARTGrantsOverdue": {"late"},
            "SMARTEHRPaused": {"away"},
            "SMARTPausedByOperator": {"paused"},
            "SMARTGrantsRefused": {"refused"},
            "SMARTRegistrationStopped": {"stopped"},
            "SMARTManyGrantsLost": {"losing"},
            "SMARTContextChanged": {"mistaken"},
            "SMARTRefreshesFail": {"failing"},
            "SMARTEHRSlow": {"slow"},
            "SMARTGrantsEnding": {"ending"},
        }
        wait(url, trouble)
        # Missing workers are one alert, and not one for each server.
        del trouble["SMARTGrantsOverdue"]
        site = {"SMARTNoWorker": {""}}
        # None has ever run.
        TaskRun.objects.update(ran_at=None)
        wait(url, {**trouble, **site})
        # The last one is gone, and the grants are on hold.
        TaskRun.objects.update(ran_at=timezone.now() - timedelta(minutes=6))
        hold_grants()
        site["SMARTNotAdopted"] = {""}
        wait(url, {**trouble, **site})
    assert set(_ALERTS) == {
        *trouble,
        *site,
        "SMARTMetricsMissing",
        "SMARTGrantsOverdue",
    }


@pytest.mark.prometheus
def test_rules_are_well_formed() -> None:
    subprocess.run(["promtool", "check", "rules", str(_RULES)], check=True)


_RUNS, _STANDS = "0+60x120", "0x120"
_LATE = {"grants_oldest_overdue_seconds{server='late'}": "600x120"}
_ADOPTED = {"deployment_adopted": "1x120"}


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("mine", "firing"),
    [
        pytest.param(
            {**_ADOPTED, "last_run_timestamp_seconds": _STANDS, **_LATE},
            {"NoWorker": ""},
            id="workers stopped",
        ),
        pytest.param(
            {**_ADOPTED, **_LATE}, {"NoWorker": ""}, id="workers never started"
        ),
        pytest.param(
            {**_ADOPTED, "last_run_timestamp_seconds": _RUNS, **_LATE},
            {"GrantsOverdue": "late"},
            id="workers too slow",
        ),
        pytest.param(
            {
                **_ADOPTED,
                "last_run_timestamp_seconds": _RUNS,
                "refreshes_total{server='shared',code='ok'}": "0+1x120",
                "refreshes_total{server='shared',code='server_timeout'}": "0+1x120",
            },
            {"RefreshesFail": "shared"},
            id="refreshes fail",
        ),
        pytest.param(
            {
                **_ADOPTED,
                "last_run_timestamp_seconds": _RUNS,
                **_LATE,
                "refresh_paused{server='late'}": "1x120",
                "refresh_paused_by_operator{server='late'}": "0x120",
            },
            {"EHRPaused": "late"},
            id="paused",
        ),
        pytest.param(
            {"deployment_adopted": "1x30 stale"},
            {"MetricsMissing": ""},
            id="metrics went missing",
        ),
    ],
)
def test_one_of_two_deployments_in_trouble_is_the_one_that_is_named(
    mine: dict[str, str], firing: dict[str, str], tmp_path: Path
) -> None:
    fine = {
        **_ADOPTED,
        "last_run_timestamp_seconds": _RUNS,
        "grants_oldest_overdue_seconds{server='late'}": "0x120",
        "refresh_paused{server='late'}": "0x120",
        "refresh_paused_by_operator{server='late'}": "1x120",
        "refreshes_total{server='shared',code='ok'}": "0+60x120",
        "registrations_stopped{server='late'}": "0x120",
    }
    series = [
        {
            "series": f"django_smart_{name.partition('{')[0]}"
            f"{{job='site', instance='{instance}', {name.partition('{')[2] or '}'}",
            "values": values,
        }
        for instance, deployment in (("fine", fine), ("mine", mine))
        for name, values in deployment.items()
    ]
    expected = [
        {
            "labels": f"{{alertname='SMART{name}', instance='mine'"
            f"{', server=' + repr(server) if server else ''}}}",
            "value": 1,
        }
        for name, server in firing.items()
    ]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": "sum by (alertname, instance, server) "
                "(ALERTS{alertstate='firing'})",
                "eval_time": "60m",
                "exp_samples": expected,
            }
        ],
    }
    file = tmp_path / "two.yml"
    # JSON is YAML, too.
    file.write_text(json.dumps({"rule_files": [str(_RULES)], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.django_db
def test_every_metric_of_an_alert_is_exported() -> None:
    make_registration()
    TaskRun.objects.note(REFRESH)
    exported = set(re.findall(rb"^(django_smart_\w+)", _read_metrics(), re.M))
    used = set(re.findall(r"django_smart_\w+", " ".join(_ALERTS.values())))
    assert len(used) > 10
    assert used <= {each.decode() for each in exported}


def test_every_alert_has_a_runbook_of_its_name() -> None:
    page = (DOCS / "how-to" / "runbooks.rst").read_text()
    assert len(_ALERTS) > 10
    assert re.findall(r"^(SMART\w+)\n~+$", page, re.M) == list(_ALERTS)
    linked = re.findall(r"runbook_url: .+/how-to/runbooks\.html#(\w+)$", _TEXT, re.M)
    assert linked == [name.lower() for name in _ALERTS]
