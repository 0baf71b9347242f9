"""The admin's form for a registration, held against what the server offers."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from django_smart.models import ClientRegistration, FHIRServer
from django_smart.servers.discovery import fetch_configuration
from django_smart.testing import EHRSimulator
from tests.admin_forms import levels_of, registration_form, server_form, url_of
from tests.answers import answer
from tests.ehr import BASE_URL
from tests.factories import make_server

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"


@pytest.fixture
def server() -> FHIRServer:
    """A server nothing is known of."""
    return make_server(slug="harbour", name="Harbour", base_url=BASE_URL)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("tail", ["/metadata", "/Patient"])
def test_wrong_base_url_is_answered_with_the_right_one(
    admin_client: Client, ehr: EHRSimulator, tail: str
) -> None:
    data = server_form(base_url=BASE_URL + tail)
    page = admin_client.post(url_of(FHIRServer, "add"), data, follow=True)
    assert "warning" in levels_of(page)
    assert f"Change the base URL to {BASE_URL}," in page.content.decode()


def add(client: Client, server: FHIRServer, **values: Any) -> Any:
    data = registration_form(server=server.pk, client_secret="x", **values)
    return client.post(url_of(ClientRegistration, "add"), data, follow=True)


def test_nobody_waits_for_the_server_while_saving(
    admin_client: Client, ehr: EHRSimulator, server: FHIRServer
) -> None:
    add(admin_client, server)
    assert ClientRegistration.objects.get().server == server
    assert ehr.requests == []


@pytest.mark.compliance("CAPS-08", "DISC-08", "DISC-11")
@pytest.mark.parametrize(
    ("offered", "fix"),
    [
        ({"capabilities": ["launch-standalone"]}, "scope for EHR launch"),
        ({"code_challenge_methods_supported": ["plain"]}, "enable S256"),
        (
            {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
            "it supports private_key_jwt",
        ),
        ({"capabilities": ["launch-ehr", "permission-v1"]}, "End it in .read"),
    ],
)
def test_what_the_server_lacks_is_a_step_that_is_open(
    admin_client: Client,
    ehr: EHRSimulator,
    server: FHIRServer,
    offered: dict[str, Any],
    fix: str,
) -> None:
    answer(ehr, SMART, **offered)
    fetch_configuration(server)
    page = add(admin_client, server)
    assert fix in page.text
    assert not page.context["steps"]["is_tested"]
