"""A launch with an offline grant; and what the tests of faults need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.id_tokens import SigningKey
from tests.ehr import PATIENT, connect, make_browser
from tests.flows.grants import reload_grant
from tests.transport.servers import Server, answer

_SIGNING_KEY = SigningKey.generate("RS256")


@pytest.fixture
def opened(ehr: EHRSimulator, registration: ClientRegistration) -> Launch:
    """The launch."""
    return connect(make_browser(), ehr, patient=PATIENT)


@pytest.fixture
def grant(opened: Launch) -> TokenGrant:
    """Its grant, as the database has it."""
    return reload_grant(opened.grant_id)


@pytest.fixture
def quick_keys(ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key for all: making it takes longer than a launch."""
    monkeypatch.setattr(ehr, "_signing_keys", [_SIGNING_KEY])


@pytest.fixture(scope="session")
def listener() -> Iterator[Server]:
    """A server at another origin, which records what comes."""
    with Server(answer()) as server:
        yield server


@pytest.fixture
def elsewhere(ehr: EHRSimulator, listener: Server, settings: Any) -> Iterator[Server]:
    """The other origin that faults lead to, which gets no ``Authorization``."""
    ehr.foreign_origin = f"http://127.0.0.1:{listener.port}"
    # Nothing but our own rules keeps a request from going there.
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    listener.requests.clear()
    yield listener
    assert not [each for each in listener.requests if b"authorization" in each.lower()]
