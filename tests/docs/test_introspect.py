"""A resource server that asks an EHR, by the code of the page that says how."""

from __future__ import annotations

import pytest

from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import PATIENT, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

_PAGE = "how-to/cookbook.rst"
_SECTION = "Introspect another app's token"


@pytest.mark.compliance("INTRO-01", "INTRO-03", "INTRO-04")
def test_token_that_an_app_shows_tells_whose_labs_may_be_read(
    ehr: EHRSimulator,
) -> None:
    page = execute(
        *read_blocks("how-to/cookbook.rst", "Introspect another app's token")
    )
    registration = make_registration()
    grant = launch(make_browser(), ehr).grant
    assert grant is not None
    ask = page["may_read_labs"]
    token = grant.access_token
    assert ask(token, registration, token) == PATIENT
    assert ask("made-up", registration, token) is None
    at_ehr = ehr.store.access_tokens[token]
    at_ehr.scopes = ["patient/Patient.rs"]
    assert ask(token, registration, token) is None
