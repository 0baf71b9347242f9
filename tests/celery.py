"""The Celery app of the tests: without one, tasks would go to whatever broker runs."""

from __future__ import annotations

from celery import Celery

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()
