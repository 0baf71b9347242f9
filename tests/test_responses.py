"""What intercepts requests' adapters intercepts this package, too: ``responses``."""

from __future__ import annotations

from datetime import timedelta

import pytest
import requests
import responses
from django.utils import timezone

from django_smart.clients import fhir_client_for
from django_smart.exceptions import ServerUnreachableError
from django_smart.models import TokenGrant
from tests.factories import make_grant, make_registration
from tests.known import BASE_URL

pytestmark = pytest.mark.django_db

EHR = "https://ehr.example.org"
PATIENT = {"resourceType": "Patient", "id": "p-1"}


@pytest.fixture
def grant() -> TokenGrant:
    """One whose access token has ended."""
    now = timezone.now()
    return make_grant(
        make_registration(),
        access_token="token-1",
        patient_id="p-1",
        received_at=now - timedelta(hours=2),
        expires_at=now - timedelta(hours=1),
    )


@responses.activate
def test_fhir_read_and_token_request_are_intercepted(grant: TokenGrant) -> None:
    responses.get(
        f"{BASE_URL}/.well-known/smart-configuration",
        json={
            "authorization_endpoint": f"{EHR}/authorize",
            "token_endpoint": f"{EHR}/token",
            "capabilities": ["launch-ehr", "permission-patient", "context-ehr-patient"],
            "grant_types_supported": ["authorization_code"],
            "code_challenge_methods_supported": ["S256"],
        },
    )
    responses.post(
        f"{EHR}/token",
        json={
            "access_token": "token-2",
            "token_type": "bearer",
            "expires_in": 3600,
            "scope": grant.scope,
        },
    )
    responses.get(f"{BASE_URL}/Patient/p-1", json=PATIENT)
    assert fhir_client_for(grant=grant).read("Patient", "p-1") == PATIENT
    *_, token, read = [call.request for call in responses.calls]
    assert b"grant_type=refresh_token" in (token.body or b"")
    assert token.url == f"{EHR}/token"
    assert read.headers["Authorization"] == "Bearer token-2"


@responses.activate
def test_error_of_an_interception_is_ours(grant: TokenGrant) -> None:
    TokenGrant.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    responses.get(f"{BASE_URL}/Patient/p-1", body=requests.ConnectionError("down"))
    grant.refresh_from_db()
    with pytest.raises(ServerUnreachableError):
        fhir_client_for(grant=grant).read("Patient", "p-1")
    assert len(responses.calls) == 1
