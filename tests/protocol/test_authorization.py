"""The authorization request, and what comes back from it."""

from __future__ import annotations

import contextlib
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    AuthorizationDeniedError,
    AuthorizationResponseError,
    DiscoveryError,
    StateError,
)
from django_smart.protocol.authorization import (
    MAX_CODE_LENGTH,
    build_authorization_request,
    get_state,
    process_authorization_response,
)
from django_smart.protocol.oauth import MAX_PARAMETER_LENGTH
from tests.protocol.helpers import BASE_URL, SEED, VECTORS

ISSUER = "https://ehr.example.org"


def build(**overrides):
    values = {
        "authorization_endpoint": "https://as.example.org/authorize",
        "client_id": "growth-chart",
        "redirect_uri": "https://app.example.org/smart/callback/",
        "scope": "launch openid fhirUser",
        "state": "s" * 43,
        "aud": BASE_URL,
        "code_challenge": "c" * 43,
        **overrides,
    }
    return build_authorization_request(**values)


def process(*parameters, expected_issuer=ISSUER, issuer_promised=False):
    return process_authorization_response(
        parameters, expected_issuer=expected_issuer, issuer_promised=issuer_promised
    )


@pytest.mark.compliance("AUTH-01", "AUTH-02", "AUTH-03", "SAL-04")
def test_the_published_request_is_built_byte_for_byte():
    vector = SEED["authorization_request"]
    endpoint, _, _ = vector["url"].partition("?")
    params = {**vector["params"]}
    del params["response_type"], params["code_challenge_method"]
    request = build_authorization_request(authorization_endpoint=endpoint, **params)
    assert request.url == vector["url"]
    assert request.endpoint == endpoint
    assert dict(request.parameters) == vector["params"]


@pytest.mark.compliance("SAL-02", "AUTH-14", "AUTH-15")
def test_a_standalone_request_has_the_required_parameters_once_and_no_others():
    names = [name for name, _ in build().parameters]
    assert names == [
        "response_type",
        "client_id",
        "scope",
        "redirect_uri",
        "aud",
        "state",
        "code_challenge",
        "code_challenge_method",
    ]


@pytest.mark.compliance("EHRL-03", "EHRL-05", "AUTH-10")
@pytest.mark.parametrize("launch", ["xyz123", "a+b%2F=/&?#", "é" * 3, "x" * 1024])
def test_an_ehr_launch_echoes_launch_and_aud_unchanged(launch):
    request = build(launch=launch, aud="https://EHR.example.org/FHIR/R4/")
    query = dict(parse_qsl(urlsplit(request.url).query))
    assert query["launch"] == launch
    assert query["aud"] == "https://EHR.example.org/FHIR/R4/"
    assert query == dict(request.parameters)


@pytest.mark.compliance("AUTH-16")
def test_nonce_and_extra_parameters_come_last():
    request = build(nonce="n", launch="l", extra=[("display", "page")])
    assert request.parameters[-3:] == (
        ("launch", "l"),
        ("nonce", "n"),
        ("display", "page"),
    )


@pytest.mark.compliance("DISC-08", "AUTH-04")
def test_pkce_is_s256():
    assert ("code_challenge_method", "S256") in build().parameters


@pytest.mark.compliance("AUTH-13")
@pytest.mark.parametrize(
    ("endpoint", "start"),
    [
        ("https://as.example.org/a", "https://as.example.org/a?response_type=code&"),
        ("https://as.example.org/a?", "https://as.example.org/a?response_type=code&"),
        (
            "https://as.example.org/a?tenant=1&x",
            "https://as.example.org/a?tenant=1&x&response_type=code&",
        ),
    ],
)
def test_the_query_of_the_endpoint_is_kept(endpoint, start):
    request = build(authorization_endpoint=endpoint)
    assert request.url.startswith(start)
    assert request.endpoint == endpoint


@pytest.mark.compliance("AUTH-02", "AUTH-13")
@pytest.mark.parametrize("query", ["state=x", "a=1&client_id=evil", "scope"])
def test_an_endpoint_with_a_parameter_of_ours_is_refused(query):
    with pytest.raises(DiscoveryError, match="in its query"):
        build(authorization_endpoint=f"https://as.example.org/authorize?{query}")


@pytest.mark.compliance("AUTH-02")
@pytest.mark.parametrize(
    "name",
    ["client_id", "scope", "redirect_uri", "aud", "state", "code_challenge", "launch"],
)
def test_no_parameter_is_empty(name):
    with pytest.raises(ValueError, match=f"{name} of the authorization request"):
        build(**{name: ""})


@pytest.mark.compliance("AUTH-02")
def test_no_parameter_is_given_twice():
    with pytest.raises(ValueError, match="twice"):
        build(extra=[("aud", "https://evil.example")])


@pytest.mark.compliance("AUTH-13")
def test_values_are_percent_encoded_with_spaces_as_percent_20():
    url = build(scope="launch patient/Observation.rs?category=http://a/b|c").url
    assert (
        "&scope=launch%20patient%2FObservation.rs%3Fcategory%3Dhttp%3A%2F%2Fa%2Fb%7Cc&"
        in url
    )


def test_the_limits_hold_what_servers_send():
    assert MAX_CODE_LENGTH == 16_384
    assert MAX_PARAMETER_LENGTH == 4096


def test_no_repr_shows_what_travels():
    request = build(state="secret-state", launch="secret-launch")
    answer = process(("code", "secret-code"))
    assert "secret" not in repr(request)
    assert "secret" not in repr(answer)


@pytest.mark.compliance("CALL-01", "CALL-04")
def test_the_state_of_the_published_callback_is_found():
    callback = SEED["callback"]
    parameters = [("code", callback["code"]), ("state", callback["state"])]
    assert get_state(parameters) == callback["state"]
    assert process(*parameters).code == callback["code"]


@pytest.mark.compliance("CALL-01")
@pytest.mark.parametrize(
    "parameters",
    [
        [],
        [("code", "x")],
        [("state", "")],
        [("State", "s")],
        [("state", "s"), ("state", "s")],
        [("state", "s" * (MAX_PARAMETER_LENGTH + 1))],
    ],
)
def test_a_callback_without_exactly_one_state_leads_nowhere(parameters):
    with pytest.raises(StateError) as caught:
        get_state(parameters)
    assert caught.value.code == "state_unknown"


def test_states_of_the_least_and_the_greatest_length_are_read():
    for state in ("s", "s" * MAX_PARAMETER_LENGTH):
        assert get_state([("state", state)]) == state


@pytest.mark.compliance("CALL-05")
def test_access_denied_is_told_from_other_errors():
    with pytest.raises(AuthorizationDeniedError) as denied:
        process(("error", "access_denied"), ("state", "s"))
    assert denied.value.code == "access_denied"
    assert denied.value.http_status == 403
    with pytest.raises(AuthorizationDeniedError) as refused:
        process(("error", "invalid_scope"), ("state", "s"))
    assert refused.value.code == "authorization_refused"
    assert refused.value.error == "invalid_scope"
    assert refused.value.http_status == 400


@pytest.mark.compliance("CALL-05", "CALL-07")
def test_what_the_ehr_says_is_made_fit_to_be_shown():
    with pytest.raises(AuthorizationDeniedError) as caught:
        process(
            ("error", "server_error"),
            ("error_description", " <b>no</b>\r\n\tway\x00\x1b[1m\u202e " + "x" * 900),
            ("error_uri", "https://ehr.example.org/help#denied"),
        )
    error = caught.value
    # Escaping is the template's; control characters and length are ours.
    assert error.error_description.startswith("<b>no</b> way[1m x")
    assert len(error.error_description) == 500
    assert error.error_uri == "https://ehr.example.org/help#denied"
    assert "<b>" not in str(error)


@pytest.mark.compliance("CALL-07", "CALL-08", "SEC-03")
@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)",
        "http://ehr.example.org/help",
        "//evil.example",
        "https://u@evil.example/",
        "https://evil.example/\nx",
        "",
    ],
)
def test_an_error_uri_that_is_no_https_link_is_left_out(uri):
    with pytest.raises(AuthorizationDeniedError) as caught:
        process(("error", "access_denied"), ("error_uri", uri))
    assert caught.value.error_uri == ""
    assert caught.value.error_description == ""


@pytest.mark.compliance("CALL-04", "CALL-07")
@pytest.mark.parametrize(
    "parameters",
    [
        [],
        [("state", "s")],
        [("code", "")],
        [("code", "a\x00b")],
        [("code", "é")],
        [("code", "a\nb")],
        [("code", "x" * (MAX_CODE_LENGTH + 1))],
        [("code", "x"), ("code", "x")],
        [("code", "x"), ("state", "s"), ("state", "s")],
        [("code", "x"), ("iss", ISSUER), ("iss", ISSUER)],
        [("code", "x"), ("error_uri", "u"), ("error_uri", "u")],
        [("code", "x"), ("foo", "1"), ("foo", "1" * (MAX_PARAMETER_LENGTH + 1))],
        [("code", "x"), ("foo", "1" * (MAX_PARAMETER_LENGTH + 1))],
        [("code", "x"), ("error", "access_denied")],
        [("code", "x"), ("error", "")],
        [("error", "")],
        [("error", "bad\nerror")],
        [("error", 'bad"error')],
        [("error", "x" * 201)],
        [("error", "access_denied"), ("error", "access_denied")],
    ],
)
def test_a_malformed_callback_is_refused(parameters):
    with pytest.raises(AuthorizationResponseError):
        process(*parameters)


def test_an_unknown_parameter_is_ignored_even_if_it_comes_twice():
    assert process(("code", "x"), ("foo", "1"), ("foo", "2")).code == "x"
    with pytest.raises(AuthorizationDeniedError):
        process(("error", "access_denied"), ("foo", "1"), ("foo", "2"))


def test_a_code_of_the_greatest_length_is_read():
    code = "x" * MAX_CODE_LENGTH
    assert process(("code", code), ("foo", "1" * MAX_PARAMETER_LENGTH)).code == code


@pytest.mark.compliance("CALL-09")
@pytest.mark.parametrize("promised", [True, False])
def test_an_issuer_that_cannot_be_compared_is_refused(promised):
    with pytest.raises(AuthorizationResponseError) as caught:
        process(
            ("code", "c"),
            ("iss", "https://any.example"),
            expected_issuer=None,
            issuer_promised=promised,
        )
    assert caught.value.code == "issuer_not_known"


@pytest.mark.compliance("CALL-09")
@pytest.mark.parametrize(
    ("issuer", "expected", "promised"),
    [
        (ISSUER, ISSUER, True),
        (ISSUER, ISSUER, False),
        (None, ISSUER, False),
        (None, None, False),
    ],
)
def test_an_answer_of_the_expected_issuer_is_read(issuer, expected, promised):
    parameters = [("code", "x")] + ([("iss", issuer)] if issuer else [])
    answer = process(*parameters, expected_issuer=expected, issuer_promised=promised)
    assert answer.code == "x"


@pytest.mark.compliance("CALL-09")
@pytest.mark.parametrize("answer", [("code", "x"), ("error", "access_denied")])
@pytest.mark.parametrize(
    ("issuer", "promised"),
    [
        ("https://evil.example", False),
        (f"{ISSUER}/", True),
        ("", False),
        (None, True),
    ],
)
def test_an_answer_of_another_issuer_is_refused_also_if_it_is_an_error(
    answer, issuer, promised
):
    parameters = [answer] + ([("iss", issuer)] if issuer is not None else [])
    with pytest.raises(AuthorizationResponseError) as caught:
        process(*parameters, issuer_promised=promised)
    assert caught.value.code == "issuer_mismatch"


@pytest.mark.compliance("EHRL-01")
def test_the_published_launch_request_holds_iss_and_launch():
    vector = VECTORS["launch_request"]
    assert dict(parse_qsl(urlsplit(vector["url"]).query)) == {
        "iss": vector["iss"],
        "launch": vector["launch"],
    }


_NAMES = st.sampled_from(
    ["code", "state", "error", "error_description", "error_uri", "iss", "x"]
)


@pytest.mark.compliance("CALL-07", "SEC-02")
@given(st.lists(st.tuples(_NAMES, st.text(max_size=20)), max_size=6), st.booleans())
def test_any_parameters_give_a_code_or_a_typed_error(parameters, promised):
    with contextlib.suppress(AuthorizationResponseError):
        answer = process(*parameters, issuer_promised=promised)
        assert ("code", answer.code) in parameters
    with contextlib.suppress(StateError):
        assert ("state", get_state(parameters)) in parameters
