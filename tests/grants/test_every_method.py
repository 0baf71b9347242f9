"""Every kind of client, after the launch: refresh, introspection and revocation."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.utils import timezone

from django_smart import tasks
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import get_access_token
from django_smart.models import FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_ID, CLIENT_SECRET, launch, make_browser
from tests.factories import METHODS, expire, make_client, reload_grant
from tests.grants.working import refresh_grants, tick

pytestmark = pytest.mark.django_db

_ONLINE = "openid fhirUser patient/Patient.rs online_access"


def _check_credentials(request: Any, method: str) -> None:
    """The request authenticates the client with *method* and in no other way."""
    form = dict(request.form)
    assert ("Authorization" in request.headers) is (method == "client_secret_basic")
    assert ("client_secret" in form) is (method == "client_secret_post")
    assert ("client_id" in form) is (method in ("none", "client_secret_post"))
    if method == "private_key_jwt":
        claims = jwt.decode(
            form["client_assertion"], options={"verify_signature": False}
        )
        # Whoever receives an assertion can present it to its audience.
        assert claims["aud"] == request.url
        assert (claims["iss"], claims["sub"]) == (CLIENT_ID, CLIENT_ID)


@pytest.mark.compliance("REF-04", "REF-10", "SEC-12", "TOK-14")
@pytest.mark.parametrize("method", METHODS)
def test_requests_after_the_launch_authenticate_the_client(
    ehr: EHRSimulator, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_client(ehr, method, _ONLINE)
    FHIRServer.objects.update(quirks={"introspection_mode": "client"})
    browser = make_browser()
    caplog.set_level(logging.DEBUG)
    grant = expire(reload_grant(launch(browser, ehr).grant_id), ehr)
    get_access_token(grant)
    assert introspect_grant(reload_grant(grant.pk)).active
    grant = reload_grant(grant.pk)
    assert browser.post("/smart/logout/").status_code == 302
    tasks.refresh_due_grants()
    for exchange, number in (("refresh", 1), ("introspect", 1), ("revoke", 2)):
        requests = ehr.requests_to(exchange)
        assert [each.status for each in requests] == [200] * number
        for each in requests:
            _check_credentials(each, method)
    assert [(dict(each.form)["token"]) for each in ehr.requests_to("revoke")] == [
        grant.refresh_token,
        grant.access_token,
    ]
    assert all(each.revoked for each in ehr.store.grants())
    assert reload_grant(grant.pk).refresh_token == ""
    for secret in (grant.access_token, grant.refresh_token, CLIENT_SECRET):
        assert secret not in caplog.text


@pytest.mark.compliance("REF-01", "REF-09", "REF-11")
def test_online_access_is_refreshed_when_it_is_used_and_not_by_a_worker(
    ehr: EHRSimulator,
) -> None:
    make_client(ehr, "client_secret_basic", _ONLINE)
    grant = reload_grant(launch(make_browser(), ehr).grant_id)
    assert (grant.is_offline, grant.refresh_due_at) == (False, None)
    # Whatever its time says, the worker leaves it alone.
    due = timezone.now() - timedelta(hours=1)
    TokenGrant.objects.update(refresh_due_at=due)
    assert tick() == []
    assert refresh_grants([grant.pk]).skipped == 1
    assert ehr.requests_to("refresh") == []
    get_access_token(expire(grant, ehr))
    stored = reload_grant(grant.pk)
    assert (stored.is_offline, stored.refresh_due_at) == (False, None)
