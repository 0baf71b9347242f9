"""System checks: for each the wrong and the right value, and none ever crashes."""

from __future__ import annotations

import ast
import base64
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.checks import run_checks
from django.core.validators import MaxLengthValidator, validate_email
from django.db import connections
from django.db.models import Model
from django.test.utils import override_script_prefix
from django.urls import reverse_lazy

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.checks import check_deployment, check_settings, check_structure
from django_smart.conf import SETTINGS, conf
from django_smart.diagnoses import DIAGNOSES, build_docs_url
from django_smart.middleware import SMARTMiddleware
from django_smart.models import FHIRServer, TokenGrant
from django_smart.redaction import (
    RedactionFilter,
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
)

_ROOT = Path(__file__).resolve().parent.parent
# Fixed, as it stands in the names of tests: two workers have to find the same.
_KEY = base64.urlsafe_b64encode(b"a key for the tests, 32 bytes ok").decode()

RIGHT: dict[str, list[Any]] = {
    "SMART_SITE_URL": [
        "",
        "https://app.example.org",
        "https://app.example.org/",
        "https://app.example.org:8443",
        "http://localhost:8000",
        "http://[::1]:8000",
    ],
    "SMART_LAUNCH_REDIRECT_URL": [
        "/",
        "/patient/?tab=labs",
        "django_smart:connections",
        reverse_lazy("django_smart:connections"),
    ],
    "SMART_ENCRYPTION_KEYS": [[], (), [_KEY], (_KEY, _KEY.encode())],
    "SMART_INSECURE_HTTP_HOSTS": [
        [],
        ("localhost",),
        {"127.0.0.1", "ehr-1.example.org"},
        frozenset({"::1", "[::1]"}),
    ],
    "SMART_PRIVATE_HOSTS": [[], ("login.hospital.internal",), {"10.1.2.3", "[::1]"}],
    "SMART_LAUNCH_PREFIX": ["~", "", "launch-", "!.x_"],
    "SMART_HTTP_TIMEOUT": [(5, 10, 20), [0.5, 1, 1], (1, 1, 1)],
    "SMART_AUTHORIZATION_LIFETIME": [60, 900, 86400],
    "SMART_LAUNCH_LIFETIME": [60, 43200],
    "SMART_DISCOVERY_LIFETIME": [60, 86400],
    "SMART_PURGE_AFTER": [3600, 30 * 86400],
    "SMART_BROWSER_COOKIE_NAME": ["smart_browser", "a-b.c!"],
    "SMART_PICKER_SHOW_UNREGISTERED": [True, False],
    "SMART_LOGO_LICENSES": [[], ("https://ehr.example.org/licence",)],
    "SMART_APP_STATE_SYSTEM": ["", "https://app.example.org"],
    "SMART_KEY_ROTATION": [0, 0.0, 86400, 90 * 86400],
    "SMART_REFRESH_IDLE_AFTER": [0, 86400, 90 * 86400],
    "SMART_REFRESH_THREADS": [1, 16, 64],
    "SMART_LAUNCH_IDLE_LIFETIME": [60, 900.5, 30 * 86400],
    "SMART_LAUNCHES_PER_BROWSER": [1, 20, 50],
    "SMART_SCOPE_CHECK": ["warn", "raise", "off"],
    "SMART_RECORDS_SINK": ["", "django_smart.contrib.records.sinks.ModelSink"],
    "SMART_STAFF_SIGN_IN_SERVERS": [[], ("harbour", "st-mary_2")],
    "SMART_SUPPORT_URL": [
        "",
        "/help/",
        "https://www.example.org/help/",
        "mailto:help@example.org",
    ],
}
_NO_NUMBER = [None, "900", True, -1, float("nan"), float("inf"), 10**30, [900]]
WRONG: dict[str, list[Any]] = {
    "SMART_SITE_URL": [
        None,
        5,
        "app.example.org",
        "http://app.example.org",
        "https://app.example.org/clinic",
        "https://app.example.org?a",
        "https://app.example.org#a",
        "https://me@app.example.org",
        "https://",
        "https://[",
        "ftp://app.example.org",
    ],
    "SMART_LAUNCH_REDIRECT_URL": [
        None,
        5,
        "",
        "patient/",
        "no-such-name",
        "https://elsewhere.example/",
        "//elsewhere.example/",
        ["/"],
    ],
    "SMART_ENCRYPTION_KEYS": [
        None,
        5,
        _KEY,
        _KEY.encode(),
        [None],
        ["short"],
        [_KEY, ""],
        {_KEY: 1},
    ],
    "SMART_INSECURE_HTTP_HOSTS": [
        None,
        True,
        "localhost",
        ["localhost:8000"],
        ["http://localhost"],
        ["*"],
        [""],
        [5],
        {"localhost": 1},
    ],
    "SMART_PRIVATE_HOSTS": [None, "10.1.2.3", ["10.0.0.0/8"], ["https://a.internal"]],
    "SMART_LAUNCH_PREFIX": [None, 5, "a/b", "a b", "é", "%7E", "a" * 21, "?", "~\n"],
    "SMART_HTTP_TIMEOUT": [
        None,
        20,
        "5,10,20",
        (5, 10),
        (5, 10, 20, 40),
        (0, 10, 20),
        (5, -1, 20),
        (5, 10, "20"),
        (5, 10, None),
        (True, 10, 20),
        (5, 10, float("nan")),
        (5, 10, float("inf")),
        (5, 30, 20),
        (30, 10, 20),
        {5, 10, 20},
    ],
    "SMART_AUTHORIZATION_LIFETIME": [*_NO_NUMBER, 0, 59, 86401],
    "SMART_LAUNCH_LIFETIME": [*_NO_NUMBER, 0, 31 * 86400],
    "SMART_DISCOVERY_LIFETIME": [*_NO_NUMBER, 0, 31 * 86400],
    "SMART_PURGE_AFTER": [*_NO_NUMBER, 0, 3599],
    "SMART_BROWSER_COOKIE_NAME": [
        None,
        5,
        "",
        "a b",
        "a=b",
        "a;b",
        "__Host-smart",
        "__Secure-smart",
        "sessionid",
        "csrftoken",
    ],
    "SMART_PICKER_SHOW_UNREGISTERED": [None, 0, 1, "yes", []],
    "SMART_LOGO_LICENSES": [None, "https://a.example", [5], ["a.example"]],
    "SMART_APP_STATE_SYSTEM": [None, 5, "app.example.org", "https://a.example/app"],
    "SMART_KEY_ROTATION": [*_NO_NUMBER, False, 90, 86399],
    "SMART_REFRESH_IDLE_AFTER": [*_NO_NUMBER, False, 30, 86399],
    "SMART_REFRESH_THREADS": [None, True, "16", 0, 65, 1.5],
    "SMART_LAUNCH_IDLE_LIFETIME": [*_NO_NUMBER, 0, 59],
    "SMART_LAUNCHES_PER_BROWSER": [*_NO_NUMBER, 0, 51, 2.0],
    "SMART_RECORDS_SINK": [None, 5, ["records.sink"]],
    "SMART_SCOPE_CHECK": [None, True, "", "Warn", "error", ["warn"]],
    "SMART_STAFF_SIGN_IN_SERVERS": [None, "harbour", [5], ["St. Mary"], [""]],
    "SMART_SUPPORT_URL": [None, 5, "help@example.org", "//x", "javascript:alert(1)"],
}


class OwnMiddleware(SMARTMiddleware):
    """A site's own."""


class OwnBackend(SMARTAuthenticationBackend):
    """A site's own."""


class OwnReporter(SMARTExceptionReporter):
    """A site's own."""


class OwnFilter(SMARTExceptionReporterFilter):
    """A site's own."""


class OwnLogFilter(RedactionFilter):
    """A site's own."""


def ids(messages: list[Any]) -> list[str]:
    return [message.id.removeprefix("django_smart.") for message in messages]


def find(check: Any) -> list[str]:
    return ids(check())


# Settings


def test_every_setting_has_one_check():
    assert set(RIGHT) == set(WRONG) == set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in RIGHT.items() for value in values],
)
def test_right_value_is_accepted_and_can_be_read(settings, name, value):
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost", "[::1]"]
    setattr(settings, name, value)
    assert check_settings() == []
    getattr(conf, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
)
def test_wrong_value_is_named_with_its_fix(settings, name, value):
    setattr(settings, name, value)
    messages = [m for m in check_settings() if m.msg.startswith(f"{name} ")]
    assert ids(messages) == ["E001"]
    assert "such a value" in str(messages[0].hint)


@pytest.mark.parametrize("name", SETTINGS)
def test_value_that_passes_its_check_can_be_read(settings, name):
    everything = [
        value
        for values in (*RIGHT.values(), *WRONG.values())
        for value in [*values, object(), b"\xff", lambda: None]
    ]
    for value in everything:
        setattr(settings, name, value)
        if SETTINGS[name].accepts(value):
            getattr(conf, name)


def test_settings_that_are_not_set_are_right(settings):
    for name in SETTINGS:
        if hasattr(settings, name):
            delattr(settings, name)
    assert check_settings() == []
    for name in SETTINGS:
        getattr(conf, name)


def test_encryption_keys_are_not_quoted(settings):
    settings.SMART_ENCRYPTION_KEYS = [_KEY, "nearly-a-key-that-was-cut-off"]
    (message,) = check_settings()
    assert "nearly" not in str(message)


def test_unreadable_hosts_do_not_hide_the_other_faults(settings):
    settings.SMART_INSECURE_HTTP_HOSTS = None
    settings.SMART_LAUNCH_PREFIX = None
    names = [message.msg.split()[0] for message in check_settings()]
    assert names == ["SMART_INSECURE_HTTP_HOSTS", "SMART_LAUNCH_PREFIX"]


def test_site_whose_urls_cannot_be_loaded_is_left_to_django(settings):
    settings.ROOT_URLCONF = "tests.no_such_module"
    settings.SMART_LAUNCH_REDIRECT_URL = "home"
    assert check_settings() == []
    assert check_structure() == []


def test_misspelled_setting_is_named_with_the_nearest(settings):
    settings.SMART_SITEURL = "https://app.example.org"
    settings.SMART_COLOUR_OF_THE_BOTTLE = "blue"
    messages = check_settings()
    assert ids(messages) == ["W021", "W021"]
    assert "SMART_" not in str(messages[0].hint)
    assert "SMART_SITE_URL" in str(messages[1].hint)


def test_every_message_links_to_its_place_in_the_reference(settings):
    settings.SMART_SITE_URL = "http://app.example.org"
    settings.SMART_SITEURL = ""
    settings.MIDDLEWARE = []
    messages = [
        *check_settings(),
        *check_structure(),
        *check_deployment(),
    ]
    assert {"E001", "E020", "W021", "W030"} <= set(ids(messages))
    for message in messages:
        assert str(message.hint).endswith(f" {build_docs_url(str(message.id))}")


def test_ipv6_hosts_are_compared_without_brackets(settings):
    settings.SMART_INSECURE_HTTP_HOSTS = ["[::1]", "LOCALHOST"]
    hosts = conf.SMART_INSECURE_HTTP_HOSTS
    assert hosts == {"::1", "localhost"}


# Structure


def test_right_structure_is_silent():
    assert check_structure() == []


_DJANGOS = "django.middleware.cache"
_UPDATE = f"{_DJANGOS}.UpdateCacheMiddleware"
_FETCH = f"{_DJANGOS}.FetchFromCacheMiddleware"
_INSIDE = "django_smart.middleware.SMARTCacheMiddleware"


def test_cache_of_the_site_with_our_middleware_inside_passes(settings):
    ours, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [ours, _UPDATE, *others, _INSIDE, _FETCH]
    assert check_structure() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda ours, others: [ours, _UPDATE, *others, _FETCH],
        lambda ours, others: [ours, f"{_DJANGOS}.CacheMiddleware", *others],
        lambda ours, others: [ours, f"{_DJANGOS}.CacheMiddleware", *others, _INSIDE],
        lambda ours, others: [ours, _UPDATE, *others, _FETCH, _INSIDE],
        lambda ours, others: [ours, _UPDATE, _INSIDE, *others, _FETCH],
        lambda ours, others: [ours, *others, _INSIDE, _UPDATE, _FETCH],
    ],
)
def test_cache_of_the_site_needs_our_middleware_inside(settings, make):
    ours, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = make(ours, others)
    assert find(check_structure) == ["E054"]


def test_session_refresh_of_the_staff_s_sign_in_has_to_be_ours(settings):
    middleware = settings.MIDDLEWARE
    settings.MIDDLEWARE = [*middleware, "django_smart.middleware.SessionRefresh"]
    assert check_structure() == []
    theirs = "mozilla_django_oidc.middleware.SessionRefresh"
    settings.MIDDLEWARE = [*middleware, theirs]
    assert find(check_structure) == ["E068"]
    settings.SMART_LAUNCH_PREFIX = ""
    assert check_structure() == []


def test_subclasses_do(settings):
    settings.MIDDLEWARE = ["tests.test_checks.OwnMiddleware", *settings.MIDDLEWARE[1:]]
    settings.AUTHENTICATION_BACKENDS = ["tests.test_checks.OwnBackend"]
    assert check_structure() == []


@pytest.mark.parametrize("validator", [MaxLengthValidator(30), validate_email])
def test_users_get_a_name_that_the_admin_can_save(settings, monkeypatch, validator):
    field = get_user_model()._meta.get_field("username")
    monkeypatch.setattr(field, "validators", [validator])
    assert ids(check_structure()) == ["W069"]
    settings.AUTHENTICATION_BACKENDS = ["tests.test_backends.SiteBackend"]
    assert check_structure() == []


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("django.contrib.auth", ["E022"]), ("django.contrib.sessions", ["E022"])],
)
def test_apps_are_required(monkeypatch, missing, expected):
    monkeypatch.setattr(apps, "is_installed", lambda name: name != missing)
    messages = check_structure()
    assert ids(messages) == expected
    assert missing in str(messages[0].hint)


def test_sessions_in_cookies_need_no_app(settings, monkeypatch):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    monkeypatch.setattr(
        apps, "is_installed", lambda name: name != "django.contrib.sessions"
    )
    assert check_structure() == []


@pytest.mark.parametrize(
    "missing",
    [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
)
def test_middleware_of_sessions_and_users_is_required(settings, missing):
    settings.MIDDLEWARE = [path for path in settings.MIDDLEWARE if path != missing]
    messages = check_structure()
    assert ids(messages) == ["E023"]
    assert missing in str(messages[0].hint)


def test_session_comes_before_the_user(settings):
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    others = [path for path in settings.MIDDLEWARE if path != session]
    settings.MIDDLEWARE = [*others, session]
    assert find(check_structure) == ["E023"]


def test_urls_are_required(settings):
    settings.ROOT_URLCONF = "tests.management.no_urls"
    assert find(check_structure) == ["E024"]


@pytest.mark.parametrize(
    ("vendor", "time_zone", "expected"),
    [
        ("mysql", "Europe/Berlin", ["E048"]),
        ("mysql", "UTC", []),
        ("mysql", None, []),
        # Times have a zone of their own there.
        ("postgresql", "Europe/Berlin", []),
        ("sqlite", "Europe/Berlin", []),
    ],
)
def test_times_that_a_database_reads_from_its_clock_are_in_its_time_zone(
    monkeypatch, vendor, time_zone, expected
):
    database = connections["default"]
    monkeypatch.setattr(database, "vendor", vendor)
    monkeypatch.setitem(database.settings_dict, "TIME_ZONE", time_zone)
    messages = check_structure()
    assert ids(messages) == expected


class ReadsFromReplica:
    """Django's own example of a router, for some apps."""

    apps = ("auth", "django_smart")

    def db_for_read(self, model, **hints):
        return "replica" if model._meta.app_label in self.apps else None


def test_models_are_read_where_they_are_written(settings):
    settings.DATABASE_ROUTERS = [ReadsFromReplica()]
    (message,) = check_structure()
    assert message.id == "django_smart.W066"
    settings.DATABASE_ROUTERS[0].apps = ("auth",)
    assert check_structure() == []


class AuditLog(dict[type[Model], dict[str, list[str]]]):
    """The registry of django-auditlog: models, and what was given with them."""

    def contains(self, model):
        return model in self

    def get_model_fields(self, model):
        return {"include_fields": [], "exclude_fields": [], **self[model]}


@pytest.fixture
def audit_log(settings, monkeypatch, tmp_path):
    """A site with django-auditlog, which is not installed here."""
    package = ModuleType("auditlog")
    module: Any = ModuleType("auditlog.registry")
    package.__path__ = [str(tmp_path)]
    module.auditlog = AuditLog()
    monkeypatch.setitem(sys.modules, "auditlog", package)
    monkeypatch.setitem(sys.modules, "auditlog.registry", module)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "auditlog"]
    return module.auditlog


def find_logged(messages: list[Any]) -> set[str]:
    """The fields that the check of the audit log names."""
    assert ids(messages) in ([], ["E067"])
    text = "".join(message.msg for message in messages)
    return set(re.findall(r"django_smart\.(\w+\.\w+)", text))


def test_audit_log_of_every_model_would_hold_the_secrets(audit_log):
    audit_log.update((model, {}) for model in apps.get_models())
    assert find_logged(check_structure()) == {
        "ClientRegistration.client_secret",
        "FHIRServer.request_headers",
        "Launch.code_verifier",
        "Launch.held",
        "SigningKey.private_key",
        "TokenGrant.access_token",
        "TokenGrant.patient_name",
        "TokenGrant.refresh_token",
    }


_TOKENS = ["access_token", "patient_name", "refresh_token"]


@pytest.mark.parametrize(
    ("values", "logged"),
    [
        ({}, _TOKENS),
        ({"exclude_fields": _TOKENS[:2]}, ["refresh_token"]),
        ({"exclude_fields": _TOKENS}, []),
        # Half of the text would still be logged.
        ({"mask_fields": _TOKENS}, _TOKENS),
        ({"include_fields": ["status"]}, []),
        ({"include_fields": ["status", "access_token"]}, ["access_token"]),
        ({"include_fields": _TOKENS, "exclude_fields": _TOKENS}, []),
    ],
)
def test_audit_log_may_hold_what_is_not_secret(audit_log, values, logged):
    audit_log[TokenGrant] = values
    audit_log[FHIRServer] = {"include_fields": ["name"]}
    assert find_logged(check_structure()) == {f"TokenGrant.{name}" for name in logged}


def test_app_that_is_only_called_like_an_audit_log_is_not_asked(audit_log, monkeypatch):
    monkeypatch.delitem(sys.modules, "auditlog.registry")
    assert check_structure() == []


def test_templates_are_required(settings):
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [{**engine, "APP_DIRS": False}]
    assert find(check_structure) == ["E026"]


@pytest.mark.parametrize("value", ["Strict", "strict"])
def test_strict_session_cookie_is_reported(settings, value):
    settings.SESSION_COOKIE_SAMESITE = value
    assert find(check_structure) == ["W022"]


@pytest.mark.parametrize("value", ["Lax", "None", False])
def test_other_session_cookies_pass(settings, value):
    settings.SESSION_COOKIE_SAMESITE = value
    assert check_structure() == []


def test_class_that_cannot_be_loaded_is_left_to_django(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "no.such.Middleware", "nonsense"]
    settings.AUTHENTICATION_BACKENDS = [
        *settings.AUTHENTICATION_BACKENDS,
        "no.such.Backend",
    ]
    assert check_structure() == []


# Deployment


@pytest.fixture
def deployed(settings, monkeypatch):
    """A site that is ready for production."""
    settings.SMART_SITE_URL = "https://app.example.org"
    settings.SMART_ENCRYPTION_KEYS = [_KEY]
    settings.SMART_INSECURE_HTTP_HOSTS = []
    settings.SESSION_COOKIE_SECURE = True
    settings.CSRF_COOKIE_SECURE = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.ALLOWED_HOSTS = ["app.example.org"]
    settings.LOGIN_URL = "admin:login"
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache"}
    }
    settings.DEFAULT_EXCEPTION_REPORTER = (
        "django_smart.redaction.SMARTExceptionReporter"
    )
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = (
        "django_smart.redaction.SMARTExceptionReporterFilter"
    )
    set_logging(monkeypatch, log_with("django_smart.redaction.RedactionFilter"))
    return settings


def log_with(factory):
    """``LOGGING`` with a filter that its one handler has."""
    handler = {"class": "logging.StreamHandler", "filters": ["redaction"]}
    return {
        "version": 1,
        "filters": {"redaction": {"()": factory}},
        "handlers": {"console": handler},
    }


def set_logging(monkeypatch, value, name="LOGGING"):
    """Unlike pytest-django's settings: from Django 6.1 on, those would apply it."""
    monkeypatch.setattr(f"django.conf.settings.{name}", value)


def test_right_deployment_is_silent(deployed):
    assert check_deployment() == []


@pytest.mark.parametrize(
    "url", ["", "http://localhost:8000", None, "https:x[", "app.example.org"]
)
def test_site_url_has_to_be_https(deployed, url):
    deployed.ALLOWED_HOSTS = ["*"]
    deployed.SMART_SITE_URL = url
    # The shape of the address is E001's matter.
    assert find(check_deployment) == ([] if url == "https:x[" else ["W030"])


def test_site_url_has_to_be_set(deployed):
    del deployed.SMART_SITE_URL
    assert find(check_deployment) == ["W030"]


@pytest.mark.parametrize("keys", [[], (), None])
def test_encryption_keys_of_their_own_are_asked_for(deployed, keys):
    deployed.SMART_ENCRYPTION_KEYS = keys
    assert find(check_deployment) == ["W033"]


def test_plain_http_hosts_are_reported(deployed):
    deployed.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    assert find(check_deployment) == ["W034"]


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-Proto", "https"),
        ("HTTP-X-FORWARDED-PROTO", "https"),
        ("http_x_forwarded_proto", "https"),
        ("HTTP_X_FORWARDED_PROTO",),
        ("HTTP_X_FORWARDED_PROTO", None),
        (None, "https"),
        "HTTP_X_FORWARDED_PROTO",
        5,
    ],
)
def test_proxy_header_that_matches_nothing_is_reported(deployed, header):
    deployed.SECURE_PROXY_SSL_HEADER = header
    assert find(check_deployment) == ["W035"]


def test_atomic_requests_with_sqlite_is_reported(deployed, monkeypatch):
    database = deployed.DATABASES["default"]
    monkeypatch.setitem(database, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(database, "ENGINE", "django.db.backends.postgresql")
    assert check_deployment() == []
    monkeypatch.setitem(database, "ENGINE", "django.db.backends.sqlite3")
    assert find(check_deployment) == ["W036"]


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        ({"PORT": "6432", "DISABLE_SERVER_SIDE_CURSORS": False}, []),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, ["W061"]),
    ],
)
@pytest.mark.parametrize(
    "engine",
    ["django.db.backends.postgresql", "django.contrib.gis.db.backends.postgis"],
)
def test_transaction_pooling_that_is_configured_is_reported(
    deployed, monkeypatch, engine, database, expected
):
    monkeypatch.setitem(deployed.DATABASES, "default", {"ENGINE": engine, **database})
    assert ids(check_deployment()) == expected


@pytest.mark.parametrize("value", ["HTTPS", "on", "1", ""])
def test_proxy_header_that_waits_for_another_value_is_reported(deployed, value):
    deployed.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", value)
    assert find(check_deployment) == ["W035"]


def test_proxy_headers_of_other_names_have_values_of_their_own(deployed):
    deployed.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_SSL", "on")
    assert check_deployment() == []


@pytest.mark.parametrize(
    ("url", "hosts", "expected"),
    [
        ("https://app.example.org", ["www.example.org"], ["W038"]),
        ("https://app.example.org", [], ["W038"]),
        ("https://app.example.org", [".example.org"], []),
        ("https://app.example.org:8443", ["app.example.org"], []),
        ("https://[::1]", ["[::1]"], []),
        ("https:x[", [], []),
    ],
)
def test_host_of_the_site_has_to_be_allowed(deployed, url, hosts, expected):
    deployed.SMART_SITE_URL = url
    deployed.ALLOWED_HOSTS = hosts
    assert find(check_deployment) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/accounts/login/", ["W065"]),
        ("/admin/login/", []),
        ("/admin/login", []),
        ("admin:login", []),
        ("https://id.example.org/login", []),
        ("nowhere", ["W065"]),
    ],
)
@pytest.mark.parametrize("root", ["/", "/app/"])
def test_sign_in_page_has_to_exist(deployed, url, root, expected):
    deployed.LOGIN_URL = url if ":" in url or url[0] != "/" else root + url[1:]
    with override_script_prefix(root):
        assert find(check_deployment) == expected


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_cache_has_to_be_shared_between_processes(deployed, backend):
    deployed.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
    assert find(check_deployment) == ["W039"]


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("cache", ["W039"]), ("cached_db", ["W039"]), ("db", []), ("file", [])],
)
def test_cache_of_sessions_has_to_be_shared_as_well(deployed, engine, expected):
    cache = "django.core.cache.backends"
    deployed.CACHES = {
        "default": {"BACKEND": f"{cache}.filebased.FileBasedCache"},
        "sessions": {"BACKEND": f"{cache}.locmem.LocMemCache"},
    }
    deployed.SESSION_CACHE_ALIAS = "sessions"
    deployed.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    assert find(check_deployment) == expected


@pytest.mark.parametrize("backend", ["filebased.FileBasedCache", "db.DatabaseCache"])
def test_shared_caches_pass(deployed, backend):
    deployed.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
    assert check_deployment() == []


@pytest.mark.parametrize(
    ("name", "djangos", "own"),
    [
        (
            "DEFAULT_EXCEPTION_REPORTER",
            "django.views.debug.ExceptionReporter",
            "tests.test_checks.OwnReporter",
        ),
        (
            "DEFAULT_EXCEPTION_REPORTER_FILTER",
            "django.views.debug.SafeExceptionReporterFilter",
            "tests.test_checks.OwnFilter",
        ),
    ],
)
def test_reports_of_errors_have_to_be_redacted(deployed, name, djangos, own):
    setattr(deployed, name, djangos)
    messages = check_deployment()
    assert ids(messages) == ["W041"]
    assert messages[0].msg.startswith(f"{name} is ")
    assert "django_smart.redaction." in str(messages[0].hint)
    for value in (own, "no.such.Reporter"):
        setattr(deployed, name, value)
        assert check_deployment() == []


@pytest.mark.parametrize(
    "logging",
    [
        {},
        None,
        {"filters": None},
        {"filters": {"a": None, "b": {"()": "django.utils.log.RequireDebugTrue"}}},
        log_with("no.such.Filter"),
        {**log_with(RedactionFilter), "filters": {"redaction": {"name": "a"}}},
        # The filter is there, and no handler has it.
        {**log_with(RedactionFilter), "handlers": None},
        {**log_with(RedactionFilter), "handlers": {"console": {"filters": None}}},
        {**log_with(RedactionFilter), "handlers": {"console": {"filters": ["a"]}}},
    ],
)
def test_logs_have_to_be_redacted(deployed, monkeypatch, logging):
    set_logging(monkeypatch, logging)
    assert find(check_deployment) == ["W042"]
    set_logging(monkeypatch, None, "LOGGING_CONFIG")
    assert check_deployment() == []


@pytest.mark.parametrize(
    "factory", [RedactionFilter, OwnLogFilter, "tests.test_checks.OwnLogFilter"]
)
def test_redacting_filters_pass(deployed, monkeypatch, factory):
    set_logging(monkeypatch, log_with(factory))
    assert check_deployment() == []


def test_redacting_filter_may_be_a_handler_s_own(deployed, monkeypatch):
    handlers = {"console": {"filters": [OwnLogFilter()]}}
    set_logging(monkeypatch, {"handlers": handlers})
    assert check_deployment() == []


# Cookies


@pytest.mark.parametrize(
    ("name", "value", "site"),
    [
        ("SESSION_COOKIE_PATH", "/portal/", "https://app.example.org"),
        ("SESSION_COOKIE_DOMAIN", "other.example.org", "https://app.example.org"),
        ("CSRF_COOKIE_DOMAIN", ".example.com", "https://app.example.org"),
    ],
)
def test_cookie_that_browsers_do_not_send_is_reported(deployed, name, value, site):
    deployed.SMART_SITE_URL = site
    setattr(deployed, name, value)
    messages = [each for each in check_deployment() if each.id == "django_smart.E073"]
    assert name in " ".join(each.msg for each in messages)


@pytest.mark.parametrize("value", ["app.example.org", ".example.org", "example.org"])
def test_cookie_of_the_site_or_a_domain_above_it_is_fine(deployed, value):
    deployed.SESSION_COOKIE_DOMAIN = value
    assert check_deployment() == []


# Hints

_LITERAL = r'(True|False|\(.*?\)|".*?")'
_PROXY_HEADER = "SECURE_PROXY_SSL_HEADER"


@pytest.mark.parametrize(
    ("check", "name", "wrong", "expected"),
    [
        (check_deployment, "SMART_SITE_URL", "", "W030"),
        (check_deployment, _PROXY_HEADER, ("X-Forwarded-Proto", "https"), "W035"),
        (check_deployment, _PROXY_HEADER, ("HTTP_X_FORWARDED_PROTO", "on"), "W035"),
        (check_structure, "SESSION_COOKIE_SAMESITE", "Strict", "W022"),
        (check_structure, "USE_TZ", False, "E025"),
    ],
)
def test_hint_is_the_fix(deployed, check, name, wrong, expected):
    setattr(deployed, name, wrong)
    (message,) = check()
    assert ids([message]) == [expected]
    written = re.search(rf"{name}(?: =|, such as) {_LITERAL}", str(message.hint))
    assert written
    setattr(deployed, name, ast.literal_eval(written[1]))
    assert check() == []


@pytest.mark.parametrize(
    ("name", "arrange", "expected"),
    [
        ("MIDDLEWARE", lambda ours, others: others, "E020"),
        ("MIDDLEWARE", lambda ours, others: [*others, ours], "W020"),
        ("MIDDLEWARE", lambda ours, others: [ours, *others, ours], "W020"),
        ("AUTHENTICATION_BACKENDS", lambda ours, others: others, "E021"),
    ],
)
def test_hint_is_where_to_put_what(settings, name, arrange, expected):
    (ours,) = [path for path in getattr(settings, name) if "django_smart" in path]
    others = [path for path in getattr(settings, name) if path != ours]
    setattr(settings, name, arrange(ours, others))
    (message,) = check_structure()
    assert ids([message]) == [expected]
    hint = str(message.hint)
    (path,) = re.findall(r'"(.+?)"', hint)
    assert name in hint
    assert ("first" in hint) is (name == "MIDDLEWARE")
    setattr(settings, name, [path, *others])
    assert check_structure() == []


@pytest.mark.parametrize(
    "name", ["SMART_INSECURE_HTTP_HOSTS", "SMART_ENCRYPTION_KEYS", "ALLOWED_HOSTS"]
)
def test_hint_names_what_to_add_or_take_out(deployed, name):
    hints = {
        "SMART_INSECURE_HTTP_HOSTS": (["localhost"], f"Remove {name}."),
        "SMART_ENCRYPTION_KEYS": ([], "cryptography.fernet.Fernet.generate_key()"),
        "ALLOWED_HOSTS": ([], 'Add "app.example.org" to ALLOWED_HOSTS'),
    }
    wrong, fix = hints[name]
    setattr(deployed, name, wrong)
    (message,) = check_deployment()
    assert fix in str(message.hint)


# All together


def test_checks_run_with_djangos_own_and_the_tests_site_passes():
    assert run_checks(tags=["django_smart"]) == []


def test_deployment_is_checked_on_request_only(settings):
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    assert run_checks(tags=["django_smart"]) == []
    deployed = run_checks(tags=["django_smart"], include_deployment_checks=True)
    assert "django_smart.W034" in [message.id for message in deployed]


def test_every_check_is_declared_and_no_other():
    sources = _ROOT.joinpath("django_smart", "checks").glob("*.py")
    used = re.findall(
        r'"(django_smart\.[EWI]\d{3})"', "".join(p.read_text() for p in sources)
    )
    assert {code for code in DIAGNOSES if "." in code} == set(used)
