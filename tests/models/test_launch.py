"""Launches: keys, states, and what may happen once."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT, launch, make_browser, start_ehr_launch

pytestmark = pytest.mark.django_db


@pytest.fixture
def pending(ehr: EHRSimulator, registration: ClientRegistration) -> Launch:
    """A launch whose callback has not come."""
    start_ehr_launch(make_browser(), ehr)
    return registration.launches.get()


def test_key_is_long_random_and_compared_exactly(pending: Launch) -> None:
    assert len(pending.key) >= 22
    assert Launch().key != Launch().key
    assert Launch.objects.find_with_key(pending.key) == pending
    for key in (pending.key.swapcase(), f"{pending.key} ", pending.key[:-1], ""):
        assert Launch.objects.find_with_key(key) is None


def test_launch_is_found_by_its_state(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    started = start_ehr_launch(make_browser(), ehr)
    state = parse_qs(urlsplit(started).query)["state"][0]
    found = Launch.objects.find_with_state(state)
    assert found is not None
    assert found.registration == registration
    for wrong in (state.swapcase(), f"{state} ", ""):
        assert Launch.objects.find_with_state(wrong) is None


@pytest.mark.parametrize("name", ["key", "state_digest"])
def test_key_and_state_are_unique(pending: Launch, name: str) -> None:
    twin = Launch.objects.get()
    twin.pk = None
    twin._state.adding = True
    twin.key, twin.state_digest = "a" * 24, "b" * 64
    setattr(twin, name, getattr(pending, name))
    with pytest.raises(IntegrityError), transaction.atomic():
        twin.save()
    assert Launch.objects.count() == 1


@pytest.mark.parametrize("before", Launch.Status.values)
@pytest.mark.parametrize("after", Launch.Status.values)
def test_launch_moves_along_its_arrows_once_and_nowhere_else(
    pending: Launch, before: str, after: str
) -> None:
    Launch.objects.update(status=before)
    pending.refresh_from_db()
    other = Launch.objects.get()
    if (before, after) not in Launch.ARROWS:
        with pytest.raises(ValueError, match="does not go"):
            pending.move(after)
        return
    assert pending.move(after, error_code="first")
    # Of two that have read the same row, one succeeds.
    assert not other.move(after, error_code="second")
    assert (pending.status, other.status) == (after, before)
    other.refresh_from_db()
    assert (other.status, other.error_code) == (after, "first")


def test_arrows_of_the_docs_are_those_of_the_model() -> None:
    page = Path("docs/explanation/layers.rst").read_text()
    found = re.findall(r"\* - ``(\w+)``\n     - ``(\w+)``\n     - (.+)\n", page)
    assert {(before, after): why for before, after, why in found} == {
        (str(before), str(after)): f"{why[0].upper()}{why[1:]}."
        for (before, after), why in Launch.ARROWS.items()
    }


def test_launch_without_tokens_fails_once(pending: Launch) -> None:
    now = timezone.now()
    rows = Launch.objects.filter(pk=pending.pk)
    assert rows.fail(error_code="access_denied", now=now) == 1
    assert rows.fail(error_code="another", now=now) == 0
    assert rows.end(reason="signed_out", now=now) == 0
    pending.refresh_from_db()
    assert (pending.status, pending.error_code) == ("failed", "access_denied")
    assert (pending.code_verifier, pending.ended_at) == ("", now)


@pytest.mark.usefixtures("registration")
def test_launch_ends_once_and_only_when_it_was_completed(ehr: EHRSimulator) -> None:
    opened = launch(make_browser(), ehr)
    now = timezone.now()
    rows = Launch.objects.filter(pk=opened.pk)
    assert rows.fail(error_code="late", now=now) == 0
    assert rows.end(reason="signed_out", now=now) == 1
    assert rows.end(reason="lifetime", now=now) == 0
    opened.refresh_from_db()
    assert (opened.status, opened.error_code) == ("ended", "signed_out")
    assert not opened.is_live(now)


@pytest.mark.usefixtures("registration")
def test_text_of_a_launch_shows_no_context(ehr: EHRSimulator) -> None:
    opened = launch(make_browser(), ehr)
    shown = f"{opened} {opened!r} {opened.grant} {opened.grant!r} {opened.identity!r}"
    assert PATIENT not in shown
    assert opened.key not in shown
    assert opened.grant is not None
    assert opened.grant.access_token not in shown


def test_choices_are_checked(pending: Launch) -> None:
    pending.full_clean()
    pending.status = "lost"
    with pytest.raises(ValidationError):
        pending.full_clean()


def test_open_launches_of_a_browser_are_found_by_its_index(
    registration: ClientRegistration,
) -> None:
    # A database without statistics, as SQLite always is, prefers an index of the
    # status alone, and reads every open launch of the site.
    Launch.objects.bulk_create(
        Launch(
            registration=registration,
            status=Launch.Status.OPEN,
            state_digest=f"state-{number}",
            expires_at=timezone.now(),
            browser_digest=f"digest-{number}",
            start_digest=f"start-{number}",
        )
        for number in range(3000)
    )
    if connection.vendor == "postgresql":
        # Its statistics may be those of an empty table, of another test.
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE django_smart_launch")
    for column, index in (("browser_digest", "browser"), ("start_digest", "start")):
        opened = Launch.objects.filter(**{f"{column}__in": ["digest-1"]}).open()
        assert f"django_smart_launch_{index}" in opened.order_by().explain()
