"""Launch requests that are refused at once: what is left of them."""

from __future__ import annotations

import pytest

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import BASE_URL, make_browser

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("query", "code", "has_row"),
    [
        ({"iss": BASE_URL}, "missing_parameter", True),
        ({"launch": "abc"}, "missing_parameter", False),
        ({"iss": "https://other.example/fhir", "launch": "a"}, "unknown_server", False),
        ({"iss": BASE_URL, "launch": "abc"}, "registration_inactive", True),
    ],
)
def test_refused_request_leaves_a_log_line_and_a_row_if_it_leads_to_a_registration(
    query: dict[str, str],
    code: str,
    has_row: bool,
    registration: ClientRegistration,
    ehr: EHRSimulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registration.is_active = code != "registration_inactive"
    registration.save()
    with caplog.at_level("WARNING", logger="django_smart"):
        response = make_browser().get("/smart/launch/", query)

    assert 400 <= response.status_code < 500
    assert [row.error_code for row in Launch.objects.filter(status="failed")] == (
        [code] if has_row else []
    )
    assert any(code in record.getMessage() for record in caplog.records)
    assert not ehr.requests
