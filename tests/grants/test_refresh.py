"""Refresh: when it happens, what it changes, and what a failure leaves alone."""

from __future__ import annotations

import logging
from base64 import b64decode
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_smart import transport
from django_smart.clients import build_fhir_client
from django_smart.exceptions import (
    ForeignPatientError,
    ReauthorizationRequiredError,
    TokenResponseError,
    TokenServerError,
)
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.refresh import (
    get_access_token,
    refresh_grant,
    renew_access_token,
)
from django_smart.models import FHIRServer, Launch, TokenGrant
from django_smart.signals import grant_lost, grant_refreshed
from django_smart.testing import EHRSimulator
from tests.answers import after_answer, answer, refuse_refresh
from tests.ehr import (
    PATIENT,
    REDIRECT_URI,
    get_callback,
    get_launch,
    launch,
    listening,
    make_browser,
)
from tests.factories import (
    end_wait,
    expire,
    make_registration,
    make_user,
    reload_grant,
)

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.launch_urls")]

# When


@pytest.mark.compliance("RESP-05", "REF-09")
def test_fresh_token_is_used_as_it_is(ehr: EHRSimulator, grant: TokenGrant) -> None:
    ehr.clear_requests()
    assert get_access_token(grant) == grant.access_token
    assert ehr.requests == []


@pytest.mark.compliance("REF-03", "REF-04", "REF-06", "REF-09")
def test_expired_token_is_refreshed(ehr: EHRSimulator, grant: TokenGrant) -> None:
    grant = expire(grant, ehr)
    before, used = grant.access_token, grant.refresh_token
    with listening(grant_refreshed) as refreshed:
        token = get_access_token(grant)
    (request,) = ehr.requests_to("refresh")
    assert request.form == [("grant_type", "refresh_token"), ("refresh_token", used)]
    assert request.headers["Authorization"].startswith("Basic ")
    assert token != before
    stored = reload_grant(grant.pk)
    assert stored.access_token == grant.access_token == token
    assert stored.expires_at > timezone.now() + timedelta(minutes=59)
    due_at: Any = stored.refresh_due_at
    assert stored.received_at < due_at < stored.expires_at
    assert (stored.lease_owner, stored.lease_expires_at) == ("", None)
    assert refreshed[0]["grant"].pk == grant.pk


def test_operator_cannot_refresh_for_a_deactivated_user(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    grant.user = make_user(is_active=False)
    ehr.clear_requests()
    with pytest.raises(ReauthorizationRequiredError):
        refresh_grant(grant)
    assert ehr.requests == []


@pytest.mark.compliance("REF-10")
def test_refresh_token_goes_to_its_server_with_its_client(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    other = EHRSimulator(base_url="https://other.example.org/r4")
    other.register_client(
        "other-client", client_secret="its secret", redirect_uris=[REDIRECT_URI]
    )
    make_registration(
        server__slug="other",
        server__base_url=other.base_url,
        client_id="other-client",
        client_secret="its secret",
        ehr_scope="launch openid fhirUser patient/Patient.rs offline_access",
    )
    with transport.mounted("https://other.example.org", other.adapter()):
        launch_id = other.create_launch("other-client", patient=PATIENT)
        browser = make_browser()
        url = browser.get(
            "/smart/launch/", {"iss": other.base_url, "launch": launch_id}
        )["Location"]
        there = get_launch(get_callback(browser, other.authorize(url))).grant
        assert there is not None
        for each, at in ((expire(there, other), other), (expire(grant, ehr), ehr)):
            used = each.refresh_token
            get_access_token(each)
            (request,) = at.requests_to("refresh")
            credentials = b64decode(request.headers["Authorization"].split()[1])
            assert credentials.decode().partition(":")[0] == each.registration.client_id
            assert dict(request.form)["refresh_token"] == used
            other.clear_requests()
            ehr.clear_requests()


@pytest.mark.compliance("REF-09")
@pytest.mark.parametrize(
    ("lifetime", "age", "is_stale"),
    [(3600, 3569, False), (3600, 3571, True), (100, 89, False), (100, 91, True)],
)
def test_token_is_refreshed_shortly_before_its_end(
    grant: TokenGrant, lifetime: int, age: int, is_stale: bool
) -> None:
    now = timezone.now()
    grant.received_at = now - timedelta(seconds=age)
    grant.expires_at = grant.received_at + timedelta(seconds=lifetime)
    assert grant.is_stale(now) is is_stale


def test_use_of_a_grant_is_noted_once_a_day(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    # Grants that no one uses are refreshed less often (SMART_REFRESH_IDLE_AFTER).
    TokenGrant.objects.update(last_used_at=timezone.now() - timedelta(days=2))
    noted: list[Any] = []
    for _ in range(2):
        get_access_token(reload_grant(grant.pk))
        noted.append(reload_grant(grant.pk).last_used_at)
    assert timezone.now() - noted[0] < timedelta(minutes=5)
    assert noted[0] == noted[1]


@pytest.mark.compliance("REF-07")
def test_rotated_refresh_token_replaces_the_old_one(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    old = grant.refresh_token
    get_access_token(grant := expire(grant, ehr))
    rotated = reload_grant(grant.pk).refresh_token
    assert rotated != old
    get_access_token(expire(grant, ehr))
    assert ehr.requests_to("refresh")[0].form[1] == ("refresh_token", rotated)
    assert ehr.reused_refresh_tokens == 0


@pytest.mark.compliance("REF-07")
def test_refresh_token_stays_where_none_comes(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    old = grant.refresh_token
    ehr.faults.add("refresh_no_refresh_token")
    for _ in range(2):
        get_access_token(expire(grant, ehr))
        assert reload_grant(grant.pk).refresh_token == old


@pytest.mark.compliance("REF-05")
def test_scope_is_sent_only_if_the_server_wants_it(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    FHIRServer.objects.update(quirks={"send_scope_on_refresh": True})
    get_access_token(expire(grant, ehr))
    assert dict(ehr.requests_to("refresh")[0].form)["scope"] == grant.scope
    # What one response leaves out is requested again.
    answer(ehr, "/token", scope="")
    get_access_token(expire(grant, ehr))
    ehr.interceptors.clear()
    get_access_token(expire(grant, ehr))
    assert dict(ehr.requests_to("refresh")[-1].form)["scope"] == grant.scope
    assert reload_grant(grant.pk).scopes == grant.scopes


@pytest.mark.compliance("FHIR-04")
@pytest.mark.parametrize("scope", ["", "launch/patient", "patient/*.rs"])
def test_refresh_never_opens_other_records(
    ehr: EHRSimulator, grant: TokenGrant, scope: str
) -> None:
    answer(ehr, "/token", scope=scope)
    get_access_token(expire(grant, ehr))
    before = len(ehr.requests)
    with pytest.raises(ForeignPatientError):
        build_fhir_client(reload_grant(grant.pk)).read("Patient", "another")
    assert len(ehr.requests) == before


@pytest.mark.compliance("REF-05")
def test_scope_is_never_more_than_was_granted_first(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    at_ehr = ehr.store.grant_of(grant.refresh_token)
    assert at_ehr is not None
    at_ehr.scopes = [*at_ehr.scopes, "patient/*.cruds", "user/*.cruds"]
    get_access_token(expire(grant, ehr))
    stored = reload_grant(grant.pk)
    assert stored.scopes == grant.scopes
    # Narrower is taken as it is, and does not become the new limit.
    at_ehr.scopes = ["launch/patient", "patient/Patient.r"]
    get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).scope == "launch/patient patient/Patient.r"
    at_ehr.scopes = grant.scope_granted.split()
    get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).scopes == grant.scopes


# What goes wrong


@pytest.mark.parametrize(
    "error", ["interaction_required", "login_required", "consent_required"]
)
def test_error_that_only_the_owner_can_resolve_is_final(
    ehr: EHRSimulator, grant: TokenGrant, error: str
) -> None:
    refuse_refresh(ehr, grant, error)
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).last_error == error


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        ("invalid_client", "invalid_client"),
        ("invalid_request", "invalid_request"),
        ("of_its_own", "token_refused"),
    ],
)
def test_after_the_known_end_any_refusal_is_final(
    ehr: EHRSimulator, grant: TokenGrant, error: str, stored: str
) -> None:
    refuse_refresh(ehr, grant, error)
    with pytest.raises(TokenResponseError):
        get_access_token(expire(grant, ehr))
    TokenGrant.objects.update(ends_at=timezone.now())
    with listening(grant_lost) as lost, pytest.raises(ReauthorizationRequiredError):
        get_access_token(reload_grant(grant.pk))
    assert [each["error_code"] for each in lost] == [stored]
    assert reload_grant(grant.pk).last_error == stored


@pytest.mark.parametrize("error", ["server_error", "temporarily_unavailable"])
def test_after_the_known_end_trouble_of_the_server_is_not_final(
    ehr: EHRSimulator, grant: TokenGrant, error: str
) -> None:
    refuse_refresh(ehr, grant, error)
    TokenGrant.objects.update(ends_at=timezone.now())
    with pytest.raises(TokenResponseError):
        get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).status == "active"


@pytest.mark.compliance("REF-12", "SEC-11")
def test_invalid_grant_is_final_and_told(
    ehr: EHRSimulator, grant: TokenGrant, caplog: pytest.LogCaptureFixture
) -> None:
    grant = expire(grant, ehr)
    token = grant.refresh_token
    ehr.revoke_grant(token)
    with (
        listening(grant_lost) as lost,
        caplog.at_level(logging.DEBUG),
        pytest.raises(ReauthorizationRequiredError),
    ):
        get_access_token(grant)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.last_error) == (
        "needs_reauthorization",
        "invalid_grant",
    )
    # The EHR may be wrong: for a day an operator can take it back.
    assert stored.refresh_token == token
    assert stored.refresh_due_at is None
    assert [(each["grant"].pk, each["error_code"]) for each in lost] == [
        (grant.pk, "invalid_grant")
    ]
    assert f"Grant {grant.pk} lost: invalid_grant" in caplog.text
    assert token not in caplog.text
    # One attempt, and no loop.
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(reload_grant(grant.pk))
    assert len(ehr.requests_to("refresh")) == 1


@pytest.mark.compliance("REF-12")
def test_worker_waits_as_long_as_the_server_asks(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    ehr.faults.add("refresh_429")  # Retry-After: 120
    before = timezone.now()
    with pytest.raises(TokenServerError):
        get_access_token(grant)
    due_at: Any = reload_grant(grant.pk).refresh_due_at
    assert due_at >= before + timedelta(seconds=120)
    assert due_at <= timezone.now() + timedelta(hours=1)


@pytest.mark.usefixtures("slept")
def test_page_that_is_opened_again_and_again_does_not_postpone_the_worker(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    ehr.faults.add("refresh_503")
    for _ in range(5):
        with pytest.raises(TokenServerError):
            get_access_token(reload_grant(grant.pk))
    stored = reload_grant(grant.pk)
    assert stored.refresh_due_at == grant.refresh_due_at
    assert stored.refresh_failures == 1
    TokenGrant.objects.update(refresh_failures=4)
    with pytest.raises(TokenServerError):
        get_access_token(reload_grant(grant.pk))
    assert reload_grant(grant.pk).refresh_failures == 4


def test_made_up_error_of_a_server_stays_out_of_row_and_log(
    ehr: EHRSimulator,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from werkzeug.wrappers import Response

    grant = expire(grant, ehr)
    made_up = "x" * 200
    ehr.interceptors.append(
        lambda *_: Response(f'{{"error": "{made_up}"}}', status=400)
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(TokenResponseError):
        get_access_token(grant)
    assert reload_grant(grant.pk).last_error == "token_refused"
    assert made_up not in caplog.text


def test_unexpected_fault_gives_the_lease_back(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)

    def break_down(respond: Any, request: Any) -> Any:
        raise RuntimeError("a bug")

    ehr.interceptors.append(break_down)
    with pytest.raises(RuntimeError):
        get_access_token(grant)
    stored = reload_grant(grant.pk)
    assert (stored.lease_owner, stored.last_error) == ("", "internal_error")
    assert (stored.status, stored.refresh_token) == ("active", grant.refresh_token)


def test_grant_without_refresh_token_ends_with_its_access_token(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    grant = reload_grant(launch(make_browser(), ehr).grant_id)
    assert grant.refresh_token == ""
    with pytest.raises(ReauthorizationRequiredError):
        renew_access_token(grant, grant.access_token)
    assert reload_grant(grant.pk).status == "active"
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(expire(grant, ehr))
    assert reload_grant(grant.pk).status == "expired"
    assert ehr.requests == []


def test_grant_that_is_revoked_during_its_refresh_stays_revoked(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    after_answer(ehr, lambda: disconnect_grant(reload_grant(grant.pk)))
    with (
        listening(grant_refreshed) as refreshed,
        pytest.raises(ReauthorizationRequiredError),
    ):
        get_access_token(grant)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    assert stored.refresh_due_at is None
    assert refreshed == []
    # The tokens that came are nobody's: the EHR is told of them, as soon as it answers.
    ehr.faults.add("revoke_503")
    assert revoke_pending() == 0
    ehr.faults.clear()
    assert not all(each.revoked for each in ehr.store.grants())
    end_wait()
    assert revoke_pending() == 2
    assert all(each.revoked for each in ehr.store.grants())
    assert not TokenGrant.objects.exclude(refresh_token_digest="").exists()


def test_grant_that_is_deleted_during_its_refresh_is_nobodys(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    after_answer(ehr, lambda: TokenGrant.objects.filter(pk=grant.pk).delete())
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(grant)
    assert revoke_pending() == 1
    assert all(each.revoked for each in ehr.store.grants())


def test_nobody_sees_tokens_of_another_patient_not_even_after_a_crash(
    ehr: EHRSimulator, opened: Launch
) -> None:
    grant = expire(reload_grant(opened.grant_id), ehr)
    ehr.faults.add("refresh_other_patient")

    stored_tokens: list[str] = []

    def crash(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and stored_tokens:
            raise KeyboardInterrupt
        if sql.startswith("UPDATE") and "refresh_token" in sql.partition(" WHERE ")[0]:
            stored_tokens.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(crash), pytest.raises(KeyboardInterrupt):
        get_access_token(grant)
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.is_revocation_pending) == ("revoked", True)
    assert stored.refresh_token != grant.refresh_token
    assert stored.refresh_due_at is None
    opened.refresh_from_db()
    assert opened.status == "open"
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(stored)


def test_grant_that_has_ended_is_not_lost_by_another_patient_as_well(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant = expire(grant, ehr)
    ehr.faults.add("refresh_other_patient")
    after_answer(ehr, lambda: disconnect_grant(reload_grant(grant.pk)))
    with (
        listening(grant_lost) as lost,
        pytest.raises(ReauthorizationRequiredError),
    ):
        get_access_token(grant)
    assert lost == []
    assert TokenGrant.objects.awaiting_revocation().count() == 2
