"""Django's entry point to the package."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["DjangoSMARTConfig"]


class DjangoSMARTConfig(AppConfig):
    """Registers the system checks and the receivers of Django's own signals."""

    name = "django_smart"
    verbose_name = _("SMART on FHIR")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.apps import apps
        from django.contrib.auth import get_user_model
        from django.contrib.auth.signals import user_logged_in, user_logged_out
        from django.db.models.signals import pre_delete, pre_save

        from . import checks

        checks.register_all()
        user_logged_out.connect(
            _end_launches_of_browser, dispatch_uid="django_smart.user_logged_out"
        )
        user_logged_in.connect(
            _end_launches_of_others, dispatch_uid="django_smart.user_logged_in"
        )
        user_logged_in.connect(_note_sign_in, dispatch_uid="django_smart.note_sign_in")
        for model in apps.get_models():
            # Also a proxy, whose deletion sends the signal in its own name.
            if issubclass(model, get_user_model()):
                pre_delete.connect(
                    _end_grants_of_deleted,
                    sender=model,
                    dispatch_uid="django_smart.pre_delete",
                )
        for model in self.get_models():
            pre_save.connect(
                _compute_fields, sender=model, dispatch_uid="django_smart.pre_save"
            )


def _compute_fields(instance: Any, raw: bool, **values: Any) -> None:
    """Compute what ``loaddata`` would store as an edited fixture has it."""
    from .fields import DigestField

    if raw:
        for field in instance._meta.concrete_fields:
            if isinstance(field, DigestField):
                field.pre_save(instance, add=False)


# Receivers import their module when they run, because in most commands nobody signs in
# or out, and it loads all of the HTTP client.


def _end_launches_of_browser(**values: Any) -> None:
    from .launches import sign_out

    sign_out.end_launches_of_browser(**values)


def _end_launches_of_others(**values: Any) -> None:
    from .launches import sign_out

    sign_out.end_launches_of_others(**values)


def _end_grants_of_deleted(**values: Any) -> None:
    from .launches import sign_out

    sign_out.end_grants_of_deleted(**values)


def _note_sign_in(**values: Any) -> None:
    from .views import fresh_sign_in

    fresh_sign_in.note_sign_in(**values)
