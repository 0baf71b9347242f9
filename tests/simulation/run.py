"""
Simulate deployments, one for each seed.

    python -m tests.simulation.run --seeds 200 --hours 2 --grants 500

A seed repeats a run: ``--first 17 --seeds 1 --verbose`` prints what happened.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

from tests.simulation.world import Scenario, ViolationError, World

__all__ = ["main", "parse", "simulate"]


def simulate(scenario: Scenario, *, is_verbose: bool = False) -> World:
    """
    Run *scenario*, and print what came of it.

    Raises:
        ViolationError: the package broke a promise.
    """
    started = time.process_time()
    world = World(scenario)
    try:
        world.run()
    finally:
        taken = time.process_time() - started
        if is_verbose:
            print(*world.recent, sep="\n")  # noqa: T201
        print(  # noqa: T201 (to repeat it)
            f"SIMULATION_SEED={scenario.seed} {world.get_digest()[:16]} "
            f"{taken:.1f} s of CPU, latest {world.latest:.0f} s: {dict(world.tally)}",
            flush=True,
        )
    return world


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--grants", type=int, default=500)
    parser.add_argument(
        "--lifetimes",
        type=int,
        nargs="+",
        default=Scenario.lifetimes,
        help="seconds that access tokens live; each server has one of them",
    )
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args(arguments)


def main() -> int:
    """Run each seed; returns 1 if a promise was broken."""
    options = parse()
    calm = min(1200.0, options.hours * 900)
    failed = []
    for seed in range(options.first, options.first + options.seeds):
        scenario = Scenario(
            seed=seed,
            seconds=options.hours * 3600 - calm,
            calm=calm,
            grants=options.grants,
            lifetimes=tuple(options.lifetimes),
        )
        try:
            simulate(scenario, is_verbose=options.verbose)
        except ViolationError as exc:
            failed.append(seed)
            print(f"VIOLATION: {exc}", flush=True)  # noqa: T201
    print(f"{options.seeds} seeds, violations with {failed or 'none'}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
