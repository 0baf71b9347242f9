"""Introspection: both ways to ask, and what an answer changes."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from werkzeug.wrappers import Request, Response

from django_smart.exceptions import (
    ContextChangedError,
    CredentialsError,
    ReauthorizationRequiredError,
    RefreshInTransactionError,
    TokenResponseError,
    TokenServerError,
    UnsupportedServerError,
)
from django_smart.grants.introspection import introspect, introspect_grant
from django_smart.grants.refresh import get_access_token
from django_smart.models import FHIRServer, Identity, Launch, TokenGrant
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.answers import Respond, answer
from tests.ehr import PATIENT, connect, listening, make_browser
from tests.factories import make_registration, reload_grant

pytestmark = pytest.mark.django_db

_COMMITTED = pytest.mark.django_db(transaction=True)
PATH = "/auth/introspect"
both_modes = pytest.mark.parametrize("mode", ["bearer", "client"])


def set_mode(mode: str) -> None:
    is_bearer = mode == "bearer"
    FHIRServer.objects.update(
        quirks={} if is_bearer else {"introspection_mode": mode},
        # Otherwise the simulator's, which lists the methods of clients.
        overrides={"introspection_endpoint_auth_methods_supported": None},
    )


@pytest.mark.compliance("INTRO-01", "INTRO-02", "INTRO-03", "REF-13")
def test_bearer_token_asks_about_any_token(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    ehr.clear_requests()
    described = introspect(
        grant.refresh_token,
        registration=grant.registration,
        access_token=grant.access_token,
    )
    (request,) = ehr.requests_to("introspect")
    assert request.form == [("token", grant.refresh_token)]
    assert request.headers["Authorization"] == f"Bearer {grant.access_token}"
    assert request.headers["Accept"] == "application/json"
    assert described.active
    assert described.client_id == "growth-chart"
    assert described.scopes == grant.scopes
    identity = Identity.objects.get()
    assert (described.issuer, described.subject) == (identity.issuer, identity.subject)
    assert described.context.patient == PATIENT


@pytest.mark.compliance("INTRO-01", "INTRO-03")
def test_client_asks_with_its_own_credentials_where_the_column_says_so(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    set_mode("client")
    ehr.clear_requests()
    registration = reload_grant(grant.pk).registration
    described = introspect(
        grant.access_token, registration=registration, access_token="not used"
    )
    (request,) = ehr.requests_to("introspect")
    assert request.form == [("token", grant.access_token)]
    assert request.headers["Authorization"].startswith("Basic ")
    assert described.active
    assert described.expires_at is not None
    assert abs(described.expires_at - grant.expires_at) < timedelta(seconds=60)


@pytest.mark.compliance("INTRO-04")
def test_token_that_nobody_knows_is_dead(ehr: EHRSimulator, grant: TokenGrant) -> None:
    described = introspect(
        "made-up", registration=grant.registration, access_token=grant.access_token
    )
    assert not described.active
    assert str(described.scopes) == ""
    assert described.expires_at is None


@pytest.mark.compliance("INTRO-02")
def test_without_a_token_to_ask_with_nothing_is_sent(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    with pytest.raises(CredentialsError, match="pass access_token, or set the server"):
        introspect(grant.access_token, registration=grant.registration)
    assert ehr.requests_to("introspect") == []


def test_server_without_introspection_is_told_of(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    server = grant.registration.server
    assert server.state.configuration is not None
    del server.state.configuration["introspection_endpoint"]
    with pytest.raises(UnsupportedServerError, match="introspection_endpoint"):
        introspect("x", registration=grant.registration, access_token="y")
    # What is set by hand is used.
    server.overrides = {"introspection_endpoint": ehr.introspection_endpoint}
    assert introspect_grant(grant).active


@pytest.mark.compliance("INTRO-05")
@both_modes
def test_token_is_neither_logged_nor_stored_elsewhere(
    ehr: EHRSimulator, grant: TokenGrant, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    set_mode(mode)
    with caplog.at_level(logging.DEBUG):
        described = introspect_grant(reload_grant(grant.pk))
        ehr.expire_access_tokens()
        introspect_grant(reload_grant(grant.pk))
    for value in (grant.access_token, PATIENT, Identity.objects.get().subject):
        assert value not in caplog.text
        assert value not in repr(described)


# Our own grants


@pytest.mark.compliance("INTRO-04", "REF-13")
@both_modes
def test_dead_token_is_refreshed_before_its_next_use(
    ehr: EHRSimulator, grant: TokenGrant, mode: str
) -> None:
    set_mode(mode)
    ehr.store.access_tokens[grant.access_token].revoked = True
    described = introspect_grant(loaded := reload_grant(grant.pk))
    assert not described.active
    assert loaded.is_stale(timezone.now())
    assert reload_grant(grant.pk).status == "active"
    token = get_access_token(reload_grant(grant.pk))
    assert token != grant.access_token
    assert introspect_grant(reload_grant(grant.pk)).active


def test_token_that_came_meanwhile_is_not_taken_for_dead(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    outdated = reload_grant(grant.pk)
    newer = timezone.now() + timedelta(hours=2)
    TokenGrant.objects.update(received_at=timezone.now(), expires_at=newer)
    ehr.expire_access_tokens()
    assert not introspect_grant(outdated).active
    assert reload_grant(grant.pk).expires_at == newer


def test_other_refusals_say_nothing_of_the_token(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    for status in (401, 403):
        answer(ehr, PATH, status=status)
        for mode in ("bearer", "client"):
            set_mode(mode)
            with pytest.raises(TokenServerError, match="introspection_mode"):
                introspect_grant(reload_grant(grant.pk))
    assert reload_grant(grant.pk).expires_at == grant.expires_at


def test_bearer_token_that_the_endpoint_calls_invalid_is_dead(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    def respond(_: Respond, request: Request) -> Response:
        headers = {"WWW-Authenticate": 'Bearer realm="x", error="invalid_token"'}
        return Response("", 401, headers)

    ehr.interceptors.append(respond)
    set_mode("bearer")
    assert not introspect_grant(reload_grant(grant.pk)).active
    # Nothing is said about the token of another app.
    with pytest.raises(TokenServerError, match="introspection_mode"):
        introspect(
            "another", registration=grant.registration, access_token=grant.access_token
        )


def test_client_that_the_endpoint_refuses_is_told_of_the_mode(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    set_mode("client")
    ehr.faults.add("introspect_invalid_client")
    with pytest.raises(TokenResponseError, match="introspection_mode"):
        introspect_grant(reload_grant(grant.pk))


def test_grant_that_has_ended_is_not_asked_about(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant.status = TokenGrant.Status.REVOKED
    with pytest.raises(ReauthorizationRequiredError):
        introspect_grant(grant)
    assert ehr.requests_to("introspect") == []


@_COMMITTED
@pytest.mark.parametrize("dead", [True, False])
def test_what_it_changes_is_not_rolled_back_with_the_caller(
    ehr: EHRSimulator, dead: bool
) -> None:
    make_registration()
    opened = connect(make_browser(), ehr)
    grant = reload_grant(opened.grant_id)
    answer(ehr, PATH, patient="another", active=not dead)
    ehr.clear_requests()
    if connection.vendor == "sqlite":
        with transaction.atomic(), pytest.raises(RefreshInTransactionError):
            introspect_grant(grant)
        assert ehr.requests == []
        assert reload_grant(opened.grant_id).expires_at == grant.expires_at
        return
    with listening(grant_lost) as lost:
        if dead:
            with transaction.atomic():
                assert not introspect_grant(grant).active
                token = get_access_token(reload_grant(grant.pk))
                transaction.set_rollback(True)
            assert reload_grant(grant.pk).access_token == token != grant.access_token
            return
        with pytest.raises(ContextChangedError), transaction.atomic():
            introspect_grant(grant)
    assert reload_grant(grant.pk).status == grant.status == "revoked"
    assert Launch.objects.get().status == "ended"
    assert [each["error_code"] for each in lost] == ["context_changed"]


@_COMMITTED
@pytest.mark.skipif(connection.vendor == "sqlite", reason="refused before that")
def test_caller_that_has_locked_the_grant_ends_it_in_its_own_transaction(
    ehr: EHRSimulator,
) -> None:
    make_registration()
    opened = connect(make_browser(), ehr)
    answer(ehr, PATH, patient="another")
    with transaction.atomic():
        grant = TokenGrant.objects.select_for_update().get()
        with pytest.raises(ContextChangedError):
            introspect_grant(grant)
    assert reload_grant(grant.pk).status == "revoked"
    assert Launch.objects.get(pk=opened.pk).status == "ended"


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "another", "iss": "https://elsewhere.example.net"},
        {"sub": "another", "iss": None},
        {"sub": None},
        {"patient": None, "encounter": ""},
    ],
)
def test_what_an_answer_does_not_say_ends_nothing(
    ehr: EHRSimulator,
    grant: TokenGrant,
    changes: dict[str, Any],
) -> None:
    answer(ehr, PATH, **changes)
    assert introspect_grant(grant).active
    assert reload_grant(grant.pk).status == "active"


def test_grant_without_an_identity_compares_no_person(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    answer(ehr, PATH, sub="another")
    grant.identity = None
    assert introspect_grant(grant).active


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["client_secret_basic", "private_key_jwt"], "Basic"),
        (["client_secret_basic", "Bearer"], "Bearer"),
        (["private_key_jwt"], "Bearer"),
        (None, "Bearer"),
    ],
)
def test_server_says_how_it_wants_to_be_asked(
    ehr: EHRSimulator, grant: TokenGrant, methods: list[str] | None, expected: str
) -> None:
    overrides = {"introspection_endpoint_auth_methods_supported": methods}
    FHIRServer.objects.update(overrides=overrides)
    assert introspect_grant(reload_grant(grant.pk)).active
    (request,) = ehr.requests_to("introspect")
    assert request.headers["Authorization"].startswith(f"{expected} ")
