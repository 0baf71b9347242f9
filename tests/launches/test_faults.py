"""Every wrong answer of an EHR, by fault: refused, and nothing is lost."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from django_smart import transport
from django_smart.models import (
    ClientRegistration,
    Launch,
    ServerState,
    TokenGrant,
)
from django_smart.protocol.messages import HTTPRequest
from django_smart.signals import launch_completed, launch_failed
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.faults import FAULTS
from tests.ehr import (
    CLIENT_SECRET,
    PATIENT,
    get_callback,
    launch,
    listening,
    make_browser,
    start_ehr_launch,
)
from tests.faults import LAUNCH_EXCHANGES, REFUSED, is_slow, named
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launch_urls"),
    pytest.mark.usefixtures("elsewhere", "quick_keys", "registration"),
]

# The callback leads to no launch, so the one that waits for it is left waiting.
_NO_ROW = {name for name, (code, _) in REFUSED.items() if code.startswith("state_")}


def _try(browser: Client, ehr: EHRSimulator) -> tuple[Any, list[str]]:
    """The last answer of a launch, and what of it must not be seen anywhere."""
    launch_id = ehr.create_launch("growth-chart", patient=PATIENT)
    response = browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})
    if response.status_code != 302:
        return response, []
    url = response["Location"]
    query = parse_qs(urlsplit(url).query)
    verifier = Launch.objects.latest("pk").code_verifier
    secrets = [*query["state"], *query["nonce"], verifier]
    return get_callback(browser, ehr.authorize(url)), secrets


def test_every_fault_is_in_the_table():
    everything = named("refuse", *LAUNCH_EXCHANGES)
    everything += named("refuse", *LAUNCH_EXCHANGES, slow=True)
    assert sorted(REFUSED) == sorted(everything)


@pytest.mark.compliance("CALL-07", "TOK-18", "IDT-01", "DISC-07")
@pytest.mark.parametrize("name", named("refuse", *LAUNCH_EXCHANGES))
def test_fault_is_refused_and_nothing_is_lost(
    name: str,
    ehr: EHRSimulator,
    elsewhere: Server,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, status = REFUSED[name]
    browser = make_browser()
    ehr.faults.add(name)
    with (
        caplog.at_level(logging.DEBUG),
        listening(launch_failed) as failed,
        listening(launch_completed) as completed,
    ):
        response, secrets = _try(browser, ehr)

    page = response.content.decode()
    assert f"<code>{code}</code>" in page
    assert response.status_code == status
    assert response["Cache-Control"] == "private, no-store"
    assert response["Referrer-Policy"] == "no-referrer"
    _check_row(name, code, caplog.text)
    assert (len(failed), completed) == (1, [])
    assert failed[0]["error"].code == code
    _check_nobody_came_in(browser)
    for secret in [*secrets, *_known_secrets(ehr)]:
        assert secret not in caplog.text
        assert secret not in page
    # Whatever pointed elsewhere was not followed.
    assert elsewhere.requests == []
    assert ehr.requests_to("elsewhere") == []
    # A code is used once, also where the EHR was busy (RFC 6749 section 4.1.2).
    assert len(ehr.requests_to("token")) <= 1

    ehr.faults.clear()
    # Keys that were fetched just now are not fetched anew for a minute, and a server of
    # which nothing is known is not asked again for ten seconds.
    later = timezone.now() + timedelta(seconds=61 if name.startswith("jwks") else 10)
    with time_machine.travel(later, tick=True):
        assert launch(browser, ehr).status == Launch.Status.OPEN
    assert get_user_model().objects.count() == 1


def _check_row(name: str, code: str, log: str) -> None:
    row = Launch.objects.get()
    if name in _NO_ROW:
        assert row.status == Launch.Status.PENDING
        assert f"Launch unknown failed: {code}" in log
        return
    assert (row.status, row.error_code) == (Launch.Status.FAILED, code)
    assert row.ended_at is not None
    assert row.code_verifier == ""
    assert f"Launch {row.pk} failed: {code}" in log


def _check_nobody_came_in(browser: Client) -> None:
    assert not get_user_model().objects.exists()
    assert not TokenGrant.objects.active().exists()
    assert "_auth_user_id" not in browser.session
    assert browser.get("/page/").json() == {"launched": False, "patient": None}


def _known_secrets(ehr: EHRSimulator) -> list[str]:
    return [
        CLIENT_SECRET,
        PATIENT,
        *ehr.store.codes,
        *ehr.store.access_tokens,
        *ehr.store.refresh_tokens,
    ]


@pytest.mark.compliance("RESP-02", "RESP-03", "RESP-10", "DISC-13")
@pytest.mark.parametrize("name", named("tolerate", *LAUNCH_EXCHANGES))
def test_fault_is_tolerated(name: str, ehr: EHRSimulator, elsewhere: Server) -> None:
    ehr.faults.add(name)
    if name == "id_token_missing_kid":
        assert len(ehr.signing_keys) == 1
    finished = launch(make_browser(), ehr)
    assert finished.status == Launch.Status.OPEN
    assert finished.grant is not None
    assert finished.grant.patient_id == PATIENT
    assert finished.user is not None
    assert not finished.grant.is_offline
    assert elsewhere.requests == []


@pytest.mark.compliance("SEC-02")
@pytest.mark.parametrize("fault", ["authorize_error_markup", "token_error_markup"])
def test_markup_of_the_ehr_stays_text(ehr: EHRSimulator, fault: str) -> None:
    ehr.faults.add(fault)
    page = _try(make_browser(), ehr)[0].content.decode()
    assert "<script>alert(1)" not in page
    assert "javascript:" not in page
    if fault == "authorize_error_markup":
        assert "&lt;script&gt;alert(1)" in page


def test_fault_leaves_the_stored_discovery_document_alone(ehr: EHRSimulator) -> None:
    launch(make_browser(), ehr)
    before = ServerState.objects.values("configuration", "jwks", "issuer").get()
    for name in named("refuse", "discovery", "openid"):
        if REFUSED[name][0] == "server_unsupported":
            continue  # a sound answer, which says that it cannot be used
        ehr.faults = {name}
        ServerState.objects.update(
            configuration_fetched_at=None, discovery_failed_at=None
        )
        # Served stale: a launch does not depend on an answer that was had before.
        launch(make_browser(), ehr)
        stored = ServerState.objects.values("configuration", "jwks", "issuer").get()
        if name.startswith("discovery"):
            assert stored == before, name
        else:
            assert (stored["jwks"], stored["issuer"]) == (
                before["jwks"],
                before["issuer"],
            ), name


def test_error_uri_is_a_link_only_if_it_is_https(ehr: EHRSimulator) -> None:
    for uri, is_shown in (
        ("https://ehr.example.org/help", True),
        ("http://ehr.example.org/help", False),
        ("javascript:alert(1)", False),
    ):
        browser = make_browser()
        url = start_ehr_launch(browser, ehr)
        state = parse_qs(urlsplit(url).query)["state"][0]
        response = browser.get(
            "/smart/callback/",
            {
                "error": "temporarily_unavailable",
                "error_uri": uri,
                "state": state,
                "iss": ehr.issuer,
            },
        )
        assert response.status_code == 400
        assert (f'href="{uri}"' in response.content.decode()) is is_shown


@pytest.mark.parametrize(
    "fault", ["token_500", "id_token_bad_signature", "authorize_wrong_iss"]
)
def test_failed_launch_does_not_end_an_earlier_one(
    ehr: EHRSimulator, fault: str
) -> None:
    browser = make_browser()
    first = launch(browser, ehr)
    session_key = browser.session.session_key
    ehr.faults.add(fault)
    response, _ = _try(browser, ehr)
    assert response.status_code == REFUSED[fault][1]
    first.refresh_from_db()
    assert first.status == Launch.Status.OPEN
    assert first.grant is not None
    assert first.grant.status == TokenGrant.Status.ACTIVE
    assert browser.session.session_key == session_key


def test_listener_elsewhere_would_hear_of_it(
    ehr: EHRSimulator, elsewhere: Server
) -> None:
    request = HTTPRequest(
        method="GET",
        url=f"{ehr.foreign_origin}/x",
        headers={"Authorization": "Bearer x"},
    )
    transport.send(
        request,
        timeouts=transport.Timeouts(),
        max_body=1000,
        insecure_hosts=frozenset(["127.0.0.1"]),
    )
    assert b"Authorization: Bearer x" in elsewhere.requests.pop()


def test_slow_faults_are_those_that_are_named_so():
    exchanges = {each.exchange for each in FAULTS.values()}
    # Of these, the answer itself takes no time, or a person waits.
    exchanges -= {"authorize", "id_token", "register"}
    assert {name for name in FAULTS if is_slow(name)} == {
        f"{exchange}_{what}"
        for exchange in exchanges
        for what in ("late", "endless", "after_3_s")
    }
