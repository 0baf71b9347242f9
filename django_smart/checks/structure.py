"""Checks of the site's apps, middleware, backends, URLs and templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import ValidationError
from django.db import connections, router
from django.middleware.cache import FetchFromCacheMiddleware, UpdateCacheMiddleware
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string
from mozilla_django_oidc import middleware as upstream

from ..backends import SMARTAuthenticationBackend, build_name
from ..conf import conf
from ..diagnoses import Finding, build_finding
from ..fields import EncryptedTextField
from ..middleware import SessionRefresh, SMARTCacheMiddleware, SMARTMiddleware
from ..models import TokenGrant
from ..models.grant import can_be_deactivated

__all__ = ["find_classes", "find_structure_faults"]

_DATABASE_SESSIONS = {
    "django.contrib.sessions.backends.cached_db",
    "django.contrib.sessions.backends.db",
}


def find_structure_faults() -> Iterator[Finding]:
    """What is missing or in the wrong place."""
    yield from _check_middleware()
    if not find_classes(settings.AUTHENTICATION_BACKENDS, SMARTAuthenticationBackend):
        yield build_finding("django_smart.E021")
    user_model: Any = get_user_model()
    # Django's base class, without deactivation, has True.
    if not can_be_deactivated() and user_model.is_active is not True:
        yield build_finding("django_smart.W070")
    yield from _check_new_names(user_model)
    yield from _check_apps()
    yield from _check_urls()
    if not settings.USE_TZ:
        yield build_finding("django_smart.E025")
    yield from _check_database()
    if str(settings.SESSION_COOKIE_SAMESITE).lower() == "strict":
        yield build_finding("django_smart.W022")
    yield from _check_audit_log()


def find_classes(paths: Any, *classes: type) -> list[int]:
    """Return the positions of *classes* and their subclasses in a setting's *paths*."""
    found = []
    for index, path in enumerate(paths):
        try:
            loaded = import_string(path) if isinstance(path, str) else path
        except Exception:  # noqa: BLE001 (Django reports what cannot be loaded)
            loaded = None
        if isinstance(loaded, type) and issubclass(loaded, classes):
            found.append(index)
    return found


def _check_new_names(user_model: Any) -> Iterator[Finding]:
    """Warn of new users whom the admin could not save."""
    paths = settings.AUTHENTICATION_BACKENDS
    used: list[Any] = [
        import_string(paths[index])
        for index in find_classes(paths, SMARTAuthenticationBackend)
    ]
    ours = SMARTAuthenticationBackend
    if any(
        each.create_user is ours.create_user and each.get_username is ours.get_username
        for each in used
    ):
        try:
            name = user_model._meta.get_field(user_model.USERNAME_FIELD)
            name.clean(build_name(bytes(32)), None)
        except ValidationError:
            yield build_finding("django_smart.W069")


def _check_middleware() -> Iterator[Finding]:
    ours = find_classes(settings.MIDDLEWARE, SMARTMiddleware)
    sessions = find_classes(settings.MIDDLEWARE, SessionMiddleware)
    users = find_classes(settings.MIDDLEWARE, AuthenticationMiddleware)
    if not ours:
        yield build_finding("django_smart.E020")
    elif ours != [0]:
        yield build_finding("django_smart.W020")
    if not sessions or not users or sessions[0] > users[0]:
        yield build_finding("django_smart.E023")
    if updating := find_classes(settings.MIDDLEWARE, UpdateCacheMiddleware):
        # The site's cache; our second middleware belongs between the two of Django's.
        inside = find_classes(settings.MIDDLEWARE, SMARTCacheMiddleware)
        fetching = find_classes(settings.MIDDLEWARE, FetchFromCacheMiddleware)
        if (
            not inside
            or inside[0] < max(updating + users)
            or inside[-1] > min([*fetching, len(settings.MIDDLEWARE)])
        ):
            yield build_finding("django_smart.E054")
    refreshing = find_classes(settings.MIDDLEWARE, upstream.SessionRefresh)
    if conf.SMART_LAUNCH_PREFIX and refreshing != find_classes(
        settings.MIDDLEWARE, SessionRefresh
    ):
        yield build_finding("django_smart.E068")


def _check_apps() -> Iterator[Finding]:
    needed = ["django.contrib.auth"]
    if settings.SESSION_ENGINE in _DATABASE_SESSIONS:
        needed.append("django.contrib.sessions")
    for name in needed:
        if not apps.is_installed(name):
            yield build_finding(
                "django_smart.E022",
                what=f"{name} is not installed.",
                fix=f'Add "{name}" to INSTALLED_APPS.',
            )


def _check_urls() -> Iterator[Finding]:
    try:
        reverse("django_smart:launch")
    except NoReverseMatch:
        yield build_finding("django_smart.E024")
    except Exception:  # noqa: BLE001, S110 (Django's own checks report URL errors)
        pass
    try:
        get_template("django_smart/error.html")
    except TemplateDoesNotExist:
        yield build_finding("django_smart.E026")
    except TemplateSyntaxError:
        pass  # The site overrides this template; rendering it shows the error.


def _check_database() -> Iterator[Finding]:
    connection = connections[router.db_for_write(TokenGrant)]
    time_zone = connection.settings_dict["TIME_ZONE"]
    if connection.vendor == "mysql" and time_zone not in {None, "UTC", "Etc/UTC"}:
        yield build_finding("django_smart.E048")
    if router.db_for_read(TokenGrant) != connection.alias:
        yield build_finding("django_smart.W066")


def _check_audit_log() -> Iterator[Finding]:
    """Require that django-auditlog, which logs text as it reads, gets no secrets."""
    if not apps.is_installed("auditlog"):
        return
    try:
        registry: Any = import_string("auditlog.registry.auditlog")
    except ImportError:
        return  # Another app of this name.
    logged = []
    for model in filter(registry.contains, apps.get_models()):
        fields = registry.get_model_fields(model)
        included, excluded = fields["include_fields"], fields["exclude_fields"]
        logged += [
            field.full_name
            for field in model._meta.fields
            if isinstance(field, EncryptedTextField)
            and (field.name in included or not included)
            and field.name not in excluded
        ]
    if logged:
        yield build_finding(
            "django_smart.E067",
            what="django-auditlog stores encrypted fields in plain text: "
            f"{', '.join(logged)}.",
        )
