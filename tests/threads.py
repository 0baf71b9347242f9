"""Several callers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections


def run_together(*functions: Callable[[], Any]) -> list[Any]:
    """The results of *functions*, begun at once in a thread each."""
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)

    def run(number: int, function: Callable[[], Any]) -> None:
        try:
            barrier.wait(60)
            results[number] = function()
        except Exception as exc:  # noqa: BLE001 (the test looks at it)
            results[number] = exc
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return results
