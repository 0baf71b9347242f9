"""Token requests and responses."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    MalformedTokenResponseError,
    TokenError,
    TokenResponseError,
    TokenServerError,
    TransportError,
)
from django_smart.protocol.client_auth import (
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJWT,
    PublicClient,
)
from django_smart.protocol.context import MAX_CONTEXT_LENGTH, LaunchContext
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.token import (
    DEFAULT_LIFETIME,
    build_client_credentials_request,
    build_refresh_request,
    build_token_request,
    find_refresh_token,
    process_refresh_response,
    process_token_response,
)
from tests.errors import raises_code
from tests.protocol.helpers import (
    NOW,
    SEED,
    VECTORS,
    build_answer,
    make_ec_key,
    read_form,
)

ENDPOINT = "https://as.example.org/token?tenant=1"
FORM = "application/x-www-form-urlencoded"
REQUESTED = ScopeSet.parse("launch/patient patient/Observation.rs offline_access")
GOOD = {
    "access_token": "access",
    "token_type": "Bearer",
    "expires_in": 3600,
    "scope": "patient/Observation.rs",
}

BASIC = ClientSecretBasic(
    client_id=SEED["client_id"], client_secret=SEED["client_secret"]
)
PUBLIC = PublicClient(client_id=SEED["client_id"])
SIGNED = PrivateKeyJWT(
    client_id=SEED["client_id"],
    key=make_ec_key(ec.SECP384R1),
    algorithm="ES384",
    kid="k1",
    now=NOW,
    jti="one-time",
)


def build_exchange(client_authentication, **overrides):
    published = SEED["token_request"]["symmetric"]
    values = {
        "token_endpoint": ENDPOINT,
        "code": published["code"],
        "redirect_uri": published["redirect_uri"],
        "code_verifier": published["code_verifier"],
        **overrides,
    }
    return build_token_request(**values, client_authentication=client_authentication)


def process(body=GOOD, *, status_code=200, requested=REQUESTED, headers=None, **kwargs):
    answer = build_answer(body, status_code=status_code, **(headers or {}))
    return process_token_response(answer, requested=requested, now=NOW, **kwargs)


def process_refresh(
    body,
    *,
    granted="patient/Observation.rs openid",
    context_in_access_token=False,
    **previous,
):
    return process_refresh_response(
        build_answer(body),
        granted=ScopeSet.parse(granted),
        now=NOW,
        previous_context=LaunchContext(**previous),
        context_in_access_token=context_in_access_token,
    )


# Requests


@pytest.mark.compliance("TOK-01", "TOK-02", "TOK-03", "TOK-07")
def test_the_published_exchange_is_built_in_its_order_and_with_its_headers():
    request = build_exchange(BASIC)
    assert request.method == "POST"
    assert request.url == ENDPOINT
    assert request.headers == SEED["token_request_headers_symmetric"]
    assert read_form(request) == list(SEED["token_request"]["symmetric"].items())
    assert b"client_id" not in request.body


@pytest.mark.compliance("TOK-03", "TOK-08", "TOK-17")
def test_each_client_type_sends_its_own_parameters_and_no_others():
    public, posted, signed = (
        build_exchange(method)
        for method in (
            PUBLIC,
            ClientSecretPost(client_id="a", client_secret="b"),
            SIGNED,
        )
    )
    assert dict(read_form(public)) == SEED["token_request"]["public"]
    assert set(dict(read_form(signed))) == set(SEED["token_request"]["asymmetric"])
    assert set(dict(read_form(posted))) == {
        *SEED["token_request"]["symmetric"],
        "client_id",
        "client_secret",
    }
    for request in (public, posted, signed):
        assert request.headers == {"Accept": "application/json", "Content-Type": FORM}


def test_values_are_form_encoded():
    request = build_exchange(BASIC, code="a+b/c =&é")
    assert dict(read_form(request))["code"] == "a+b/c =&é"


@pytest.mark.compliance("REF-03", "REF-04")
@pytest.mark.parametrize(
    "method", [BASIC, PUBLIC, SIGNED], ids=lambda m: type(m).__name__
)
def test_a_refresh_sends_the_refresh_token_and_what_authenticates(method):
    published = SEED["refresh_request"]["symmetric"]
    request = build_refresh_request(
        token_endpoint=ENDPOINT,
        refresh_token=published["refresh_token"],
        client_authentication=method,
    )
    assert request.url == ENDPOINT
    form = dict(read_form(request))
    assert {name: form[name] for name in published} == published
    assert ("Authorization" in request.headers) is (method is BASIC)
    assert form.get("client_id") == (SEED["client_id"] if method is PUBLIC else None)
    assert set(form).isdisjoint({"code", "redirect_uri", "code_verifier", "scope"})


@pytest.mark.compliance("REF-05")
def test_a_refresh_may_name_scopes_that_were_granted():
    request = build_refresh_request(
        token_endpoint=ENDPOINT,
        refresh_token="r",
        client_authentication=BASIC,
        scope="patient/Observation.r",
    )
    assert dict(read_form(request))["scope"] == "patient/Observation.r"


@pytest.mark.compliance("BACK-03", "BACK-02")
def test_a_backend_service_sends_exactly_the_published_parameters():
    published = VECTORS["backend_services"]["token_request"]
    request = build_client_credentials_request(
        token_endpoint=ENDPOINT, scope=published["scope"], client_authentication=SIGNED
    )
    assert request.url == ENDPOINT
    form = dict(read_form(request))
    assert list(form) == list(published)
    assert form["grant_type"] == published["grant_type"]
    assert form["scope"] == published["scope"]
    assert form["client_assertion_type"] == published["client_assertion_type"]
    assert "Authorization" not in request.headers


# Responses


@pytest.mark.compliance("RESP-01", "RESP-03", "RESP-06", "REF-02")
def test_the_published_answer_is_read():
    published = SEED["token_response"]
    tokens = process(published)
    assert tokens.access_token == published["access_token"]
    assert tokens.refresh_token == published["refresh_token"]
    assert tokens.id_token is None
    assert str(tokens.scopes) == published["scope"]
    assert "offline_access" not in tokens.scopes
    assert tokens.expires_at == NOW + timedelta(hours=1)
    assert tokens.context.patient == published["patient"]
    assert tokens.parameters == {
        name: value
        for name, value in published.items()
        if name not in ("access_token", "refresh_token")
    }
    assert tokens.context_changed is False


@pytest.mark.compliance("BACK-05", "BACK-08")
def test_the_published_answer_to_a_backend_service_is_read():
    published = VECTORS["backend_services"]["token_response"]
    tokens = process(published, requested=ScopeSet.parse("system/*.rs"))
    assert str(tokens.scopes) == "system/*.rs"
    assert tokens.refresh_token is None


@pytest.mark.compliance("RESP-01")
@pytest.mark.parametrize("how", ["absent", "null", "empty"])
@pytest.mark.parametrize("name", ["access_token", "token_type"])
def test_an_answer_without_a_required_member_is_refused(name, how):
    body = {**GOOD, name: "" if how == "empty" else None}
    if how == "absent":
        del body[name]
    with pytest.raises(MalformedTokenResponseError, match=name):
        process(body)


@pytest.mark.compliance("RESP-02")
@pytest.mark.parametrize("token_type", ["Bearer", "bearer", "BEARER"])
def test_the_token_type_is_compared_without_regard_to_case(token_type):
    assert process({**GOOD, "token_type": token_type}).access_token


@pytest.mark.compliance("RESP-02")
@pytest.mark.parametrize("token_type", ["mac", "DPoP", " Bearer", 1, ["Bearer"]])
def test_another_token_type_is_refused(token_type):
    with pytest.raises(MalformedTokenResponseError, match="token_type"):
        process({**GOOD, "token_type": token_type})


@pytest.mark.compliance("RESP-06")
@pytest.mark.parametrize("token", ["x", "~!x", "x" * 8192])
def test_tokens_are_opaque_and_of_any_length(token):
    tokens = process(
        {**GOOD, "access_token": token, "refresh_token": token, "id_token": token}
    )
    assert tokens.access_token == tokens.refresh_token == tokens.id_token == token


@pytest.mark.compliance("RESP-01", "SEC-02")
@pytest.mark.parametrize("name", ["access_token", "refresh_token", "id_token"])
@pytest.mark.parametrize("value", ["a\r\nX: y", "a\tb", "é", 7, ["x"], {"x": 1}, True])
def test_a_token_that_could_not_be_sent_is_refused(name, value):
    with pytest.raises(MalformedTokenResponseError, match=name):
        process({**GOOD, name: value})


def test_an_access_token_has_no_space_and_a_refresh_token_may_have_one():
    assert process({**GOOD, "refresh_token": "a b"}).refresh_token == "a b"
    with pytest.raises(MalformedTokenResponseError, match="access_token"):
        process({**GOOD, "access_token": "a b"})


@pytest.mark.compliance("REF-02", "IDT-10")
@pytest.mark.parametrize("value", [None, ""])
def test_refresh_and_id_token_may_be_absent_in_any_way(value):
    tokens = process({**GOOD, "refresh_token": value, "id_token": value})
    assert tokens.refresh_token is None
    assert tokens.id_token is None


@pytest.mark.compliance("RESP-05")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1, 1), ("3600", 3600), (3600.0, 3600), (315_619_200, 315_619_200)],
)
def test_expires_in_is_counted_from_receipt(value, seconds):
    tokens = process({**GOOD, "expires_in": value})
    assert tokens.expires_at == NOW + timedelta(seconds=seconds)


@pytest.mark.compliance("RESP-01", "RESP-05")
@pytest.mark.parametrize("how", ["absent", "null"])
def test_without_expires_in_a_short_life_is_assumed(how):
    body = {**GOOD, "expires_in": None}
    if how == "absent":
        del body["expires_in"]
    tokens = process(body)
    assert timedelta(minutes=5) == DEFAULT_LIFETIME
    assert tokens.expires_at == NOW + DEFAULT_LIFETIME
    assert process_refresh(body).expires_at == NOW + DEFAULT_LIFETIME


@pytest.mark.compliance("RESP-05")
@pytest.mark.parametrize(
    "value",
    [
        -1,
        315_619_201,
        10**19,
        "9" * 10_000,
        "-1",
        "+1",
        "1.5",
        "1e3",
        " 1",
        "",
        "soon",
        "²",
        "٣",
        1.5,
        True,
        False,
        [60],
        {"seconds": 60},
    ],
)
def test_an_expires_in_that_is_no_time_to_live_is_refused(value):
    with pytest.raises(MalformedTokenResponseError, match="expires_in"):
        process({**GOOD, "expires_in": value})


@pytest.mark.parametrize("name", ["refresh_expires_in", "refresh_token_expires_in"])
@pytest.mark.parametrize("value", [86400, "86400", 86400.0])
def test_end_of_the_refresh_token_is_counted_from_receipt(name, value):
    tokens = process({**GOOD, "refresh_token": "again", name: value})
    assert tokens.refresh_expires_at == NOW + timedelta(days=1)


@pytest.mark.parametrize("separator", [" ", "T"])
def test_end_of_the_access_at_blue_button_is_read(separator):
    end = (NOW + timedelta(days=30)).strftime(f"%Y-%m-%d{separator}%H:%M:%SZ")
    body = {**GOOD, "refresh_token": "again", "access_grant_expiration": end}
    assert process(body).refresh_expires_at == NOW + timedelta(days=30)


@pytest.mark.parametrize(
    "value", [None, "", "soon", 86400, True, [], "2019-01-01 00:00:00Z", "9999-12-31"]
)
def test_end_of_the_access_that_makes_no_sense_is_ignored(value):
    body = {**GOOD, "refresh_token": "again", "access_grant_expiration": value}
    assert process(body).refresh_expires_at is None


@pytest.mark.parametrize("value", [None, 0, -1, "soon", True, [], 1.5, 10**12])
def test_refresh_token_without_a_sensible_end_has_none(value):
    body = {**GOOD, "refresh_token": "again", "refresh_expires_in": value}
    assert process(body).refresh_expires_at is None
    assert process({**GOOD, "refresh_token": "again"}).refresh_expires_at is None
    later = {**body, "refresh_token_expires_in": 86400}
    assert process(later).refresh_expires_at == NOW + timedelta(days=1)


@pytest.mark.parametrize("body", [b'"NaN"', b'{"expires_in": NaN}', b"<html>", b""])
def test_a_page_or_nonsense_with_status_200_is_malformed(body):
    with pytest.raises(MalformedTokenResponseError):
        process(body)


def test_scope_as_a_list_and_a_numeric_patient_are_read_as_text():
    scope = ["launch/patient", "patient/Observation.rs"]
    tokens = process({**GOOD, "scope": scope, "patient": 42, "encounter": 7})
    assert tokens.scopes == ScopeSet.parse("launch/patient patient/Observation.rs")
    assert (tokens.context.patient, tokens.context.encounter) == ("42", "7")


@pytest.mark.compliance("RESP-03")
@pytest.mark.parametrize(
    "scope", ["", "patient/*.cruds", "patient/Observation.rs?a=b", "x  y\tx"]
)
def test_the_granted_scope_is_taken_whatever_it_is(scope):
    tokens = process({**GOOD, "scope": scope})
    assert tokens.scopes == ScopeSet.parse(scope)


@pytest.mark.compliance("RESP-01")
@pytest.mark.parametrize("scope", [{}, {"scope": None}])
def test_without_scope_what_was_asked_counts_as_granted(scope):
    tokens = process({name: GOOD[name] for name in GOOD if name != "scope"} | scope)
    assert tokens.scopes == REQUESTED


@pytest.mark.parametrize("scope", [["openid", 1], 1, {"a": 1}, True])
def test_a_scope_that_is_no_string_is_refused(scope):
    with pytest.raises(MalformedTokenResponseError, match="scope"):
        process({**GOOD, "scope": scope})


@pytest.mark.compliance("RESP-15", "REF-06")
def test_every_answer_may_name_a_style_at_the_named_hosts():
    members = {"patient": "7", "smart_style_url": "http://localhost:8010/style.json"}
    answer = build_answer({**GOOD, **members})
    hosts = frozenset({"localhost"})
    refreshed = process_refresh_response(
        answer,
        granted=REQUESTED,
        now=NOW,
        previous_context=LaunchContext(),
        insecure_hosts=hosts,
    )
    for response in (process({**GOOD, **members}, insecure_hosts=hosts), refreshed):
        assert response.context.smart_style_url == members["smart_style_url"]
        assert response.context_changed is False
    assert process({**GOOD, **members}).context.smart_style_url is None


def test_a_patient_that_is_no_id_is_refused():
    with pytest.raises(MalformedTokenResponseError, match="patient"):
        process({**GOOD, "patient": True})


@pytest.mark.compliance("TOK-18", "BACK-10")
@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(
    ("error", "final"),
    [
        ("invalid_grant", True),
        ("invalid_client", False),
        ("invalid_scope", False),
        ("unauthorized_client", False),
    ],
)
def test_an_oauth_error_is_typed_and_says_nothing_secret(status, error, final):
    body = {
        "error": error,
        "error_description": "code secret-code\nis bad",
        "error_uri": "https://as.example.org/help",
        "access_token": "secret-token",
    }
    with pytest.raises(TokenResponseError) as caught:
        process(body, status_code=status)
    assert caught.value.error == error
    assert caught.value.error_description == "code secret-code is bad"
    assert caught.value.error_uri == "https://as.example.org/help"
    assert caught.value.status_code == status
    assert caught.value.is_final is final
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://a.example/" + "x" * 4078, True),
        ("https://a.example/" + "x" * 4079, False),
        (["https://a.example/"], False),
    ],
)
def test_an_error_uri_is_kept_if_it_is_a_link_of_sensible_length(uri, kept):
    with pytest.raises(TokenResponseError) as caught:
        process(
            {"error": "x", "error_description": 7, "error_uri": uri}, status_code=400
        )
    assert caught.value.error_uri == (uri if kept else "")
    assert caught.value.error_description == ""


@pytest.mark.compliance("REF-12")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"error": "invalid_grant"}),
        (500, {"error": "invalid_grant"}),
        (502, b"<html>Bad gateway</html>"),
        (503, b""),
        (400, b"<html>Blocked</html>"),
        (401, b""),
        (404, b"[]"),
        (400, {"message": "no"}),
        (400, {"error": None}),
        (400, {"error": "two\nlines"}),
        (400, {"error": {"code": "invalid_grant"}}),
    ],
)
def test_what_is_no_oauth_error_never_counts_as_the_end_of_a_grant(status, body):
    with pytest.raises(TokenServerError) as caught:
        process(body, status_code=status, headers={"retry_after": "7"})
    assert caught.value.status_code == status
    assert caught.value.retry_after == 7


def test_a_server_error_without_retry_after_says_so():
    with pytest.raises(TokenServerError) as caught:
        process(b"", status_code=503, headers={"retry_after": "Wed, 21 Oct 2026"})
    assert caught.value.retry_after is None


@pytest.mark.compliance("TOK-05")
@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 399])
def test_a_redirect_is_refused(status):
    with raises_code("redirect_refused", match=str(status)):
        process(GOOD, status_code=status, headers={"location": "https://evil.example"})


@pytest.mark.parametrize("status", [100, 201, 202, 204, 206])
def test_another_success_than_200_is_malformed(status):
    with pytest.raises(MalformedTokenResponseError, match=str(status)):
        process(GOOD, status_code=status)


@pytest.mark.compliance("SEC-01")
def test_no_repr_shows_a_token_or_the_patient():
    tokens = process(
        {
            **GOOD,
            "access_token": "secret",
            "refresh_token": "secret",
            "id_token": "secret",
            "patient": "secret",
        }
    )
    assert "secret" not in repr(tokens)
    assert "secret" not in repr(build_exchange(BASIC, code="secret"))


# Refresh


@pytest.mark.compliance("REF-06", "REF-07")
def test_a_refresh_without_context_keeps_the_old_one():
    tokens = process_refresh(GOOD, patient="1", encounter="2")
    assert tokens.context == LaunchContext(patient="1", encounter="2")
    assert tokens.refresh_token is None
    assert not tokens.context_changed


@pytest.mark.compliance("REF-06", "REF-07")
def test_a_refresh_brings_a_new_refresh_token_and_newer_context():
    body = {**GOOD, "refresh_token": "next", "need_patient_banner": False}
    tokens = process_refresh(body, patient="1", need_patient_banner=True)
    assert tokens.refresh_token == "next"
    assert tokens.context == LaunchContext(patient="1", need_patient_banner=False)


@pytest.mark.compliance("FHIR-06", "REF-14")
@pytest.mark.parametrize(
    "member",
    [{"patient": "2"}, {"encounter": "9"}, {"patient": 7}, {"encounter": "a/b"}],
)
def test_a_refresh_for_another_patient_says_so_and_still_gives_the_tokens(member):
    body = {**GOOD, "refresh_token": "next", **member}
    tokens = process_refresh(body, patient="1", encounter="2")
    assert tokens.context_changed
    assert tokens.refresh_token == "next"


@pytest.mark.compliance("REF-05", "REF-06")
@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("patient/Observation.rs openid", "patient/Observation.rs openid"),
        ("patient/Observation.r", "patient/Observation.r"),
        ("patient/Observation.cruds user/*.rs", "patient/Observation.rs"),
        ("openid offline_access", "openid"),
        ("", ""),
        ("patient/*.rs openid", "openid patient/Observation.rs"),
        ("patient/*.r", "patient/Observation.r"),
        (
            "patient/Observation.r patient/*.rs",
            "patient/Observation.r patient/Observation.s",
        ),
    ],
)
def test_a_refresh_never_gives_more_than_was_granted_first(scope, expected):
    assert str(process_refresh({**GOOD, "scope": scope}).scopes) == expected


@pytest.mark.compliance("REF-05", "SCOPE-10")
def test_a_wider_scope_in_a_refresh_keeps_the_parameters_that_were_granted():
    lab = "patient/Observation.rs?category=laboratory"
    body = {**GOOD, "scope": "patient/Observation.rs"}
    assert str(process_refresh(body, granted=lab).scopes) == lab


def test_a_refresh_without_scope_keeps_what_was_granted():
    body = {**GOOD, "scope": None}
    tokens = process_refresh(body, granted="openid patient/*.rs")
    assert str(tokens.scopes) == "openid patient/*.rs"


@pytest.mark.compliance("REF-06")
@pytest.mark.parametrize("token", ["opaque", "a.b.c"])
def test_a_refresh_reads_no_context_from_an_access_token_that_is_no_jwt(token):
    tokens = process_refresh(
        {**GOOD, "access_token": token}, patient="1", context_in_access_token=True
    )
    assert (tokens.context.patient, tokens.context_changed) == ("1", False)


@pytest.mark.compliance("REF-06")
@pytest.mark.parametrize("value", ["2", {"reference": "Patient/1"}])
def test_a_refresh_reads_context_that_only_the_access_token_has(value):
    token = jwt.encode({"patient": value, "tenant": "t"}, "x" * 32)
    body = {**GOOD, "access_token": token}
    tokens = process_refresh(body, patient="1", context_in_access_token=True)
    assert tokens.context_changed is True
    assert process_refresh(body, patient="1").context_changed is False
    body = {**body, "patient": "1", "tenant": ""}
    tokens = process_refresh(body, patient="1", context_in_access_token=True)
    assert (tokens.parameters["tenant"], tokens.context_changed) == ("t", False)


@pytest.mark.compliance("REF-12")
@pytest.mark.compliance("REF-07", "REF-14")
@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"refresh_token": "new"}, "new"),
        ({"refresh_token": "new", "access_token": 7, "patient": []}, "new"),
        ({"refresh_token": ""}, None),
        ({"refresh_token": None}, None),
        ({"refresh_token": 7}, None),
        ({"refresh_token": "\n"}, None),
        ({}, None),
    ],
)
def test_a_refresh_token_is_found_in_an_answer_that_was_refused(members, found):
    assert find_refresh_token(build_answer(members)) == found


@pytest.mark.parametrize("status", [302, 400, 500])
def test_no_refresh_token_is_found_in_what_is_no_success(status):
    response = build_answer({"refresh_token": "new"}, status_code=status)
    assert find_refresh_token(response) is None
    assert find_refresh_token(build_answer(b"{")) is None


def test_a_refused_refresh_is_final_or_not_by_its_error():
    answer = build_answer({"error": "invalid_grant"}, status_code=400)
    with pytest.raises(TokenResponseError) as caught:
        process_refresh_response(
            answer,
            granted=REQUESTED,
            now=NOW,
            previous_context=LaunchContext(patient="1"),
        )
    assert caught.value.is_final


def test_style_urls_of_hosts_named_insecure_are_kept_by_both():
    body = {**GOOD, "smart_style_url": "http://localhost/style.json"}
    hosts = frozenset({"localhost"})
    assert process(body, insecure_hosts=hosts).context.smart_style_url
    assert process(body).context.smart_style_url is None
    refreshed = process_refresh_response(
        build_answer(body),
        granted=REQUESTED,
        now=NOW,
        previous_context=LaunchContext(),
        insecure_hosts=hosts,
    )
    assert refreshed.context.smart_style_url


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
_MEMBERS = st.dictionaries(
    st.sampled_from(
        [
            *GOOD,
            "refresh_token",
            "id_token",
            "patient",
            "fhirContext",
            "error",
        ]
    ),
    _JSON,
    max_size=3,
)


@given(_MEMBERS, st.sampled_from([200, 204, 302, 400, 401, 429, 500]))
def test_any_answer_gives_tokens_or_a_typed_error(members, status):
    body = {**GOOD, **members}
    with contextlib.suppress(TokenError, TransportError):
        tokens = process(body, status_code=status)
        assert tokens.access_token == body["access_token"]
    answer = build_answer(body, status_code=status)
    with contextlib.suppress(TokenError, TransportError):
        tokens = process_refresh_response(
            answer, granted=REQUESTED, now=NOW, previous_context=LaunchContext()
        )
        assert REQUESTED.covers(tokens.scopes)


@given(st.binary(max_size=100), st.integers(100, 599))
def test_any_bytes_with_any_status_give_a_typed_error(body, status):
    with pytest.raises((TokenError, TransportError)):
        process(body, status_code=status)


def fill_up(size, **members):
    """*members*, with text that makes what is kept as long as *size*."""
    kept = {**GOOD, **members, "vendor": ""}
    del kept["access_token"]
    length = len(json.dumps(kept))
    return {**GOOD, **members, "vendor": "x" * (size - length)}


@pytest.mark.compliance("RESP-01")
@pytest.mark.parametrize("process_answer", [process, process_refresh])
def test_a_context_of_more_than_64_kib_is_refused(process_answer):
    body = fill_up(MAX_CONTEXT_LENGTH, refresh_token="r" * 70_000)
    assert process_answer(body).parameters["vendor"] == body["vendor"]
    items = [{"reference": f"List/{number}"} for number in range(3000)]
    for larger in (
        fill_up(MAX_CONTEXT_LENGTH + 1),
        {**GOOD, "fhirContext": items},
        {**GOOD, "scope": "patient/Observation.rs " * 3000},
        {**GOOD, "vendor": "\u00e9" * (MAX_CONTEXT_LENGTH // 6)},
    ):
        with pytest.raises(MalformedTokenResponseError, match="65536"):
            process_answer(larger)
