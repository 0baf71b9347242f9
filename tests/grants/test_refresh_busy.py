"""A refresh that meets a busy EHR: who waits for it, how long, and how often."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from django.db import connection
from werkzeug.wrappers import Response

from django_smart.exceptions import (
    TokenServerError,
)
from django_smart.grants.refresh import (
    get_access_token,
    renew_access_token,
)
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from django_smart.transport.connections import get_time_left
from tests.clocks import HostClock
from tests.errors import raises_code
from tests.factories import expire, reload_grant

pytestmark = pytest.mark.django_db


def busy(
    ehr: EHRSimulator,
    *,
    status: int = 503,
    times: int = 1,
    retry_after: str | None = None,
) -> None:
    """Let the token endpoint be busy that many times."""
    left = [None] * times

    def respond_otherwise(respond: Any, request: Any) -> Response:
        response = respond(request) if not left else None
        if response is None:
            left.pop()
            response = Response("Busy", status=status)
            if retry_after is not None:
                response.headers["Retry-After"] = retry_after
        return response

    ehr.interceptors.append(respond_otherwise)


@pytest.mark.compliance("REF-12")
@pytest.mark.parametrize(
    ("status", "retry_after", "pause"),
    [(503, None, 0.5), (429, None, 0.5), (503, "0", 0), (429, "5", 5)],
)
def test_person_waits_for_a_second_try(
    ehr: EHRSimulator,
    grant: TokenGrant,
    slept: list[float],
    status: int,
    retry_after: str | None,
    pause: float,
) -> None:
    grant = expire(grant, ehr)
    busy(ehr, status=status, retry_after=retry_after)
    assert get_access_token(grant) in ehr.store.access_tokens
    assert slept == [pause]
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.refresh_failures) == ("active", 0)
    assert ehr.reused_refresh_tokens == 0


def test_refresh_after_a_401_waits_as_well(
    ehr: EHRSimulator,
    grant: TokenGrant,
    slept: list[float],
) -> None:
    rejected = grant.access_token
    busy(ehr)
    assert renew_access_token(grant, rejected) != rejected
    assert slept == [0.5]


@pytest.mark.parametrize(
    "trouble",
    [
        # A long or odd Retry-After.
        *(
            {"retry_after": value}
            for value in ("6", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "soon")
        ),
        # Other trouble.
        *({"status": status} for status in (400, 500, 502, 504)),
    ],
)
def test_nobody_waits_for_a_second_try(
    ehr: EHRSimulator,
    grant: TokenGrant,
    slept: list[float],
    trouble: dict[str, Any],
) -> None:
    grant = expire(grant, ehr)
    busy(ehr, **trouble)
    with pytest.raises(TokenServerError):
        get_access_token(grant)
    assert slept == []
    stored = reload_grant(grant.pk)
    assert (stored.status, stored.refresh_token) == ("active", grant.refresh_token)


def test_server_that_stays_busy_is_asked_twice_in_all(
    ehr: EHRSimulator,
    grant: TokenGrant,
    slept: list[float],
) -> None:
    grant = expire(grant, ehr)
    busy(ehr, times=3)
    with pytest.raises(TokenServerError):
        get_access_token(grant)
    assert slept == [0.5]
    assert reload_grant(grant.pk).refresh_token == grant.refresh_token


def test_second_try_keeps_to_the_limit_of_one_call(
    ehr: EHRSimulator, grant: TokenGrant, slept: list[float], settings: Any
) -> None:
    grant = expire(grant, ehr)
    settings.SMART_HTTP_TIMEOUT = (30, 30, 30)
    left: list[float] = []

    def note(respond: Any, request: Any) -> Response:
        left.append(get_time_left())
        response: Response = respond(request)
        return response

    busy(ehr, retry_after="5")
    ehr.interceptors.append(note)
    get_access_token(grant)
    assert slept == [5]
    first, second = left
    assert 25 < first <= 30
    assert first - 6 < second <= first - 5


def test_no_second_try_follows_if_the_wait_alone_takes_too_long(
    ehr: EHRSimulator, grant: TokenGrant, slept: list[float], settings: Any
) -> None:
    grant = expire(grant, ehr)
    settings.SMART_HTTP_TIMEOUT = (5, 5, 5)
    busy(ehr, retry_after="5")
    with pytest.raises(TokenServerError):
        get_access_token(grant)
    assert slept == []
    assert ehr.requests_to("token") == []


@pytest.mark.compliance("TOK-16")
def test_second_try_has_an_assertion_of_its_own(
    ehr: EHRSimulator,
    grant: TokenGrant,
    slept: list[float],
) -> None:
    ClientRegistration.objects.update(token_endpoint_auth_method="private_key_jwt")
    ClientRegistration.objects.update(signing_algorithm="ES384")
    key = create_signing_key("ES384")
    ehr.clients.clear()
    ehr.register_client(
        grant.registration.client_id,
        auth_method="private_key_jwt",
        jwks={"keys": [key.public_jwk]},
    )
    grant = expire(grant, ehr)
    assertions: list[str] = []

    def respond_once_busy(respond: Any, request: Any) -> Response:
        form = dict(parse_qsl(request.get_data().decode()))
        assertions.append(form["client_assertion"])
        # The server has seen the first one, and refuses to see it again.
        response = respond(request) if len(assertions) > 1 else None
        return response or Response("Busy", status=429)

    ehr.interceptors.append(respond_once_busy)
    get_access_token(grant)
    assert len(set(assertions)) == 2


@pytest.mark.parametrize(("seconds", "requests"), [(5, 1), (60, 0)])
def test_process_that_was_stopped_sends_nothing_once_its_lease_is_too_short(
    ehr: EHRSimulator,
    grant: TokenGrant,
    host_clock: HostClock,
    seconds: float,
    requests: int,
) -> None:
    grant = expire(grant, ehr)

    def be_stopped(execute: Any, sql: str, params: Any, *args: Any) -> Any:
        result = execute(sql, params, *args)
        if sql.startswith("UPDATE") and "lease_owner" in sql:
            host_clock.shift(seconds)
        return result

    with connection.execute_wrapper(be_stopped):
        if requests:
            assert get_access_token(grant) in ehr.store.access_tokens
        else:
            with raises_code("refresh_busy"):
                get_access_token(grant)
    assert len(ehr.requests_to("refresh")) == requests
    assert reload_grant(grant.pk).status == "active"


def test_process_that_was_stopped_does_not_ask_a_busy_server_again(
    ehr: EHRSimulator,
    grant: TokenGrant,
    host_clock: HostClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = expire(grant, ehr)
    busy(ehr)
    monkeypatch.setattr("time.sleep", lambda _: host_clock.shift(60))
    with pytest.raises(TokenServerError):
        get_access_token(grant)
    assert ehr.requests_to("token") == []
