"""Servers that want the client ID beside an assertion, although SMART omits it."""

from __future__ import annotations

import pytest

from django_smart.exceptions import TokenError, TokenServerError
from django_smart.grants.refresh import get_access_token
from django_smart.models import ClientRegistration, FHIRServer, Launch
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_ID, connect, make_browser
from tests.factories import expire, make_registration, register_key_at, reload_grant

pytestmark = pytest.mark.django_db

FIELD = "client_id_with_assertion"


@pytest.fixture
def signing(ehr: EHRSimulator) -> ClientRegistration:
    ensure_active_key("RS384")
    register_key_at(ehr)
    return make_registration(
        token_endpoint_auth_method="private_key_jwt", client_secret=""
    )


@pytest.mark.usefixtures("signing")
@pytest.mark.compliance("TOK-03")
@pytest.mark.parametrize("is_on", [True, False])
def test_client_id_goes_beside_the_assertion_if_the_switch_is_on(
    ehr: EHRSimulator, *, is_on: bool
) -> None:
    FHIRServer.objects.update(quirks={"client_id_with_assertion": is_on})
    if is_on:
        ehr.quirks = ["assertion_client_id"]
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    (launched,) = ehr.requests_to("token")
    get_access_token(expire(grant, ehr))
    (refreshed,) = ehr.requests_to("refresh")
    for request in (launched, refreshed):
        assert dict(request.form).get("client_id") == (CLIENT_ID if is_on else None)


@pytest.mark.usefixtures("signing")
def test_launch_that_is_refused_without_a_reason_names_the_switch(
    ehr: EHRSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    ehr.quirks = ["assertion_client_id"]
    with pytest.raises(AssertionError):
        connect(make_browser(), ehr)
    assert Launch.objects.get().error_code == "token_server_error"
    assert FIELD in caplog.text


@pytest.mark.usefixtures("signing")
@pytest.mark.parametrize("fault", ["refresh_invalid_client", "refresh_404", ""])
def test_refresh_names_the_switch_if_the_assertion_may_be_refused(
    ehr: EHRSimulator, fault: str
) -> None:
    grant_id = connect(make_browser(), ehr).grant_id
    grant = expire(reload_grant(grant_id), ehr)
    if fault:
        ehr.faults.add(fault)
    else:
        ehr.quirks = ["assertion_client_id"]
    with pytest.raises(TokenError) as caught:
        get_access_token(grant)
    assert (FIELD in str(caught.value)) is (fault != "refresh_404")


def test_secret_that_is_refused_does_not_name_the_switch(ehr: EHRSimulator) -> None:
    make_registration()
    grant_id = connect(make_browser(), ehr).grant_id
    ehr.faults.add("refresh_404")
    with pytest.raises(TokenServerError) as caught:
        get_access_token(expire(reload_grant(grant_id), ehr))
    assert FIELD not in str(caught.value)
