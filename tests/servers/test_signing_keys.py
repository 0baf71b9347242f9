"""The life of a signing key: next, active, retired, removed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec
from django.db import connection
from django.test import Client

from django_smart import tasks
from django_smart.exceptions import KeyRotationError
from django_smart.models import ClientRegistration, FHIRServer, SigningKey
from django_smart.protocol.client_auth import MAX_ASSERTION_LIFETIME
from django_smart.protocol.jwk import (
    generate_private_key_pem,
    load_private_key,
    public_jwk,
)
from django_smart.servers.http import build_client_authentication
from django_smart.servers.signing_keys import (
    JWKS_MAX_AGE,
    OVERLAP,
    create_signing_key,
    ensure_active_key,
    ensure_next_key,
    generate_key,
    get_ready_at,
    get_removal_at,
    retire_key,
    rotate_due_keys,
    rotate_key,
)
from tests.factories import make_registration
from tests.threads import run_together

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database_travels")]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PERIOD = timedelta(days=30)


@pytest.fixture(autouse=True)
def clock() -> Any:
    """A clock that stands still until a test moves it."""
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


def states() -> dict[str, str]:
    return dict(SigningKey.objects.values_list("kid", "status"))


# Making


@pytest.mark.compliance("JWKS-01")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_first_key_signs_and_the_second_is_published(algorithm: str) -> None:
    first = generate_key(algorithm)
    second = generate_key(algorithm)
    assert states() == {first.kid: "active", second.kid: "next"}
    assert first.activated_at == NOW
    assert second.activated_at is None
    with pytest.raises(KeyRotationError, match="is already next"):
        generate_key(algorithm)
    assert len(states()) == 2


@pytest.mark.django_db(transaction=True)
def test_many_that_make_the_first_key_at_once_get_the_same() -> None:
    made = run_together(*[lambda: ensure_active_key("ES384").kid] * 4)
    assert states() == {made[0]: "active"}
    assert made == [made[0]] * 4


# Rotating


def test_overlap_outlasts_caches_and_the_last_assertion() -> None:
    assert JWKS_MAX_AGE + timedelta(seconds=MAX_ASSERTION_LIFETIME) <= OVERLAP


@pytest.mark.compliance("JWKS-10")
def test_next_key_signs_once_every_ehr_knows_it(clock: Any) -> None:
    first = ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    clock.shift(OVERLAP - timedelta(seconds=1))
    with pytest.raises(KeyRotationError, match="may sign from 2026-03-01 14:00 UTC"):
        rotate_key("ES384")
    assert states() == {first.kid: "active", following.kid: "next"}
    clock.shift(timedelta(seconds=1))
    assert get_ready_at(following) == NOW + OVERLAP

    assert rotate_key("ES384") == following

    assert states() == {first.kid: "retired", following.kid: "active"}
    first.refresh_from_db()
    assert first.retired_at == NOW + OVERLAP
    assert get_removal_at(first) == NOW + 2 * OVERLAP
    published = [each["kid"] for each in SigningKey.objects.as_jwks()["keys"]]
    assert published == [first.kid, following.kid]


def test_key_that_got_out_is_replaced_without_waiting() -> None:
    first = ensure_active_key("ES384")
    with pytest.raises(KeyRotationError, match="smart_keys generate"):
        rotate_key("ES384", at_once=True)
    following, _ = ensure_next_key("ES384")
    assert rotate_key("ES384", at_once=True) == following
    assert retire_key(first.kid).status == "retired"
    assert retire_key(first.kid, at_once=True).status == "removed"


@pytest.mark.django_db(transaction=True)
def test_of_rotations_at_once_one_happens() -> None:
    first = ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    SigningKey.objects.update(created_at=NOW - OVERLAP)

    def rotate() -> str:
        try:
            return rotate_key("ES384").kid
        except KeyRotationError:
            return ""

    assert sorted(run_together(*[rotate] * 4)) == ["", "", "", following.kid]
    assert states() == {first.kid: "retired", following.kid: "active"}


def test_rotation_that_another_one_overtakes_changes_nothing() -> None:
    first = ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    seen: list[str] = []

    def overtake(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        if len(seen) == 2:
            # The slower one has seen its next key, which signs a moment later.
            rotate_key("ES384", at_once=True)
        return execute(sql, *args)

    with (
        connection.execute_wrapper(overtake),
        pytest.raises(KeyRotationError, match="by another process"),
    ):
        rotate_key("ES384", at_once=True)
    assert states() == {first.kid: "retired", following.kid: "active"}


def make_unreadable_next(algorithm: str, settings: Any) -> SigningKey:
    """A next key that was encrypted with a key that is now lost."""
    before = settings.SECRET_KEY
    settings.SECRET_KEY = "another " * 8
    key, _ = ensure_next_key(algorithm)
    settings.SECRET_KEY = before
    return key


def test_next_key_that_cannot_be_decrypted_does_not_sign(settings: Any) -> None:
    first = ensure_active_key("ES384")
    lost = make_unreadable_next("ES384", settings)
    with pytest.raises(KeyRotationError, match=f"retire {lost.kid}"):
        rotate_key("ES384", at_once=True)
    assert states() == {first.kid: "active", lost.kid: "next"}
    # What the message advises.
    assert retire_key(lost.kid).status == "removed"
    following = generate_key("ES384")
    assert rotate_key("ES384", at_once=True) == following


def test_active_key_that_cannot_be_decrypted_is_replaced(settings: Any) -> None:
    lost = ensure_active_key("ES384")
    settings.SECRET_KEY = "another " * 8
    following = generate_key("ES384")
    assert rotate_key("ES384", at_once=True) == following
    assert retire_key(lost.kid).status == "retired"
    assert retire_key(lost.kid, at_once=True).status == "removed"


# Retiring


def test_key_that_registrations_sign_with_is_not_retired() -> None:
    key = ensure_active_key("ES384")
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm="ES384",
    )
    with pytest.raises(KeyRotationError, match="1 active registrations sign"):
        retire_key(key.kid, at_once=True)
    assert states() == {key.kid: "active"}
    registration.signing_algorithm = "RS384"
    registration.save()
    assert retire_key(key.kid).status == "retired"


@pytest.mark.compliance("JWKS-02")
def test_private_half_goes_when_the_key_leaves_the_set() -> None:
    key = create_signing_key("ES384", status="retired")
    assert SigningKey.objects.get(pk=key.pk).private_key
    retire_key(key.kid, at_once=True)
    assert SigningKey.objects.get(pk=key.pk).private_key == ""


# By schedule


def test_without_a_period_keys_stay_and_retired_ones_go(clock: Any) -> None:
    first = ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    clock.shift(timedelta(days=4000))
    assert rotate_due_keys() == Counter()
    rotate_key("ES384")
    clock.shift(OVERLAP - timedelta(seconds=1))
    assert rotate_due_keys() == Counter()
    clock.shift(timedelta(seconds=1))
    assert rotate_due_keys() == Counter(removed=1)
    assert states() == {first.kid: "removed", following.kid: "active"}


@pytest.mark.compliance("JWKS-10")
def test_schedule_publishes_rotates_and_removes(clock: Any, settings: Any) -> None:
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    assert rotate_due_keys() == Counter()
    first = ensure_active_key("ES384")
    assert rotate_due_keys() == Counter(generated=1)
    second = SigningKey.objects.following().get()
    clock.shift(PERIOD - timedelta(seconds=1))
    assert rotate_due_keys() == Counter()
    clock.shift(timedelta(seconds=1))
    tasks.rotate_keys.delay()
    third = SigningKey.objects.following().get()
    assert states() == {first.kid: "retired", second.kid: "active", third.kid: "next"}
    assert rotate_due_keys() == Counter()
    clock.shift(OVERLAP)
    assert rotate_due_keys() == Counter(removed=1)
    clock.shift(PERIOD)
    assert rotate_due_keys() == Counter(generated=1, rotated=1)
    assert SigningKey.objects.active().get() == third


def test_schedule_that_is_switched_on_late_waits_for_the_next_key(
    clock: Any, settings: Any
) -> None:
    first = ensure_active_key("ES384")
    clock.shift(2 * PERIOD)
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    assert rotate_due_keys() == Counter(generated=1)
    assert SigningKey.objects.active().get() == first
    clock.shift(OVERLAP)
    assert rotate_due_keys() == Counter(generated=1, rotated=1)


def test_schedule_rotates_the_other_keys_if_one_cannot_be_decrypted(
    clock: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    first = ensure_active_key("ES384")
    lost = make_unreadable_next("ES384", settings)
    ensure_active_key("RS384")
    following, _ = ensure_next_key("RS384")
    clock.shift(PERIOD)
    assert rotate_due_keys() == Counter(generated=1, rotated=1)
    assert {*SigningKey.objects.active()} == {first, following}
    assert lost.kid in caplog.text


@pytest.mark.django_db(transaction=True)
def test_schedule_that_runs_twice_at_once_rotates_once(settings: Any) -> None:
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    SigningKey.objects.update(created_at=NOW - PERIOD, activated_at=NOW - PERIOD)
    changes = run_together(*[rotate_due_keys] * 4)
    assert sum(each["rotated"] for each in changes) == 1
    assert sorted(states().values()) == ["active", "next", "retired"]
    assert SigningKey.objects.active().get() == following


def test_kid_of_a_new_key_can_be_typed_as_an_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[bool, Any] = {}
    while len(found) < 2:
        pem = generate_private_key_pem("ES384")
        key = load_private_key(pem)
        found[public_jwk(key)["kid"].startswith("-")] = key
    made = [found[False], found[True]]
    dashed = public_jwk(found[True])["kid"]
    monkeypatch.setattr(ec, "generate_private_key", lambda _: made.pop())
    kid = create_signing_key("ES384").kid
    assert kid != dashed
    assert made == []


# Keys of one registration alone


@pytest.fixture
def registrations() -> tuple[ClientRegistration, ClientRegistration]:
    """Two at one server, which sign with the same algorithm."""
    first = _make_signing("own")
    return first, _make_signing("shared", first.server)


def _make_signing(client_id: str, *server: FHIRServer) -> ClientRegistration:
    return make_registration(
        *server,
        client_id=client_id,
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm="ES384",
        ehr_scope="",
        standalone_scope="",
        redirect_uri="",
        system_scope="system/Patient.rs",
    )


def _get_kid(registration: ClientRegistration) -> str:
    """Of the key that a token request of *registration* is signed with."""
    endpoint = "https://ehr.example.org/token"
    form: list[tuple[str, str]] = []
    build_client_authentication(registration, token_endpoint=endpoint).apply(
        form, {}, endpoint=endpoint
    )
    return str(jwt.get_unverified_header(dict(form)["client_assertion"])["kid"])


def _read_set(registration: ClientRegistration | None) -> set[str]:
    name = "jwks.json" if registration is None else f"jwks/{registration.pk}.json"
    response = Client().get(f"/smart/{name}", secure=True)
    assert response.status_code == 200
    return {each["kid"] for each in response.json()["keys"]}


def test_registration_with_a_key_of_its_own_signs_with_no_other(
    registrations: tuple[ClientRegistration, ClientRegistration],
) -> None:
    owner, other = registrations
    shared = ensure_active_key("ES384")
    following, _ = ensure_next_key("ES384")
    own = generate_key("ES384", owner)
    # Its server reads the set first, which has both until then.
    assert own.status == "next"
    assert _read_set(owner) == {own.kid, shared.kid, following.kid}
    assert (_get_kid(owner), _get_kid(other)) == (shared.kid, shared.kid)
    with pytest.raises(KeyRotationError, match="may sign from"):
        rotate_key("ES384", owner)
    rotate_key("ES384", owner, at_once=True)

    assert (_get_kid(owner), _get_kid(other)) == (own.kid, shared.kid)
    assert _read_set(owner) == {own.kid}
    assert _read_set(None) == _read_set(other) == {shared.kid, following.kid}


def test_registration_signs_with_a_published_key_after_its_algorithm_is_changed(
    registrations: tuple[ClientRegistration, ClientRegistration],
) -> None:
    owner, _ = registrations
    own = create_signing_key("ES384", registration=owner)
    shared = ensure_active_key("RS384")
    assert _read_set(owner) == {own.kid}
    owner.signing_algorithm = "RS384"
    owner.save()
    assert _get_kid(owner) == shared.kid
    assert _read_set(owner) == {own.kid, shared.kid}
    # Until a key of its own signs with this algorithm as well.
    following = generate_key("RS384", owner)
    assert _read_set(owner) == {own.kid, shared.kid, following.kid}
    rotate_key("RS384", owner, at_once=True)
    assert _get_kid(owner) == following.kid
    assert _read_set(owner) == {own.kid, following.kid}


def test_keys_are_rotated_for_each_owner(
    registrations: tuple[ClientRegistration, ClientRegistration],
    settings: Any,
    clock: Any,
) -> None:
    owner, other = registrations
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    shared = ensure_active_key("ES384")
    own = create_signing_key("ES384", registration=owner)
    assert rotate_due_keys()["generated"] == 2
    with pytest.raises(KeyRotationError, match="already next"):
        generate_key("ES384", owner)
    clock.shift(PERIOD)
    assert rotate_due_keys()["rotated"] == 2
    assert not {_get_kid(owner), _get_kid(other)} & {own.kid, shared.kid}
    assert _get_kid(owner) != _get_kid(other)


def test_registration_without_its_own_key_signs_with_the_shared_one_again(
    registrations: tuple[ClientRegistration, ClientRegistration],
) -> None:
    owner, other = registrations
    own = create_signing_key("ES384", registration=owner)
    with pytest.raises(KeyRotationError, match="1 active registrations"):
        retire_key(own.kid)
    shared = create_signing_key("ES384")
    with pytest.raises(KeyRotationError, match="1 active registrations"):
        retire_key(shared.kid)
    ClientRegistration.objects.filter(pk=other.pk).update(is_active=False)
    assert retire_key(shared.kid).status == "retired"
    shared = create_signing_key("ES384")
    # Its server may have cached its set, which has no shared key.
    with pytest.raises(KeyRotationError, match="--now"):
        retire_key(own.kid)
    assert _get_kid(owner) == own.kid
    assert retire_key(own.kid, at_once=True).status == "removed"
    assert _get_kid(owner) == shared.kid
    with pytest.raises(KeyRotationError):
        retire_key(shared.kid)


def test_separate_key_of_another_algorithm_signs_for_no_registration(
    registrations: tuple[ClientRegistration, ClientRegistration],
) -> None:
    owner, other = registrations
    ClientRegistration.objects.filter(pk=other.pk).update(is_active=False)
    shared = create_signing_key("ES384")
    create_signing_key("RS384", registration=owner)
    with pytest.raises(KeyRotationError, match="1 active registrations"):
        retire_key(shared.kid)
    assert _get_kid(owner) == shared.kid


def test_separate_key_that_its_registration_does_not_need_is_retired(
    registrations: tuple[ClientRegistration, ClientRegistration],
) -> None:
    owner, _ = registrations
    own = create_signing_key("RS384", registration=owner)
    ensure_active_key("RS384")
    assert retire_key(own.kid).status == "retired"


@pytest.mark.usefixtures("db")
def test_key_set_of_no_registration_is_not_found() -> None:
    assert Client().get("/smart/jwks/1.json", secure=True).status_code == 404


@pytest.mark.usefixtures("database_stays")
@pytest.mark.parametrize("days", [-100, 100])
def test_worker_whose_clock_is_wrong_signs_with_no_key_that_ehrs_do_not_know(
    settings: Any, days: int
) -> None:
    settings.SMART_KEY_ROTATION = 90 * 86400
    key = ensure_active_key("ES384")
    with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
        assert rotate_due_keys() == Counter(generated=1)
        with pytest.raises(KeyRotationError, match="may sign from"):
            rotate_key("ES384")
    assert rotate_due_keys() == Counter()
    with pytest.raises(KeyRotationError, match="may sign from"):
        rotate_key("ES384")
    assert ensure_active_key("ES384") == key
