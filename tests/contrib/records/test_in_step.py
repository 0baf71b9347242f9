"""After random changes and faults, a quiet run leaves the sink equal to the chart."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from django_smart.contrib.records import sync_record
from django_smart.contrib.records.models import SyncRun
from django_smart.models import ServerState, TokenGrant
from django_smart.testing import EHRSimulator
from tests.contrib.records.world import (
    TYPES,
    Clock,
    KillableModelSink,
    KillableNDJSONSink,
    KilledError,
    World,
)
from tests.ehr import PATIENT, connect, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

SCOPE = "openid fhirUser launch/patient offline_access patient/*.rs"
# Of these, the first run in each test run, and the others in the long one. The name of
# a test has its seed.
SEEDS = range(int(os.environ.get("RECORDS_SEEDS", "2000")))
SHORT = 15


@pytest.fixture
def grant(db: None, ehr: EHRSimulator) -> TokenGrant:
    make_registration(standalone_scope=SCOPE)
    grant = connect(make_browser(), ehr, patient=PATIENT).grant
    assert grant is not None
    return grant


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy EHR is asked again at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[pytest.mark.long] if seed >= SHORT else [])
        for seed in SEEDS
    ],
)
def test_sink_equals_the_chart_after_a_quiet_run(
    ehr: EHRSimulator, grant: TokenGrant, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    clock = Clock(ehr.clock() + rng.choice([-3, 0, 2]) * 3600)
    world = World(ehr, clock, rng)
    sink: Any = KillableModelSink(world)
    if rng.random() < 0.5:
        sink = KillableNDJSONSink(world, tmp_path)
    for _ in range(rng.randrange(1, 6)):
        run_in_trouble(world, grant, sink)
    world.is_quiet = True
    world.refused.clear()
    # A run that was interrupted keeps what it was refused.
    sync_until_finished(grant, sink)
    run = sync_until_finished(grant, sink)
    assert run.is_complete, run.states
    record, copies = world.record(), sink.read()
    assert {name: copies.get(name) for name in record} == record
    # What was deleted is found by the weekly run.
    make_full_due()
    sync_until_finished(grant, sink)
    assert sink.read() == world.record()


def run_in_trouble(world: World, grant: TokenGrant, sink: Any) -> None:
    world.is_quiet = False
    world.refused = {kind for kind in TYPES if world.rng.random() < 0.2}
    for _ in range(world.rng.randrange(6)):
        world.change()
    if world.rng.random() < 0.7:
        make_full_due()
    with suppress(KilledError):
        sync_record(grant, sink)
    ServerState.objects.update(paused_until=None)


def sync_until_finished(grant: TokenGrant, sink: Any) -> SyncRun:
    for _ in range(5):
        run = sync_record(grant, sink)
        if run.is_finished:
            return run
    raise AssertionError(run.last_error)


def make_full_due() -> None:
    SyncRun.objects.update(full_at=timezone.now() - timedelta(days=8))
