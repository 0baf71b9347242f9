"""A Celery worker that is told to read the due records, and which a test kills."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import django


def main(queue: str, directory: str) -> None:
    """Read into files if there is a *directory*, or else into the database."""
    django.setup()

    from django.conf import settings

    from django_smart.contrib.records.tasks import sync_due_records
    from tests.celery import app

    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    settings.MEDIA_ROOT = directory
    settings.SMART_RECORDS_SINK = (
        "tests.contrib.records.worker.build_files"
        if directory
        else "django_smart.contrib.records.sinks.ModelSink"
    )
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


def build_files() -> Any:
    """Return the sink that the setting names."""
    from django.conf import settings

    from django_smart.contrib.records.sinks import NDJSONSink

    return NDJSONSink(settings.MEDIA_ROOT)


if __name__ == "__main__":
    main(*sys.argv[1:])
