"""
A Celery worker that is told to read the due records, and which is killed.

``python -m tests.contrib.records.worker QUEUE DIRECTORY MOMENT``
"""

from __future__ import annotations

import sys
from pathlib import Path

import django


def main(queue: str, directory: str, moment: str) -> None:
    """
    Read into files if there is a *directory*, or else into the database.

    Args:
        moment: when the sink kills the process; see ``KillingSink``.
    """
    django.setup()

    from django.conf import settings

    from django_smart.contrib.records.tasks import sync_due_records
    from tests.celery import app
    from tests.contrib.records.killing import KillingSink

    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    settings.MEDIA_ROOT = directory
    KillingSink.moment = moment
    settings.SMART_RECORDS_SINK = "tests.contrib.records.killing.build_sink"
    Path(queue).mkdir(exist_ok=True)
    app.conf.update(
        broker_url="filesystem://",
        broker_transport_options={
            "data_folder_in": queue,
            "data_folder_out": queue,
            "control_folder": queue,
        },
        task_always_eager=False,
    )
    sync_due_records.delay()
    app.worker_main(["worker", "--pool=solo", "--loglevel=WARNING"])


if __name__ == "__main__":
    main(*sys.argv[1:])
