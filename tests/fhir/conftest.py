"""Fixtures of the FHIR client's tests."""

from __future__ import annotations

import pytest

from tests.fhir.servers import Grant


@pytest.fixture
def grant() -> Grant:
    return Grant()
