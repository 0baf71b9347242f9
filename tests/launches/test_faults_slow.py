"""Answers that take their time: over a socket, where time can be seen to pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from django_smart import transport
from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.exceptions import ServerTimeoutError
from django_smart.grants.ending import revoke_tokens
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import get_access_token
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    ServerState,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    EHR_SCOPE,
    PATIENT,
    get_callback,
    launch,
    make_browser,
)
from tests.factories import expire, make_registration, register_at, reload_grant
from tests.faults import LAUNCH_EXCHANGES, LIMITS, PACE, REFUSED, named

pytestmark = pytest.mark.django_db

# Seconds a whole launch may take on a busy machine, if one call ends by its limit: the
# late answers come after fifteen.
_LONGEST = 10


@pytest.fixture
def ehr(settings: Any) -> Iterator[EHRSimulator]:
    """An EHR that is served, in a hurry, with limits that are in a greater one."""
    simulator = EHRSimulator("http://127.0.0.1/v/r4/sim/abc/fhir")
    simulator.pace = PACE
    register_at(simulator)
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    with simulator.serve("127.0.0.1"):
        yield simulator
    transport.close()


@pytest.fixture
def registration(ehr: EHRSimulator) -> ClientRegistration:
    return make_registration(
        server__base_url=ehr.base_url, ehr_scope=f"{EHR_SCOPE} offline_access"
    )


@pytest.fixture
def _limits(settings: Any, quick_keys: None) -> None:
    settings.SMART_HTTP_TIMEOUT = LIMITS


@pytest.fixture
def grant(registration: ClientRegistration, ehr: EHRSimulator) -> TokenGrant:
    """A grant of an EHR that was quick until now."""
    return reload_grant(launch(make_browser(), ehr).grant_id)


def _try(browser: Any, ehr: EHRSimulator) -> Any:
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    response = browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})
    if response.status_code != 302:
        return response
    return get_callback(browser, ehr.authorize(response["Location"]))


@pytest.mark.compliance("CALL-07")
@pytest.mark.parametrize("name", named("refuse", *LAUNCH_EXCHANGES, slow=True))
@pytest.mark.usefixtures("registration", "_limits")
def test_launch_that_takes_too_long_fails(
    name: str, ehr: EHRSimulator, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    code, status = REFUSED[name]
    browser = make_browser()
    ehr.faults.add(name)
    started = monotonic()
    with caplog.at_level(logging.DEBUG):
        response = _try(browser, ehr)
    assert monotonic() - started < _LONGEST
    assert response.status_code == status
    assert f"<code>{code}</code>" in response.content.decode()
    row = Launch.objects.get()
    assert (row.status, row.error_code) == (Launch.Status.FAILED, code)
    assert not get_user_model().objects.exists()
    assert not TokenGrant.objects.active().exists()
    assert "_auth_user_id" not in browser.session
    for secret in (CLIENT_SECRET, PATIENT, *ehr.store.codes, *ehr.store.access_tokens):
        assert secret not in caplog.text

    ehr.faults.clear()
    del settings.SMART_HTTP_TIMEOUT
    # What is remembered for ten seconds where nothing is known of the server.
    ServerState.objects.update(discovery_failed_at=None)
    assert launch(browser, ehr).status == Launch.Status.OPEN


@pytest.mark.parametrize("name", ["refresh_late", "refresh_endless"])
@pytest.mark.compliance("REF-12")
def test_refresh_that_takes_too_long_costs_no_token(
    name: str, ehr: EHRSimulator, grant: TokenGrant, settings: Any
) -> None:
    grant = expire(grant, ehr)
    settings.SMART_HTTP_TIMEOUT = LIMITS
    ehr.faults.add(name)
    started = monotonic()
    with pytest.raises(ServerTimeoutError):
        get_access_token(grant)
    assert monotonic() - started < _LONGEST
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.last_error) == ("active", "server_timeout")
    assert stored.refresh_token == grant.refresh_token
    assert stored.lease_owner == ""

    ehr.faults.clear()
    del settings.SMART_HTTP_TIMEOUT
    assert get_access_token(reload_grant(grant.pk)) in ehr.store.access_tokens


@pytest.mark.parametrize(
    "name", named("refuse", "client_credentials", "introspect", "revoke", slow=True)
)
@pytest.mark.compliance("SEC-12", "BACK-05", "INTRO-03")
def test_service_introspection_and_revocation_end_in_time(
    name: str, ehr: EHRSimulator, grant: TokenGrant, settings: Any
) -> None:
    use = _USES[name.rpartition("_")[0]]
    settings.SMART_HTTP_TIMEOUT = LIMITS
    ehr.faults.add(name)
    started = monotonic()
    with pytest.raises(ServerTimeoutError):
        use(ehr)
    assert monotonic() - started < _LONGEST
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.refresh_token) == ("active", grant.refresh_token)

    ehr.faults.clear()
    del settings.SMART_HTTP_TIMEOUT
    use(ehr)


@pytest.mark.parametrize("name", ["fhir_late", "fhir_endless"])
def test_read_that_takes_too_long_is_an_error(
    name: str, ehr: EHRSimulator, grant: TokenGrant, settings: Any
) -> None:
    fhir = fhir_client_for(grant=grant)
    settings.SMART_HTTP_TIMEOUT = LIMITS
    ehr.faults.add(name)
    started = monotonic()
    with pytest.raises(ServerTimeoutError):
        fhir.read("Patient", PATIENT)
    assert monotonic() - started < _LONGEST
    ehr.faults.clear()
    del settings.SMART_HTTP_TIMEOUT
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT


def _launch(ehr: EHRSimulator) -> None:
    assert launch(make_browser(), ehr).status == Launch.Status.OPEN


def _refresh(ehr: EHRSimulator) -> None:
    grant = TokenGrant.objects.get()
    get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).refresh_failures == 0


def _read(ehr: EHRSimulator) -> None:
    fhir = fhir_client_for(grant=TokenGrant.objects.get())
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT


def _introspect(ehr: EHRSimulator) -> None:
    FHIRServer.objects.update(quirks={"introspection_mode": "client"})
    assert introspect_grant(reload_grant(TokenGrant.objects.get().pk)).active


def _revoke(ehr: EHRSimulator) -> None:
    grant = reload_grant(TokenGrant.objects.get().pk)
    revoke_tokens(grant)
    found = ehr.store.grant_of(grant.refresh_token)
    assert found is not None
    assert found.revoked


def _serve(ehr: EHRSimulator) -> None:
    """Have the registration's own token, as a backend service."""
    ensure_active_key("ES384")
    ehr.register_client(
        CLIENT_ID, auth_method="private_key_jwt", jwks=SigningKey.objects.as_jwks()
    )
    ClientRegistration.objects.update(
        token_endpoint_auth_method="private_key_jwt",
        signing_algorithm="ES384",
        system_scope="system/Patient.rs",
    )
    service = ClientRegistration.objects.select_related("server").get()
    assert backend_client_for(service).read("Patient", PATIENT)["id"] == PATIENT


_USES: dict[str, Callable[[EHRSimulator], None]] = {
    "client_credentials": _serve,
    "fhir": _read,
    "introspect": _introspect,
    "refresh": _refresh,
    "revoke": _revoke,
}


@pytest.mark.parametrize(
    "name", named("tolerate", *LAUNCH_EXCHANGES, *_USES, slow=True)
)
@pytest.mark.usefixtures("registration", "quick_keys")
def test_answer_after_three_seconds_is_waited_for(
    name: str, ehr: EHRSimulator, settings: Any
) -> None:
    use = _USES.get(name.removesuffix("_after_3_s"), _launch)
    if use is not _launch:
        _launch(ehr)
    # The limits as they are by default, at the pace of the fault.
    ehr.pace = 0.4
    settings.SMART_HTTP_TIMEOUT = tuple(ehr.pace * each for each in (5, 10, 20))
    ehr.faults.add(name)
    started = monotonic()
    use(ehr)
    assert monotonic() - started >= 3 * ehr.pace
