"""Backend services: tokens for this site itself, shared by all who need one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils import timezone

from django_smart import transport
from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.exceptions import (
    CredentialsError,
    FHIRUnauthorizedError,
    InactiveRegistrationError,
    NoGrantError,
    RefreshInTransactionError,
    TokenResponseError,
    TokenServerError,
    UnsupportedServerError,
)
from django_smart.fhir.client import FHIRClient
from django_smart.grants.ending import disconnect_grant
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, FHIRServer, SigningKey, TokenGrant
from django_smart.servers.discovery import get_configuration
from django_smart.servers.signing_keys import create_signing_key
from django_smart.signals import fhir_request_finished
from django_smart.testing import EHRSimulator
from tests.answers import after_answer, answer
from tests.ehr import PATIENT, listening
from tests.factories import (
    SERVICE_ID,
    SERVICE_SCOPE,
    make_registration,
    make_service,
)
from tests.threads import run_together

pytestmark = pytest.mark.django_db

_COMMITTED = pytest.mark.django_db(transaction=True)


def read(client: FHIRClient) -> str:
    return str(client.read("Patient", PATIENT)["id"])


# One token


@pytest.mark.compliance("BACK-03", "TOK-09", "TOK-14", "TOK-17")
def test_token_is_asked_for_with_an_assertion_and_nothing_else(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    client = backend_client_for(service)
    assert ehr.requests == []
    assert read(client) == PATIENT
    (request,) = ehr.requests_to("token")
    form = dict(request.form)
    assert form.pop("client_assertion").count(".") == 2
    assert form == {
        "grant_type": "client_credentials",
        "scope": SERVICE_SCOPE,
        "client_assertion_type": (
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        ),
    }
    assert "Authorization" not in request.headers
    (fhir,) = ehr.requests_to("fhir")
    assert fhir.headers["Authorization"].startswith("Bearer ")


@pytest.fixture
def evil(ehr: EHRSimulator, service: ClientRegistration) -> Iterator[EHRSimulator]:
    """A server that names the token endpoint of *ehr*, and hands out its client id."""
    evil = EHRSimulator("https://evil.example/r4")
    answer(evil, "/smart-configuration", token_endpoint=ehr.token_endpoint)
    with transport.mounted("https://evil.example", evil.adapter()):
        yield evil


def _register_service_at(evil: EHRSimulator, **values: Any) -> ClientRegistration:
    return make_registration(
        server__slug="evil",
        server__base_url=evil.base_url,
        client_id=SERVICE_ID,
        token_endpoint_auth_method="private_key_jwt",
        signing_algorithm="ES384",
        client_secret="",
        ehr_scope="",
        standalone_scope="",
        redirect_uri="",
        system_scope=SERVICE_SCOPE,
        **values,
    )


def test_server_that_names_another_token_endpoint_gets_none_of_its_tokens(
    ehr: EHRSimulator, evil: EHRSimulator
) -> None:
    registration = _register_service_at(evil)
    with pytest.raises(CredentialsError, match="--registration"):
        read(backend_client_for(registration))
    assert ehr.requests_to("token") == evil.requests_to("fhir") == []


def test_token_endpoint_elsewhere_is_used_if_an_operator_entered_it(
    ehr: EHRSimulator, evil: EHRSimulator
) -> None:
    registration = _register_service_at(
        evil, server__overrides={"token_endpoint": ehr.token_endpoint}
    )
    with suppress(FHIRUnauthorizedError):
        read(backend_client_for(registration))
    assert ehr.requests_to("token")


def test_token_endpoint_elsewhere_is_used_with_a_key_of_its_own(
    ehr: EHRSimulator, evil: EHRSimulator
) -> None:
    registration = _register_service_at(evil)
    create_signing_key("ES384", registration=registration)
    with pytest.raises(TokenResponseError):
        read(backend_client_for(registration))
    # It knows the shared keys alone.
    assert ehr.requests_to("token")
    assert evil.requests_to("fhir") == []


@pytest.mark.compliance("BACK-05", "BACK-08")
def test_token_is_kept_in_a_row_of_nobody(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    ehr.register_client(
        SERVICE_ID,
        auth_method="private_key_jwt",
        jwks=SigningKey.objects.as_jwks(),
        scope="system/Patient.rs",
    )
    read(backend_client_for(service))
    grant = TokenGrant.objects.get()
    assert (grant.kind, grant.status) == ("client_credentials", "active")
    assert (grant.user, grant.identity, grant.patient_id) == (None, None, "")
    assert (grant.is_offline, grant.refresh_due_at) == (False, None)
    assert (grant.refresh_token, grant.refresh_token_digest) == ("", "")
    assert grant.scope_asked == SERVICE_SCOPE
    assert grant.scope == grant.scope_granted == "system/Patient.rs"
    assert grant.expires_at - grant.received_at == timedelta(seconds=300)
    assert not grant.launches.exists()


@pytest.mark.compliance("BACK-07")
def test_token_is_used_until_shortly_before_it_ends(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    with time_machine.travel(datetime(2026, 3, 1, tzinfo=UTC), tick=False) as clock:
        client = backend_client_for(service)
        for _ in range(2):
            read(client)
            read(backend_client_for(service))
            clock.shift(timedelta(minutes=2))
        assert len(ehr.requests_to("token")) == 1
        clock.shift(timedelta(seconds=31))
        read(client)
        read(backend_client_for(service))
    first, second = ehr.requests_to("token")
    assert dict(first.form)["client_assertion"] != dict(second.form)["client_assertion"]
    assert TokenGrant.objects.count() == 1


@pytest.mark.compliance("BACK-06")
def test_refresh_token_that_comes_unasked_is_not_kept(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    answer(ehr, "/auth/token", refresh_token="unasked")
    client = backend_client_for(service)
    read(client)
    assert TokenGrant.objects.get().refresh_token == ""
    ehr.expire_access_tokens()
    read(client)
    assert [dict(each.form)["grant_type"] for each in ehr.requests_to("token")] == [
        "client_credentials"
    ] * 2


@pytest.mark.compliance("BACK-02")
def test_server_without_authorization_endpoint_will_do(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    answer(
        ehr,
        "/smart-configuration",
        remove=("authorization_endpoint", "code_challenge_methods_supported"),
        capabilities=["client-confidential-asymmetric", "permission-v2"],
        grant_types_supported=["client_credentials"],
    )
    assert read(backend_client_for(service)) == PATIENT


def test_requests_are_told_with_the_grant(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    with listening(fhir_request_finished) as told:
        read(backend_client_for(service))
    assert [each["grant"] for each in told] == [TokenGrant.objects.get()]
    assert told[0]["launch"] is None


# Many who need it


@_COMMITTED
@pytest.mark.compliance("BACK-07")
def test_of_many_at_once_one_asks_and_all_get_the_token(ehr: EHRSimulator) -> None:
    service = make_service(ehr)
    after_answer(ehr, lambda: time.sleep(0.3))
    shared = backend_client_for(service)
    clients = [shared] * 4 + [backend_client_for(service) for _ in range(4)]
    results = run_together(*[lambda client=each: read(client) for each in clients])
    assert results == [PATIENT] * 8
    assert len(ehr.requests_to("token")) == 1
    assert TokenGrant.objects.count() == 1


def test_401_with_a_new_token_is_not_tried_for_ever(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    answer(ehr, f"/Patient/{PATIENT}", status=401)
    with pytest.raises(FHIRUnauthorizedError):
        read(backend_client_for(service))
    assert len(ehr.requests_to("token")) == 2
    assert len(ehr.requests_to("fhir")) == 2


@_COMMITTED
def test_token_fetched_inside_a_transaction_is_not_rolled_back_with_it(
    ehr: EHRSimulator,
) -> None:
    service = make_service(ehr)
    client = backend_client_for(service)
    if connection.vendor == "sqlite":
        with transaction.atomic(), pytest.raises(RefreshInTransactionError):
            read(client)
        assert ehr.requests == []
        assert not TokenGrant.objects.exists()
        return
    # Known before, as discovery writes to the row that the transaction holds.
    get_configuration(service.server)
    with transaction.atomic():
        FHIRServer.objects.update(name="rolled back")
        assert read(client) == PATIENT
        transaction.set_rollback(True)
    assert FHIRServer.objects.get().name == "Harbour Hospital"
    assert TokenGrant.objects.get().access_token


# Refusals


@pytest.mark.compliance("BACK-10", "TOK-18")
def test_unknown_key_is_refused_as_invalid_client(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    ehr.register_client(SERVICE_ID, auth_method="private_key_jwt", jwks={"keys": []})
    with pytest.raises(TokenResponseError) as caught:
        read(backend_client_for(service))
    assert (caught.value.error, caught.value.status_code) == ("invalid_client", 401)
    assert TokenGrant.objects.get().last_error == "invalid_client"


def test_busy_server_is_asked_a_second_time_with_a_new_assertion(
    ehr: EHRSimulator, service: ClientRegistration, slept: list[float]
) -> None:
    answer(ehr, "/auth/token", status=503)
    with pytest.raises(TokenServerError):
        read(backend_client_for(service))
    assertions = {
        dict(each.form)["client_assertion"] for each in ehr.requests_to("token")
    }
    assert len(assertions) == len(ehr.requests_to("token")) == 2
    assert len(slept) == 1


@pytest.mark.compliance("TOK-20")
def test_server_that_lacks_it_is_sent_no_assertion(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    answer(ehr, "/smart-configuration", grant_types_supported=["authorization_code"])
    with pytest.raises(UnsupportedServerError, match="client_credentials"):
        read(backend_client_for(service))
    assert not ehr.requests_to("token")
    assert TokenGrant.objects.get().last_error == "server_unsupported"
    ehr.interceptors.clear()
    # What the server said is not held against it for a day.
    assert read(backend_client_for(service)) == PATIENT


@pytest.mark.compliance("BACK-01", "REG-04")
def test_public_client_is_refused_in_the_row_and_by_the_client(
    ehr: EHRSimulator,
) -> None:
    with pytest.raises(ValidationError, match="private_key_jwt"):
        make_service(ehr, token_endpoint_auth_method="none")
    registration = ClientRegistration(
        server=FHIRServer.objects.get(),
        token_endpoint_auth_method="none",
        system_scope=SERVICE_SCOPE,
    )
    with pytest.raises(CredentialsError, match="private_key_jwt"):
        backend_client_for(registration)


def test_secret_is_enough_where_the_server_takes_no_keys(ehr: EHRSimulator) -> None:
    method = "client_secret_post"
    answer(ehr, "/smart-configuration", token_endpoint_auth_methods_supported=[method])
    service = make_service(
        ehr, token_endpoint_auth_method=method, client_secret="s3cret"
    )
    ehr.register_client(
        SERVICE_ID, auth_method=method, client_secret="s3cret", scope=SERVICE_SCOPE
    )
    assert read(backend_client_for(service)) == PATIENT


@pytest.mark.compliance("BACK-04")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_active": False}, "inactive"),
        ({"server__is_active": False}, "inactive"),
        ({"system_scope": ""}, "set its system_scope"),
        ({"system_scope": " "}, "set its system_scope"),
        ({"system_scope": "system/*.rs user/*.rs"}, "begin with system/"),
    ],
)
def test_registration_that_is_not_for_it_is_refused_at_once(
    ehr: EHRSimulator, values: dict[str, Any], message: str
) -> None:
    registration = make_service(
        ehr, **{name: value for name, value in values.items() if name != "system_scope"}
    )
    if "system_scope" in values:
        # Saving it is refused.
        ClientRegistration.objects.update(**values)
        registration.refresh_from_db()
    with pytest.raises(InactiveRegistrationError, match=message):
        backend_client_for(registration)
    assert ehr.requests == []


def test_client_that_is_held_sees_what_changes_in_the_registration(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    client = backend_client_for(service)
    read(client)
    ClientRegistration.objects.update(system_scope="system/Patient.rs")
    ehr.expire_access_tokens()
    read(client)
    asked = [dict(each.form)["scope"] for each in ehr.requests_to("token")]
    assert asked == [SERVICE_SCOPE, "system/Patient.rs"]
    ClientRegistration.objects.update(is_active=False)
    ehr.expire_access_tokens()
    with pytest.raises(InactiveRegistrationError):
        read(client)
    TokenGrant.objects.all().delete()
    ClientRegistration.objects.all().delete()
    with pytest.raises(InactiveRegistrationError):
        read(client)


# The row


def test_row_that_was_ended_here_is_replaced_by_another(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    client = backend_client_for(service)
    read(client)
    first = TokenGrant.objects.get()
    disconnect_grant(first)
    assert TokenGrant.objects.get().is_revocation_pending
    read(backend_client_for(service))
    second = TokenGrant.objects.active().get()
    assert second.pk != first.pk
    TokenGrant.objects.filter(pk=second.pk).end("expired", now=timezone.now())
    read(backend_client_for(service))
    assert TokenGrant.objects.active().count() == 1


def test_row_that_is_ended_while_the_token_comes_stays_ended(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    def end() -> None:
        ehr.interceptors.clear()
        disconnect_grant(TokenGrant.objects.get())

    after_answer(ehr, end)
    assert read(backend_client_for(service)) == PATIENT
    statuses = TokenGrant.objects.order_by("pk").values_list("status", flat=True)
    assert list(statuses) == ["revoked", "active"]
    assert len(ehr.requests_to("token")) == 2


@pytest.mark.usefixtures("database_travels")
def test_purge_leaves_a_service_in_use_alone_and_tidies_an_idle_one(
    ehr: EHRSimulator, service: ClientRegistration, settings: Any
) -> None:
    settings.SMART_PURGE_AFTER = 3600
    read(backend_client_for(service))
    purge()
    assert TokenGrant.objects.active().exists()
    with time_machine.travel(timezone.now() + timedelta(hours=25)):
        purge()
        grant = TokenGrant.objects.get()
        assert (grant.status, grant.access_token) == ("expired", "")
        assert not ehr.requests_to("revoke")
    with time_machine.travel(timezone.now() + timedelta(hours=27)):
        purge()
    assert not TokenGrant.objects.exists()


@pytest.mark.parametrize("values", [{"is_active": False}, {"system_scope": ""}])
def test_purge_drops_the_token_of_a_service_that_was_switched_off(
    ehr: EHRSimulator, service: ClientRegistration, values: dict[str, Any]
) -> None:
    read(backend_client_for(service))
    ClientRegistration.objects.update(**values)
    purge()
    assert TokenGrant.objects.get().access_token == ""


def test_grant_of_a_service_leads_to_its_client(
    ehr: EHRSimulator, service: ClientRegistration
) -> None:
    read(backend_client_for(service))
    grant = TokenGrant.objects.get()
    ehr.expire_access_tokens()
    assert read(fhir_client_for(grant=grant)) == PATIENT
    assert len(ehr.requests_to("token")) == 2
    disconnect_grant(grant)
    with pytest.raises(NoGrantError):
        fhir_client_for(grant=grant)
