"""Every wrong answer to a backend service: no token, and the next one is good."""

from __future__ import annotations

import logging

import pytest

from django_smart.clients import backend_client_for
from django_smart.exceptions import SMARTError
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT
from tests.factories import SERVICE_SCOPE
from tests.faults import named
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("elsewhere", "quick_keys", "slept"),
]

# Code of the error, what is noted in the row, and the faults that lead there.
_REFUSED = {
    ("token_refused", "invalid_client"): "client_credentials_invalid_client",
    ("token_refused", "invalid_request"): "client_credentials_invalid_request",
    ("token_refused", "invalid_scope"): "client_credentials_invalid_scope",
    ("token_refused", "unauthorized_client"): "client_credentials_unauthorized_client",
    ("token_refused", "unsupported_grant_type"): (
        "client_credentials_unsupported_grant_type"
    ),
    ("token_server_error",) * 2: """
        client_credentials_404 client_credentials_429 client_credentials_500
        client_credentials_503
    """,
    ("redirect_refused",) * 2: """
        client_credentials_redirect_302 client_credentials_redirect_307
    """,
    ("response_too_large",) * 2: """
        client_credentials_bomb client_credentials_too_large
    """,
    ("token_response_malformed",) * 2: """
        client_credentials_array client_credentials_broken_access_token
        client_credentials_duplicate_member client_credentials_empty
        client_credentials_empty_access_token client_credentials_html_200
        client_credentials_huge_expires_in
        client_credentials_missing_access_token client_credentials_missing_token_type
        client_credentials_nan_expires_in client_credentials_negative_expires_in
        client_credentials_not_json client_credentials_not_utf8
        client_credentials_text_expires_in client_credentials_wrong_token_type
    """,
}
REFUSED = {name: codes for codes, names in _REFUSED.items() for name in names.split()}


def _read(service: ClientRegistration) -> None:
    assert backend_client_for(service).read("Patient", PATIENT)["id"] == PATIENT


def test_every_fault_is_in_the_table():
    assert sorted(REFUSED) == named("refuse", "client_credentials")


@pytest.mark.compliance("BACK-05", "TOK-18")
@pytest.mark.parametrize("has_token", [False, True], ids=["first", "next"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_wrong_answer_is_no_token(
    name: str,
    has_token: bool,
    ehr: EHRSimulator,
    elsewhere: Server,
    service: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, noted = REFUSED[name]
    if has_token:
        _read(service)
        ehr.expire_access_tokens()
    row = TokenGrant.objects.first()
    before = row.access_token if row is not None else ""
    ehr.faults.add(name)
    ehr.clear_requests()
    with caplog.at_level(logging.DEBUG), pytest.raises(SMARTError) as caught:
        _read(service)
    assert caught.value.code == code
    stored = TokenGrant.objects.get()
    assert (stored.status, stored.last_error) == ("active", noted)
    assert (stored.access_token, stored.refresh_token) == (before, "")
    assert (stored.lease_owner, stored.lease_expires_at) == ("", None)
    assert stored.refresh_failures == 1
    assert f"Grant {stored.pk} has no new access token: {noted}" in caplog.text
    sent = [dict(each.form)["client_assertion"] for each in ehr.requests_to("token")]
    for secret in (*sent, *ehr.store.access_tokens):
        assert secret not in caplog.text
        assert secret not in str(caught.value)
    assert all(each.status == 401 for each in ehr.requests_to("fhir"))
    assert elsewhere.requests == []

    ehr.faults.clear()
    _read(service)
    stored = TokenGrant.objects.get()
    assert (stored.last_error, stored.refresh_failures) == ("", 0)


@pytest.mark.compliance("BACK-05", "RESP-03")
@pytest.mark.parametrize("name", named("tolerate", "client_credentials"))
def test_odd_answer_is_a_token(
    name: str, ehr: EHRSimulator, service: ClientRegistration, slept: list[float]
) -> None:
    ehr.faults.add(name)
    _read(service)
    stored = TokenGrant.objects.get()
    assert stored.refresh_token == ""
    is_narrower = name.endswith(("_scope_narrower", "_list_scope"))
    assert stored.scope == ("system/Patient.rs" if is_narrower else SERVICE_SCOPE)
    tried_twice = name.endswith("_once")
    assert len(slept) == int(tried_twice)
    # An assertion is good for one request.
    sent = [dict(each.form)["client_assertion"] for each in ehr.requests_to("token")]
    assert len(set(sent)) == 1 + int(tried_twice)
