"""Every kind of client, after the launch: refresh, introspection, and each ending."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.test import Client
from django.utils import timezone

from django_smart import tasks
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import get_access_token
from django_smart.launches.purge import purge
from django_smart.models import FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    connect,
    get_callback,
    get_launch,
    launch,
    make_browser,
    start_login,
)
from tests.factories import METHODS, expire, make_client, reload_grant
from tests.grants.working import refresh_grants, tick

pytestmark = pytest.mark.django_db

every_method = pytest.mark.parametrize("method", METHODS)
ONLINE = "openid fhirUser patient/Patient.rs online_access"
OFFLINE = "openid fhirUser patient/Patient.rs offline_access"


def check_credentials(request: Any, method: str) -> None:
    """A request of the client that says who it is, in the one way of *method*."""
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


def check_revoked(ehr: EHRSimulator, method: str, grant: TokenGrant) -> None:
    """Both tokens were told of, the refresh token first, and are forgotten here."""
    requests = ehr.requests_to("revoke")
    told = [
        (dict(one.form)["token"], dict(one.form)["token_type_hint"]) for one in requests
    ]
    assert told == [
        (grant.refresh_token, "refresh_token"),
        (grant.access_token, "access_token"),
    ]
    assert [one.status for one in requests] == [200, 200]
    for request in requests:
        check_credentials(request, method)
    if method == "private_key_jwt":
        assertions = [dict(one.form)["client_assertion"] for one in requests]
        assert len(set(assertions)) == 2
    assert all(each.revoked for each in ehr.store.grants())
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", False)
    assert stored.access_token == stored.refresh_token == ""


@pytest.mark.compliance("SEC-12", "REF-11", "TOK-14")
@every_method
def test_sign_out_revokes_what_was_given_for_the_visit(
    ehr: EHRSimulator,
    method: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_client(ehr, method, ONLINE)
    browser = make_browser()
    grant = reload_grant(launch(browser, ehr).grant_id)
    assert grant.refresh_token
    with caplog.at_level(logging.DEBUG):
        assert browser.post("/smart/logout/").status_code == 302
        tasks.refresh_due_grants()
    check_revoked(ehr, method, grant)
    for secret in (grant.access_token, grant.refresh_token, CLIENT_SECRET):
        assert secret not in caplog.text


@pytest.mark.compliance("SEC-12", "TOK-14")
@every_method
def test_disconnecting_revokes_what_was_given_for_good(
    ehr: EHRSimulator,
    method: str,
    django_user_model: Any,
) -> None:
    make_client(ehr, method, OFFLINE)
    browser = make_browser()
    _sign_in(browser, django_user_model)
    grant = reload_grant(connect(browser, ehr).grant_id)
    browser.post("/smart/connections/", {"grant": grant.pk})
    tasks.refresh_due_grants()
    check_revoked(ehr, method, grant)


@pytest.mark.compliance("SEC-12")
@every_method
def test_purge_revokes_what_no_tick_did(ehr: EHRSimulator, method: str) -> None:
    make_client(ehr, method, ONLINE)
    browser = make_browser()
    grant = reload_grant(launch(browser, ehr).grant_id)
    browser.post("/smart/logout/")
    assert reload_grant(grant.pk).is_revocation_pending
    assert purge().revocations_finished == 1
    check_revoked(ehr, method, grant)


@pytest.mark.compliance("REF-03", "REF-04", "REF-10")
@every_method
def test_refresh_says_who_the_client_is(ehr: EHRSimulator, method: str) -> None:
    make_client(ehr, method, ONLINE)
    grant = expire(reload_grant(launch(make_browser(), ehr).grant_id), ehr)
    get_access_token(grant)
    (request,) = ehr.requests_to("refresh")
    assert request.status == 200
    check_credentials(request, method)
    expected = {"grant_type", "refresh_token"}
    assert {name for name, _ in request.form if not name.startswith("client_")} == (
        expected
    )


@pytest.mark.compliance("INTRO-01")
@every_method
def test_introspection_says_who_the_client_is(ehr: EHRSimulator, method: str) -> None:
    make_client(ehr, method, ONLINE)
    FHIRServer.objects.update(quirks={"introspection_mode": "client"})
    grant = reload_grant(launch(make_browser(), ehr).grant_id)
    described = introspect_grant(grant)
    (request,) = ehr.requests_to("introspect")
    check_credentials(request, method)
    assert described.active


# Online access


@pytest.mark.compliance("REF-01", "REF-09", "REF-11")
def test_online_access_is_refreshed_when_it_is_used_and_not_by_a_worker(
    ehr: EHRSimulator,
) -> None:
    make_client(ehr, "client_secret_basic", ONLINE)
    grant = reload_grant(launch(make_browser(), ehr).grant_id)
    assert (grant.is_offline, grant.refresh_due_at) == (False, None)
    # Whatever its time says, the worker leaves it alone.
    due = timezone.now() - timedelta(hours=1)
    TokenGrant.objects.update(refresh_due_at=due)
    assert tick() == []
    assert refresh_grants([grant.pk]).skipped == 1
    assert ehr.requests_to("refresh") == []

    get_access_token(expire(grant, ehr))
    assert len(ehr.requests_to("refresh")) == 1
    stored = reload_grant(grant.pk)
    assert (stored.is_offline, stored.refresh_due_at) == (False, None)


@pytest.mark.compliance("REF-01", "REF-02")
@pytest.mark.parametrize(
    ("scope", "is_offline"),
    [(OFFLINE, True), (ONLINE, False), ("openid patient/Patient.rs", False)],
)
def test_only_what_is_configured_is_asked_for(
    ehr: EHRSimulator, scope: str, is_offline: bool
) -> None:
    make_client(ehr, "client_secret_basic", scope)
    browser = make_browser()
    url = start_login(browser)
    opened = get_launch(get_callback(browser, ehr.authorize(url)))
    asked = opened.scope_asked.split()
    assert {"offline_access", "online_access"} & set(asked) == (
        {"offline_access", "online_access"} & set(scope.split())
    )
    grant = reload_grant(opened.grant_id)
    assert grant.is_offline is is_offline
    assert bool(grant.refresh_token) is ("_access" in scope)


def _sign_in(browser: Client, django_user_model: Any) -> None:
    user = django_user_model.objects.create_user("ada")
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
