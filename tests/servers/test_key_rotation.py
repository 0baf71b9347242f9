"""
Rotation under load: no EHR ever meets a key that it does not know.

Several EHRs keep the JWK Set for as long as its ``Cache-Control`` says, and fetch it at
no other time: an unknown ``kid`` is a refusal.  One stands behind a cache that does the
same, so what it has may be twice as old.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
import time_machine
from django.db import connections
from django.test import Client

from django_smart import transport
from django_smart.exceptions import KeyRotationError, TokenResponseError
from django_smart.grants.backend_services import BackendService
from django_smart.models import ClientRegistration, SigningKey
from django_smart.servers import signing_keys
from django_smart.servers.http import build_client_authentication
from django_smart.servers.signing_keys import JWKS_MAX_AGE, OVERLAP, ensure_active_key
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator import assertions
from django_smart.testing.simulator.errors import OAuthError
from tests.factories import make_registration
from tests.threads import run_together

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_travels"),
]

NAMES = ("north", "east", "south", "west")
PERIOD = timedelta(days=1)
START = datetime(2026, 3, 1, tzinfo=UTC)
Fetch = Callable[[], tuple[Any, float]]


def fetch_from_site() -> tuple[Any, float]:
    """The JWK Set, and the seconds for which it may be kept."""
    try:
        response = Client().get("/smart/jwks.json", secure=True)
    finally:
        connections.close_all()
    found = re.fullmatch(r"public, max-age=(\d+)", response["Cache-Control"])
    assert found is not None
    return response.json(), float(found[1])


class Cache:
    """Keeps an answer for its whole lifetime, and never asks before."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._until = 0.0
        self._held: Any = None
        self.fetches = 0

    def get(self) -> tuple[Any, float]:
        with self._lock:
            if time.time() >= self._until:
                self._held, lifetime = self._fetch()
                self._until = time.time() + lifetime
                self.fetches += 1
            # As of one that does not say how old its answer is.
            return self._held, JWKS_MAX_AGE.total_seconds()


class Hospital:
    """An EHR, and the backend service of this site there."""

    def __init__(self, name: str, *, behind: Cache | None = None) -> None:
        origin = f"https://{name}.example.org"
        self.behind = behind
        self.cache = Cache(behind.get if behind else fetch_from_site)
        self.ehr = EHRSimulator(base_url=f"{origin}/fhir")
        self.ehr.register_client(
            name, auth_method="private_key_jwt", jwks_url="https://app.example.org/"
        )
        self.ehr.fetch_jwks = lambda url: self.cache.get()[0]  # type: ignore[method-assign]  # made to be replaced
        self.registration: ClientRegistration = make_registration(
            server__slug=name,
            server__base_url=self.ehr.base_url,
            client_id=name,
            client_secret="",
            token_endpoint_auth_method="private_key_jwt",
            signing_algorithm="ES384",
            ehr_scope="",
            standalone_scope="",
            redirect_uri="",
            system_scope="system/Patient.rs",
        )
        self.service = BackendService(self.registration)
        self.origin = origin

    def ask(self) -> str:
        """Get a new token now; returns the EHR's complaint, or nothing."""
        held = self.service.grant
        try:
            self.service.renew(held.access_token if held else "")
        except TokenResponseError as exc:
            return f"{exc.error}: {exc.error_description}"
        return ""

    @property
    def kids(self) -> list[str]:
        """The keys it was shown, in order."""
        found = [
            str(jwt.get_unverified_header(dict(each.form)["client_assertion"])["kid"])
            for each in self.ehr.requests_to("token")
        ]
        return list(dict.fromkeys(found))


@pytest.fixture
def clock(settings: Any) -> Iterator[Any]:
    settings.SMART_KEY_ROTATION = PERIOD.total_seconds()
    with time_machine.travel(START, tick=False) as traveller:
        yield traveller


@pytest.fixture
def hospitals(clock: Any) -> Iterator[list[Hospital]]:
    ensure_active_key("ES384")
    shared = Cache(fetch_from_site)
    shared.get()
    made = [Hospital(name, behind=shared if name == "west" else None) for name in NAMES]
    with ExitStack() as stack:
        for each in made:
            stack.enter_context(transport.mounted(each.origin, each.ehr.adapter()))
            # At different times, so that what they keep is of different ages.
            clock.shift(timedelta(minutes=13))
            each.cache.get()
        yield made


def rotate_eagerly() -> None:
    """Rotate as soon as it is allowed, again and again."""
    signing_keys.rotate_due_keys()
    signing_keys.ensure_next_key("ES384")
    with suppress(KeyRotationError):
        signing_keys.rotate_key("ES384")


def run(
    clock: Any,
    hospitals: list[Hospital],
    rotate: Callable[[], object],
    *,
    length: timedelta,
    steps: Sequence[int] = (3, 7, 13),
) -> list[str]:
    """Let everybody work for that long, and rotate meanwhile; returns complaints."""
    chance = random.Random(20260301)
    complaints: list[str] = []
    end = datetime.now(UTC) + length
    while datetime.now(UTC) < end:
        rotated, *answers = run_together(rotate, *[each.ask for each in hospitals])
        for each in hospitals:
            if each.behind:
                # Others come to the same cache at other times.
                each.behind.get()
        assert not isinstance(rotated, Exception), rotated
        complaints += [text for text in answers if text != ""]
        clock.shift(timedelta(minutes=chance.choice(steps)))
    return complaints


@pytest.mark.compliance("JWKS-05", "JWKS-07", "JWKS-10")
@pytest.mark.parametrize(
    ("rotate", "length", "steps", "rotations"),
    [
        (signing_keys.rotate_due_keys, 2 * (PERIOD + 2 * OVERLAP), (13, 29, 59), 2),
        (rotate_eagerly, 6 * OVERLAP, (3, 7, 13), 4),
    ],
    ids=["scheduled", "as fast as allowed"],
)
def test_no_ehr_meets_an_unknown_key_across_rotations(
    clock: Any,
    hospitals: list[Hospital],
    rotate: Callable[[], object],
    length: timedelta,
    steps: Sequence[int],
    rotations: int,
) -> None:
    complaints = run(clock, hospitals, rotate, length=length, steps=steps)
    assert complaints == []
    signed = SigningKey.objects.exclude(activated_at=None).order_by("pk")
    kids = [key.kid for key in signed]
    assert len(kids) > rotations
    for each in hospitals:
        assert [kid for kid in kids if kid in each.kids] == each.kids
        assert len(each.kids) > rotations
        # It really kept what it had: no more than one answer an hour.
        assert each.cache.fetches <= length / JWKS_MAX_AGE + 1
        assert len(each.ehr.requests_to("token")) > 1.5 * each.cache.fetches
    assert SigningKey.objects.filter(status="removed").exists()


@pytest.mark.parametrize("overlap", [timedelta(0), JWKS_MAX_AGE / 2])
def test_with_a_shorter_overlap_they_would(
    clock: Any,
    hospitals: list[Hospital],
    monkeypatch: pytest.MonkeyPatch,
    overlap: timedelta,
) -> None:
    monkeypatch.setattr(signing_keys, "OVERLAP", overlap)
    complaints = run(clock, hospitals, rotate_eagerly, length=timedelta(hours=8))
    assert set(complaints) == {
        "invalid_client: 0 registered keys match kid and alg, not one"
    }


@pytest.mark.parametrize(
    ("overlap", "complaint"), [(OVERLAP, False), (JWKS_MAX_AGE, True)]
)
def test_overlap_is_long_enough_for_a_cache_behind_a_cache(
    clock: Any,
    hospitals: list[Hospital],
    monkeypatch: pytest.MonkeyPatch,
    overlap: timedelta,
    complaint: bool,
) -> None:
    monkeypatch.setattr(signing_keys, "OVERLAP", overlap)
    west = hospitals[-1]
    assert west.behind is not None
    clock.shift(2 * JWKS_MAX_AGE)
    west.behind.get()
    signing_keys.ensure_next_key("ES384")
    clock.shift(JWKS_MAX_AGE - timedelta(seconds=1))
    # An hour old, and kept for another one.
    assert west.ask() == ""
    clock.shift(overlap - JWKS_MAX_AGE + timedelta(seconds=1))
    signing_keys.rotate_key("ES384")
    assert ("invalid_client" in west.ask()) is complaint


@pytest.mark.compliance("JWKS-10")
def test_assertion_that_arrives_after_the_rotation_is_still_checked(
    clock: Any, hospitals: list[Hospital]
) -> None:
    ehr, registration = hospitals[0].ehr, hospitals[0].registration
    signing_keys.rotate_due_keys()
    clock.shift(PERIOD)
    form: list[tuple[str, str]] = []
    build_client_authentication(registration, token_endpoint=ehr.token_endpoint).apply(
        form, {}, endpoint=ehr.token_endpoint
    )
    assert signing_keys.rotate_due_keys()["rotated"] == 1
    clock.shift(timedelta(seconds=239))
    signing_keys.rotate_due_keys()
    # Its cache had run out: what it fetches now has the old key still.
    client = ehr.clients[registration.client_id]
    assertions.verify(ehr, client, dict(form))
    with pytest.raises(OAuthError, match="used before"):
        assertions.verify(ehr, client, dict(form))
