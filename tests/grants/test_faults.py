"""
A response that cannot be used costs no token, and the next one is good.

Of each kind of failure, one; what makes a response malformed is for tests/protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from django_smart.clients import backend_client_for
from django_smart.exceptions import ContextChangedError, GrantError, SMARTError
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import get_access_token, refresh_grant
from django_smart.models import ClientRegistration, FHIRServer, Launch, TokenGrant
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT, listening
from tests.factories import end_wait, expire, reload_grant
from tests.grants.working import check_log
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("elsewhere", "quick_keys", "slept"),
]

_FAULTS = [
    ("not_json", "token_response_malformed"),
    ("redirect_307", "redirect_refused"),
    ("too_large", "response_too_large"),
    ("503", "token_server_error"),
]
_every_fault = pytest.mark.parametrize(("fault", "code"), _FAULTS)


@pytest.mark.compliance("REF-07", "REF-12")
@pytest.mark.parametrize("refresh", [get_access_token, refresh_grant])
@pytest.mark.parametrize(
    ("fault", "code"), [*_FAULTS, ("invalid_scope", "invalid_scope")]
)
def test_refresh_that_fails_keeps_the_refresh_token(
    ehr: EHRSimulator,
    elsewhere: Server,
    opened: Launch,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
    refresh: Callable[[TokenGrant], object],
    fault: str,
    code: str,
) -> None:
    ehr.faults.add(f"refresh_{fault}")
    with (
        caplog.at_level(logging.DEBUG),
        listening(grant_lost) as lost,
        pytest.raises(SMARTError) as caught,
    ):
        refresh(expire(grant, ehr))
    assert not isinstance(caught.value, GrantError)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.last_error) == ("active", code)
    assert (stored.refresh_failures, stored.lease_owner) == (1, "")
    assert lost == []
    opened.refresh_from_db()
    assert opened.status == Launch.Status.OPEN
    assert f"access token: {code}" in caplog.text
    check_log(ehr, caplog.text)
    assert elsewhere.requests == []
    # Also if the EHR had rotated the token before the response went wrong.
    ehr.faults.clear()
    assert get_access_token(reload_grant(grant.pk)) in ehr.store.access_tokens
    assert ehr.reused_refresh_tokens == 0
    stored = reload_grant(grant.pk)
    assert (stored.last_error, stored.refresh_failures) == ("", 0)


@pytest.mark.compliance("BACK-05", "TOK-18")
@_every_fault
def test_service_that_gets_no_token_keeps_what_it_has(
    ehr: EHRSimulator,
    elsewhere: Server,
    service: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    code: str,
) -> None:
    client = backend_client_for(service)
    client.read("Patient", PATIENT)
    before = TokenGrant.objects.get()
    ehr.expire_access_tokens()
    ehr.faults.add(f"client_credentials_{fault}")
    with caplog.at_level(logging.DEBUG), pytest.raises(SMARTError) as caught:
        client.read("Patient", PATIENT)
    assert caught.value.code == code
    stored = TokenGrant.objects.get()
    assert (stored.status, stored.last_error) == ("active", code)
    assert (stored.access_token, stored.lease_owner) == (before.access_token, "")
    sent = [dict(each.form)["client_assertion"] for each in ehr.requests_to("token")]
    # An assertion is good for one request.
    assert len(set(sent)) == len(sent)
    for secret in (*sent, *ehr.store.access_tokens):
        assert secret not in caplog.text + str(caught.value)
    assert elsewhere.requests == []
    ehr.faults.clear()
    client.read("Patient", PATIENT)
    assert TokenGrant.objects.get().last_error == ""


@pytest.mark.compliance("SEC-12")
@pytest.mark.parametrize(
    ("fault", "code"), [*_FAULTS[1:], ("invalid_client", "token_refused")]
)
def test_tokens_are_kept_until_the_ehr_has_revoked_them(
    ehr: EHRSimulator,
    elsewhere: Server,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    code: str,
) -> None:
    disconnect_grant(grant)
    ehr.faults.add(f"revoke_{fault}")
    with caplog.at_level(logging.DEBUG):
        assert revoke_pending() == 0
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    assert stored.refresh_token == grant.refresh_token
    assert f"Grant {grant.pk}: not revoked yet ({code})" in caplog.text
    check_log(ehr, caplog.text)
    assert elsewhere.requests == []
    ehr.faults.clear()
    end_wait()
    assert revoke_pending() == 1
    assert all(each.revoked for each in ehr.store.grants())


@pytest.mark.compliance("SEC-12")
@pytest.mark.parametrize("fault", ["html_200", "unsupported_token_type"])
def test_tokens_are_forgotten_if_the_ehr_can_do_no_more(
    ehr: EHRSimulator, grant: TokenGrant, fault: str
) -> None:
    disconnect_grant(grant)
    ehr.faults.add(f"revoke_{fault}")
    assert revoke_pending() == 1
    # If the refresh token is refused, the access token is still sent.
    sent = [dict(each.form)["token"] for each in ehr.requests_to("revoke")]
    assert sent == [grant.refresh_token, grant.access_token]
    stored = reload_grant(grant.pk)
    assert (stored.access_token, stored.refresh_token) == ("", "")
    assert revoke_pending() == 0


@pytest.fixture
def visit(grant: TokenGrant) -> TokenGrant:
    """The grant, of a visit, at a server where the client introspects it."""
    FHIRServer.objects.update(quirks={"introspection_mode": "client"})
    TokenGrant.objects.update(encounter_id="a-visit")
    return reload_grant(grant.pk)


@pytest.mark.compliance("INTRO-03", "INTRO-05")
@_every_fault
def test_introspection_that_fails_changes_nothing(
    ehr: EHRSimulator,
    elsewhere: Server,
    visit: TokenGrant,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    code: str,
) -> None:
    ehr.faults.add(f"introspect_{fault}")
    with caplog.at_level(logging.DEBUG), pytest.raises(SMARTError) as caught:
        introspect_grant(visit)
    assert caught.value.code == code
    stored = reload_grant(visit.pk)
    assert (stored.status, stored.expires_at) == ("active", visit.expires_at)
    check_log(ehr, caplog.text + str(caught.value))
    assert elsewhere.requests == []
    ehr.faults.clear()
    assert introspect_grant(stored).active


@pytest.mark.compliance("INTRO-03")
@pytest.mark.parametrize("other", ["encounter", "patient", "subject"])
def test_introspection_that_names_another_ends_grant_and_launch(
    ehr: EHRSimulator, opened: Launch, visit: TokenGrant, other: str
) -> None:
    ehr.faults.add(f"introspect_other_{other}")
    with listening(grant_lost) as lost, pytest.raises(ContextChangedError):
        introspect_grant(visit)
    stored = reload_grant(visit.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    opened.refresh_from_db()
    assert (opened.status, opened.error_code) == ("ended", "context_changed")
    assert [each["error_code"] for each in lost] == ["context_changed"]
