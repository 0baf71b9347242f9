"""The admin's form for a registration, held against what the server offers."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from django_smart import transport
from django_smart.models import ClientRegistration, FHIRServer, ServerState
from django_smart.testing import EHRSimulator
from tests.admin_forms import levels_of, registration_form, server_form, url_of
from tests.answers import Away, answer
from tests.ehr import BASE_URL
from tests.factories import make_registration, make_server

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


def errors_of(response: Any) -> str:
    return str(response.context["adminform"].form.non_field_errors())


def test_server_is_asked_and_what_it_said_is_kept(
    admin_client: Client, ehr: EHRSimulator, server: FHIRServer
) -> None:
    add(admin_client, server)
    assert ClientRegistration.objects.get().server == server
    assert [each.exchange for each in ehr.requests] == ["smart-configuration"]
    server.refresh_from_db()
    assert server.state.configuration is not None


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
def test_what_the_server_lacks_is_refused_with_the_fix(
    admin_client: Client,
    ehr: EHRSimulator,
    server: FHIRServer,
    offered: dict[str, Any],
    fix: str,
) -> None:
    answer(ehr, SMART, **offered)
    assert fix in errors_of(add(admin_client, server))
    assert not ClientRegistration.objects.exists()
    # One that is off may wait for better days.
    add(admin_client, server, is_active="")
    assert ClientRegistration.objects.exists()


def test_what_is_known_already_is_not_asked_again(
    admin_client: Client, ehr: EHRSimulator, server: FHIRServer
) -> None:
    add(admin_client, server, is_active="")
    add(admin_client, server, client_id="other")
    ehr.clear_requests()
    url = url_of(
        ClientRegistration, "change", ClientRegistration.objects.latest("pk").pk
    )
    admin_client.post(url, registration_form(landing_page="/start/", client_id="other"))
    assert ClientRegistration.objects.filter(landing_page="/start/").exists()
    assert ehr.requests == []


def test_server_that_was_mended_is_believed_at_once(
    admin_client: Client, ehr: EHRSimulator
) -> None:
    registration = make_registration()
    ServerState.objects.update(
        configuration={
            "token_endpoint": ehr.token_endpoint,
            "authorization_endpoint": ehr.authorization_endpoint,
            "capabilities": ["launch-standalone"],
        }
    )
    url = url_of(ClientRegistration, "change", registration.pk)
    response = admin_client.post(url, registration_form())
    assert response.status_code == 302
    assert len(ehr.requests) == 1


def test_server_that_is_down_does_not_keep_anybody_from_registering(
    admin_client: Client, server: FHIRServer
) -> None:
    with transport.mounted("https://ehr.example.org", Away()):
        response = add(admin_client, server)
    assert ClientRegistration.objects.exists()
    assert "warning" in levels_of(response)
    assert "server_unreachable" in response.content.decode()
