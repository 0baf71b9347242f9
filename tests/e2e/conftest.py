"""What holds for every test that looks at a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.test.signals import template_rendered
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, expect

from django_smart import transport
from django_smart.contrib.brands.importing import import_brand_file
from django_smart.models import Launch, TokenGrant
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.bundles import bundle, endpoint, organization
from tests.chromium import chromium
from tests.e2e.axe import AXE
from tests.e2e.clicks import run_example
from tests.factories import make_grant, make_launch, make_registration
from tests.known import BASE_URL, SITE
from tests.processes import ExampleSite

__all__ = ["chromium"]

# Milliseconds: of a busy machine five seconds, the default, say nothing about a page.
expect.set_options(timeout=60_000)


@pytest.fixture
def real_ehr() -> Iterator[EHRSimulator]:
    """The EHR at ``localhost``, on a port of its own."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    with ehr.serve():
        yield ehr


@pytest.fixture
def site(tmp_path: Path, real_ehr: EHRSimulator) -> Iterator[ExampleSite]:
    """The example at ``127.0.0.1``, registered at the EHR and running."""
    with run_example(tmp_path, real_ehr) as site:
        yield site


@pytest.fixture
def rendered() -> Iterator[set[str]]:
    """The names of the templates that pages were made of."""
    names: set[str] = set()

    def note(template: Any, **_: Any) -> None:
        names.add(str(template.name))

    template_rendered.connect(note)
    yield names
    template_rendered.disconnect(note)


@pytest.fixture
def rows(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """Two organisations, one connected and one that has ended it, and a launch."""
    # Playwright runs a loop of its own in this thread; the queries here are no views.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    user = User.objects.create_superuser("maria", first_name="Maria")
    registration = make_registration()
    other = make_registration(
        server__slug="saltmarsh",
        server__name="Saltmarsh Valley Regional Medical Center and Clinics",
        server__base_url="https://saltmarsh.example.org/r4",
    )
    now = timezone.now()
    scope = "patient/Patient.rs patient/Observation.rs offline_access"
    values: dict[str, Any] = {"user": user, "scope": scope, "scope_granted": scope}
    grant = make_grant(registration, scope_asked=scope, **values)
    make_grant(
        other,
        **values,
        refresh_due_at=None,
        status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
        last_error="invalid_grant",
        ended_at=now,
    )
    launch = make_launch(
        registration,
        status=Launch.Status.FAILED,
        error_code="access_denied",
        scope_asked=registration.ehr_scope,
        completed_at=None,
        user=user,
    )
    path = tmp_path / "brands.json"
    path.write_bytes(
        bundle(
            *(
                organization(f"{number}", f"Clinic {number}", endpoints=["Endpoint/1"])
                for number in range(25)
            ),
            endpoint("1", BASE_URL),
        )
    )
    import_brand_file(path)
    key = create_signing_key("RS384")
    return {
        "user": user,
        "fhirserver": registration.server,
        "clientregistration": registration,
        "tokengrant": grant,
        "launch": launch,
        "signingkey": key,
    }


@pytest.fixture
def context(
    chromium: Browser, live_server: Any, rows: dict[str, Any]
) -> Iterator[BrowserContext]:
    """A phone whose owner is signed in, and may do everything."""
    client = Client()
    client.force_login(rows["user"])
    context = chromium.new_context(
        viewport={"width": 375, "height": 740}, base_url=live_server.url
    )
    session = client.cookies["sessionid"].value
    context.add_cookies(
        [{"name": "sessionid", "value": session, "url": live_server.url}]
    )
    # Into every page before its own scripts, whatever its policy.
    context.add_init_script(path=str(AXE))
    with transport.mounted(SITE, Away()):
        yield context
    context.close()
