"""The Celery app of the tests: without one, tasks would go to whatever broker runs."""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery

__all__ = ["Broker", "app"]

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()


class Broker:
    """What was given to the broker: tasks with their arguments, and options."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.options: list[dict[str, Any]] = []
        self.error: Exception | None = None
        """Raised for each message, as of a broker that cannot be reached."""
        self.answers = threading.Event()
        """Cleared, no message is taken, as by a broker that is frozen."""
        self.answers.set()
        self.waiting: list[threading.Thread] = []

    def send_task(self, name: str, args: Any = (), *_: Any, **options: Any) -> None:
        """In place of Celery's."""
        if not self.answers.is_set():
            self.waiting.append(threading.current_thread())
            self.answers.wait(30)
        if self.error is not None:
            raise self.error
        self.messages.append((name.rpartition(".")[2], args or ()))
        self.options.append(options)

    def thaw(self) -> None:
        """Take the messages that wait."""
        self.answers.set()
        for thread in self.waiting:
            thread.join(30)
