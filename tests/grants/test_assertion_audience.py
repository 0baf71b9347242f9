"""A server that names another one's token endpoint gets no assertion for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from django_smart import transport
from django_smart.exceptions import CredentialsError
from django_smart.grants.ending import (
    disconnect_grant,
    revoke_pending,
    revoke_tokens,
)
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    SigningKey,
)
from django_smart.protocol.messages import HTTPRequest
from django_smart.servers.http import send
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import CLIENT_ID, REDIRECT_URI, connect, make_browser
from tests.factories import end_wait, make_registration

pytestmark = pytest.mark.django_db

_SYSTEM_SCOPE = "system/*.rs"


def _register_with_keys(ehr: EHRSimulator, **values: Any) -> ClientRegistration:
    """The client of this site at *ehr*, known there by its published keys."""
    ehr.register_client(
        CLIENT_ID,
        auth_method="private_key_jwt",
        jwks=SigningKey.objects.as_jwks(),
        redirect_uris=[REDIRECT_URI],
    )
    return make_registration(
        token_endpoint_auth_method="private_key_jwt", client_secret="", **values
    )


@pytest.fixture
def honest() -> Iterator[EHRSimulator]:
    """An EHR where this site has the same client id and the same keys."""
    ensure_active_key("RS384")
    ehr = EHRSimulator(base_url="https://honest.example/fhir")
    ehr.register_client(
        CLIENT_ID,
        auth_method="private_key_jwt",
        jwks=SigningKey.objects.as_jwks(),
        redirect_uris=[REDIRECT_URI],
        scope=_SYSTEM_SCOPE,
    )
    with transport.mounted("https://honest.example", ehr.adapter()):
        yield ehr


def _name_token_endpoint_of(evil: EHRSimulator, honest: EHRSimulator) -> None:
    """From its next discovery on, *evil* names the token endpoint of *honest*."""
    answer(
        evil,
        "/.well-known/smart-configuration",
        token_endpoint=honest.token_endpoint,
    )


def _get_assertion(ehr: EHRSimulator, exchange: str) -> str:
    return dict(ehr.requests_to(exchange)[-1].form)["client_assertion"]


def _present(assertion: str, ehr: EHRSimulator) -> int:
    """What *ehr* says to whoever asks for system access with *assertion*."""
    body = (
        "grant_type=client_credentials&scope=system%2FPatient.rs"
        "&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A"
        f"client-assertion-type%3Ajwt-bearer&client_assertion={assertion}"
    )
    request = HTTPRequest(
        method="POST",
        url=ehr.token_endpoint,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        body=body.encode(),
    )
    return send(request, server=None).status_code


def test_revocation_carries_an_assertion_for_its_receiver_alone(
    ehr: EHRSimulator, honest: EHRSimulator
) -> None:
    registration = _register_with_keys(ehr)
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    _name_token_endpoint_of(ehr, honest)
    registration.server.state.configuration_fetched_at = None
    registration.server.state.save()
    grant.refresh_from_db()
    disconnect_grant(grant)
    grant.refresh_from_db()
    revoke_tokens(grant)
    assertion = _get_assertion(ehr, "revoke")
    claims = jwt.decode(assertion, options={"verify_signature": False})
    assert claims["aud"] == ehr.revocation_endpoint
    assert _present(assertion, honest) == 401


def test_column_names_the_token_endpoint_at_its_own_origin(
    ehr: EHRSimulator, honest: EHRSimulator
) -> None:
    _register_with_keys(ehr, server__assertion_audience="token_endpoint")
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    revoke_tokens(grant)
    claims = jwt.decode(
        _get_assertion(ehr, "revoke"), options={"verify_signature": False}
    )
    assert claims["aud"] == ehr.token_endpoint


def test_revocation_succeeds_with_the_audience_that_the_server_requires(
    ehr: EHRSimulator,
) -> None:
    ensure_active_key("RS384")
    _register_with_keys(ehr)
    ehr.quirks = ["assertion_token_endpoint"]
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    disconnect_grant(grant)
    assert revoke_pending() == 0
    FHIRServer.objects.update(quirks={"assertion_audience": "token_endpoint"})
    end_wait()
    assert revoke_pending() == 1


def test_column_names_no_token_endpoint_of_another_origin(
    ehr: EHRSimulator, honest: EHRSimulator
) -> None:
    registration = _register_with_keys(ehr, server__assertion_audience="token_endpoint")
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    _name_token_endpoint_of(ehr, honest)
    registration.server.state.configuration_fetched_at = None
    registration.server.state.save()
    grant.refresh_from_db()
    before = len(ehr.requests_to("revoke"))
    with pytest.raises(CredentialsError, match="origin"):
        revoke_tokens(grant)
    assert len(ehr.requests_to("revoke")) == before
