"""Clients that servers make themselves: asked for, checked and stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError
from django.db import connection

from django_smart.exceptions import (
    DiscoveryStatusError,
    RegistrationError,
    RegistrationRefusedError,
    TransportError,
    UnsupportedServerError,
)
from django_smart.models import ClientRegistration, FHIRServer, SigningKey
from django_smart.servers.registering import register_dynamically
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.faults import FAULTS
from tests.answers import answer
from tests.ehr import (
    BASE_URL,
    EHR_SCOPE,
    REDIRECT_URI,
    STANDALONE_SCOPE,
    get_callback,
    get_launch,
    make_browser,
)
from tests.factories import make_server
from tests.management.running import Ran, run

pytestmark = pytest.mark.django_db

SITE = "https://app.example.org"
# By fault: what is raised.
REFUSED: dict[str, type[Exception]] = {
    "register_500": RegistrationRefusedError,
    "register_html_200": RegistrationError,
    "register_missing_client_id": RegistrationError,
    "register_missing_secret": RegistrationError,
    "register_not_json": RegistrationError,
    "register_other_redirect_uri": RegistrationError,
    "register_redirect_307": RegistrationRefusedError,
    "register_refused": RegistrationRefusedError,
    "register_unknown_method": RegistrationError,
}


def entry(**values: Any) -> dict[str, Any]:
    common = {"base_url": BASE_URL, "site_url": SITE, "ehr_scope": EHR_SCOPE}
    return {**common, **values}


def assert_nothing_is_stored() -> None:
    assert not FHIRServer.objects.exists()
    assert not ClientRegistration.objects.exists()


def register(*arguments: str) -> Ran:
    return run("smart_register", "--base-url", BASE_URL, "--dynamic", *arguments)


@pytest.mark.compliance("REG-01", "REG-03", "REG-04", "REG-06")
def test_client_of_the_server_is_stored_and_can_launch(ehr: EHRSimulator) -> None:
    made, remarks = register_dynamically(entry(standalone_scope=STANDALONE_SCOPE))
    (request,) = ehr.requests_to("register")
    assert json.loads(request.body) == {
        "client_name": "app.example.org",
        "redirect_uris": [REDIRECT_URI],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "scope": (
            "launch openid fhirUser patient/Patient.rs patient/Observation.rs "
            "launch/patient offline_access"
        ),
        "token_endpoint_auth_method": "client_secret_basic",
        "initiate_login_uri": f"{SITE}/smart/launch/",
    }
    assert "Authorization" not in request.headers
    row = ClientRegistration.objects.get()
    assert (made, remarks) == (row, [])
    client = ehr.clients[row.client_id]
    assert (client.client_secret, client.launch_url) == (
        row.client_secret,
        f"{SITE}/smart/launch/",
    )
    # What was asked on the way is kept, and not asked again.
    assert row.server.state.configuration is not None
    ehr.clear_requests()
    browser = make_browser()
    launch_id = ehr.create_launch(row.client_id, patient=None)
    response = browser.get("/smart/launch/", {"iss": BASE_URL, "launch": launch_id})
    callback = ehr.authorize(response["Location"], scope="launch openid fhirUser")
    assert get_launch(get_callback(browser, callback)).identity is not None
    assert not ehr.requests_to("smart-configuration")


@pytest.mark.parametrize(
    ("values", "scope"),
    [
        ({"ehr_scope": "patient/Patient.rs"}, "launch patient/Patient.rs"),
        ({"ehr_scope": "", "standalone_scope": "openid"}, "openid"),
    ],
)
def test_launch_is_registered_where_an_ehr_launch_requests_it(
    ehr: EHRSimulator, values: dict[str, Any], scope: str
) -> None:
    register_dynamically(entry(**values))
    (request,) = ehr.requests_to("register")
    assert json.loads(request.body)["scope"] == scope


@pytest.mark.compliance("REG-04")
@pytest.mark.parametrize(
    ("values", "grant_types"),
    [
        (
            {"token_endpoint_auth_method": "private_key_jwt"},
            ["authorization_code"],
        ),
        (
            {"ehr_scope": "", "system_scope": "system/*.rs"},
            ["client_credentials"],
        ),
    ],
)
def test_client_with_a_key_gives_the_address_of_its_keys(
    ehr: EHRSimulator, values: dict[str, Any], grant_types: list[str]
) -> None:
    row, _ = register_dynamically(entry(**values))
    assert row.uses_private_key
    assert row.client_secret == ""
    client = ehr.clients[row.client_id]
    assert client.jwks_url == f"{SITE}/smart/jwks.json"
    sent = json.loads(ehr.requests_to("register")[0].body)
    assert sent["grant_types"] == grant_types
    assert sent["token_endpoint_auth_signing_alg"] == "RS384"
    is_for_launches = "authorization_code" in grant_types
    assert sent["response_types"] == (["code"] if is_for_launches else [])
    assert ("redirect_uris" in sent) is is_for_launches
    assert SigningKey.objects.active().count() == 1


def test_site_without_https_sends_its_keys_along(
    ehr: EHRSimulator, settings: Any
) -> None:
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    data = entry(
        site_url="http://localhost:8000", system_scope="system/*.rs", ehr_scope=""
    )
    row, _ = register_dynamically(data)
    jwks = ehr.clients[row.client_id].jwks
    assert jwks == SigningKey.objects.as_jwks()
    assert "d" not in jwks["keys"][0]


def test_client_of_a_site_without_an_address_has_a_name_as_well(
    ehr: EHRSimulator, settings: Any
) -> None:
    settings.SMART_SITE_URL = ""
    register_dynamically(entry(site_url="", system_scope="system/*.rs", ehr_scope=""))
    (request,) = ehr.requests_to("register")
    assert json.loads(request.body)["client_name"] == "SMART app"


def test_public_client_gets_no_secret(ehr: EHRSimulator) -> None:
    row, _ = register_dynamically(entry(token_endpoint_auth_method="none"))
    assert (row.client_secret, row.token_endpoint_auth_method) == ("", "none")
    assert ehr.clients[row.client_id].auth_method == "none"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_answer_of_no_use_is_refused_and_nothing_is_stored(
    ehr: EHRSimulator, name: str
) -> None:
    ehr.faults.add(name)
    with pytest.raises(REFUSED[name]) as caught:
        register_dynamically(entry())
    assert isinstance(caught.value, RegistrationError | TransportError)
    assert_nothing_is_stored()
    assert ehr.requests_to("elsewhere") == []
    secrets = [client.client_secret for client in ehr.clients.values()]
    assert not any(secret in str(caught.value) for secret in secrets if secret)


def test_every_fault_of_registration_is_in_a_table() -> None:
    faults = [each for each in FAULTS.values() if each.exchange == "register"]
    assert sorted(each.name for each in faults if each.verdict == "refuse") == sorted(
        REFUSED
    )


def test_method_that_the_server_replaced_is_stored(ehr: EHRSimulator) -> None:
    ehr.faults.add("register_other_method")
    row, _ = register_dynamically(entry())
    assert row.token_endpoint_auth_method == "client_secret_post"
    assert ehr.clients[row.client_id].client_secret == row.client_secret


def test_end_of_a_secret_beyond_all_calendars_is_the_last_day(
    ehr: EHRSimulator,
) -> None:
    answer(ehr, "/auth/register", client_secret_expires_at=10**18, status=201)
    _, (end,) = register_dynamically(entry())
    assert "9999-12-31" in end


@pytest.mark.compliance("DISC-11")
def test_server_without_registration_endpoint_says_what_to_do(
    ehr: EHRSimulator,
) -> None:
    answer(ehr, "/smart-configuration", remove=("registration_endpoint",))
    with pytest.raises(UnsupportedServerError, match="in the vendor's form"):
        register_dynamically(entry())
    assert_nothing_is_stored()


@pytest.mark.parametrize(
    "values",
    [
        {"ehr_scope": "launch patient/Patient.sr"},
        {"ehr_scope": "launch fhirUser"},
        {"token_endpoint_auth_method": "tls"},
        {"redirect_uri": "", "ehr_scope": "launch", "slug": "no slug"},
    ],
)
def test_what_is_visibly_wrong_is_refused_before_anything_is_sent(
    ehr: EHRSimulator, values: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        register_dynamically(entry(**values))
    assert ehr.requests == []
    assert_nothing_is_stored()


def test_what_the_server_lacks_is_refused_before_it_makes_a_client(
    ehr: EHRSimulator,
) -> None:
    answer(ehr, "/smart-configuration", capabilities=["launch-standalone"])
    before = dict(ehr.clients)
    with pytest.raises(UnsupportedServerError, match="launch-ehr"):
        register_dynamically(entry())
    assert ehr.clients == before
    assert_nothing_is_stored()


def test_server_that_is_down_makes_no_client(ehr: EHRSimulator) -> None:
    ehr.faults.add("discovery_500")
    with pytest.raises(DiscoveryStatusError):
        register_dynamically(entry())
    assert_nothing_is_stored()


@pytest.mark.usefixtures("ehr")
def test_second_client_at_a_server_is_no_default() -> None:
    first, second = (register_dynamically(entry())[0] for _ in range(2))
    assert (first.is_ehr_default, second.is_ehr_default) == (True, False)
    assert first.launch_slug != second.launch_slug


def test_client_that_cannot_be_stored_is_named(ehr: EHRSimulator) -> None:
    def be_faster(request: Any) -> None:
        if request.exchange == "register":
            make_server(slug="north", base_url="https://other.example.org/fhir")

    ehr.on_request = be_faster
    with pytest.raises(RegistrationError) as caught:
        register_dynamically(entry(slug="north"))
    made = [each for each in ehr.clients if each != "growth-chart"]
    assert made[0] in str(caught.value)
    assert (ehr.clients[made[0]].client_secret or "") not in str(caught.value)
    assert not ClientRegistration.objects.exists()


def test_no_transaction_is_open_while_the_server_is_asked(ehr: EHRSimulator) -> None:
    before = len(connection.savepoint_ids)
    seen = []
    ehr.on_request = lambda request: seen.append(len(connection.savepoint_ids))
    register_dynamically(entry())
    assert seen == [before, before]


def test_header_for_the_client_id_is_left_out_before_there_is_one(
    ehr: EHRSimulator,
) -> None:
    row, _ = register_dynamically(entry(preset="epic"))
    assert "Epic-Client-ID" not in ehr.requests[0].headers
    assert row.server.quirks.discovery_headers == {"Epic-Client-ID": "{client_id}"}


# The command


@pytest.mark.compliance("REG-02", "REG-06")
def test_command_prints_the_client_id_too(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ehr.initial_access_token = "an-initial-token"
    monkeypatch.setenv("REGISTER_TOKEN", " an-initial-token\n")
    ran = register(
        *("--ehr-scope", EHR_SCOPE, "--client-name", "Growth chart"),
        *("--initial-access-token-env", "REGISTER_TOKEN"),
        *("--slug", "harbour", "--set", "create_users=false"),
    )
    row = ClientRegistration.objects.get()
    assert ran.json == {
        "slug": "harbour",
        "launch_url": f"{SITE}/smart/launch/",
        "login_url": None,
        "redirect_uri": REDIRECT_URI,
        "jwks_url": f"{SITE}/smart/jwks.json",
        "client_id": row.client_id,
    }
    assert ran.err == ""
    assert row.create_users is False
    assert ehr.clients[row.client_id].name == "Growth chart"
    assert row.client_secret not in ran.out
    assert "an-initial-token" not in ran.out


def test_command_tells_what_the_server_made_otherwise(ehr: EHRSimulator) -> None:
    ehr.faults |= {"register_less_scope", "register_secret_ends"}
    ran = register("--ehr-scope", EHR_SCOPE, "--slug", "harbour")
    assert "harbour: the server did not register the scopes patient/Obs" in ran.err
    day = datetime.fromtimestamp(ehr.clock() + 24 * 3600, UTC)
    assert f"harbour: the client secret expires on {day:%Y-%m-%d}" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--client-id", "x"), "--client-id cannot be combined with --dynamic"),
        (("--client-secret", "x"), "--client-secret cannot be combined with --dynamic"),
        (
            ("--client-secret-env", "X"),
            "--client-secret-env cannot be combined with --dynamic",
        ),
        (("--from", "-"), "--from cannot be combined with --dynamic"),
        (("--initial-access-token-env", "NO_SUCH"), "NO_SUCH is not set"),
        (("--set", "nothing=1"), "no field nothing"),
        (("--ehr-scope", "Launch"), "--ehr-scope: "),
    ],
)
def test_command_refuses_options_that_do_not_go_together(
    ehr: EHRSimulator, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        register(*arguments)
    assert ehr.requests == []
    assert_nothing_is_stored()


@pytest.mark.parametrize(
    "arguments",
    [("--client-name", "x"), ("--initial-access-token-env", "X")],
)
def test_options_of_dynamic_registration_need_it(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match=f"{arguments[0]} requires --dynamic"):
        run("smart_register", "--base-url", BASE_URL, "--client-id", "x", *arguments)


def test_command_needs_the_base_url() -> None:
    with pytest.raises(CommandError, match="--base-url"):
        run("smart_register", "--dynamic")


def test_command_says_why_the_server_refused(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ehr.initial_access_token = "an-initial-token"
    with pytest.raises(CommandError) as caught:
        register("--ehr-scope", EHR_SCOPE)
    message = str(caught.value)
    assert "status 401" in message
    assert "ask its operator" in message
    assert "(registration_failed)" in message
    assert 'The server says: "an initial access token is needed"' in message
    monkeypatch.setenv("REGISTER_TOKEN", "no token at all")
    with pytest.raises(CommandError, match="not a bearer token"):
        register(
            "--ehr-scope", EHR_SCOPE, "--initial-access-token-env", "REGISTER_TOKEN"
        )
