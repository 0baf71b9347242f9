"""Delete what is long over, as the task does, without Celery."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from django_smart.launches.purge import purge

__all__ = ["Command"]


class Command(BaseCommand):
    """``smart_purge``: for a site without a worker, call it every day."""

    help = (
        "End expired launches, revoke ended grants at the EHR, and delete "
        "what ended longer ago than SMART_PURGE_AFTER, as the task purge "
        "does."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Tidy up, and print the counts."""
        result = purge()
        self.stdout.write(
            f"launches expired: {result.launches_failed}, launches deleted: "
            f"{result.launches_deleted}, grants deleted: "
            f"{result.grants_deleted}, revocations finished: "
            f"{result.revocations_finished}"
        )
