"""
Settings of the example site, all of them from the environment.

==========================  =========================================================
``SECRET_KEY``              required unless ``DEBUG`` is on
``DEBUG``                   ``1`` while developing; off by default
``ALLOWED_HOSTS``           names without port, separated by commas
``SMART_INSECURE_HTTP_HOSTS``  names that may be reached by plain http, likewise
``SMART_PRIVATE_HOSTS``     names of EHRs in a private network, likewise
``SMART_SITE_URL``          address of this site, such as ``https://app.example.org``
``BEHIND_PROXY``            ``1`` behind a proxy that sets ``X-Forwarded-Proto``
``SMART_ENCRYPTION_KEYS``   Fernet keys for tokens at rest, newest first, by commas
``DATABASE_URL``            an SQLite file under ``var/`` by default
``CACHE_URL``               files under ``var/`` by default
``CELERY_BROKER_URL``       files under ``var/`` by default (``filesystem://``)
``LOG_LEVEL``               ``INFO`` by default
==========================  =========================================================

While ``DEBUG`` is on, loopback names are allowed hosts and may use plain http.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from django_smart.contrib.records.schedule import RECORDS_SCHEDULE
from django_smart.schedule import BEAT_SCHEDULE

env = environ.Env()

BASE_DIR = Path(__file__).resolve().parent.parent
# What the site writes when no database, cache or broker is named.
VAR_DIR = BASE_DIR / "var"


def _folder(*names: str) -> Path:
    """Make a folder below ``var/``, so that no program has to be told to."""
    folder = VAR_DIR.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _names(variable: str) -> list[str]:
    """Return the names listed in an environment variable, without empty ones."""
    return [name.strip() for name in env.list(variable, default=[]) if name.strip()]


DEBUG: bool = env.bool("DEBUG", default=False)
# Read as it is: django-environ takes a leading "$" for the name of another variable.
SECRET_KEY: str = env.ENVIRON.get("SECRET_KEY", "") or (
    "for development only: known to everybody, so it protects nothing" if DEBUG else ""
)
if not SECRET_KEY:
    raise ImproperlyConfigured("Set SECRET_KEY in the environment, or DEBUG=1.")

# Hosts and addresses

_LOOPBACK = ["localhost", "127.0.0.1", "[::1]"] if DEBUG else []
ALLOWED_HOSTS = [*_names("ALLOWED_HOSTS"), *_LOOPBACK]
# Django writes an IPv6 host with brackets; a host by itself has none.
SMART_INSECURE_HTTP_HOSTS = [
    name.strip("[]") for name in [*_names("SMART_INSECURE_HTTP_HOSTS"), *_LOOPBACK]
]
SMART_PRIVATE_HOSTS = _names("SMART_PRIVATE_HOSTS")
SMART_SITE_URL: str = env.str("SMART_SITE_URL", default="").rstrip("/")

# Cookies are Secure where the site is reached by https, and only there: over plain
# http a browser would drop them.
_IS_HTTPS = urlsplit(SMART_SITE_URL).scheme == "https"
SESSION_COOKIE_SECURE = _IS_HTTPS
CSRF_COOKIE_SECURE = _IS_HTTPS
# Behind a proxy that ends TLS, Django sees http; the Origin header says https.
CSRF_TRUSTED_ORIGINS = [SMART_SITE_URL] if _IS_HTTPS else []
if env.bool("BEHIND_PROXY", default=False):
    # Any client could send this header if the proxy did not replace it.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 3600  # raise it once https works everywhere
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    # Preloading concerns a whole domain, not only this site.
    SILENCED_SYSTEM_CHECKS = ["security.W021"]

# Applications

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "whitenoise.runserver_nostatic",  # static files come the same way in all servers
    "django.contrib.staticfiles",
    "django_smart",
    "django_smart.contrib.brands",
    "example_project",
    "django_smart.contrib.records",
]
MIDDLEWARE = [
    "django_smart.middleware.SMARTMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "example_project.middleware.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",  # the language of the browser
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "example_project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# People

AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "example_project.backends.NamingBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
SMART_LAUNCH_REDIRECT_URL = "/patient/"
SMART_ENCRYPTION_KEYS = _names("SMART_ENCRYPTION_KEYS")

# Data

_database: dict[str, Any] = (
    env.db("DATABASE_URL")
    if "DATABASE_URL" in env.ENVIRON
    else {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _folder() / "db.sqlite3",
    }
)
_options: dict[str, Any] = _database.setdefault("OPTIONS", {})
if _database["ENGINE"] == "django.db.backends.sqlite3":
    # Web processes and a worker write to one file: readers never wait (WAL), and a
    # writer takes the lock at once and waits for it (a lock that is upgraded later
    # fails without waiting).
    _options.setdefault(
        "init_command", "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
    )
    _options.setdefault("transaction_mode", "IMMEDIATE")
    _options.setdefault("timeout", 20)
else:
    # runserver has a thread for each browser's connection: none would be used again.
    _database.setdefault("CONN_MAX_AGE", 0 if DEBUG else 60)
    _database.setdefault("CONN_HEALTH_CHECKS", True)
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    # Files, not the memory of one process: web processes and worker see one cache.
    "default": env.cache("CACHE_URL")
    if "CACHE_URL" in env.ENVIRON
    else {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": _folder("cache"),
    }
}

# Background work

CELERY_BROKER_URL: str = env.str("CELERY_BROKER_URL", default="filesystem://")
CELERY_BEAT_SCHEDULE = {
    **BEAT_SCHEDULE,
    **RECORDS_SCHEDULE,
}
# What patients have connected is copied into this site's database.
SMART_RECORDS_SINK = "django_smart.contrib.records.sinks.EncryptedModelSink"
CELERY_BEAT_SCHEDULE_FILENAME = str(_folder() / "celerybeat-schedule")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = "UTC"
# A message does not wait in one process while another is idle.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
if CELERY_BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        # One machine: what one process puts in, another takes out of the same folder.
        "data_folder_in": str(_folder("celery", "messages")),
        "data_folder_out": str(_folder("celery", "messages")),
        "control_folder": str(_folder("celery", "control")),
    }

# Pages

LANGUAGE_CODE = "en-us"
# django_smart also has Spanish and French: this site has its own pages in these two.
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATIC_ROOT = _folder("static")
# Served from the apps' own folders: there is no collectstatic to forget.
WHITENOISE_USE_FINDERS = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"

# Logs and error reports, without secrets and patients

DEFAULT_EXCEPTION_REPORTER = "django_smart.redaction.SMARTExceptionReporter"
DEFAULT_EXCEPTION_REPORTER_FILTER = (
    "django_smart.redaction.SMARTExceptionReporterFilter"
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"redaction": {"()": "django_smart.redaction.RedactionFilter"}},
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "filters": ["redaction"],
            "formatter": "line",
        },
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        **{
            name: {
                "handlers": ["console"],
                "level": env.str("LOG_LEVEL", default="INFO"),
                "propagate": False,
            }
            for name in ("django", "django_smart", "example_project")
        },
        # The servers' own, which have a line with the query of each request.
        **{
            name: {"handlers": ["console"], "level": "INFO", "propagate": False}
            for name in (
                "django.server",
                *("gunicorn.access", "gunicorn.error"),
                *("uvicorn.access", "uvicorn.error"),
            )
        },
    },
}
