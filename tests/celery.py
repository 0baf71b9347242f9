"""The Celery app of the tests: without one, tasks would go to whatever broker runs."""

from __future__ import annotations

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

    def send_task(self, name: str, args: Any = (), *_: Any, **options: Any) -> None:
        """In place of Celery's."""
        if self.error is not None:
            raise self.error
        self.messages.append((name.rpartition(".")[2], args or ()))
        self.options.append(options)
