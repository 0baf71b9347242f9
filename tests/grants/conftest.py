"""What the tests of grants have in common."""

from __future__ import annotations

import pytest

from django_smart.models import ClientRegistration
from django_smart.testing import EHRSimulator
from tests.factories import make_service


@pytest.fixture
def service(ehr: EHRSimulator, db: None) -> ClientRegistration:
    """This site's backend service."""
    return make_service(ehr)
