"""Walks through Django's test client, by both stacks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

import pytest

from django_smart.exceptions import PrefixError
from django_smart.launches.browser import get_browser
from django_smart.launches.context import SMARTContext
from django_smart.models import ClientRegistration, Launch, TokenGrant
from tests.walk.oracle import MismatchError
from tests.walk.walker import Walker

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.walk.site"),
]

_BOTH = ("wsgi", "asgi")


@pytest.fixture(autouse=True)
def _tokens_can_be_refreshed(registration: ClientRegistration, settings: Any) -> None:
    settings.SMART_LAUNCHES_PER_BROWSER = 4
    registration.ehr_scope += " online_access"
    registration.standalone_scope += " patient/Observation.rs"
    registration.save()


def walk(ehr: Any, *, steps: int, stacks: Sequence[str] = _BOTH) -> Walker:
    """
    One walk; ``WALK_SEED`` repeats it.

    Raises:
        MismatchError: with the seed and the steps.
    """
    seed = int(os.environ.get("WALK_SEED", secrets.randbelow(10**6)))
    name = "+".join(stacks)
    print(f"{name}, {steps} steps: WALK_SEED={seed}")  # noqa: T201 (to repeat it)
    walker = Walker(ehr, stacks=stacks, seed=seed)
    try:
        walker.walk(steps)
    except Exception as exc:
        exc.add_note(f"WALK_SEED={seed}")
        raise
    print(f"zero mismatches; pages: {walker.served}")  # noqa: T201
    return walker


def test_no_step_of_a_walk_shows_another_patient(ehr):
    assert len(ehr.data["Patient"]) == 8
    walker = walk(ehr, steps=300)
    # It was a walk: pages were shown, and guesses refused.
    assert walker.served["shown"] > 50
    assert walker.served["refused"] > 50


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stack", _BOTH)
def test_no_step_of_a_long_walk_shows_another_patient(ehr, stack):
    walk(ehr, stacks=[stack], steps=20_000)


@pytest.mark.parametrize(
    "steps",
    [300, pytest.param(5000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
)
def test_no_step_of_a_walk_without_a_prefix_shows_another_patient(ehr, settings, steps):
    settings.SMART_LAUNCH_PREFIX = ""
    walker = walk(ehr, steps=steps)
    assert walker.served["shown"] > 10
    assert walker.served["refused"] > 50


@pytest.mark.parametrize("stack", _BOTH)
def test_walk_notices_a_site_that_ignores_the_address(ehr, stack, monkeypatch):
    def find_newest(self: SMARTContext) -> Launch:
        launches = Launch.objects.with_related().open().order_by("-completed_at")
        if (launch := launches.first()) is None:
            raise PrefixError("No launch is open.")
        return launch

    monkeypatch.setattr(SMARTContext, "_find_by_key", find_newest)
    with pytest.raises(MismatchError):
        walk(ehr, stacks=[stack], steps=500)


@pytest.mark.parametrize("prefix", ["~", ""])
def test_walk_notices_a_site_that_guesses_without_an_address(
    ehr, monkeypatch, settings, prefix
):
    settings.SMART_LAUNCH_PREFIX = prefix

    def find_newest(self: SMARTContext) -> Launch | None:
        launches = Launch.objects.with_related().open()
        digests = get_browser(self._request).digests
        return launches.filter(browser_digest__in=digests).order_by("-pk").first()

    monkeypatch.setattr(SMARTContext, "_find_without_key", find_newest)
    with pytest.raises(MismatchError):
        walk(ehr, steps=500)


def test_walk_notices_a_token_of_another_launch(ehr, monkeypatch):
    def lend(self: SMARTContext) -> Any:
        other = TokenGrant.objects.active().select_related("registration__server")
        assert self.launch is not None
        return self.launch, other.order_by("pk")[0]

    monkeypatch.setattr(SMARTContext, "_get_grant", lend)
    with pytest.raises(MismatchError, match=r"a request to the EHR|was refused"):
        walk(ehr, steps=500)
