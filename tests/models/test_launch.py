"""Launches: keys, states, and what may happen once."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
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


def test_state_is_consumed_once(pending: Launch) -> None:
    now = timezone.now()
    assert Launch.objects.consume(pending, now=now)
    assert not Launch.objects.consume(pending, now=now)
    assert not Launch.objects.pending()


def test_launch_fails_once_and_only_while_it_is_pending(pending: Launch) -> None:
    now = timezone.now()
    rows = Launch.objects.filter(pk=pending.pk)
    assert rows.fail(error_code="access_denied", now=now) == 1
    assert rows.fail(error_code="another", now=now) == 0
    assert rows.end(reason="signed_out", now=now) == 0
    assert not Launch.objects.complete(pending)
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
def test_launch_belongs_to_its_browser_and_its_user(ehr: EHRSimulator) -> None:
    opened = launch(make_browser(), ehr)
    ours: dict[str, Any] = {
        "browser_digests": ["1" * 64, opened.browser_digest],
        "user_id": opened.user_id,
    }
    assert opened.belongs_to(**ours)
    assert not opened.belongs_to(**{**ours, "browser_digests": ()})
    assert not opened.belongs_to(**{**ours, "browser_digests": ["0" * 64]})
    assert not opened.belongs_to(**{**ours, "user_id": None})
    assert not opened.belongs_to(**{**ours, "user_id": -1})


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


@pytest.mark.usefixtures("registration")
def test_user_that_is_deleted_takes_launches_and_grants_along(
    ehr: EHRSimulator,
) -> None:
    opened = launch(make_browser(), ehr)
    assert opened.grant is not None
    get_user_model().objects.get().delete()
    assert not Launch.objects.exists()
    assert not type(opened.grant).objects.exists()
