"""Every wrong answer to a refresh: what is final is told, the rest costs nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from django_smart.exceptions import (
    ContextChangedError,
    GrantError,
    ReauthorizationRequiredError,
    SMARTError,
)
from django_smart.grants.refresh import get_access_token, refresh_grant
from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.signals import grant_lost, grant_refreshed
from django_smart.testing import EHRSimulator
from tests.ehr import EHR_SCOPE, PATIENT, launch, listening, make_browser
from tests.factories import expire, reload_grant
from tests.faults import named
from tests.grants.working import check_log
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("elsewhere", "quick_keys", "slept"),
]

# Code in the row, and the faults that lead there: the refresh token is kept.
_PASSING = {
    "token_server_error": """
        refresh_404 refresh_429 refresh_429_for_ever refresh_500 refresh_503
    """,
    "token_response_malformed": """
        refresh_empty refresh_empty_access_token refresh_html_200
        refresh_huge_expires_in refresh_not_json refresh_not_utf8
        refresh_wrong_token_type
    """,
    "response_too_large": "refresh_bomb refresh_too_large",
    "redirect_refused": "refresh_redirect_302 refresh_redirect_307",
    "invalid_client": "refresh_invalid_client",
    "invalid_request": "refresh_invalid_request",
    "invalid_scope": "refresh_invalid_scope",
    "unauthorized_client": "refresh_unauthorized_client",
}
PASSING = {name: code for code, names in _PASSING.items() for name in names.split()}
# The tokens are for somebody or something else: grant and launch end.
CHANGED = [
    "refresh_number_patient",
    "refresh_other_encounter",
    "refresh_other_patient",
    "refresh_other_subject",
    "refresh_path_patient",
]
# In test_refresh.py.
FINAL = ["refresh_invalid_grant"]


@pytest.fixture
def opened(ehr: EHRSimulator, registration: ClientRegistration) -> Launch:
    """A launch from a visit, with an offline grant."""
    registration.ehr_scope = f"{EHR_SCOPE} offline_access"
    registration.save()
    return launch(make_browser(), ehr, encounter="a-visit")


@pytest.fixture
def grant(opened: Launch, ehr: EHRSimulator) -> TokenGrant:
    """Its grant, whose access token has ended."""
    return expire(reload_grant(opened.grant_id), ehr)


def test_every_fault_is_in_the_tables():
    assert sorted([*PASSING, *CHANGED, *FINAL]) == named("refuse", "refresh")


@pytest.mark.compliance("REF-12", "REF-07")
@pytest.mark.parametrize("refresh", [get_access_token, refresh_grant])
@pytest.mark.parametrize("name", sorted(PASSING))
def test_passing_trouble_costs_nothing(
    name: str,
    refresh: Callable[[TokenGrant], Any],
    ehr: EHRSimulator,
    elsewhere: Server,
    opened: Launch,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ehr.faults.add(name)
    with (
        caplog.at_level(logging.DEBUG),
        listening(grant_lost) as lost,
        listening(grant_refreshed) as refreshed,
        pytest.raises(SMARTError) as caught,
    ):
        refresh(grant)
    assert not isinstance(caught.value, GrantError)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.last_error) == ("active", PASSING[name])
    assert stored.refresh_failures == 1
    assert (stored.lease_owner, stored.lease_expires_at) == ("", None)
    assert stored.refresh_token
    assert (lost, refreshed) == ([], [])
    opened.refresh_from_db()
    assert opened.status == Launch.Status.OPEN
    warnings = [one.getMessage() for one in caplog.records if one.levelname != "DEBUG"]
    assert [one for one in warnings if f"access token: {PASSING[name]}" in one]
    check_log(ehr, caplog.text)
    assert elsewhere.requests == []

    # Also where the answer was wrong after the EHR had rotated the token.
    ehr.faults.clear()
    # Not for one grant, which a server may not know any longer.
    assert not ClientRegistration.objects.filter(refresh_stopped_at__isnull=False)
    assert get_access_token(reload_grant(grant.pk)) in ehr.store.access_tokens
    assert ehr.reused_refresh_tokens == 0
    stored = reload_grant(grant.pk)
    assert (stored.last_error, stored.refresh_failures) == ("", 0)


@pytest.mark.compliance("REF-06")
@pytest.mark.parametrize("name", CHANGED)
def test_tokens_for_another_end_grant_and_launch(
    name: str,
    ehr: EHRSimulator,
    opened: Launch,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ehr.faults.add(name)
    with (
        caplog.at_level(logging.DEBUG),
        listening(grant_lost) as lost,
        pytest.raises(ContextChangedError),
    ):
        get_access_token(grant)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.patient_id) == ("revoked", PATIENT)
    assert stored.is_revocation_pending
    opened.refresh_from_db()
    assert (opened.status, opened.error_code) == ("ended", "context_changed")
    assert [each["error_code"] for each in lost] == ["context_changed"]
    check_log(ehr, caplog.text)
    ehr.faults.clear()
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(stored)
    assert launch(make_browser(), ehr).status == Launch.Status.OPEN


@pytest.mark.compliance("REF-06", "REF-07", "RESP-03")
@pytest.mark.parametrize("name", named("tolerate", "refresh"))
def test_fault_of_a_refresh_is_tolerated(
    name: str, ehr: EHRSimulator, opened: Launch, grant: TokenGrant, slept: list[float]
) -> None:
    ehr.faults.add(name)
    assert get_access_token(grant) in ehr.store.access_tokens
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.patient_id) == ("active", PATIENT)
    assert stored.encounter_id == "a-visit"
    # Nothing beyond the first grant is used, whatever the server says.
    granted = set(stored.scope_granted.split())
    assert set(stored.scope.split()) <= granted
    assert (set(stored.scope.split()) < granted) is (name == "refresh_narrower_scope")
    assert bool(slept) is name.endswith("_once")
    opened.refresh_from_db()
    assert opened.status == Launch.Status.OPEN
    # Once more, with what was stored.
    ehr.faults.clear()
    assert get_access_token(expire(stored, ehr)) in ehr.store.access_tokens
    assert ehr.reused_refresh_tokens == 0
