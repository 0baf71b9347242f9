"""Checks of the site's apps, middleware, backends, URLs and templates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import ValidationError
from django.db import connections, router
from django.middleware.cache import FetchFromCacheMiddleware, UpdateCacheMiddleware
from django.shortcuts import resolve_url
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

__all__ = ["find_classes", "find_structure_faults", "load_class"]

_UTC = {None, "UTC", "Etc/UTC"}
_DATABASE_SESSIONS = {
    "django.contrib.sessions.backends.cached_db",
    "django.contrib.sessions.backends.db",
}


def find_structure_faults() -> list[Finding]:
    """What is missing or in the wrong place."""
    return [
        *_check_middleware(),
        *_check_site_cache(),
        *_check_session_refresh(),
        *_check_backend(),
        *_check_user_model(),
        *_check_apps(),
        *_check_urls(),
        *_check_login_url(),
        *_check_time_zone(),
        *_check_database(),
        *_check_templates(),
        *_check_session_cookie(),
        *_check_audit_log(),
    ]


def _check_middleware() -> Iterator[Finding]:
    loaded = [load_class(path) for path in settings.MIDDLEWARE]
    ours = find_classes(loaded, SMARTMiddleware)
    if not ours:
        yield build_finding(
            "django_smart.E020",
            what="The middleware of django_smart is missing.",
            fix='Put "django_smart.middleware.SMARTMiddleware" first in MIDDLEWARE.',
        )
    elif ours != [0]:
        yield build_finding(
            "django_smart.W020",
            what="The middleware of django_smart is not the outermost.",
            fix=(
                'Put "django_smart.middleware.SMARTMiddleware" first in '
                "MIDDLEWARE, exactly once: middleware before it sees paths "
                "with a launch prefix."
            ),
        )
    sessions = find_classes(loaded, SessionMiddleware)
    users = find_classes(loaded, AuthenticationMiddleware)
    if sessions and users and sessions[0] > users[0]:
        yield build_finding(
            "django_smart.E023",
            what="AuthenticationMiddleware comes before SessionMiddleware.",
            fix="Put SessionMiddleware before AuthenticationMiddleware.",
        )
    for middleware, found in (
        (SessionMiddleware, sessions),
        (AuthenticationMiddleware, users),
    ):
        if not found:
            path = f"{middleware.__module__}.{middleware.__name__}"
            yield build_finding(
                "django_smart.E023",
                what=f"{middleware.__name__} is missing.",
                fix=f'Add "{path}" to MIDDLEWARE.',
            )


def _check_site_cache() -> Iterator[Finding]:
    """Require our second middleware between the two of Django's per-site cache."""
    loaded = [load_class(path) for path in settings.MIDDLEWARE]
    if not find_classes(loaded, UpdateCacheMiddleware):
        return
    before = find_classes(loaded, UpdateCacheMiddleware, AuthenticationMiddleware)
    ours = find_classes(loaded, SMARTCacheMiddleware)
    after = find_classes(loaded, FetchFromCacheMiddleware)
    if not ours or max(before) > ours[0] or (after and min(after) < ours[-1]):
        yield build_finding(
            "django_smart.E054",
            what="UpdateCacheMiddleware is not followed by SMARTCacheMiddleware.",
            fix=(
                'Put "django_smart.middleware.SMARTCacheMiddleware" after '
                "UpdateCacheMiddleware and AuthenticationMiddleware, and before "
                "FetchFromCacheMiddleware."
            ),
        )


def _check_session_refresh() -> Iterator[Finding]:
    loaded = [load_class(path) for path in settings.MIDDLEWARE]
    theirs = find_classes(loaded, upstream.SessionRefresh)
    if conf.SMART_LAUNCH_PREFIX and theirs != find_classes(loaded, SessionRefresh):
        yield build_finding(
            "django_smart.E068",
            what="MIDDLEWARE has mozilla-django-oidc's SessionRefresh, which builds "
            "URLs with the launch prefix.",
            fix=(
                'Put "django_smart.middleware.SessionRefresh" in its place in '
                "MIDDLEWARE, or derive your own class from that one."
            ),
        )


def _check_backend() -> Iterator[Finding]:
    loaded = [load_class(path) for path in settings.AUTHENTICATION_BACKENDS]
    if not find_classes(loaded, SMARTAuthenticationBackend):
        yield build_finding(
            "django_smart.E021",
            what="The authentication backend of django_smart is missing.",
            fix=(
                'Add "django_smart.backends.SMARTAuthenticationBackend" to '
                "AUTHENTICATION_BACKENDS."
            ),
        )


def _check_user_model() -> Iterator[Finding]:
    """Warn of users who cannot be stored, or whose state has no column."""
    ours = SMARTAuthenticationBackend
    model: Any = get_user_model()
    # Django's base class, without deactivation, has True.
    if not can_be_deactivated() and model.is_active is not True:
        yield build_finding(
            "django_smart.W070",
            what=f"{model._meta.label}.is_active is not a database column.",
            fix=(
                "Make is_active a BooleanField; until then, end the grants of "
                "deactivated users in the admin."
            ),
        )
    loaded: list[Any] = [load_class(path) for path in settings.AUTHENTICATION_BACKENDS]
    used = [loaded[index] for index in find_classes(loaded, ours)]
    if not any(each.create_user is ours.create_user for each in used):
        return
    name = model._meta.get_field(model.USERNAME_FIELD)
    columns = [
        field.name
        for field in model._meta.concrete_fields
        if field.unique
        and not (field.null or field.primary_key or field.generated or field is name)
        and not (field.has_default() and callable(field.default))
        # An expression of the database, unlike a constant, may differ for each row.
        and not hasattr(field.db_default, "resolve_expression")
    ]
    if not _accepts_generated_name(name) and any(
        each.get_username is ours.get_username for each in used
    ):
        columns.append(name.name)
    if columns:
        yield build_finding(
            "django_smart.W069",
            what=f"The authentication backend gives new users of {model._meta.label} "
            f"only a generated name, such as {build_name(bytes(32))!r}, which these "
            f"fields do not accept: {', '.join(columns)}.",
            fix=(
                "Override create_user or get_username in a subclass of "
                "SMARTAuthenticationBackend, or make the columns nullable and long "
                "enough."
            ),
        )


def _accepts_generated_name(field: Any) -> bool:
    try:
        field.clean(build_name(bytes(32)), None)
    except ValidationError:
        return False
    return True


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
        yield build_finding(
            "django_smart.E024",
            what="The URLs of django_smart are not included.",
            fix='Add path("smart/", include("django_smart.urls")) to urlpatterns.',
        )
    except Exception:  # noqa: BLE001, S110 (Django's own checks report URL errors)
        pass


def _check_login_url() -> Iterator[Finding]:
    try:
        resolve_url(settings.LOGIN_URL)
    except NoReverseMatch:
        yield build_finding(
            "django_smart.E064",
            what=f"LOGIN_URL is {settings.LOGIN_URL!r}, which is neither a path nor "
            "the name of a URL.",
            fix="Set LOGIN_URL to the path or URL name of your sign-in page.",
        )
    except Exception:  # noqa: BLE001, S110 (Django's own checks report URL errors)
        pass


def _check_time_zone() -> Iterator[Finding]:
    if not settings.USE_TZ:
        yield build_finding(
            "django_smart.E025",
            what="USE_TZ is off.",
            fix="Set USE_TZ = True.",
        )


def _check_database() -> Iterator[Finding]:
    connection = connections[router.db_for_write(TokenGrant)]
    time_zone = connection.settings_dict["TIME_ZONE"]
    if connection.vendor == "mysql" and time_zone not in _UTC:
        yield build_finding(
            "django_smart.E048",
            what=f"DATABASES[{connection.alias!r}] has a TIME_ZONE other than UTC.",
            fix=f'Set "TIME_ZONE": None in DATABASES[{connection.alias!r}], or '
            "remove it, and convert the times that are already stored.",
        )
    replica = router.db_for_read(TokenGrant)
    if replica != connection.alias:
        yield build_finding(
            "django_smart.W066",
            what=f"The database router reads this package's models from {replica!r} "
            f"and writes them to {connection.alias!r}.",
            fix="Let db_for_read() return the database that is written to if "
            'model._meta.app_label == "django_smart".',
        )


def _check_templates() -> Iterator[Finding]:
    try:
        get_template("django_smart/error.html")
    except TemplateDoesNotExist:
        yield build_finding(
            "django_smart.E026",
            what="The templates of django_smart cannot be found.",
            fix="Set APP_DIRS to True for the DjangoTemplates engine in TEMPLATES.",
        )
    except TemplateSyntaxError:
        pass  # The site overrides this template; rendering it shows the error.


def _check_session_cookie() -> Iterator[Finding]:
    if str(settings.SESSION_COOKIE_SAMESITE).lower() == "strict":
        yield build_finding(
            "django_smart.W022",
            what="SESSION_COOKIE_SAMESITE is Strict.",
            fix='Set SESSION_COOKIE_SAMESITE = "Lax", Django\'s default.',
        )


def _check_audit_log() -> Iterator[Finding]:
    """Require that django-auditlog, which logs text as it reads, gets no secrets."""
    if not apps.is_installed("auditlog"):
        return
    registry: Any = load_class("auditlog.registry.auditlog")
    if registry is None:
        return  # Another app of this name.
    logged = [
        field.full_name
        for model in apps.get_models()
        if registry.contains(model)
        for field in model._meta.fields
        if isinstance(field, EncryptedTextField)
        and _is_logged(field.name, registry.get_model_fields(model))
    ]
    if logged:
        yield build_finding(
            "django_smart.E067",
            what="django-auditlog stores encrypted fields in plain text: "
            f"{', '.join(logged)}.",
            fix=(
                "Add the fields to AUDITLOG_EXCLUDE_TRACKING_FIELDS, or to "
                "exclude_fields where the model is registered. Delete the log entries "
                "that contain them."
            ),
        )


def _is_logged(name: str, fields: Mapping[str, Collection[str]]) -> bool:
    included, excluded = fields["include_fields"], fields["exclude_fields"]
    return (name in included or not included) and name not in excluded


def load_class(path: str) -> object:
    """Return what *path* of a setting names; ``None`` if it cannot be loaded."""
    try:
        return import_string(path)
    except Exception:  # noqa: BLE001 (Django reports what cannot be loaded)
        return None


def find_classes(loaded: Sequence[object], *classes: type) -> list[int]:
    """Return the positions of *classes* and their subclasses."""
    return [
        index
        for index, each in enumerate(loaded)
        if isinstance(each, type) and issubclass(each, classes)
    ]
