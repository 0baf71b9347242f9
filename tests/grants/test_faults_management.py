"""Every wrong answer to a revocation or an introspection: no token is forgotten."""

from __future__ import annotations

import logging

import pytest
from django.utils import timezone

from django_smart.exceptions import ContextChangedError, SMARTError
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import get_access_token
from django_smart.launches.purge import purge
from django_smart.models import FHIRServer, Launch, TokenGrant
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT, listening
from tests.factories import end_wait, reload_grant
from tests.faults import named
from tests.grants.working import check_log
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("elsewhere", "quick_keys"),
]

# Code in the log, and the faults that lead there: the EHR has still to be told.
_UNTOLD = {
    "redirect_refused": "revoke_redirect_302 revoke_redirect_307",
    "response_too_large": "revoke_bomb revoke_too_large",
    "token_refused": "revoke_invalid_client",
    "token_server_error": "revoke_404 revoke_429 revoke_500 revoke_503",
}
UNTOLD = {name: code for code, names in _UNTOLD.items() for name in names.split()}

# Code of the error, and the faults that lead there: nothing is known of the token.
_UNANSWERED = {
    "redirect_refused": "introspect_redirect_302 introspect_redirect_307",
    "response_too_large": "introspect_bomb introspect_too_large",
    "token_refused": """
        introspect_invalid_client introspect_invalid_request
        introspect_unauthorized_client
    """,
    "token_response_malformed": """
        introspect_array introspect_boolean_exp introspect_duplicate_scope
        introspect_empty introspect_html_200 introspect_huge_exp
        introspect_infinite_exp introspect_missing_active introspect_not_json
        introspect_not_utf8 introspect_null_active
        introspect_number_active introspect_number_client_id introspect_number_iss
        introspect_number_patient introspect_object_fhir_user
        introspect_path_patient introspect_text_active introspect_text_exp
    """,
    "token_server_error": """
        introspect_404 introspect_429 introspect_500 introspect_503
    """,
}
UNANSWERED = {
    name: code for code, names in _UNANSWERED.items() for name in names.split()
}
# The answer is about somebody or something else: grant and launch end.
CHANGED = [
    "introspect_number_sub",
    "introspect_other_encounter",
    "introspect_other_patient",
    "introspect_other_subject",
]


@pytest.fixture
def visit(grant: TokenGrant) -> TokenGrant:
    """The grant, of a visit, where the client's own credentials ask about it."""
    FHIRServer.objects.update(quirks={"introspection_mode": "client"})
    TokenGrant.objects.update(encounter_id="a-visit")
    return reload_grant(grant.pk)


def test_every_fault_is_in_the_tables():
    assert sorted(UNTOLD) == named("refuse", "revoke")
    assert sorted([*UNANSWERED, *CHANGED]) == named("refuse", "introspect")


# Revocation


@pytest.mark.compliance("SEC-12")
@pytest.mark.parametrize("name", sorted(UNTOLD))
def test_tokens_are_kept_until_the_ehr_says_that_they_are_gone(
    name: str,
    ehr: EHRSimulator,
    elsewhere: Server,
    opened: Launch,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disconnect_grant(grant)
    ehr.faults.add(name)
    ehr.clear_requests()
    with caplog.at_level(logging.DEBUG):
        assert revoke_pending() == 0
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    assert stored.refresh_token == grant.refresh_token
    assert len(ehr.requests_to("revoke")) == 1
    assert f"Grant {grant.pk}: not revoked yet ({UNTOLD[name]})" in caplog.text
    check_log(ehr, caplog.text)
    assert elsewhere.requests == []

    # Here it has ended, whatever the EHR says, and the worker tells it again.
    opened.refresh_from_db()
    assert opened.status == Launch.Status.ENDED
    ehr.faults.clear()
    end_wait()
    assert purge().revocations_finished == 1
    _check_forgotten(ehr, grant)
    assert all(each.revoked for each in ehr.store.grants())


@pytest.mark.compliance("SEC-12")
@pytest.mark.parametrize("name", named("tolerate", "revoke"))
def test_tokens_are_forgotten_when_there_is_no_more_to_do(
    name: str, ehr: EHRSimulator, grant: TokenGrant, caplog: pytest.LogCaptureFixture
) -> None:
    disconnect_grant(grant)
    ehr.faults.add(name)
    ehr.clear_requests()
    with caplog.at_level(logging.DEBUG):
        assert revoke_pending() == 1
    # A refused refresh token does not save the access token from being told of.
    told = [dict(each.form)["token"] for each in ehr.requests_to("revoke")]
    assert told == [grant.refresh_token, grant.access_token]
    refused = f"Grant {grant.pk}: its revocation was refused"
    assert (refused in caplog.text) is (name not in {"revoke_204", "revoke_html_200"})
    check_log(ehr, caplog.text)
    _check_forgotten(ehr, grant)


def _check_forgotten(ehr: EHRSimulator, grant: TokenGrant) -> None:
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", False)
    assert (stored.access_token, stored.refresh_token) == ("", "")
    ehr.clear_requests()
    assert revoke_pending() == 0
    assert ehr.requests == []


# Introspection


@pytest.mark.compliance("INTRO-03", "INTRO-05")
@pytest.mark.parametrize("name", sorted(UNANSWERED))
def test_answer_that_cannot_be_used_changes_nothing(
    name: str,
    ehr: EHRSimulator,
    elsewhere: Server,
    opened: Launch,
    visit: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ehr.faults.add(name)
    with caplog.at_level(logging.DEBUG), pytest.raises(SMARTError) as caught:
        introspect_grant(visit)
    assert caught.value.code == UNANSWERED[name]
    stored = reload_grant(visit.pk)
    assert (stored.status, stored.expires_at) == ("active", visit.expires_at)
    assert stored.refresh_token == visit.refresh_token
    opened.refresh_from_db()
    assert opened.status == Launch.Status.OPEN
    check_log(ehr, caplog.text + str(caught.value))
    assert elsewhere.requests == []

    ehr.faults.clear()
    assert introspect_grant(stored).active


@pytest.mark.compliance("INTRO-03")
@pytest.mark.parametrize("name", CHANGED)
def test_answer_about_another_ends_grant_and_launch(
    name: str,
    ehr: EHRSimulator,
    opened: Launch,
    visit: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ehr.faults.add(name)
    with (
        caplog.at_level(logging.DEBUG),
        listening(grant_lost) as lost,
        pytest.raises(ContextChangedError),
    ):
        introspect_grant(visit)
    stored = reload_grant(visit.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    opened.refresh_from_db()
    assert (opened.status, opened.error_code) == ("ended", "context_changed")
    assert [each["error_code"] for each in lost] == ["context_changed"]
    check_log(ehr, caplog.text)


@pytest.mark.compliance("INTRO-03", "INTRO-04")
@pytest.mark.parametrize("name", named("tolerate", "introspect"))
def test_answer_that_says_less_or_more_will_do(
    name: str, ehr: EHRSimulator, opened: Launch, visit: TokenGrant
) -> None:
    ehr.faults.add(name)
    is_dead = name == "introspect_inactive"
    assert introspect_grant(visit).active is not is_dead
    stored = reload_grant(visit.pk)
    assert (stored.status, stored.patient_id) == ("active", PATIENT)
    assert stored.is_stale(timezone.now()) is is_dead
    opened.refresh_from_db()
    assert opened.status == Launch.Status.OPEN
    assert get_access_token(stored) in ehr.store.access_tokens
