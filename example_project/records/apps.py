"""The app: what happens when a person connects, and disconnects."""

from __future__ import annotations

from django.apps import AppConfig

from django_smart.signals import grant_revoked, launch_completed

__all__ = ["RecordsConfig"]


class RecordsConfig(AppConfig):
    """Copies of connected records, from the connection to its end."""

    name = "example_project.records"
    default_auto_field = "django.db.models.BigAutoField"
    # The settings of the example name it in full; those of the tests must not listen.
    default = False

    def ready(self) -> None:
        """Listen to the signals."""
        from example_project.records import tasks

        launch_completed.connect(tasks.on_connected)
        grant_revoked.connect(tasks.on_disconnected)
