"""A site and a server between which all is well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from django_smart import transport
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    ServerState,
    SigningKey,
    TaskRun,
)
from django_smart.models.task_run import REFRESH
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.contrib.doctor.site import PublicSite
from tests.ehr import CLIENT_SECRET, SITE
from tests.factories import register_key_at
from tests.transport.conftest import _fresh_pool, certificate

__all__ = ["_fresh_pool", "certificate"]


@dataclass
class World:
    """What a test may spoil."""

    ehr: EHRSimulator
    registration: ClientRegistration
    site: PublicSite
    settings: Any
    monkeypatch: pytest.MonkeyPatch
    stack: ExitStack

    def mount(self, prefix: str, adapter: Any) -> None:
        """Let *adapter* answer until the test ends."""
        self.stack.enter_context(transport.mounted(prefix, adapter))

    @property
    def server(self) -> FHIRServer:
        """The one server."""
        return self.registration.server

    def set_server(self, **values: Any) -> None:
        """Write columns of the server, without any check."""
        FHIRServer.objects.filter(pk=self.server.pk).update(**values)
        self.server.refresh_from_db()

    def set_state(self, **values: Any) -> None:
        """Write columns of the server's state, without any check."""
        ServerState.objects.filter(pk=self.server.pk).update(**values)
        self.server.refresh_from_db()

    def set_registration(self, **values: Any) -> None:
        """Write columns of the registration, without any check."""
        ClientRegistration.objects.filter(pk=self.registration.pk).update(**values)
        self.registration.refresh_from_db()

    def sign(self) -> SigningKey:
        """Let the registration authenticate with a key, here and there."""
        key = ensure_active_key("RS384")
        register_key_at(self.ehr)
        self.set_registration(
            token_endpoint_auth_method="private_key_jwt", client_secret=""
        )
        return key


@pytest.fixture
def world(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[World]:
    """A site in production, as its documentation says."""
    settings.SMART_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    registration.client_secret = CLIENT_SECRET
    registration.save()
    settings.ALLOWED_HOSTS = ["app.example.org", "testserver"]
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.SMART_LAUNCH_REDIRECT_URL = "/admin/"
    settings.LOGIN_URL = "https://id.example.org/login"
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": tmp_path,
        }
    }
    settings.LOGGING = {
        "version": 1,
        # For this test alone: what is disabled here would be so for all that follow.
        "disable_existing_loggers": False,
        "filters": {"smart": {"()": "django_smart.redaction.RedactionFilter"}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "filters": ["smart"]}
        },
    }
    settings.DEFAULT_EXCEPTION_REPORTER = (
        "django_smart.redaction.SMARTExceptionReporter"
    )
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = (
        "django_smart.redaction.SMARTExceptionReporterFilter"
    )
    TaskRun.objects.note(REFRESH)
    site = PublicSite()
    with (
        transport.mounted(SITE, site),
        transport.mounted("https://old.example.org", Away()),
        ExitStack() as stack,
    ):
        yield World(
            ehr=ehr,
            registration=registration,
            site=site,
            settings=settings,
            monkeypatch=monkeypatch,
            stack=stack,
        )
