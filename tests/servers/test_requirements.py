"""What a registration needs, held against what its server offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from django_smart.exceptions import UnsupportedServerError
from django_smart.models import ClientRegistration, FHIRServer, Launch
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.servers.requirements import check_launch, check_registration

OFFERED = SMARTConfiguration(
    token_endpoint="https://ehr.example.org/token",
    authorization_endpoint="https://ehr.example.org/authorize",
    code_challenge_methods_supported=("S256",),
    token_endpoint_auth_methods_supported=("client_secret_post",),
)
CAPABLE = replace(
    OFFERED,
    capabilities=frozenset({"launch-ehr", "launch-standalone", "permission-v2"}),
    grant_types_supported=("authorization_code", "client_credentials"),
)


def registration_for(**values: Any) -> ClientRegistration:
    """A registration of a public client, unless *values* say otherwise."""
    server = FHIRServer(
        **{
            name.removeprefix("server__"): values.pop(name)
            for name in list(values)
            if name.startswith("server__")
        }
    )
    return ClientRegistration(
        server=server, **{"token_endpoint_auth_method": "none", **values}
    )


def refusal_of(registration: ClientRegistration, offered: SMARTConfiguration) -> str:
    with pytest.raises(UnsupportedServerError) as caught:
        check_registration(registration, offered)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "offered"),
    [
        ("client_secret_post", ("client_secret_post",)),
        ("client_secret_basic", ("client_secret_post", "client_secret_basic")),
        ("client_secret_basic", None),
        # A public client does not authenticate, so it need not be listed.
        ("none", ("client_secret_post",)),
    ],
)
def test_method_that_the_server_offers_passes(method, offered):
    registration = registration_for(
        token_endpoint_auth_method=method, ehr_scope="launch"
    )
    check_registration(
        registration, replace(OFFERED, token_endpoint_auth_methods_supported=offered)
    )


@pytest.mark.compliance("DISC-11", "TOK-20")
@pytest.mark.parametrize("method", ["client_secret_basic", "private_key_jwt"])
def test_method_that_the_server_does_not_offer_is_refused(method):
    registration = registration_for(
        token_endpoint_auth_method=method, ehr_scope="launch"
    )
    message = refusal_of(registration, OFFERED)
    assert f"does not support the authentication method {method}" in message
    assert "it supports client_secret_post. Register the client" in message


@pytest.mark.compliance("CAPS-01", "TOK-20")
@pytest.mark.parametrize(
    ("method", "capability"),
    [
        ("none", "client-public"),
        ("client_secret_basic", "client-confidential-symmetric"),
        ("client_secret_post", "client-confidential-symmetric"),
        ("private_key_jwt", "client-confidential-asymmetric"),
    ],
)
def test_without_a_list_of_methods_the_capabilities_tell_the_types(method, capability):
    registration = registration_for(token_endpoint_auth_method=method)
    silent = replace(OFFERED, token_endpoint_auth_methods_supported=None)
    check_registration(registration, silent)
    check_registration(
        registration, replace(silent, capabilities=frozenset({capability}))
    )
    others = {
        "client-public",
        "client-confidential-symmetric",
        "client-confidential-asymmetric",
    } - {capability}
    message = refusal_of(registration, replace(silent, capabilities=frozenset(others)))
    assert f"do not include {capability}" in message
    assert "for a method that the server supports" in message


@pytest.mark.compliance("DISC-11")
def test_signing_algorithm_that_the_server_does_not_take_is_refused():
    registration = registration_for(
        token_endpoint_auth_method="private_key_jwt", signing_algorithm="RS384"
    )
    offered = replace(
        OFFERED,
        token_endpoint_auth_methods_supported=("private_key_jwt",),
        token_endpoint_auth_signing_alg_values_supported=("ES384",),
    )
    assert "it accepts ES384. " in refusal_of(registration, offered)
    registration.signing_algorithm = "ES384"
    check_registration(registration, offered)
    # Without a key the list does not matter.
    registration = registration_for(signing_algorithm="RS384")
    check_registration(registration, offered)


@pytest.mark.compliance("DISC-07")
def test_launches_need_an_authorization_endpoint():
    without = replace(OFFERED, authorization_endpoint=None)
    registration = registration_for()
    check_registration(registration, without)
    registration.standalone_scope = "launch/patient"
    message = refusal_of(registration, without)
    assert "enter it in the server's overrides" in message
    check_registration(registration, OFFERED)


@pytest.mark.compliance("DISC-08")
def test_plain_challenges_alone_are_refused():
    plain = replace(OFFERED, code_challenge_methods_supported=("plain",))
    registration = registration_for(ehr_scope="launch")
    assert "plain but not S256" in refusal_of(registration, plain)


@pytest.mark.compliance("CAPS-01")
@pytest.mark.parametrize(
    ("column", "kind", "capability"),
    [
        ("ehr_scope", "ehr", "launch-ehr"),
        ("standalone_scope", "standalone", "launch-standalone"),
    ],
)
def test_launch_that_the_server_does_not_offer_is_refused(column, kind, capability):
    lacking = replace(CAPABLE, capabilities=CAPABLE.capabilities - {capability})
    registration = registration_for(**{column: "launch/patient"})
    check_registration(registration, CAPABLE)
    message = refusal_of(registration, lacking)
    assert (
        f"capabilities do not include {capability}. Clear the registration" in message
    )

    launch = Launch(registration=registration, kind=kind, scope_asked="launch/patient")
    check_launch(launch, CAPABLE)
    with pytest.raises(UnsupportedServerError, match=capability):
        check_launch(launch, lacking)
    # The other kind is none of its business.
    launch.kind = "standalone" if kind == "ehr" else "ehr"
    check_launch(launch, lacking)


@pytest.mark.compliance("DISC-07", "BACK-02")
@pytest.mark.parametrize(
    ("column", "grant_type"),
    [("ehr_scope", "authorization_code"), ("system_scope", "client_credentials")],
)
def test_grant_type_that_the_server_does_not_offer_is_refused(column, grant_type):
    registration = registration_for(**{column: "launch"})
    check_registration(registration, CAPABLE)
    check_registration(registration, replace(CAPABLE, grant_types_supported=()))
    message = refusal_of(
        registration, replace(CAPABLE, grant_types_supported=("urn:other",))
    )
    assert (
        f"does not support the grant type {grant_type}; it supports urn:other"
        in message
    )


@pytest.mark.compliance("CAPS-08")
@pytest.mark.parametrize(
    ("offered", "scope", "fix"),
    [
        ({"permission-v1"}, "user/Patient.rs", "End it in .read"),
        ({"permission-v1"}, "patient/Patient.s?name=x", "End it in .read"),
        ({"permission-v2"}, "user/Patient.read", "Use user/Patient.rs"),
        ({"permission-v2"}, "patient/*.*", "Use patient/*.cruds"),
        ({"permission-offline"}, "online_access", "Request offline_access"),
        ({"permission-v1"}, "user/Patient.read", ""),
        ({"permission-v2"}, "user/Patient.rs", ""),
        ({"permission-v1", "permission-v2"}, "user/A.read user/B.rs", ""),
        ({"permission-patient"}, "user/A.read user/B.rs", ""),
        ({"permission-offline", "permission-online"}, "online_access", ""),
        ({"permission-user"}, "online_access", ""),
        ({"permission-online"}, "offline_access", ""),
    ],
)
def test_scopes_fit_what_is_advertised(offered, scope, fix):
    modes = {"launch-ehr", "launch-standalone"}
    configuration = replace(CAPABLE, capabilities=frozenset(offered | modes))
    for column in ("ehr_scope", "standalone_scope", "system_scope"):
        registration = registration_for(**{column: scope})
        if fix:
            assert fix in refusal_of(registration, configuration)
        else:
            check_registration(registration, configuration)


@pytest.mark.compliance("CAPS-08")
def test_server_that_is_set_to_version_1_is_asked_for_version_1():
    registration = registration_for(
        server__quirks={"scope_syntax": "v1"}, ehr_scope="launch user/Patient.rs"
    )
    message = refusal_of(registration, OFFERED)
    assert "user/Patient.rs is a version 2 scope. End it in .read" in message
    registration.ehr_scope = "launch user/Patient.read"
    check_registration(registration, OFFERED)


def test_refusal_names_everything_that_is_lacking():
    registration = registration_for(
        token_endpoint_auth_method="private_key_jwt",
        ehr_scope="launch patient/Patient.read",
    )
    lacking = replace(
        CAPABLE,
        authorization_endpoint=None,
        code_challenge_methods_supported=("plain",),
        capabilities=frozenset({"permission-v2"}),
    )
    message = refusal_of(registration, lacking)
    for each in (
        "private_key_jwt",
        "authorization_endpoint",
        "S256",
        "launch-ehr",
        "permission-v2",
    ):
        assert each in message
    # Each with what to do about it.
    assert message.count(". ") >= 9
