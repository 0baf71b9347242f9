"""A small site that uses django_smart: open a chart, see the HbA1c of its patient."""

from __future__ import annotations

from example_project.celery import app as celery_app

__all__ = ["celery_app"]
