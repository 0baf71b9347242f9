"""Django's entry point to the app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["BrandsConfig"]


class BrandsConfig(AppConfig):
    """User-access brands, for sites that connect many organizations."""

    name = "django_smart.contrib.brands"
    label = "django_smart_brands"
    verbose_name = _("SMART on FHIR: brands")
    default_auto_field = "django.db.models.BigAutoField"
