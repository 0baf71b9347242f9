"""
Play the adversary.

    python -m tests.adversary.run --steps 20000 --seed 1

A seed repeats a run.  ``DATABASE_URL`` chooses the database.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

from django.conf import settings
from django.test.utils import (
    override_settings,
    setup_databases,
    setup_test_environment,
    teardown_databases,
)
from hypothesis import HealthCheck, Phase
from hypothesis import seed as seeded
from hypothesis import settings as examples
from hypothesis.stateful import run_state_machine_as_test

import django_smart
from tests.adversary.machine import Adversary
from tests.adversary.servers import mounted
from tests.adversary.world import TRUSTED
from tests.celery import app as celery_app

__all__ = ["celery_app", "make_machine", "play"]

# Of each example; then everything begins anew.
_LENGTH = 40
_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "tests.adversary.site.ClinicBackend",
]
# Steps of each seed, as a long run prints what it has done.
_AT_ONCE = 2000


@contextmanager
def make_machine(*, without: Iterable[str] = ()) -> Iterator[type[Adversary]]:
    """The machine, and its servers for as long as the block takes."""
    with mounted() as (ehrs, hostile):
        hostile.forges = "forge" not in without
        members = {
            "ehrs": ehrs,
            "hostile": hostile,
            "tally": Counter(),
            "without": frozenset(without),
        }
        with override_settings(
            SMART_STAFF_SIGN_IN_SERVERS=[TRUSTED], AUTHENTICATION_BACKENDS=_BACKENDS
        ):
            yield type("Adversary", (Adversary,), members)


def play(
    machine: type[Adversary], *, steps: int, seed: int, shortens: bool = False
) -> Counter[str]:
    """
    Make *steps* at least; returns what came of them.

    Raises:
        ViolationError: with the seed and the steps, which take minutes to shorten.
    """
    tally = machine.tally
    while (left := steps - tally["steps"]) > 0:
        print(f"ADVERSARY_SEED={seed}", flush=True)  # noqa: T201 (to repeat it)
        how = examples(
            max_examples=-(-min(left, _AT_ONCE) // _LENGTH),
            stateful_step_count=_LENGTH,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if shortens else [])],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        try:
            run_state_machine_as_test(seeded(seed)(machine), settings=how)
        except Exception as exc:
            exc.add_note(f"ADVERSARY_SEED={seed}, {tally['steps']} steps in all")
            raise
        seed += 1
        print(f"no violation: {dict(tally)}", flush=True)  # noqa: T201
    return tally


def main() -> int:
    """Play once, in a database that is made for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--shorten", action="store_true")
    options = parser.parse_args()
    logging.disable()
    print(f"package: {django_smart.__file__}")  # noqa: T201
    settings.RUN_DIR.mkdir(exist_ok=True)
    setup_test_environment()
    names = setup_databases(verbosity=0, interactive=False)
    try:
        with (
            override_settings(ROOT_URLCONF="tests.adversary.site"),
            make_machine(without=options.without) as machine,
        ):
            play(
                machine,
                steps=options.steps,
                seed=options.seed,
                shortens=options.shorten,
            )
    finally:
        teardown_databases(names, verbosity=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
