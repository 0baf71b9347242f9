"""Keys that ID tokens need and that are not known yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone

from django_smart.models import FHIRServer, Launch, ServerState
from django_smart.servers.discovery import (
    fetch_jwks,
    get_configuration,
    get_jwks,
    iter_jwks,
)
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    get_callback,
    launch,
    make_browser,
    make_registration,
    start_ehr_launch,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock(registration: Any) -> Iterator[Any]:
    with time_machine.travel(timezone.now(), tick=False) as traveller:
        yield traveller


def fail(browser: Client, ehr: EHRSimulator) -> str:
    """A launch that fails; returns the code."""
    authorize_url = start_ehr_launch(browser, ehr)
    response = get_callback(browser, ehr.authorize(authorize_url))
    assert response.status_code == 502
    return str(Launch.objects.latest("pk").error_code)


@pytest.mark.compliance("IDT-06")
@pytest.mark.usefixtures("clock")
def test_keys_rotated_right_after_the_first_fetch_are_fetched_at_once(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    for _ in range(3):
        launch(browser, ehr)
        ehr.rotate_signing_key()
    ehr.clear_requests()
    assert launch(browser, ehr).status == Launch.Status.OPEN
    assert len(ehr.requests_to("jwks")) == 1


@pytest.mark.usefixtures("clock")
def test_ehr_that_was_restarted_with_new_keys_signs_in_at_once(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    # Neither of the known keys is left.
    ehr.rotate_signing_key()
    ehr.rotate_signing_key()
    assert launch(browser, ehr).status == Launch.Status.OPEN


@pytest.mark.compliance("IDT-06")
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("kid", ["none", "reused"])
def test_new_key_that_its_kid_does_not_tell_from_the_old_one_is_fetched_at_once(
    ehr: EHRSimulator, kid: str
) -> None:
    if kid == "none":
        ehr.faults.add("id_token_missing_kid")
    browser = make_browser()
    launch(browser, ehr)
    old = ehr.signing_keys[-1].kid
    ehr.rotate_signing_key()
    ehr.signing_keys = [dataclasses.replace(ehr.signing_keys[-1], kid=old)]
    ehr.clear_requests()
    assert launch(browser, ehr).status == Launch.Status.OPEN
    # A wrong signature meets the same cool-down as an unknown key.
    ehr.faults.add("id_token_bad_signature")
    for _ in range(2):
        assert fail(browser, ehr) == "id_token_signature"
    assert len(ehr.requests_to("jwks")) == 2


@pytest.mark.compliance("IDT-06")
def test_only_fetches_that_did_not_bring_the_key_meet_a_cool_down(
    ehr: EHRSimulator, clock: Any
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    ehr.faults.add("id_token_unknown_kid")
    ehr.clear_requests()
    for _ in range(3):
        assert fail(browser, ehr) == "id_token_key_unknown"
    assert len(ehr.requests_to("jwks")) == 1
    clock.shift(59)
    assert fail(browser, ehr) == "id_token_key_unknown"
    assert len(ehr.requests_to("jwks")) == 1
    clock.shift(2)
    ehr.faults.clear()
    ehr.rotate_signing_key()
    assert launch(browser, ehr).status == Launch.Status.OPEN
    assert len(ehr.requests_to("jwks")) == 2


@pytest.mark.compliance("IDT-06")
@pytest.mark.usefixtures("clock")
def test_sign_ins_beside_the_first_fetch_after_a_rotation_succeed(
    ehr: EHRSimulator,
) -> None:
    launch(make_browser(), ehr)
    ehr.rotate_signing_key()
    beside: list[Launch] = []

    def meanwhile(respond: Any, request: Any) -> Any:
        if "/auth/jwks" in request.url and not beside:
            ehr.interceptors.clear()
            beside.append(launch(make_browser(), ehr))
        return respond(request)

    ehr.interceptors.append(meanwhile)
    assert launch(make_browser(), ehr).status == Launch.Status.OPEN
    assert [each.status for each in beside] == [Launch.Status.OPEN]


@pytest.mark.compliance("IDT-06")
def test_keys_are_fetched_although_the_configuration_could_not_be(
    ehr: EHRSimulator, clock: Any
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    clock.shift(timedelta(days=2))
    get_jwks(FHIRServer.objects.get())
    clock.shift(timedelta(minutes=2))
    ehr.faults.add("discovery_500")
    ehr.rotate_signing_key()
    assert launch(browser, ehr).status == Launch.Status.OPEN


@pytest.mark.usefixtures("clock")
def test_sign_in_after_a_fetch_that_failed_tries_again(ehr: EHRSimulator) -> None:
    browser = make_browser()
    launch(browser, ehr)
    ehr.rotate_signing_key()
    answer(ehr, "/auth/jwks", status=503)
    assert fail(browser, ehr) == "discovery_status"
    ehr.interceptors.clear()
    assert launch(browser, ehr).status == Launch.Status.OPEN


@pytest.mark.usefixtures("clock")
def test_miss_at_one_server_slows_no_other(ehr: EHRSimulator) -> None:
    other = make_registration(
        server__slug="other",
        server__base_url="https://ehr.example.org/v/r4/sim/other/fhir",
        redirect_uri="https://app.example.org/smart/callback/",
    ).server
    states = ServerState.objects.filter(pk=other.pk)
    states.update(discovery_failed_at=timezone.now())
    browser = make_browser()
    launch(browser, ehr)
    ehr.rotate_signing_key()
    assert launch(browser, ehr).status == Launch.Status.OPEN


@pytest.mark.compliance("IDT-06")
def test_new_keys_that_another_process_fetched_are_taken_from_the_row(
    ehr: EHRSimulator, clock: Any
) -> None:
    server = FHIRServer.objects.get()
    get_configuration(server)
    sets = iter_jwks(server)
    old = next(sets)
    clock.shift(1)
    ehr.rotate_signing_key()
    newer = fetch_jwks(FHIRServer.objects.get())
    ehr.clear_requests()
    assert newer != old
    assert next(sets) == newer
    assert ehr.requests == []
    # That process may have been too early.
    ehr.rotate_signing_key()
    newest = next(sets)
    assert newest != newer
    assert len(ehr.requests_to("jwks")) == 1
    assert FHIRServer.objects.get().state.jwks == newest
    assert next(sets, None) is None


@pytest.mark.usefixtures("clock")
def test_keys_that_were_dropped_meanwhile_are_fetched(
    ehr: EHRSimulator,
) -> None:
    server = FHIRServer.objects.get()
    sets = iter_jwks(server)
    known = next(sets)
    ServerState.objects.update(jwks=None, jwks_fetched_at=None)
    assert next(sets) == known
    assert len(ehr.requests_to("jwks")) == 2
