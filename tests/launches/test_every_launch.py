"""Every kind of client, launch and request, with and without an identity."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.test import Client

from django_smart.models import Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_ID,
    PATIENT,
    get_callback,
    get_launch,
    make_browser,
)
from tests.factories import METHODS, make_client
from tests.known import BY_POST
from tests.launches.forms import Form

pytestmark = pytest.mark.django_db

DATA = "patient/Patient.rs patient/Observation.rs"


def go(browser: Client, ehr: EHRSimulator, kind: str) -> Any:
    """Start the launch; returns this site's answer."""
    if kind == "standalone":
        return browser.get("/smart/login/", {"server": "harbour"})
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
    return browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})


def authorize(ehr: EHRSimulator, response: Any) -> tuple[str, dict[str, str]]:
    """The callback's address, and what was asked."""
    if response.status_code == 302:
        url = response["Location"]
        asked = parse_qsl(urlsplit(url).query)
        return ehr.authorize(url, patient=PATIENT), dict(asked)
    form = Form(response.content)
    callback = ehr.authorize(form.action, form=form.inputs, patient=PATIENT)
    return callback, dict(form.inputs)


@pytest.mark.compliance("AUTH-01", "AUTH-02", "AUTH-03", "AUTH-08")
@pytest.mark.parametrize("with_identity", [True, False], ids=["openid", "data"])
@pytest.mark.parametrize("how", ["get", "post"])
@pytest.mark.parametrize("kind", ["ehr", "standalone"])
@pytest.mark.parametrize("method", METHODS)
def test_launch_is_complete(
    ehr: EHRSimulator, method: str, kind: str, how: str, with_identity: bool
) -> None:
    scope = f"openid fhirUser {DATA}" if with_identity else DATA
    parameters = BY_POST if how == "post" else {}
    make_client(ehr, method, scope, server__authorization_parameters=parameters)
    browser = make_browser()
    callback, asked = authorize(ehr, go(browser, ehr, kind))

    assert asked["code_challenge_method"] == "S256"
    assert ("launch" in asked) is (kind == "ehr")
    assert ("nonce" in asked) is with_identity
    (request,) = ehr.requests_to("authorize")
    assert request.method == how.upper()

    launch = get_launch(get_callback(browser, callback))
    assert (launch.status, launch.kind) == (Launch.Status.OPEN, kind)
    assert (launch.user is not None) is with_identity
    assert (launch.identity is not None) is with_identity
    grant = TokenGrant.objects.get()
    assert (grant.status, grant.patient_id) == (TokenGrant.Status.ACTIVE, PATIENT)
    (exchange,) = ehr.requests_to("token")
    assert "code_verifier" in dict(exchange.form)
    assert ("Authorization" in exchange.headers) is (method == "client_secret_basic")
    assert ("client_secret" in dict(exchange.form)) is (method == "client_secret_post")
    assert ("client_assertion" in dict(exchange.form)) is (method == "private_key_jwt")
