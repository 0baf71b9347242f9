"""The example site, as far as it can run on the settings of the tests."""

from __future__ import annotations

from copy import deepcopy

import pytest
from django.urls import clear_url_caches

from django_smart import transport
from django_smart.models import ClientRegistration, FHIRServer
from django_smart.testing import EHRSimulator
from tests.settings import BASE_DIR

APP = "https://app.example.org"
PATIENT = "87a339d0-8cae-418e-89c7-8651e6aab3c6"
SCOPE = (
    "openid fhirUser launch/patient patient/Patient.rs patient/Observation.rs "
    "user/Practitioner.r"
)


@pytest.fixture
def site(settings):
    """Serve the example's URLs and templates in this test."""
    templates = deepcopy(settings.TEMPLATES)
    templates[0]["DIRS"] = [BASE_DIR.parent / "example_project" / "templates"]
    settings.TEMPLATES = templates
    settings.ROOT_URLCONF = "example_project.urls"
    settings.SMART_LAUNCH_REDIRECT_URL = "/patient/"
    settings.LOGIN_URL = "login"
    settings.LOGIN_REDIRECT_URL = "home"
    settings.LOGOUT_REDIRECT_URL = "home"
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "example_project.backends.NamingBackend",
    ]
    # Position as in the example: before anything that makes a response of its own.
    middleware = list(settings.MIDDLEWARE)
    middleware.insert(2, "example_project.middleware.ContentSecurityPolicyMiddleware")
    settings.MIDDLEWARE = middleware
    yield settings
    clear_url_caches()


@pytest.fixture
def ehr(db):
    """An EHR in this process, with the example registered at it and known here."""
    ehr = EHRSimulator(base_url="https://ehr.example.org/sim/fhir")
    ehr.register_client(
        "example",
        client_secret="secret",
        redirect_uris=[f"{APP}/smart/callback/"],
        launch_url=f"{APP}/smart/launch/",
    )
    server = FHIRServer.objects.create(
        slug="harbour", name="Harbour Hospital", base_url=ehr.base_url
    )
    ClientRegistration.objects.create(
        server=server,
        client_id="example",
        client_secret="secret",
        redirect_uri=f"{APP}/smart/callback/",
        ehr_scope=SCOPE,
        standalone_scope=SCOPE,
    )
    with transport.mounted("https://ehr.example.org", ehr.adapter()):
        yield ehr
