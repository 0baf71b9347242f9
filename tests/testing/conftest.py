"""A simulated EHR with one app registered, reached without sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.testing.app import App, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ehr(clock: Clock) -> EHRSimulator:
    return EHRSimulator("https://ehr.example.org/v/r4/sim/abc/fhir", clock=clock)


@pytest.fixture
def session(ehr: EHRSimulator) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        yield session


@pytest.fixture
def app(ehr: EHRSimulator, session: requests.Session) -> App:
    return App(ehr, session)
