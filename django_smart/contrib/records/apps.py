"""The app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import Error, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _

from django_smart.conf import conf

__all__ = ["RecordsConfig"]


class RecordsConfig(AppConfig):
    """Copies of whole records."""

    name = "django_smart.contrib.records"
    label = "django_smart_records"
    verbose_name = _("SMART on FHIR: whole records")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Add the check of the setting."""
        register(_check_sink)


def _check_sink(**kwargs: Any) -> list[Error]:
    from .due import build_sink

    if not conf.SMART_RECORDS_SINK:
        return []  # A site may call sync_record() with sinks of its own.
    try:
        build_sink()
    except ImproperlyConfigured as exc:
        hint = "For example, django_smart.contrib.records.sinks.EncryptedModelSink."
        return [Error(str(exc), hint=hint, id="django_smart_records.E001")]
    return []
