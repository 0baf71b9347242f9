"""What the tests of grants have in common."""

from __future__ import annotations

import pytest

from django_smart.models import ClientRegistration
from django_smart.servers import http
from django_smart.testing import EHRSimulator
from tests.factories import make_service


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for a busy server, without waiting."""
    pauses: list[float] = []
    monkeypatch.setattr(http, "sleep", pauses.append)
    return pauses


@pytest.fixture
def service(ehr: EHRSimulator, db: None) -> ClientRegistration:
    """This site's backend service."""
    return make_service(ehr)
