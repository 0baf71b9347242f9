"""Client authentication: none, Basic, POST, and signed assertions."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64decode
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import CredentialsError
from django_smart.protocol.client_auth import (
    CLIENT_ASSERTION_TYPE,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJWT,
    PublicClient,
    WithHeaders,
)
from tests.protocol.helpers import (
    CLIENT_ID,
    NOW,
    VECTORS,
    load_jwk_set,
    load_private_jwk,
    make_ec_key,
    make_rsa_key,
)

AUDIENCE = "https://as.example.org/token"
ASSERTIONS = {vector["id"]: vector for vector in VECTORS["client_assertions"]}


def apply(authentication, parameters=()):
    form: list[tuple[str, str]] = list(parameters)
    headers: dict[str, str] = {}
    authentication.apply(form, headers, endpoint=AUDIENCE)
    return form, headers


def get_public_key(reference):
    """The key a vector names."""
    if reference.endswith(".json"):
        (jwk,) = load_jwk_set(reference)["keys"]
    else:
        jwk = VECTORS["keys"][reference.removeprefix("keys.")]["public_jwk"]
    return jwt.PyJWK(jwk).key


@pytest.mark.compliance("TOK-03", "TOK-08", "REG-04")
def test_a_public_client_names_itself_and_sends_no_credentials():
    form, headers = apply(PublicClient(client_id=CLIENT_ID), [("code", "x")])
    assert form == [("client_id", CLIENT_ID), ("code", "x")]
    assert headers == {}


@pytest.mark.compliance("TOK-07", "TOK-03")
@pytest.mark.parametrize(
    "vector", VECTORS["http_basic"], ids=lambda vector: vector["id"]
)
def test_the_published_basic_headers_are_built(vector):
    authentication = ClientSecretBasic(
        client_id=vector["client_id"], client_secret=vector["client_secret"]
    )
    form, headers = apply(authentication, [("code", "x")])
    assert headers == {"Authorization": vector["authorization_header"]}
    assert form == [("code", "x")]


@pytest.mark.compliance("TOK-07")
@pytest.mark.parametrize(
    ("client_id", "client_secret", "raw", "encoded"),
    [
        ("app", "a:b", "app:a:b", "app:a%3Ab"),
        ("app", "100%+ sure", "app:100%+ sure", "app:100%25%2B+sure"),
        ("äpp", "sé", "äpp:sé", "%C3%A4pp:s%C3%A9"),
        ("app", "a\r\nX: y", "app:a\r\nX: y", "app:a%0D%0AX%3A+y"),
    ],
)
def test_basic_credentials_are_raw_unless_form_encoding_is_asked_for(
    client_id, client_secret, raw, encoded
):
    for form_encode, expected in ((False, raw), (True, encoded)):
        _, headers = apply(
            ClientSecretBasic(
                client_id=client_id,
                client_secret=client_secret,
                form_encode=form_encode,
            )
        )
        scheme, _, credentials = headers["Authorization"].partition(" ")
        assert scheme == "Basic"
        assert b64decode(credentials).decode() == expected
        assert headers["Authorization"].isascii()
        assert "\n" not in headers["Authorization"]


def test_a_colon_in_the_client_id_needs_form_encoding():
    raw = ClientSecretBasic(client_id="urn:app", client_secret="s")
    with pytest.raises(CredentialsError, match="form-encoded"):
        apply(raw)
    _, headers = apply(replace(raw, form_encode=True))
    assert b64decode(headers["Authorization"][6:]) == b"urn%3Aapp:s"


def test_headers_of_a_server_accompany_any_method():
    method = WithHeaders(
        method=ClientSecretBasic(client_id="app", client_secret="s"),
        headers={"X-Api-Key": "of the portal"},
    )
    form, headers = apply(method, [("code", "x")])
    assert headers == {"X-Api-Key": "of the portal", "Authorization": "Basic YXBwOnM="}
    assert form == [("code", "x")]
    assert "of the portal" not in repr(method)
    posted = ClientSecretPost(client_id="app", client_secret="s")
    form, _ = apply(replace(method, method=posted))
    assert form == [("client_id", "app"), ("client_secret", "s")]
    # An audience is accepted only for an endpoint at its origin.
    form, _ = apply(replace(method, method=build_private_key_jwt(audience=AUDIENCE)))
    assert "client_assertion" in dict(form)


def test_a_secret_can_be_posted():
    form, headers = apply(
        ClientSecretPost(client_id=CLIENT_ID, client_secret="s"), [("code", "x")]
    )
    assert form == [("code", "x"), ("client_id", CLIENT_ID), ("client_secret", "s")]
    assert headers == {}


@pytest.mark.parametrize("method", [ClientSecretBasic, ClientSecretPost])
def test_without_a_secret_nothing_is_sent(method):
    with pytest.raises(CredentialsError, match="no client secret"):
        apply(method(client_id=CLIENT_ID, client_secret=""))


def build(**values):
    return build_private_key_jwt(**values).sign(AUDIENCE)


def build_published(vector, *, now):
    """Our assertion with the values of a published one."""
    claims, algorithm = vector["claims"], vector["header"]["alg"]
    method = PrivateKeyJWT(
        client_id=claims["iss"],
        key=load_private_jwk(f"{algorithm}.private.json"),
        algorithm=algorithm,
        kid=vector["header"]["kid"],
        now=datetime.fromtimestamp(now, tz=UTC),
        jti=claims["jti"],
    )
    return method.sign(claims["aud"], lifetime=claims["exp"] - now, skew=None)


def read(token):
    """Header and claims, unverified."""
    header, claims, _ = token.split(".")
    return tuple(
        json.loads(urlsafe_b64decode(part + "==")) for part in (header, claims)
    )


@pytest.mark.compliance("JWKS-08", "TOK-09", "TOK-10")
def test_the_published_rs384_assertion_is_signed_again_byte_for_byte():
    vector = ASSERTIONS["ca-rs384-bili"]
    now = vector["claims"]["exp"] - 60
    assert build_published(vector, now=now) == vector["jwt"]


@pytest.mark.compliance("JWKS-08", "TOK-10", "TOK-11", "TOK-13")
@pytest.mark.parametrize("name", ["ca-es384-bili", "ca-rs384-bili"])
def test_our_assertions_have_header_claims_and_signature_of_the_published_ones(name):
    vector = ASSERTIONS[name]
    algorithm = vector["header"]["alg"]
    token = build_published(vector, now=vector["freeze_clock_at"])
    assert read(token) == (vector["header"], vector["claims"])
    public_key = get_public_key(vector["key"])
    for signed in (token, vector["jwt"]):
        jwt.PyJWS().decode_complete(signed, public_key, algorithms=[algorithm])
    if algorithm == "ES384":
        assert len(urlsafe_b64decode(token.rpartition(".")[2] + "==")) == 96


@pytest.mark.compliance("TOK-09")
@pytest.mark.parametrize("vector", ASSERTIONS.values(), ids=lambda vector: vector["id"])
def test_the_published_assertions_verify(vector):
    algorithm = vector["header"]["alg"]
    public_key = get_public_key(vector["key"])
    jwt.PyJWS().decode_complete(vector["jwt"], public_key, algorithms=[algorithm])
    assert read(vector["jwt"]) == (vector["header"], vector["claims"])


@pytest.mark.compliance("TOK-09")
@pytest.mark.parametrize(
    "vector",
    VECTORS["client_assertions_negative"],
    ids=lambda vector: vector["id"],
)
def test_the_published_forgeries_do_not_verify(vector):
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.PyJWS().decode_complete(
            vector["jwt"], get_public_key(vector["key"]), algorithms=["RS384", "ES384"]
        )


@pytest.mark.compliance("TOK-11", "TOK-13", "TOK-14", "TOK-16")
def test_an_assertion_names_client_audience_and_one_time_value():
    header, claims = read(build())
    assert header == {"alg": "ES384", "kid": "k1", "typ": "JWT"}
    issued = int(NOW.timestamp())
    assert claims == {
        "iss": CLIENT_ID,
        "sub": CLIENT_ID,
        "aud": AUDIENCE,
        "exp": issued + 240,
        "jti": "one-time",
        "iat": issued - 60,
        "nbf": issued - 60,
    }


@pytest.mark.compliance("TOK-15")
@pytest.mark.parametrize("lifetime", [1, 300])
def test_an_assertion_lives_up_to_five_minutes(lifetime):
    now = NOW + timedelta(microseconds=999_999)
    method = build_private_key_jwt(now=now)
    _, claims = read(method.sign(AUDIENCE, lifetime=lifetime))
    assert type(claims["exp"]) is int
    assert claims["exp"] == int(NOW.timestamp()) + lifetime


@pytest.mark.compliance("TOK-15")
@pytest.mark.parametrize("lifetime", [-1, 0, 301, 3600])
def test_an_assertion_that_would_live_longer_is_not_signed(lifetime):
    with pytest.raises(ValueError, match="1 to 300"):
        build_private_key_jwt().sign(AUDIENCE, lifetime=lifetime)


@pytest.mark.compliance("TOK-11", "TOK-13", "TOK-16")
@pytest.mark.parametrize("name", ["client_id", "kid", "jti"])
def test_an_assertion_without_its_names_is_not_signed(name):
    with pytest.raises(CredentialsError):
        build(**{name: ""})


@pytest.mark.compliance("TOK-10")
@pytest.mark.parametrize("algorithm", ["RS384", "HS256", "none", "ES256", ""])
def test_a_key_signs_with_its_own_algorithm_alone(algorithm):
    with pytest.raises(CredentialsError, match="cannot sign"):
        build(algorithm=algorithm)


@pytest.mark.compliance("TOK-17", "TOK-03", "TOK-12")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_private_key_jwt_appends_a_fresh_assertion_and_nothing_else(algorithm):
    key = make_rsa_key() if algorithm == "RS384" else make_ec_key(ec.SECP384R1)
    authentication = PrivateKeyJWT(
        client_id=CLIENT_ID,
        key=key,
        algorithm=algorithm,
        kid="k1",
        now=NOW,
        jti="one-time",
    )
    form, headers = apply(authentication, [("code", "x")])
    assert headers == {}
    assert [name for name, _ in form] == [
        "code",
        "client_assertion_type",
        "client_assertion",
    ]
    assert form[1][1] == CLIENT_ASSERTION_TYPE
    assert CLIENT_ASSERTION_TYPE == (
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    )
    header, claims = read(form[2][1])
    assert header == {"alg": algorithm, "kid": "k1", "typ": "JWT"}
    assert claims["aud"] == AUDIENCE
    assert claims["exp"] - int(NOW.timestamp()) == 240
    jwt.PyJWS().decode_complete(form[2][1], key.public_key(), algorithms=[algorithm])
    form, _ = apply(replace(authentication, with_client_id=True), [("code", "x")])
    assert form[1] == ("client_id", CLIENT_ID)
    assert len(form) == 4


@pytest.mark.compliance("TOK-14")
@pytest.mark.parametrize(
    ("endpoint", "audience", "expected"),
    [
        ("https://as.example.org/revoke", None, "https://as.example.org/revoke"),
        ("https://as.example.org/revoke", AUDIENCE, AUDIENCE),
        ("https://evil.example/revoke", None, "https://evil.example/revoke"),
    ],
)
def test_assertion_is_made_for_the_endpoint_or_an_audience_of_its_origin(
    endpoint, audience, expected
):
    form: list[tuple[str, str]] = []
    build_private_key_jwt(audience=audience).apply(form, {}, endpoint=endpoint)
    assert read(dict(form)["client_assertion"])[1]["aud"] == expected


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://evil.example/revoke",
        "https://as.example.org:8443/revoke",
        "http://as.example.org/revoke",
    ],
)
def test_assertion_for_an_audience_of_another_origin_is_refused(endpoint):
    form: list[tuple[str, str]] = []
    with pytest.raises(CredentialsError, match="origin"):
        build_private_key_jwt(audience=AUDIENCE).apply(form, {}, endpoint=endpoint)
    assert form == []


def build_private_key_jwt(**values):
    return PrivateKeyJWT(
        **{
            "client_id": CLIENT_ID,
            "key": make_ec_key(ec.SECP384R1),
            "algorithm": "ES384",
            "kid": "k1",
            "now": NOW,
            "jti": "one-time",
            **values,
        }
    )


@pytest.mark.compliance("REG-05", "TOK-18")
def test_no_repr_shows_a_credential():
    for authentication in (
        ClientSecretBasic(client_id=CLIENT_ID, client_secret="hidden"),
        ClientSecretPost(client_id=CLIENT_ID, client_secret="hidden"),
        PrivateKeyJWT(
            client_id=CLIENT_ID,
            key=make_ec_key(ec.SECP384R1),
            algorithm="ES384",
            kid="k1",
            now=NOW,
            jti="hidden",
        ),
    ):
        assert CLIENT_ID in repr(authentication)
        assert "hidden" not in repr(authentication)
        assert "PrivateKey object" not in repr(authentication)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_any_credentials_give_an_ascii_header_that_decodes_to_them(user, password):
    try:
        _, headers = apply(ClientSecretBasic(client_id=user, client_secret=password))
    except CredentialsError:
        assert ":" in user
        return
    assert b64decode(headers["Authorization"][6:]).decode() == f"{user}:{password}"
