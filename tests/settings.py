"""Settings of the site the tests run in: small, and not the example project."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import environ

env = environ.Env()

BASE_DIR = Path(__file__).resolve().parent
# One folder for each test run (conftest.py makes and removes it): runs beside each
# other never share a file.
RUN_DIR = Path(tempfile.gettempdir()) / f"django-smart-tests-{os.getpid()}"

SECRET_KEY = "only for tests, and long enough that no check complains: 0123456789"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
# Absolute: Django adds the script prefix of the first request to a relative one, and
# keeps it, which would let a test of a mounted site change the pages of later tests.
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
STATIC_ROOT = RUN_DIR / "static"
# Of Django 6.1; an older one has a default of its own.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_smart",
    "django_smart.contrib.brands",
    "django_smart.contrib.records",
]
MIDDLEWARE = [
    "django_smart.middleware.SMARTMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "DIRS": [BASE_DIR / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "django_smart.backends.SMARTAuthenticationBackend",
]
# Tests sign people in by the hundred.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Not in memory: of a database there, a live server that begins before that of the tests
# is made lets all its threads use one connection at once, until the process crashes.
DATABASES = {
    "default": env.db("DATABASE_URL", default=f"sqlite:///{RUN_DIR / 'site.sqlite3'}")
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # A file for the tests, so that threads see one database with real locks.
    DATABASES["default"]["TEST"] = {"NAME": RUN_DIR / "test.sqlite3"}
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
    }
elif DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
    # As above: no test outlives a crash of its server.
    DATABASES["default"]["OPTIONS"] = {"options": "-c synchronous_commit=off"}
elif DATABASES["default"]["ENGINE"] == "django.db.backends.mysql":
    DATABASES["default"]["OPTIONS"] = {"charset": "utf8mb4"}

CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

# Tasks run where they are called; nothing ever reaches a broker.
CELERY_BROKER_URL = "memory://"
CELERY_TASK_ALWAYS_EAGER = True
CELERY_TASK_EAGER_PROPAGATES = True

SMART_SITE_URL = "https://app.example.org"
