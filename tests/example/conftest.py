"""The example site, as far as it can run on the settings of the tests."""

from __future__ import annotations

from copy import deepcopy

import pytest
from django.test import Client
from django.urls import clear_url_caches

from django_smart.testing import EHRSimulator
from tests.ehr import make_browser
from tests.factories import make_registration
from tests.settings import BASE_DIR

SCOPE = "openid fhirUser patient/Patient.rs patient/Observation.rs user/Practitioner.r"


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
def ehr(db: None, ehr: EHRSimulator) -> EHRSimulator:
    """An EHR in this process, with the example registered at it and known here."""
    make_registration(
        ehr_scope=f"launch {SCOPE}", standalone_scope=f"launch/patient {SCOPE}"
    )
    return ehr


@pytest.fixture
def client() -> Client:
    return make_browser()
