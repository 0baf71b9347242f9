"""Where what a launch needs is found: three documents, and the row itself."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart import transport
from django_smart.exceptions import (
    DiscoveryError,
    DiscoveryStatusError,
    ServerUnreachableError,
    UnsupportedServerError,
)
from django_smart.models import FHIRServer, Launch, ServerState
from django_smart.protocol.configuration import Capability
from django_smart.servers.discovery import (
    fetch_configuration,
    get_configuration,
    get_issuer,
    get_jwks,
)
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.ehr import (
    BASE_URL,
    connect,
    get_callback,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
OPENID = "/openid-configuration"
NO_OPENID = "launch patient/Patient.rs"
METADATA_URL = f"{BASE_URL}/metadata"


def asked(ehr: EHRSimulator) -> list[str]:
    """What this site asked the EHR for, browsers left out."""
    return [each.exchange for each in ehr.requests if each.exchange != "authorize"]


# OpenID configuration


@pytest.mark.compliance("DISC-03", "DISC-09")
@pytest.mark.usefixtures("registration")
def test_cold_launch_takes_three_requests_and_a_warm_one_takes_one(
    ehr: EHRSimulator,
) -> None:
    launch(make_browser(), ehr)
    assert asked(ehr) == ["smart-configuration", "token", "jwks"]
    ehr.clear_requests()
    launch(make_browser(), ehr)
    assert asked(ehr) == ["token"]


@pytest.mark.compliance("DISC-09", "IDT-02")
@pytest.mark.parametrize(
    "missing", [("issuer",), ("jwks_uri",), ("issuer", "jwks_uri")]
)
@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.usefixtures("registration")
def test_what_is_missing_for_signing_in_costs_one_request_more(
    ehr: EHRSimulator,
    missing: tuple[str, ...],
    promised: bool,
) -> None:
    capabilities = ["launch-ehr", *(["sso-openid-connect"] if promised else [])]
    answer(ehr, SMART, remove=missing, capabilities=capabilities)
    assert launch(make_browser(), ehr).identity is not None
    assert sorted(asked(ehr)) == [
        *("jwks", "openid-configuration", "smart-configuration", "token")
    ]
    server = FHIRServer.objects.get()
    assert (server.state.issuer, server.state.jwks_uri) == (ehr.issuer, ehr.jwks_uri)
    # The row reads as if the SMART configuration had told it.
    configuration = get_configuration(server)
    assert (configuration.issuer, configuration.jwks_uri) == (ehr.issuer, ehr.jwks_uri)
    ehr.clear_requests()
    launch(make_browser(), ehr)
    assert asked(ehr) == ["token"]


@pytest.mark.parametrize(
    ("missing", "asked_for"),
    # The response names its issuer, which has to be compared.
    [("issuer", ["openid-configuration"]), ("jwks_uri", [])],
)
def test_openid_configuration_is_not_asked_for_without_need(
    ehr: EHRSimulator, missing: str, asked_for: list[str]
) -> None:
    make_registration(ehr_scope=NO_OPENID)
    answer(ehr, SMART, remove=(missing,), capabilities=["launch-ehr"])
    launch(make_browser(), ehr)
    assert asked(ehr) == ["smart-configuration", *asked_for, "token"]


def test_issuer_of_the_row_spares_the_openid_configuration(ehr: EHRSimulator) -> None:
    make_registration(server__id_token_issuer=ehr.issuer)
    answer(ehr, SMART, remove=("issuer",))
    launch(make_browser(), ehr)
    assert asked(ehr) == ["smart-configuration", "token", "jwks"]


@pytest.mark.compliance("IDT-03")
def test_another_issuer_in_the_openid_configuration_is_refused(
    ehr: EHRSimulator, registration: Any
) -> None:
    answer(ehr, SMART, remove=("jwks_uri",))
    answer(ehr, OPENID, issuer="https://elsewhere.example.net")
    server = registration.server
    with pytest.raises(DiscoveryError, match="names an issuer"):
        fetch_configuration(server)
    # Nothing of either document is left behind.
    assert (server.state.configuration, server.state.issuer, server.state.jwks_uri) == (
        None,
        "",
        "",
    )
    response = make_browser().get("/smart/launch/", {"iss": BASE_URL, "launch": "x"})
    assert response.status_code == 502
    assert b"<code>discovery_malformed</code>" in response.content


def test_launch_without_identity_does_not_need_the_openid_configuration(
    ehr: EHRSimulator,
) -> None:
    make_registration(ehr_scope=NO_OPENID)
    answer(ehr, SMART, remove=("jwks_uri",))
    answer(ehr, OPENID, status=404)
    launch(make_browser(), ehr)
    assert asked(ehr) == ["smart-configuration", "openid-configuration", "token"]


@pytest.mark.parametrize("path", [OPENID, "/auth/jwks"])
def test_launch_with_identity_says_what_is_missing(
    ehr: EHRSimulator, registration: Any, path: str
) -> None:
    answer(ehr, SMART, remove=("jwks_uri", "issuer"))
    answer(ehr, path, status=404)
    browser = make_browser()
    response = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    assert response.status_code == 502
    code = "server_unsupported" if path == OPENID else "discovery_status"
    assert Launch.objects.get().error_code == code
    server = registration.server
    server.refresh_from_db()
    with pytest.raises((UnsupportedServerError, DiscoveryStatusError)) as caught:
        get_jwks(server)
    assert path != OPENID or "set the server's ID token issuer" in str(caught.value)


def test_issuer_that_does_not_tell_its_keys_is_told_as_it_is(
    ehr: EHRSimulator, registration: Any
) -> None:
    answer(ehr, SMART, remove=("jwks_uri",))
    answer(ehr, OPENID, status=404)
    server = registration.server
    get_configuration(server)
    with pytest.raises(DiscoveryStatusError):
        get_jwks(server)


def test_issuer_that_was_learnt_once_survives_an_outage(
    ehr: EHRSimulator, registration: Any
) -> None:
    answer(ehr, SMART, remove=("jwks_uri", "issuer"))
    launch(make_browser(), ehr)
    answer(ehr, OPENID, status=503)
    ServerState.objects.update(configuration_fetched_at=None)
    launch(make_browser(), ehr)
    server = FHIRServer.objects.get()
    assert get_issuer(server) == ehr.issuer
    assert server.state.jwks_uri == ehr.jwks_uri
    assert registration.server_id == server.pk


def test_keys_at_another_address_are_fetched_anew(
    ehr: EHRSimulator, registration: Any
) -> None:
    launch(make_browser(), ehr)
    ServerState.objects.update(configuration_fetched_at=None)
    elsewhere = f"{ehr.origin}/elsewhere/jwks"
    answer(ehr, SMART, jwks_uri=elsewhere)
    ehr.clear_requests()
    launch(make_browser(), ehr)
    # It is not there, so those that are known are used on.
    assert "unknown" in asked(ehr)
    assert FHIRServer.objects.get().state.jwks_uri == elsewhere


@pytest.mark.compliance("DISC-03")
@pytest.mark.usefixtures("registration")
def test_endpoints_come_from_the_configuration_alone(ehr: EHRSimulator) -> None:
    ehr.faults.add("discovery_404")
    response = make_browser().get("/smart/launch/", {"iss": BASE_URL, "launch": "x"})
    assert response.status_code == 502
    assert asked(ehr) == ["smart-configuration"]


@pytest.mark.compliance("DISC-07")
@pytest.mark.parametrize("missing", ["token_endpoint", "authorization_endpoint"])
@pytest.mark.usefixtures("registration")
def test_half_a_configuration_is_not_filled_in(ehr: EHRSimulator, missing: str) -> None:
    answer(ehr, SMART, remove=(missing,))
    response = make_browser().get("/smart/launch/", {"iss": BASE_URL, "launch": "x"})
    assert response.status_code == 502
    assert asked(ehr) == ["smart-configuration"]


@pytest.mark.compliance("DISC-06")
@pytest.mark.parametrize("status", [404, 500])
def test_without_the_document_its_fault_is_told(
    ehr: EHRSimulator, registration: Any, status: int
) -> None:
    answer(ehr, SMART, status=status)
    with pytest.raises(DiscoveryStatusError) as caught:
        get_configuration(registration.server)
    assert caught.value.status_code == status
    assert asked(ehr) == ["smart-configuration"]
    server = FHIRServer.objects.get()
    assert server.state.configuration is None
    assert server.state.discovery_failed_at is not None


# The row itself


@pytest.mark.compliance("DISC-04")
@pytest.mark.usefixtures("registration")
def test_relative_endpoints_are_resolved_against_the_base(ehr: EHRSimulator) -> None:
    root = ehr.root_path
    answer(
        ehr,
        SMART,
        authorization_endpoint=f"{root}/auth/authorize",
        token_endpoint="auth/token",
    )
    launch(make_browser(), ehr)
    assert ehr.requests_to("token")[0].url == f"{ehr.origin}{root}/auth/token"


def _overrides(ehr: EHRSimulator, **members: Any) -> dict[str, Any]:
    endpoints = {
        "authorization_endpoint": ehr.authorization_endpoint,
        "token_endpoint": ehr.token_endpoint,
    }
    return {"server__overrides": {**endpoints, **members}}


@pytest.mark.compliance("DISC-07")
def test_endpoints_of_the_row_work_while_discovery_is_down(ehr: EHRSimulator) -> None:
    make_registration(**_overrides(ehr), ehr_scope=NO_OPENID)
    ehr.faults.add("discovery_500")
    for _ in range(3):
        launch(make_browser(), ehr)
    # The first login asks; the others do not wait for a server that is down.
    documents = ["smart-configuration", "openid-configuration"]
    assert asked(ehr) == [*documents, "token", "token", "token"]


def test_endpoints_of_the_row_work_where_there_is_no_discovery(
    ehr: EHRSimulator,
) -> None:
    make_registration(
        **_overrides(ehr, revocation_endpoint=ehr.revocation_endpoint),
        server__id_token_issuer=ehr.issuer,
    )
    answer(ehr, SMART, status=404)
    assert launch(make_browser(), ehr).identity is not None


def test_endpoint_of_the_row_completes_a_document_without_it(ehr: EHRSimulator) -> None:
    server = make_registration(**_overrides(ehr)).server
    names = ("authorization_endpoint", "token_endpoint")
    answer(ehr, SMART, remove=names)
    configuration = get_configuration(server)
    assert configuration.token_endpoint == ehr.token_endpoint
    assert configuration.has("launch-ehr")
    assert asked(ehr) == ["smart-configuration"]
    # Taken away, the override is gone: what is stored is the server's own.
    FHIRServer.objects.update(overrides={})
    ServerState.objects.update(configuration_fetched_at=None)
    server = FHIRServer.objects.get()
    assert server.read_configuration() is None


def test_revocation_endpoint_alone_does_not_replace_discovery() -> None:
    server = make_registration(
        server__overrides={"revocation_endpoint": "https://ehr.example.org/revoke"}
    ).server
    with (
        transport.mounted("https://ehr.example.org", Away()),
        pytest.raises(ServerUnreachableError),
    ):
        get_configuration(server)


def test_wrong_discovery_is_overruled_member_by_member(ehr: EHRSimulator) -> None:
    registration = make_registration()
    ehr.quirks = ["discovery_wrong"]
    browser = make_browser()
    started = browser.post("/smart/login/", {"server": "harbour"})
    assert started.status_code == 502
    server = registration.server
    server.refresh_from_db()
    server.overrides = {
        "capabilities": ["launch-ehr", "launch-standalone", "permission-v2"],
        "code_challenge_methods_supported": ["S256"],
        "grant_types_supported": None,
        "jwks_uri": ehr.jwks_uri,
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }
    server.full_clean()
    server.save()
    assert launch(browser, ehr).identity is not None
    assert connect(make_browser(), ehr).identity is not None
    server.refresh_from_db()
    assert server.state.configuration is not None
    assert server.state.configuration["grant_types_supported"] == ["implicit"]
    assert "jwks_uri" not in server.state.pinned


@pytest.mark.compliance("CAPS-01", "CAPS-02", "CAPS-03", "DISC-13")
def test_capabilities_are_read_from_the_row_as_typed_values(
    ehr: EHRSimulator, registration: Any
) -> None:
    server = registration.server
    assert server.get_capabilities() == frozenset()
    ehr.faults.add("discovery_unknown_members")
    connect(make_browser(), ehr)
    server.refresh_from_db()
    capabilities = server.get_capabilities()
    assert Capability.LAUNCH_EHR in capabilities
    assert "permission-v2" in capabilities
    assert all(isinstance(each, Capability) for each in capabilities)
    assert "future-thing" not in capabilities
    assert get_configuration(server).has("future-thing")


def test_contradicting_documents_are_settled_by_overrides(ehr: EHRSimulator) -> None:
    server = make_registration().server
    answer(ehr, SMART, remove=("jwks_uri",))
    answer(ehr, "/.well-known/openid-configuration", issuer="https://other.example.org")
    started = make_browser().post("/smart/login/", {"server": "harbour"})
    assert started.status_code == 502
    server.refresh_from_db()
    server.overrides = {"issuer": ehr.issuer, "jwks_uri": ehr.jwks_uri}
    server.full_clean()
    server.save()
    # As the admin does.
    fetch_configuration(server)
    assert connect(make_browser(), ehr).identity is not None
