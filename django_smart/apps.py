"""Django's entry point to the package."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["DjangoSMARTConfig"]


class DjangoSMARTConfig(AppConfig):
    """Registers the system checks and the receivers of Django's own signals."""

    name = "django_smart"
    verbose_name = _("SMART on FHIR")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks
        from .launches import sign_out

        checks.register_all()
        sign_out.connect_receivers()
