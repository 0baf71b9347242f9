"""How long discovered documents are kept, and what happens while a server is down."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from django_smart.exceptions import (
    DiscoveryStatusError,
    ServerTimeoutError,
    TokenServerError,
)
from django_smart.grants.refresh import get_access_token
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    ServerState,
    TokenGrant,
)
from django_smart.schedule import BEAT_SCHEDULE
from django_smart.servers import discovery
from django_smart.servers.discovery import (
    _store,
    get_configuration,
    get_jwks,
    refresh_servers,
)
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.clocks import HostClock
from tests.ehr import CLIENT_ID, get_callback, launch, make_browser, start_login
from tests.errors import raises_code
from tests.factories import make_grants, make_registration, make_server, reload_grant
from tests.grants.working import refresh_grants
from tests.threads import run_together

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
JWKS = "/auth/jwks"
MINUTE = timedelta(minutes=1)


def read() -> FHIRServer:
    """The row as another process finds it."""
    return FHIRServer.objects.get()


@pytest.mark.parametrize(
    ("cache_control", "lifetime"),
    [
        (None, timedelta(days=1)),
        ("public", timedelta(days=1)),
        ("max-age=soon", timedelta(days=1)),
        ("max-age=99999999999999", timedelta(days=1)),
        ("max-age=604800", timedelta(days=1)),
        ("max-age=3600", timedelta(hours=1)),
        ("public, Max-Age=3600, must-revalidate", timedelta(hours=1)),
        ("max-age=1", 5 * MINUTE),
        ("max-age=0", 5 * MINUTE),
        ("no-store", 5 * MINUTE),
        ("no-cache, max-age=3600", 5 * MINUTE),
    ],
)
@pytest.mark.parametrize("path", [SMART, JWKS])
def test_server_says_within_bounds_how_long_its_documents_are_kept(
    ehr: EHRSimulator,
    server: FHIRServer,
    cache_control: str | None,
    lifetime: timedelta,
    path: str,
) -> None:
    headers = {} if cache_control is None else {"Cache-Control": cache_control}
    answer(ehr, path, headers=headers)
    get = get_configuration if path == SMART else get_jwks
    with time_machine.travel(timezone.now(), tick=False) as clock:
        get_configuration(server)
        get(read())
        ehr.clear_requests()
        clock.shift(lifetime - timedelta(seconds=1))
        get(read())
        assert ehr.requests == []
        clock.shift(timedelta(seconds=1))
        get(read())
        assert len(ehr.requests) == 1


@pytest.mark.compliance("DISC-05")
@pytest.mark.parametrize("name", ["cache-control", "CACHE-CONTROL", "cAcHe-cOnTrOl"])
def test_header_names_are_read_in_any_case(
    ehr: EHRSimulator, server: FHIRServer, name: str
) -> None:
    answer(ehr, SMART, headers={name: "max-age=300"})
    get_configuration(server)
    assert read().state.configuration_max_age == 300


def test_setting_bounds_the_lifetime_from_above(
    ehr: EHRSimulator, server: FHIRServer, settings: Any
) -> None:
    settings.SMART_DISCOVERY_LIFETIME = 60
    with time_machine.travel(timezone.now(), tick=False) as clock:
        get_configuration(server)
        clock.shift(timedelta(seconds=59))
        get_configuration(read())
        assert len(ehr.requests) == 1
        clock.shift(timedelta(seconds=1))
        get_configuration(read())
        assert len(ehr.requests) == 2


@pytest.mark.parametrize("path", [SMART, JWKS])
def test_task_fetches_again_before_the_shortest_lifetime_ends(
    ehr: EHRSimulator, server: FHIRServer, path: str
) -> None:
    answer(ehr, path, headers={"Cache-Control": "max-age=300"})
    period = BEAT_SCHEDULE["django_smart.refresh_servers"]["schedule"].run_every
    with time_machine.travel(timezone.now(), tick=False) as clock:
        launch(make_browser(), ehr)
        for _ in range(6):
            clock.shift(period)
            assert refresh_servers() == 0
            ehr.clear_requests()
            launch(make_browser(), ehr)
            # A login finds everything fresh.
            assert [each.exchange for each in ehr.requests] == ["authorize", "token"]
    assert server.pk == read().pk


# Without tasks: no beat, no worker and no cron


@pytest.mark.usefixtures("registration")
def test_withdrawn_key_is_noticed_by_a_sign_in(ehr: EHRSimulator) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        launch(make_browser(), ehr)
        answer(ehr, JWKS, keys=[])
        clock.shift(timedelta(days=1) - MINUTE)
        assert launch(make_browser(), ehr).status == Launch.Status.OPEN
        clock.shift(MINUTE)
        browser = make_browser()
        sent = start_login(browser)
        assert get_callback(browser, ehr.authorize(sent)).status_code == 502
    assert Launch.objects.latest("pk").error_code == "id_token_key_unknown"


@pytest.mark.usefixtures("registration")
def test_moved_token_endpoint_is_noticed_by_a_launch(ehr: EHRSimulator) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        launch(make_browser(), ehr)
        moved = f"{ehr.token_endpoint}/2"
        answer(ehr, SMART, token_endpoint=moved)
        clock.shift(timedelta(days=1) - MINUTE)
        start_login(make_browser())
        assert (read().state.configuration or {})["token_endpoint"] == (
            ehr.token_endpoint
        )
        clock.shift(MINUTE)
        start_login(make_browser())
        assert (read().state.configuration or {})["token_endpoint"] == moved


# While a server is down


def test_logins_do_not_wait_for_a_server_that_is_down(
    ehr: EHRSimulator, server: FHIRServer, caplog: pytest.LogCaptureFixture
) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        known = get_configuration(server)
        ehr.faults.add("discovery_500")
        ehr.clear_requests()
        clock.shift(timedelta(days=2))
        for _ in range(5):
            assert get_configuration(read()) == known
        assert len(ehr.requests) == 1
        assert read().state.discovery_failed_at == timezone.now()
        assert "stale configuration used (discovery_status)" in caplog.text
        clock.shift(MINUTE)
        for _ in range(5):
            assert get_configuration(read()) == known
        assert len(ehr.requests) == 2
        ehr.faults.clear()
        clock.shift(MINUTE)
        get_configuration(read())
        assert len(ehr.requests) == 3
        assert read().state.discovery_failed_at is None
        get_configuration(read())
        assert len(ehr.requests) == 3


def test_keys_of_a_server_that_is_down_are_asked_for_once_a_minute(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        get_configuration(server)
        known = get_jwks(read())
        answer(ehr, JWKS, status=503)
        ehr.clear_requests()
        clock.shift(timedelta(days=2))
        for _ in range(5):
            assert get_jwks(read()) == known
        assert len(ehr.requests) == 1
        clock.shift(MINUTE)
        assert get_jwks(read()) == known
        assert len(ehr.requests) == 2


def test_server_that_never_answered_is_asked_every_ten_seconds(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    # There is nothing to go on with; it works a little later than the server does.
    ehr.faults.add("discovery_500")
    with time_machine.travel(timezone.now(), tick=False) as clock:
        for _ in range(2):
            ehr.clear_requests()
            with pytest.raises(DiscoveryStatusError):
                get_configuration(server)
            sent = len(ehr.requests)
            for _ in range(20):
                with raises_code("discovery_busy") as caught:
                    get_configuration(read())
                assert (caught.value.code, caught.value.http_status) == (
                    "discovery_busy",
                    503,
                )
            assert len(ehr.requests) == sent
            clock.shift(timedelta(seconds=10))
        ehr.faults.clear()
        assert get_configuration(server).token_endpoint == ehr.token_endpoint
    assert read().state.discovery_failed_at is None


@pytest.mark.django_db(transaction=True)
def test_launches_at_once_at_a_server_that_was_never_read_all_start(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    query = {"iss": ehr.base_url, "launch": ehr.create_launch(CLIENT_ID, patient=None)}
    answers = run_together(*[lambda: make_browser().get("/smart/launch/", query)] * 8)
    assert {each.status_code for each in answers} == {302}


def test_process_that_died_while_asking_is_not_waited_for(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    def die(respond: Any, request: Any) -> Any:
        raise KeyboardInterrupt

    with time_machine.travel(timezone.now(), tick=False) as clock:
        ehr.interceptors.append(die)
        with pytest.raises(KeyboardInterrupt):
            get_configuration(server)
        ehr.interceptors.clear()
        clock.shift(MINUTE + timedelta(seconds=10))
        assert get_configuration(read()).token_endpoint == ehr.token_endpoint


def test_launches_go_on_while_discovery_is_down(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    launch(make_browser(), ehr)
    ehr.faults.add("discovery_500")
    answer(ehr, JWKS, status=503)
    ehr.clear_requests()
    with time_machine.travel(timezone.now() + timedelta(days=2)):
        for _ in range(3):
            assert launch(make_browser(), ehr).identity is not None
    assert len(ehr.requests_to("smart-configuration")) == 1
    # What is down is down: the keys are not asked for either.
    assert ehr.requests_to("jwks") == []
    assert registration.server_id == read().pk


def test_task_asks_a_server_that_is_down_once_a_run(
    ehr: EHRSimulator, server: FHIRServer
) -> None:
    ehr.faults.add("discovery_500")
    with time_machine.travel(timezone.now(), tick=False) as clock:
        assert refresh_servers() == 1
        # A run that comes late is followed by the next at once.
        assert refresh_servers() == 0
        assert len(ehr.requests) == 1
        # Nor do many such servers make one run last until the next.
        clock.shift(timedelta(minutes=2))
        ehr.faults.clear()
        assert refresh_servers() == 0
        assert read().state.configuration is None
        clock.shift(timedelta(minutes=10))
        assert refresh_servers() == 0
        assert read().state.configuration is not None
    assert server.pk == read().pk


@pytest.mark.django_db(transaction=True)
def test_of_many_logins_at_once_one_asks(ehr: EHRSimulator, server: FHIRServer) -> None:
    known = get_configuration(server)
    ServerState.objects.update(configuration_fetched_at=None)
    ehr.clear_requests()
    others_are_through = threading.Event()

    def respond_late(respond: Any, request: Any) -> Any:
        others_are_through.wait(60)
        return respond(request)

    ehr.interceptors.append(respond_late)
    found: list[Any] = []

    def log_in() -> None:
        found.append(get_configuration(read()))
        if len(found) == 4:
            others_are_through.set()
        connection.close()

    threads = [threading.Thread(target=log_in) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [known] * 5
    assert len(ehr.requests) == 1
    assert read().state.discovery_failed_at is None


def test_servers_that_do_not_answer_hold_up_no_worker_for_long(
    monkeypatch: pytest.MonkeyPatch, host_clock: HostClock
) -> None:
    asked: list[int] = []

    def fetch(server: FHIRServer) -> None:
        asked.append(server.pk)
        host_clock.shift(20)
        raise ServerTimeoutError("no answer")

    monkeypatch.setattr(discovery, "fetch_configuration", fetch)
    servers = [
        make_server(slug=f"s{number}", base_url=f"https://s{number}.example.org/fhir")
        for number in range(40)
    ]
    with time_machine.travel(timezone.now(), tick=False) as clock:
        for _ in range(2 * len(servers)):
            started = time.monotonic()
            refresh_servers()
            assert time.monotonic() - started <= 80
            clock.shift(2 * MINUTE)
    # Each in its turn, also those that are found last.
    numbers = Counter(asked).values()
    assert len(numbers) == len(servers)
    assert max(numbers) - min(numbers) <= 2


def test_servers_that_answer_slowly_are_all_read_in_turn(
    monkeypatch: pytest.MonkeyPatch, host_clock: HostClock
) -> None:
    def fetch(server: FHIRServer) -> None:
        host_clock.shift(20)
        server.state.configuration_fetched_at = timezone.now()
        server.state.configuration_max_age = 300
        server.state.discovery_failed_at = None
        _store(
            server,
            *("configuration_fetched_at", "configuration_max_age"),
            "discovery_failed_at",
        )

    monkeypatch.setattr(discovery, "fetch_configuration", fetch)
    for number in range(12):
        make_server(slug=f"s{number}", base_url=f"https://s{number}.example.org/fhir")
    with time_machine.travel(timezone.now(), tick=False) as clock:
        for _ in range(6):
            refresh_servers()
            clock.shift(2 * MINUTE)
    assert not ServerState.objects.filter(configuration_fetched_at=None).exists()


# A host whose clock was wrong


@pytest.mark.parametrize("path", [SMART, JWKS])
def test_times_of_a_host_whose_clock_was_ahead_do_not_count(
    ehr: EHRSimulator, server: FHIRServer, path: str
) -> None:
    now = timezone.now()
    get = get_configuration if path == SMART else get_jwks
    with time_machine.travel(now + timedelta(days=31)):
        get_configuration(server)
        get(read())
    # As another host with a wrong clock left it.
    ServerState.objects.update(
        discovery_failed_at=now + timedelta(days=31),
    )
    ehr.clear_requests()
    get(read())
    assert len(ehr.requests) == 1
    if path == JWKS:
        assert len(list(discovery.iter_jwks(read()))) == 2


def test_server_that_was_never_read_is_asked_whatever_another_clock_said(
    server: FHIRServer,
) -> None:
    ServerState.objects.update(discovery_failed_at=timezone.now() + timedelta(days=31))
    assert get_configuration(read()).token_endpoint


def _by_launch(ehr: EHRSimulator, _grant: TokenGrant) -> None:
    browser = make_browser()
    get_callback(browser, ehr.authorize(start_login(browser)))


def _by_page(_ehr: EHRSimulator, grant: TokenGrant) -> None:
    with pytest.raises(TokenServerError):
        get_access_token(grant)


def _by_worker(_ehr: EHRSimulator, grant: TokenGrant) -> None:
    assert refresh_grants([grant.pk]).failed == 1


@pytest.mark.parametrize("attempt", [_by_launch, _by_page, _by_worker])
@pytest.mark.parametrize(
    ("status", "is_read"), [(404, True), (410, True), (500, False)]
)
def test_configuration_is_read_again_once_its_token_endpoint_is_gone(
    ehr: EHRSimulator,
    attempt: Callable[[EHRSimulator, TokenGrant], None],
    status: int,
    *,
    is_read: bool,
) -> None:
    registration = make_registration()
    (grant_id,) = make_grants(ehr, registration, 1)
    get_configuration(registration.server)
    answer(ehr, "/auth/token", status=status)
    ehr.clear_requests()
    attempt(ehr, reload_grant(grant_id))
    assert ehr.requests_to("smart-configuration") == []
    get_configuration(read())
    assert bool(ehr.requests_to("smart-configuration")) is is_read
