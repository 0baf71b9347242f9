"""SMART configuration, OpenID configuration, JWK Set, CapabilityStatement."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    DiscoveryError,
    DiscoveryStatusError,
)
from django_smart.protocol.configuration import (
    AssociatedEndpoint,
    Capability,
    SMARTConfiguration,
    check_overrides,
)
from django_smart.protocol.discovery import (
    build_capability_statement_request,
    build_discovery_request,
    build_jwks_request,
    build_openid_configuration_request,
    process_discovery_response,
    process_jwks_response,
    process_openid_configuration_response,
)
from tests.protocol.helpers import BASE_URL, VECTORS, build_answer, load_jwk_set

MINIMAL = {
    "token_endpoint": "https://as.example.org/token",
    "grant_types_supported": ["authorization_code"],
    "capabilities": ["launch-ehr"],
    "code_challenge_methods_supported": ["S256"],
}
URL_MEMBERS = [
    "authorization_endpoint",
    "jwks_uri",
    "registration_endpoint",
    "management_endpoint",
    "introspection_endpoint",
    "revocation_endpoint",
    "end_session_endpoint",
    "user_access_brand_bundle",
]
INCIDENTAL = [
    "associated_endpoints",
    "management_endpoint",
    "scopes_supported",
    "user_access_brand_bundle",
    "user_access_brand_identifier",
]
LIST_MEMBERS = [
    "scopes_supported",
    "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported",
    "introspection_endpoint_auth_methods_supported",
    "id_token_signing_alg_values_supported",
]


def process(document, **kwargs):
    found = process_discovery_response(build_answer(document))
    return SMARTConfiguration.from_json(found, **{"base_url": BASE_URL, **kwargs})


@pytest.mark.compliance("DISC-01", "EHRL-02", "SAL-01")
@pytest.mark.parametrize("vector", VECTORS["discovery_urls"], ids=str)
def test_the_configuration_is_asked_for_below_the_path_of_the_base(vector):
    assert build_discovery_request(vector["fhir_base"]).url == vector["url"]


@pytest.mark.compliance("DISC-02")
def test_the_configuration_is_got_as_json():
    request = build_discovery_request(BASE_URL)
    assert request.method == "GET"
    assert request.headers == {"Accept": "application/json"}
    assert request.body is None


def test_headers_a_server_wants_are_sent_too():
    request = build_discovery_request(BASE_URL, headers={"Epic-Client-ID": "abc"})
    assert request.headers == {"Accept": "application/json", "Epic-Client-ID": "abc"}


@pytest.mark.compliance("DISC-03", "DISC-07", "DISC-09", "BACK-02")
def test_a_document_with_the_required_members_alone_is_read():
    configuration = process(MINIMAL)
    assert configuration.token_endpoint == "https://as.example.org/token"
    assert configuration.grant_types_supported == ("authorization_code",)
    assert configuration.has("launch-ehr")
    assert not configuration.has("launch-standalone")
    assert configuration.deviations == ()
    for name in [*URL_MEMBERS, *LIST_MEMBERS, "issuer", "user_access_brand_identifier"]:
        assert getattr(configuration, name) is None
    assert configuration.associated_endpoints == ()
    assert configuration.authorization_response_iss_parameter_supported is False


@pytest.mark.compliance("DISC-11", "DISC-12", "DISC-13", "BRAND-03")
def test_a_document_with_every_member_is_read():
    document = {
        **MINIMAL,
        **{name: f"https://as.example.org/{name}?x=1" for name in URL_MEMBERS},
        **{name: ["a", "b"] for name in LIST_MEMBERS},
        "issuer": "https://as.example.org",
        "authorization_response_iss_parameter_supported": True,
        "user_access_brand_identifier": {"system": "s", "value": "v", "use": "usual"},
        "associated_endpoints": [
            {"url": "https://state.example.org/x", "capabilities": ["smart-app-state"]},
            {"url": "https://other.example.org/y"},
        ],
        "capabilities": ["launch-ehr", "http://sdo.example.org/x", "future-thing"],
        "unknown": {"x": [1]},
    }
    configuration = process(document)
    for name in URL_MEMBERS:
        assert getattr(configuration, name) == f"https://as.example.org/{name}?x=1"
    for name in LIST_MEMBERS:
        assert getattr(configuration, name) == ("a", "b")
    assert configuration.issuer == "https://as.example.org"
    assert configuration.authorization_response_iss_parameter_supported
    assert configuration.user_access_brand_identifier == {"system": "s", "value": "v"}
    assert configuration.associated_endpoints == (
        AssociatedEndpoint(
            url="https://state.example.org/x",
            capabilities=frozenset({"smart-app-state"}),
        ),
        AssociatedEndpoint(url="https://other.example.org/y"),
    )
    assert configuration.has("future-thing")
    assert configuration.has("http://sdo.example.org/x")


def test_a_brand_identifier_may_lack_its_system():
    document = {**MINIMAL, "user_access_brand_identifier": {"value": "v"}}
    assert process(document).user_access_brand_identifier == {"value": "v"}


def test_a_configuration_survives_a_json_column():
    document = {**MINIMAL, "authorization_endpoint": "/authorize", "unknown": [1]}
    configuration = process(document)
    stored = json.loads(json.dumps(configuration.raw))
    assert stored == document
    again = SMARTConfiguration.from_json(stored, base_url=BASE_URL)
    assert again == configuration
    assert again.authorization_endpoint == "https://ehr.example.org/authorize"


@pytest.mark.compliance("DISC-07")
@pytest.mark.parametrize("name", [name for name in MINIMAL if name != "token_endpoint"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_lists_that_old_servers_leave_out_read_as_empty_and_are_named(name, how):
    document = {**MINIMAL, name: None}
    if how == "absent":
        del document[name]
    configuration = process(document)
    (deviation,) = configuration.deviations
    assert (deviation.code, deviation.evidence) == ("discovery_member_missing", name)
    assert getattr(configuration, name) in ((), frozenset())
    assert configuration.supports_s256 is (name != "code_challenge_methods_supported")


@pytest.mark.compliance("DISC-07")
@pytest.mark.parametrize("value", [None, ""])
def test_a_document_without_token_endpoint_is_refused(value):
    with pytest.raises(DiscoveryError, match="token_endpoint is missing"):
        process({**MINIMAL, "token_endpoint": value})


@pytest.mark.compliance("DISC-08")
@pytest.mark.parametrize(
    ("methods", "supported"),
    [(["S256"], True), (["plain", "S256"], True), (["plain"], False), ([], False)],
)
def test_s256_is_supported_if_it_is_listed(methods, supported):
    document = {**MINIMAL, "code_challenge_methods_supported": methods}
    assert process(document).supports_s256 is supported


@pytest.mark.compliance("DISC-04")
@pytest.mark.parametrize(
    "case", VECTORS["relative_endpoint_resolution"]["cases"], ids=str
)
def test_relative_endpoints_are_resolved_against_the_base(case):
    document = {**MINIMAL, "token_endpoint": case["relative"]}
    assert process(document, base_url=case["base"]).token_endpoint == case["result"]


@pytest.mark.compliance("DISC-06", "SEC-04", "SEC-05")
@pytest.mark.parametrize("name", ["token_endpoint", *URL_MEMBERS, "issuer"])
@pytest.mark.parametrize(
    "value",
    [
        "http://as.example.org/x",
        "https://as.example.org/x y",
        "https://as.example.org/x\x7fy",
        "https://u:p@as.example.org/x",
        "https://as.example.org/x#y",
        "https://as.example.org/\nx",
        "https://as .example.org/x",
        "https://[as/x",
        "javascript:alert(1)",
        "\x7f",
        7,
        ["https://as.example.org/x"],
    ],
)
def test_a_url_that_is_not_safe_or_no_string_is_refused_by_its_name(name, value):
    check_odd_member(name, value)


def check_odd_member(name, value):
    """It stops a launch only if it may be used for one; an override always does."""
    document = {**MINIMAL, name: value}
    if name not in INCIDENTAL:
        with pytest.raises(DiscoveryError, match=name):
            process(document)
    else:
        configuration = process(document)
        assert configuration == replace(
            process(MINIMAL), deviations=configuration.deviations
        )
        (deviation,) = configuration.deviations
        assert deviation.code == "discovery_member_ignored"
        assert name in deviation.evidence
    with pytest.raises(DiscoveryError, match=name):
        check_overrides({name: value})


@pytest.mark.compliance("AUTH-02")
@pytest.mark.parametrize("query", ["state=x", "a=1&client_id=evil", "scope"])
def test_an_authorization_endpoint_with_a_parameter_of_ours_is_refused(query):
    url = f"https://as.example.org/authorize?{query}"
    with pytest.raises(DiscoveryError, match="in its query"):
        process({**MINIMAL, "authorization_endpoint": url})
    # Elsewhere it is the server's own matter.
    assert process({**MINIMAL, "token_endpoint": url}).token_endpoint == url


@pytest.mark.parametrize("name", [*URL_MEMBERS, "issuer"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_optional_url_is_an_absent_one(name, value):
    assert getattr(process({**MINIMAL, name: value}), name) is None


def test_an_issuer_is_never_resolved():
    with pytest.raises(DiscoveryError, match="issuer"):
        process({**MINIMAL, "issuer": "/issuer"})


def test_plain_http_will_do_at_the_named_hosts():
    document = {**MINIMAL, "token_endpoint": "http://localhost:8001/token"}
    configuration = process(document, insecure_hosts=frozenset({"localhost"}))
    assert configuration.token_endpoint == "http://localhost:8001/token"


@pytest.mark.compliance("DISC-06")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "a b") for name in [*LIST_MEMBERS, "capabilities"]),
        ("capabilities", [1]),
        ("grant_types_supported", {"a": 1}),
        ("code_challenge_methods_supported", "S256"),
        ("scopes_supported", ["openid", None]),
        ("authorization_response_iss_parameter_supported", "true"),
        ("user_access_brand_identifier", "v"),
        ("user_access_brand_identifier", {"system": "s"}),
        ("user_access_brand_identifier", {"system": 1, "value": "v"}),
        ("associated_endpoints", {}),
        ("associated_endpoints", ["https://x.example"]),
        ("associated_endpoints", [{"capabilities": []}]),
        ("associated_endpoints", [{"url": "http://x.example"}]),
        ("associated_endpoints", [{"url": "https://x.example", "capabilities": "a"}]),
    ],
)
def test_a_member_of_a_wrong_type_is_refused_by_its_name(name, value):
    check_odd_member(name, value)


@pytest.mark.compliance("DISC-06")
@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"a":1,"a":2}'])
def test_a_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(DiscoveryError):
        process(body)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 401, 404, 500, 503])
def test_another_status_than_200_is_refused(status):
    answer = build_answer(MINIMAL, status_code=status, location="https://x.example")
    with pytest.raises(DiscoveryStatusError, match=str(status)) as caught:
        process_discovery_response(answer)
    assert caught.value.status_code == status


@pytest.mark.compliance("CAPS-01", "CAPS-02", "CAPS-03")
@pytest.mark.parametrize(
    "capability",
    [
        "launch-ehr",
        "launch-standalone",
        "authorize-post",
        "client-public",
        "client-confidential-symmetric",
        "client-confidential-asymmetric",
        "sso-openid-connect",
        "context-banner",
        "context-style",
        "context-ehr-patient",
        "context-ehr-encounter",
        "context-standalone-patient",
        "context-standalone-encounter",
        "permission-offline",
        "permission-online",
        "permission-patient",
        "permission-user",
        "permission-v1",
        "permission-v2",
        "smart-app-state",
    ],
)
def test_each_capability_is_recognised_by_its_name_alone(capability):
    configuration = process({**MINIMAL, "capabilities": [capability]})
    assert configuration.has(capability)
    assert configuration.capabilities & {*Capability} == {capability}
    assert not process({**MINIMAL, "capabilities": []}).has(capability)


@pytest.mark.compliance("DISC-13")
def test_capabilities_that_nobody_knows_have_no_name():
    listed = ["launch-ehr", "future-thing", "http://sdo.example.org/x"]
    configuration = process({**MINIMAL, "capabilities": listed})
    assert configuration.capabilities & {*Capability} == {Capability.LAUNCH_EHR}
    assert configuration.has("future-thing")


def test_endpoints_set_by_hand_come_before_those_of_a_document():
    overrides = {"token_endpoint": "https://set.example.org/token"}
    document = {**MINIMAL, "introspection_endpoint": "https://as.example.org/i"}
    configuration = process(document, overrides=overrides)
    assert configuration.token_endpoint == "https://set.example.org/token"
    assert configuration.introspection_endpoint == "https://as.example.org/i"
    # What is stored is what the server said.
    assert configuration.raw == document
    del document["token_endpoint"]
    # What a server deviates in is what it said.
    (deviation,) = process(document, overrides=overrides).deviations
    assert deviation.evidence == "token_endpoint"
    with pytest.raises(DiscoveryError, match="token_endpoint is not https"):
        process(document, overrides={"token_endpoint": "http://set.example.org/token"})


def test_overrides_that_any_document_can_use_pass():
    check_overrides({})
    check_overrides(
        {
            "token_endpoint": "https://set.example.org/token",
            "capabilities": ["launch-ehr"],
            "jwks_uri": None,
        }
    )
    local = {"jwks_uri": "http://127.0.0.1:9000/jwks"}
    check_overrides(local, insecure_hosts=frozenset({"127.0.0.1"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenendpoint", "https://set.example.org/token"),
        ("raw", {}),
        ("missing", []),
        ("jwks_uri", "/relative"),
        ("jwks_uri", "http://127.0.0.1:9000/jwks"),
        ("capabilities", "launch-ehr"),
        ("token_endpoint", None),
    ],
)
def test_overrides_that_no_document_can_use_are_refused(name, value):
    with pytest.raises(DiscoveryError, match=name):
        check_overrides({name: value})


def test_the_capability_statement_is_asked_for_below_the_base():
    request = build_capability_statement_request(f"{BASE_URL}/", headers={"X": "y"})
    assert request.url == f"{BASE_URL}/metadata"
    assert request.method == "GET"
    assert request.headers == {"Accept": "application/fhir+json", "X": "y"}


@pytest.mark.compliance("IDT-02")
@pytest.mark.parametrize(
    ("issuer", "url"),
    [
        ("https://as.example.org", "https://as.example.org/.well-known/"),
        ("https://as.example.org/", "https://as.example.org/.well-known/"),
        ("https://as.example.org/oidc", "https://as.example.org/oidc/.well-known/"),
    ],
)
def test_the_openid_configuration_is_below_the_path_of_the_issuer(issuer, url):
    request = build_openid_configuration_request(issuer)
    assert request.url == f"{url}openid-configuration"
    assert request.method == "GET"
    assert request.headers == {"Accept": "application/json"}


OPENID = {"issuer": "https://as.example.org", "jwks_uri": "https://as.example.org/jwks"}


@pytest.mark.compliance("IDT-02", "IDT-03")
@pytest.mark.parametrize("issuer", ["https://as.example.org", None])
def test_issuer_and_keys_are_read_from_the_openid_configuration(issuer):
    found = process_openid_configuration_response(
        build_answer({**OPENID, "other": 1}), issuer=issuer
    )
    assert found == {
        "issuer": "https://as.example.org",
        "jwks_uri": "https://as.example.org/jwks",
        "end_session_endpoint": None,
        "id_token_signing_alg_values_supported": None,
    }


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize(
    ("members", "endpoint", "algorithms"),
    [
        (
            {
                "end_session_endpoint": "https://as.example.org/logout",
                "id_token_signing_alg_values_supported": ["RS256", 7, "ES384"],
            },
            "https://as.example.org/logout",
            ["RS256", "ES384"],
        ),
        (
            {
                "end_session_endpoint": "http://localhost/logout",
                "id_token_signing_alg_values_supported": "RS256",
            },
            "http://localhost/logout",
            None,
        ),
        ({"end_session_endpoint": "http://as.example.org/logout"}, None, None),
        ({"end_session_endpoint": ["https://as.example.org"]}, None, None),
    ],
)
def test_what_is_not_needed_is_read_if_it_can_be(members, endpoint, algorithms):
    found = process_openid_configuration_response(
        build_answer({**OPENID, **members}),
        issuer=None,
        insecure_hosts=frozenset({"localhost"}),
    )
    assert found["end_session_endpoint"] == endpoint
    assert found["id_token_signing_alg_values_supported"] == algorithms


def test_the_openid_configuration_may_name_an_insecure_host_that_is_allowed():
    document = {
        "issuer": "http://localhost:8001",
        "jwks_uri": "http://localhost:8001/j",
    }
    found = process_openid_configuration_response(
        build_answer(document), issuer=None, insecure_hosts=frozenset({"localhost"})
    )
    assert found["issuer"] == "http://localhost:8001"


@pytest.mark.compliance("IDT-03")
@pytest.mark.parametrize(
    ("document", "issuer", "reason"),
    [
        (OPENID, "https://as.example.org/", "other than"),
        (OPENID, "https://evil.example", "other than"),
        ({**OPENID, "issuer": None}, None, "missing"),
        ({**OPENID, "issuer": "http://as.example.org"}, None, "issuer is not https"),
        ({**OPENID, "jwks_uri": 1}, None, "jwks_uri is not a string"),
        ({**OPENID, "jwks_uri": "/jwks"}, None, "jwks_uri"),
        ({"issuer": "https://as.example.org"}, None, "jwks_uri is missing"),
        (b"[]", None, "OpenID configuration"),
    ],
)
def test_an_openid_configuration_that_does_not_fit_is_refused(document, issuer, reason):
    with pytest.raises(DiscoveryError, match=reason):
        process_openid_configuration_response(build_answer(document), issuer=issuer)


def test_the_keys_are_asked_for_where_the_server_says():
    request = build_jwks_request("https://as.example.org/jwks?x=1")
    assert request.url == "https://as.example.org/jwks?x=1"
    assert request.method == "GET"
    assert request.headers == {"Accept": "application/jwk-set+json, application/json"}


@pytest.mark.compliance("IDT-06")
def test_a_published_jwk_set_is_read():
    jwks = load_jwk_set("RS384.public.json")
    assert process_jwks_response(build_answer(jwks)) == jwks
    assert process_jwks_response(build_answer({"keys": []})) == {"keys": []}


@pytest.mark.parametrize(
    "document", [{}, {"keys": {}}, {"keys": ["x"]}, {"keys": None}, b"[]", b"x"]
)
def test_what_is_no_jwk_set_is_refused(document):
    with pytest.raises(DiscoveryError):
        process_jwks_response(build_answer(document))


def test_a_jwk_set_of_more_than_a_hundred_keys_is_refused():
    keys = [{"kty": "RSA"}] * 100
    assert process_jwks_response(build_answer({"keys": keys}))["keys"] == keys
    with pytest.raises(DiscoveryError, match="101 keys"):
        process_jwks_response(build_answer({"keys": [*keys, {}]}))


@pytest.mark.parametrize(
    "process_other",
    [
        process_jwks_response,
        lambda answer: process_openid_configuration_response(answer, issuer=None),
    ],
)
def test_no_document_is_taken_from_an_error_or_a_redirect(process_other):
    for status in (302, 404, 500):
        with pytest.raises(DiscoveryStatusError):
            process_other(build_answer({"keys": [], **OPENID}, status_code=status))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["url", "value", "capabilities"]), inner)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *MINIMAL,
                *URL_MEMBERS,
                *LIST_MEMBERS,
                "issuer",
                "associated_endpoints",
                "user_access_brand_identifier",
                "authorization_response_iss_parameter_supported",
            ]
        ),
        _JSON,
        max_size=4,
    )
)
def test_any_document_gives_a_configuration_or_a_typed_error(document):
    with contextlib.suppress(DiscoveryError):
        configuration = process({**MINIMAL, **document})
        assert configuration.token_endpoint.startswith("https://")
