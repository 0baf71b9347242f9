"""Lets the EHR see which process asks, and the short form of the test be short."""

from __future__ import annotations

import os
from datetime import timedelta

from django.apps import AppConfig

__all__ = ["ChaosConfig"]


class ChaosConfig(AppConfig):
    """Of the deployment under chaos."""

    name = "tests.chaos"
    label = "chaos"

    def ready(self) -> None:
        """Name the process in each request; make waits as short as the rest."""
        from django_smart import transport
        from django_smart.grants import due_times, turn
        from django_smart.models import server_state

        def name_process() -> None:
            transport._USER_AGENT = f"chaos/{os.getpid()}"

        name_process()
        os.register_at_fork(after_in_child=name_process)
        # For a message that was lost, the short form has no 45 seconds.
        due_times._FLOOR = timedelta(seconds=float(os.environ["CHAOS_FLOOR"]))
        if seconds := os.environ.get("CHAOS_MESSAGE"):
            server_state._ON_ITS_WAY = timedelta(seconds=float(seconds))
            turn._HELD, turn._HELD_ANEW = 5.0, 2.0
