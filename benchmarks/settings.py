"""
Settings of the sites that are measured, all of them one: who is measured is chosen by
URL and by middleware.

Environment: ``BENCH_DATABASE`` (``sqlite``, ``postgresql`` or ``mariadb``),
``BENCH_DATABASE_NAME``, ``BENCH_DATABASES`` (JSON of further ones), ``BENCH_STUB`` (origin of the stub), ``BENCH_SITE`` (whose
middleware a server has), ``BENCH_ADMIN`` (if set, the site has Django's admin), ``BENCH_PEERS`` (``all``, or ``authlib`` alone), ``BENCH_BROKER`` and ``BENCH_QUEUE``.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

STUB = os.environ.get("BENCH_STUB", "http://127.0.0.1:1")
SITE = "http://127.0.0.1"

SECRET_KEY = "for measuring alone, and long enough: 0123456789 0123456789 0123456789"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "benchmarks.site.urls"
WSGI_APPLICATION = "benchmarks.site.wsgi.application"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_smart",
    "django_smart.contrib.brands",
    "django_smart.contrib.records",
    "benchmarks.site",
]
if "BENCH_ADMIN" in os.environ:
    INSTALLED_APPS.insert(0, "django.contrib.admin")
PLAIN_MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
#: By site, what a project that uses it has in ``MIDDLEWARE``.
MIDDLEWARES = {
    "plain": PLAIN_MIDDLEWARE,
    "ours": ["django_smart.middleware.SMARTMiddleware", *PLAIN_MIDDLEWARE],
    "clinic": [
        "benchmarks.site.clinic.CountStatements",
        "django_smart.middleware.SMARTMiddleware",
        *PLAIN_MIDDLEWARE,
    ],
    "allauth": [*PLAIN_MIDDLEWARE, "allauth.account.middleware.AccountMiddleware"],
    "mozilla": [*PLAIN_MIDDLEWARE, "mozilla_django_oidc.middleware.SessionRefresh"],
}
PEERS = os.environ.get("BENCH_PEERS", "")
HAS_ALLAUTH = PEERS == "all" and find_spec("allauth") is not None
# allauth insists.
_SITE = os.environ.get("BENCH_SITE") or ("allauth" if HAS_ALLAUTH else "ours")
MIDDLEWARE = MIDDLEWARES[_SITE]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "django_smart.backends.SMARTAuthenticationBackend",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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

_KINDS: dict[str, dict[str, Any]] = {
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
        },
    },
    "postgresql": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "USER": "postgres",
        "CONN_MAX_AGE": 600,
    },
    "mariadb": {
        "ENGINE": "django.db.backends.mysql",
        "HOST": "127.0.0.1",
        "USER": "root",
        "OPTIONS": {"charset": "utf8mb4"},
        "CONN_MAX_AGE": 600,
    },
}
DATABASES = {
    "default": {
        **_KINDS[os.environ.get("BENCH_DATABASE", "sqlite")],
        "NAME": os.environ.get("BENCH_DATABASE_NAME") or ":memory:",
    }
}
# Further ones, by alias: kind and name.
for _alias, (_kind, _name) in json.loads(
    os.environ.get("BENCH_DATABASES", "{}")
).items():
    DATABASES[_alias] = {**_KINDS[_kind], "NAME": _name}
if len(DATABASES) > 1:
    DATABASE_ROUTERS = ["benchmarks.site.routing.Router"]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

CELERY_BROKER_URL = os.environ.get("BENCH_BROKER", "memory://")
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("BENCH_QUEUE", "bench")
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

SMART_SITE_URL = SITE
SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
SMART_LAUNCH_REDIRECT_URL = "/plain/"
if "BENCH_THREADS" in os.environ:
    SMART_REFRESH_THREADS = int(os.environ["BENCH_THREADS"])

# What the peers need, where they are installed.
OIDC_RP_CLIENT_ID = "bench"
OIDC_RP_CLIENT_SECRET = "a secret of the benchmark's"
OIDC_RP_SIGN_ALGO = "RS256"
OIDC_OP_AUTHORIZATION_ENDPOINT = f"{STUB}/authorize"
OIDC_OP_TOKEN_ENDPOINT = f"{STUB}/token"
OIDC_OP_USER_ENDPOINT = f"{STUB}/userinfo"
OIDC_OP_JWKS_ENDPOINT = f"{STUB}/jwks"
OIDC_RENEW_ID_TOKEN_EXPIRY_SECONDS = 3600
LOGIN_REDIRECT_URL = "/plain/"
if PEERS == "all":
    INSTALLED_APPS += ["mozilla_django_oidc"]
    AUTHENTICATION_BACKENDS += ["mozilla_django_oidc.auth.OIDCAuthenticationBackend"]
if HAS_ALLAUTH:
    INSTALLED_APPS += [
        "allauth",
        "allauth.account",
        "allauth.socialaccount",
        "allauth.socialaccount.providers.openid_connect",
    ]
    AUTHENTICATION_BACKENDS += ["allauth.account.auth_backends.AuthenticationBackend"]
SOCIALACCOUNT_LOGIN_ON_GET = True
SOCIALACCOUNT_EMAIL_AUTHENTICATION = True
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "stub",
                "name": "Stub",
                "client_id": "bench",
                "secret": "a secret of the benchmark's",
                "settings": {"server_url": STUB},
            }
        ],
    }
}
ACCOUNT_EMAIL_VERIFICATION = "none"
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
