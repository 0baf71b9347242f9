"""Parameters and headers that a vendor wants beside those of the protocol."""

from __future__ import annotations

import json
import logging

import pytest
from django.urls import reverse

from django_smart.clients import fhir_client_for
from django_smart.exceptions import CredentialsError
from django_smart.grants.ending import revoke_tokens
from django_smart.grants.refresh import refresh_grant
from django_smart.models import FHIRServer
from django_smart.testing import EHRSimulator
from tests.admin_forms import server_form
from tests.ehr import connect, get_callback, make_browser, start_login
from tests.factories import METHODS, make_client

pytestmark = pytest.mark.django_db

KEY = "s3cret-key"
HEADERS = json.dumps({"X-Api-Key": KEY})


def test_extra_parameters_go_with_every_authorization_request(
    ehr: EHRSimulator, registration
) -> None:
    ehr.quirks = ["parameter_wanted"]
    refused = ehr.authorize(start_login(make_browser()))
    assert "error=invalid_request" in refused
    FHIRServer.objects.update(authorization_parameters={"tenant": "harbour"})
    assert connect(make_browser(), ehr).status == "open"


@pytest.mark.parametrize("method", METHODS)
def test_extra_headers_go_with_credentials_and_tokens_alone(
    ehr: EHRSimulator, method: str
) -> None:
    scope = "openid fhirUser patient/*.rs offline_access"
    server = make_client(ehr, method, scope).server
    ehr.quirks = ["header_wanted"]
    browser = make_browser()
    refused = get_callback(browser, ehr.authorize(start_login(browser)))
    assert refused.status_code == 502
    server.request_headers = HEADERS
    server.full_clean()
    server.save()
    ehr.clear_requests()
    grant = connect(browser, ehr).grant
    assert grant is not None
    fhir_client_for(grant=grant).read("Patient", grant.patient_id)
    refresh_grant(grant)
    revoke_tokens(grant)
    with_key = {one.exchange for one in ehr.requests if "x-api-key" in one.headers}
    assert with_key == {"token", "fhir", "revoke"}


def test_extra_headers_are_not_stored_shown_or_logged_as_text(
    ehr: EHRSimulator, registration, admin_client, caplog
) -> None:
    url = reverse("admin:django_smart_fhirserver_change", args=[registration.server_id])
    values = {"base_url": ehr.base_url, "request_headers": HEADERS}
    with caplog.at_level(logging.DEBUG):
        assert admin_client.post(url, server_form(**values)).status_code == 302
        connect(make_browser(), ehr)
    server = FHIRServer.objects.get()
    assert server.request_headers == HEADERS
    stored = server._meta.get_field("request_headers").value_to_string(server)
    assert stored.startswith("fernet:")
    assert KEY not in f"{server.get_request_headers()!r} {caplog.text}"
    assert KEY not in admin_client.get(url).content.decode()
    # Empty keeps them, and an empty object removes them.
    for typed, kept in (("", HEADERS), ("{}", "")):
        form = server_form(base_url=ehr.base_url, request_headers=typed)
        admin_client.post(url, form)
        assert FHIRServer.objects.get().request_headers == kept
    wrong = server_form(base_url=ehr.base_url, request_headers='{"Host": "x"}')
    response = admin_client.post(url, wrong)
    assert list(response.context["adminform"].form.errors) == ["request_headers"]


def test_headers_that_no_key_decrypts_stop_the_request(registration, settings) -> None:
    server = registration.server
    server.request_headers = HEADERS
    server.save()
    settings.SECRET_KEY = "another"
    with pytest.raises(CredentialsError):
        FHIRServer.objects.get().get_request_headers()
