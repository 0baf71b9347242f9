"""ID tokens: every check of OpenID Connect Core 3.1.3.7, each with its refusal."""

from __future__ import annotations

import contextlib
import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm, get_default_algorithms

from django_smart.exceptions import (
    IDTokenClaimError,
    IDTokenError,
    IDTokenSignatureError,
)
from django_smart.protocol.id_token import (
    DEFAULT_ALGORITHMS,
    MAX_ID_TOKEN_LENGTH,
    read_access_token,
    validate_id_token,
)
from tests.errors import raises_code
from tests.protocol.helpers import (
    BASE_URL,
    CLIENT_ID,
    NOW,
    VECTORS,
    make_ec_key,
    make_rsa_key,
)

ISSUER = "https://as.example.org"
NONCE = "n-0S6_WzA2Mj"
TIMESTAMP = int(NOW.timestamp())
CLAIMS = {
    "iss": ISSUER,
    "sub": "alice",
    "aud": CLIENT_ID,
    "exp": TIMESTAMP + 300,
    "iat": TIMESTAMP - 5,
    "nonce": NONCE,
    "fhirUser": f"{BASE_URL}/Practitioner/123",
}
ABSENT = object()
CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
_LEEWAY = timedelta(seconds=60)


def get_key(algorithm):
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    return make_ec_key(CURVES[algorithm]) if algorithm in CURVES else make_rsa_key()


def to_jwk(key, **members):
    """The public JWK of a private key."""
    name = {
        rsa.RSAPrivateKey: "RS256",
        ec.EllipticCurvePrivateKey: "ES384",
        ed25519.Ed25519PrivateKey: "EdDSA",
    }
    kind = next(kind for kind in name if isinstance(key, kind))
    algorithm = get_default_algorithms()[name[kind]]
    jwk = algorithm.to_jwk(key.public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, "kid": "k1", **members}


def encode(data):
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_raw(header, payload, *, algorithm="RS256", key=None):
    """A token of any header and payload bytes, with a good signature."""
    signing_input = f"{encode(header)}.{encode(payload)}"
    signature = get_default_algorithms()[algorithm].sign(
        signing_input.encode(), key or get_key(algorithm)
    )
    return f"{signing_input}.{encode(signature)}"


def sign(algorithm="RS256", *, key=None, header=None, **claims):
    """A token like CLAIMS but for *claims*; ABSENT takes a member away."""
    members = {
        name: value
        for name, value in {**CLAIMS, **claims}.items()
        if value is not ABSENT
    }
    headers = {
        name: value
        for name, value in {
            "alg": algorithm,
            "typ": "JWT",
            "kid": "k1",
            **(header or {}),
        }.items()
        if value is not ABSENT
    }
    return sign_raw(
        json.dumps(headers).encode(),
        json.dumps(members).encode(),
        algorithm=algorithm,
        key=key,
    )


def validate(token, *, keys=None, **overrides):
    values = {
        "jwks": {"keys": [to_jwk(make_rsa_key())] if keys is None else keys},
        "issuer": ISSUER,
        "client_id": CLIENT_ID,
        "nonce": NONCE,
        "nonce_required": True,
        "now": NOW,
        "leeway": _LEEWAY,
        "base_url": BASE_URL,
        **overrides,
    }
    return validate_id_token(token, **values)


@pytest.mark.compliance("IDT-01", "IDT-06", "IDT-09", "IDT-12")
def test_a_good_token_gives_its_claims():
    claims = validate(sign())
    assert claims.issuer == ISSUER
    assert claims.subject == "alice"
    assert claims.fhir_user == "Practitioner/123"
    assert claims.claims == CLAIMS


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize("algorithm", sorted(DEFAULT_ALGORITHMS))
def test_each_accepted_algorithm_verifies(algorithm):
    key = get_key(algorithm)
    keys = [to_jwk(key, alg=algorithm, use="sig", key_ops=["verify"])]
    assert validate(sign(algorithm), keys=keys).subject == "alice"
    assert "RS256" in DEFAULT_ALGORITHMS


@pytest.mark.compliance("IDT-12")
@pytest.mark.parametrize(
    ("header", "claims", "code", "evidence"),
    [
        ({"kid": ABSENT}, {}, "id_token_without_kid", ""),
        ({}, {"nonce": ABSENT}, "id_token_without_nonce", ""),
        ({}, {"iat": TIMESTAMP + 1}, "id_token_clock", "iat is 1 s in the future"),
        ({}, {"exp": TIMESTAMP}, "id_token_clock", "exp is 0 s ago"),
        ({}, {"exp": TIMESTAMP - 30}, "id_token_clock", "exp is 30 s ago"),
        (
            {},
            {"fhirUser": "https://portal.example.org/fhir/Practitioner/123"},
            "fhir_user_elsewhere",
            "",
        ),
        (
            {},
            {"fhirUser": ABSENT, "profile": "Practitioner/123"},
            "fhir_user_in_profile",
            "",
        ),
    ],
)
def test_tolerated_deviation_of_a_token_is_noted(header, claims, code, evidence):
    token = sign(header=header, **claims)
    (deviation,) = validate(token, nonce_required=False).deviations
    assert (deviation.code, deviation.evidence) == (code, evidence)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"iat": TIMESTAMP},
        {"exp": TIMESTAMP + 1},
        {"fhirUser": ABSENT},
        {"fhirUser": ABSENT, "profile": "practitioner"},
        {"profile": "Practitioner/123"},
    ],
)
def test_token_without_deviations_has_none_noted(claims):
    assert validate(sign(**claims)).deviations == ()


def test_nonce_that_was_not_sent_is_no_deviation():
    token = sign(nonce=ABSENT)
    assert validate(token, nonce=None, nonce_required=False).deviations == ()


# An access token that is a JWT


def read(token, **overrides):
    values = {
        "jwks": {"keys": [to_jwk(make_rsa_key())]},
        "issuer": ISSUER,
        "client_id": CLIENT_ID,
        "now": NOW,
        "leeway": _LEEWAY,
        **overrides,
    }
    return read_access_token(token, **values)


@pytest.mark.parametrize("name", ["client_id", "azp", "aud"])
def test_an_access_token_of_this_client_is_read(name):
    # The audience is the FHIR server's, whatever it is.
    value = CLIENT_ID if name != "aud" else BASE_URL
    token = sign(**{"aud": BASE_URL, name: value, "patient": "p1"})
    assert read(token)["patient"] == "p1"


@pytest.mark.parametrize(
    "claims",
    [
        {"client_id": "other"},
        {"azp": "other"},
        {"iss": "https://other.example.org"},
        {"exp": TIMESTAMP - 60},
        {"exp": ABSENT},
    ],
)
def test_an_access_token_of_another_client_issuer_or_time_is_refused(claims):
    with pytest.raises(IDTokenClaimError) as caught:
        read(sign(**claims))
    assert caught.value.claim == next(iter(claims))


def test_an_access_token_may_have_expired_within_the_leeway():
    assert read(sign(exp=TIMESTAMP - 59))["exp"] == TIMESTAMP - 59


def test_an_access_token_that_another_key_signed_is_refused():
    token = sign("ES256", key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(IDTokenSignatureError):
        read(token, jwks={"keys": [to_jwk(get_key("ES256"))]})
    with pytest.raises(IDTokenError):
        read("opaque")


# The published token


PUBLISHED = VECTORS["id_token"]
_PUBLISHED_TIME = datetime(2021, 10, 6, tzinfo=UTC)


def validate_published(token, **overrides):
    return validate(
        token,
        keys=[PUBLISHED["public_jwk"]],
        issuer=PUBLISHED["claims"]["iss"],
        base_url=PUBLISHED["claims"]["iss"],
        now=_PUBLISHED_TIME,
        **{"client_id": PUBLISHED["expected_audience"], "nonce": None, **overrides},
    )


@pytest.mark.compliance("IDT-05", "IDT-01")
def test_the_published_token_verifies_and_is_refused_for_its_missing_times():
    with pytest.raises(IDTokenClaimError) as caught:
        validate_published(PUBLISHED["jwt"])
    # The check after the signature's.
    assert caught.value.claim == "exp"


@pytest.mark.compliance("IDT-04")
def test_the_published_token_is_not_for_another_audience():
    wrong = PUBLISHED["negative"]["wrong_audience_must_fail"]
    with pytest.raises(IDTokenClaimError) as caught:
        validate_published(PUBLISHED["jwt"], client_id=wrong)
    assert caught.value.claim == "aud"


@pytest.mark.compliance("IDT-01")
def test_the_published_forgery_does_not_verify():
    with pytest.raises(IDTokenSignatureError):
        validate_published(PUBLISHED["negative"]["tampered_jwt_derived"])


# Form


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b",
        "a.b.c.d",
        "a..c",
        "..",
        "a b.c.d",
        "a.b.c\n",
        "é.b.c",
        "a=.b.c",
        f"{encode(b'[]')}.{encode(b'{}')}.x",
        f"{encode(b'{}')}.{encode(b'[]')}.x",
        f"{encode(b'{')}.{encode(b'{}')}.x",
        f"{encode(b'{}')}.{encode(b'not json')}.x",
        f"{encode(b'{}')}.{encode(bytes([255]))}.x",
        "aaaaa.bbbb.cccc",
        "a." * 4 + "e",
        "x" * (MAX_ID_TOKEN_LENGTH + 1),
    ],
)
def test_what_is_no_signed_jwt_is_malformed(token):
    with pytest.raises(IDTokenError):
        validate(token)


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize("junk", ["\n", "=", "!", " ", "é", "."])
def test_a_good_token_with_junk_in_it_is_malformed(junk):
    token = sign()
    with pytest.raises(IDTokenError, match="compact form"):
        validate(f"{token}{junk}")
    with pytest.raises(IDTokenError, match="compact form"):
        validate(f"{token[:4]}{junk}{token[4:]}")


def test_a_token_of_the_greatest_length_is_read_and_a_longer_one_is_not():
    short = len(sign(x=""))
    token = sign(x="x" * ((MAX_ID_TOKEN_LENGTH - short) * 3 // 4))
    assert MAX_ID_TOKEN_LENGTH - 4 <= len(token) <= MAX_ID_TOKEN_LENGTH
    assert validate(token).subject == "alice"
    with pytest.raises(IDTokenError, match="longer"):
        validate(sign(x="x" * MAX_ID_TOKEN_LENGTH))


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg":"RS256","alg":"RS256"}', json.dumps(CLAIMS).encode()),
        (b'{"alg":"RS256"}', b'{"sub":"mallory",' + json.dumps(CLAIMS).encode()[1:]),
    ],
)
def test_a_member_named_twice_is_refused_although_the_signature_is_good(
    header, payload
):
    with pytest.raises(IDTokenError, match="duplicate"):
        validate(sign_raw(header, payload))


# Issuer and audience


@pytest.mark.compliance("IDT-03")
@pytest.mark.parametrize(
    "issuer",
    [ABSENT, None, "", f"{ISSUER}/", ISSUER.upper(), "https://evil.example", [ISSUER]],
)
def test_another_issuer_is_refused(issuer):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(iss=issuer))
    assert caught.value.claim == "iss"


@pytest.mark.compliance("IDT-03")
def test_another_issuer_is_refused_before_its_key_is_looked_for():
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(iss="https://evil.example"), keys=[])
    assert caught.value.claim == "iss"


@pytest.mark.compliance("IDT-04")
@pytest.mark.parametrize(
    ("audience", "authorized_party"),
    [
        (CLIENT_ID, ABSENT),
        (CLIENT_ID, CLIENT_ID),
        ([CLIENT_ID], ABSENT),
        ([CLIENT_ID], CLIENT_ID),
        (["other", CLIENT_ID], CLIENT_ID),
    ],
)
def test_a_token_for_this_client_is_accepted(audience, authorized_party):
    claims = validate(sign(aud=audience, azp=authorized_party))
    assert claims.claims["aud"] == audience


@pytest.mark.compliance("IDT-04")
@pytest.mark.parametrize(
    ("audience", "authorized_party", "claim"),
    [
        (ABSENT, ABSENT, "aud"),
        (None, ABSENT, "aud"),
        ("", ABSENT, "aud"),
        ([], ABSENT, "aud"),
        ("other-app", ABSENT, "aud"),
        (f"{CLIENT_ID} ", ABSENT, "aud"),
        (f"x{CLIENT_ID}x", ABSENT, "aud"),
        (["other-app"], CLIENT_ID, "aud"),
        ([CLIENT_ID, 7], CLIENT_ID, "aud"),
        ({CLIENT_ID: 1}, ABSENT, "aud"),
        (7, ABSENT, "aud"),
        (["other", CLIENT_ID], ABSENT, "azp"),
        (["other", CLIENT_ID], "other", "azp"),
        (CLIENT_ID, "other", "azp"),
        (CLIENT_ID, "", "azp"),
        (CLIENT_ID, [CLIENT_ID], "azp"),
    ],
)
def test_a_token_for_another_client_is_refused(audience, authorized_party, claim):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(aud=audience, azp=authorized_party))
    assert caught.value.claim == claim


# Signature


@pytest.mark.compliance("IDT-01", "IDT-06")
def test_an_unsigned_token_is_refused():
    header = encode(json.dumps({"alg": "none", "kid": "k1"}).encode())
    payload = encode(json.dumps(CLAIMS).encode())
    for signature in ("", "x"):
        with pytest.raises(IDTokenError):
            validate(f"{header}.{payload}.{signature}")
    with pytest.raises(IDTokenSignatureError, match="algorithm"):
        validate(f"{header}.{payload}.x", algorithms=frozenset({"none", "RS256"}))


@pytest.mark.compliance("IDT-01", "IDT-06")
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(algorithm):
    secret = (
        make_rsa_key()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    keys = [
        to_jwk(make_rsa_key()),
        {"kty": "oct", "k": encode(secret), "kid": "k1"},
    ]
    forged = sign(algorithm, key=secret)
    with pytest.raises(IDTokenSignatureError, match="algorithm"):
        validate(forged, keys=keys)
    with pytest.raises(IDTokenSignatureError, match="algorithm"):
        validate(forged, keys=keys, algorithms=DEFAULT_ALGORITHMS | {algorithm})


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize("algorithm", [ABSENT, None, "", "rs256", ["RS256"], 7])
def test_an_algorithm_that_is_none_of_ours_is_refused(algorithm):
    with pytest.raises(IDTokenSignatureError, match="algorithm"):
        validate(sign(header={"alg": algorithm}))


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize("algorithm", sorted(DEFAULT_ALGORITHMS))
def test_each_algorithm_verifies_with_a_key_of_its_kind_alone(algorithm):
    key = get_key(algorithm)
    token = sign(algorithm, key=key)
    assert validate(token, keys=[to_jwk(key)]).subject == "alice"
    others = [to_jwk(key, alg="RS999"), to_jwk(key, crv="P-000", kty="X")]
    with raises_code("id_token_key_unknown"):
        validate(token, keys=others)
    with pytest.raises(IDTokenSignatureError):
        validate(f"{token[:-8]}AAAAAAAA", keys=[to_jwk(key)])


def test_algorithms_that_pyjwt_has_are_accepted():
    assert {"PS256", "PS384", "PS512", "ES512", "EdDSA"} < DEFAULT_ALGORITHMS
    assert set(get_default_algorithms()) >= DEFAULT_ALGORITHMS


@pytest.mark.compliance("IDT-06")
def test_a_pinned_algorithm_excludes_the_others():
    with pytest.raises(IDTokenSignatureError, match="RS384"):
        validate(sign(), algorithms=frozenset({"RS384"}))
    assert validate(sign("RS384"), algorithms=frozenset({"RS384"})).subject


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_change_in_any_part_breaks_the_signature(part):
    parts = sign().split(".")
    others = sign(header={"x": 1}, sub="mallory").split(".")
    parts[part] = others[part]
    with pytest.raises(IDTokenSignatureError):
        validate(".".join(parts))


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_the_key_of_a_stranger_does_not_sign_for_the_server(algorithm):
    stranger = (
        make_rsa_key(number=1)
        if algorithm == "RS256"
        else ec.generate_private_key(ec.SECP256R1())
    )
    with pytest.raises(IDTokenSignatureError, match="signature"):
        validate(sign(algorithm, key=stranger), keys=[to_jwk(get_key(algorithm))])


@pytest.mark.compliance("IDT-01", "IDT-06")
@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_the_token_names_or_carries_counts_for_nothing(name):
    stranger = make_rsa_key(number=1)
    value = {
        "jwk": to_jwk(stranger),
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/x5u",
        "x5c": ["MIIB"],
    }[name]
    with pytest.raises(IDTokenSignatureError, match="signature"):
        validate(sign(key=stranger, header={name: value}))
    assert validate(sign(header={name: value})).subject == "alice"


@pytest.mark.compliance("IDT-01")
@pytest.mark.parametrize("critical", [["exp"], ["b64"], [], None])
def test_critical_header_parameters_are_refused(critical):
    with pytest.raises(IDTokenSignatureError, match="critical"):
        validate(sign(header={"crit": critical, "b64": True}))


@pytest.mark.parametrize("value", [False, True])
def test_an_unencoded_payload_is_not_read(value):
    if value:
        assert validate(sign(header={"b64": True})).subject == "alice"
        return
    with pytest.raises(IDTokenSignatureError):
        validate(sign(header={"b64": False}))


# Keys


@pytest.mark.compliance("IDT-06")
def test_the_key_is_chosen_by_its_kid():
    keys = [
        to_jwk(make_rsa_key(number=1), kid="k0"),
        to_jwk(make_rsa_key(), kid="k1"),
        to_jwk(make_rsa_key(number=1), kid="k2"),
    ]
    assert validate(sign(), keys=keys).subject == "alice"
    with pytest.raises(IDTokenSignatureError, match="signature"):
        validate(sign(header={"kid": "k2"}), keys=keys)


@pytest.mark.compliance("IDT-06")
@pytest.mark.parametrize("kid", ["unknown", "K1", ""])
def test_an_unknown_kid_asks_for_the_keys_once_more(kid):
    with raises_code("id_token_key_unknown") as caught:
        validate(sign(header={"kid": kid}))
    assert caught.value.code == "id_token_key_unknown"


@pytest.mark.parametrize("kid", [None, 7, ["k1"], {}, True])
def test_a_kid_that_is_no_string_is_malformed(kid):
    with pytest.raises(IDTokenError, match="kid"):
        validate(sign(header={"kid": kid}))


@pytest.mark.compliance("IDT-06")
def test_without_a_kid_there_must_be_no_choice():
    token = sign(header={"kid": ABSENT})
    one = [to_jwk(make_rsa_key()), to_jwk(make_ec_key(ec.SECP256R1))]
    assert validate(token, keys=one).subject == "alice"
    two = [*one, to_jwk(make_rsa_key(number=1), kid="k2")]
    with pytest.raises(IDTokenSignatureError, match="names no key") as caught:
        validate(token, keys=two)
    assert caught.type is IDTokenSignatureError
    with raises_code("id_token_key_unknown"):
        validate(token, keys=one[1:])


@pytest.mark.parametrize("kid", ["k1", ABSENT])
def test_a_hundred_keys_of_one_kid_cost_at_most_one_verification(kid, monkeypatch):
    verifications = []
    verify = RSAAlgorithm.verify

    def count(self, *args):
        verifications.append(args)
        return verify(self, *args)

    monkeypatch.setattr(RSAAlgorithm, "verify", count)
    keys = [to_jwk(make_rsa_key(number=1))] * 99 + [to_jwk(make_rsa_key())]
    with pytest.raises(IDTokenSignatureError):
        validate(sign(header={"kid": kid}), keys=keys)
    assert len(verifications) <= 1


def test_of_several_keys_with_one_kid_the_first_of_the_algorithm_counts():
    other = to_jwk(make_ec_key(ec.SECP256R1))
    keys = [other, to_jwk(make_rsa_key()), to_jwk(make_rsa_key(number=1))]
    assert validate(sign(), keys=keys).subject == "alice"
    with pytest.raises(IDTokenSignatureError, match="signature"):
        validate(sign(), keys=keys[::-1])


@pytest.mark.compliance("IDT-06", "JWKS-06")
@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"use": ["sig"]},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "RS384"},
        {"alg": "RSA-OAEP"},
        {"kty": "oct"},
        {"kty": None},
        {"n": None},
        {"n": 7},
        {"n": "x" * 2732},
        {"n": ""},
        {"n": "!"},
        {"e": None},
        {"e": "A" * 12},
        {"e": "AQ"},
        {"e": "Ag"},
        {"e": ""},
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_or_is_broken_is_passed_over(members):
    keys = [to_jwk(make_rsa_key(), **members)]
    with raises_code("id_token_key_unknown"):
        validate(sign(), keys=keys)
    assert validate(sign(), keys=[*keys, to_jwk(make_rsa_key())]).subject == "alice"


@pytest.mark.parametrize(
    "members",
    [
        {"crv": "P-384"},
        {"crv": None},
        {"x": None},
        {"x": "AAAA"},
        {"y": "!"},
        {"x": "A" * 43},
    ],
    ids=str,
)
def test_a_broken_curve_key_is_passed_over(members):
    key = make_ec_key(ec.SECP256R1)
    with raises_code("id_token_key_unknown"):
        validate(sign("ES256"), keys=[to_jwk(key, **members)])
    assert validate(sign("ES256"), keys=[to_jwk(key)]).subject == "alice"


@pytest.mark.compliance("IDT-06")
def test_an_algorithm_goes_with_its_own_curve_alone():
    key = make_ec_key(ec.SECP384R1)
    with raises_code("id_token_key_unknown"):
        validate(sign("ES384", header={"alg": "ES256"}), keys=[to_jwk(key)])


def test_a_short_rsa_key_is_passed_over():
    key = make_rsa_key(1024)
    with raises_code("id_token_key_unknown"):
        validate(sign(key=key), keys=[to_jwk(key)])


@pytest.mark.parametrize(
    "members",
    [
        {"n": encode((2**4096 + 1).to_bytes(513, "big"))},
        {"n": encode((2**16_383 + 1).to_bytes(2048, "big"))},
        {"e": encode((2**72 + 1).to_bytes(10, "big"))},
    ],
    ids=["4097 bits", "16384 bits", "exponent"],
)
def test_a_key_that_would_take_long_to_verify_with_is_passed_over(members):
    with raises_code("id_token_key_unknown"):
        validate(sign(), keys=[to_jwk(make_rsa_key(), **members)])


def test_a_key_of_4096_bits_verifies():
    key = make_rsa_key(4096)
    assert validate(sign(key=key), keys=[to_jwk(key)]).subject == "alice"


def test_a_private_key_in_the_set_is_used_for_its_public_half():
    key = make_rsa_key()
    private = get_default_algorithms()["RS256"].to_jwk(key, as_dict=True)
    del private["key_ops"]
    keys = [{**private, "kid": "k1"}]
    assert validate(sign(), keys=keys).subject == "alice"


def test_a_set_without_keys_is_an_outdated_one():
    with raises_code("id_token_key_unknown"):
        validate(sign(), jwks={})
    with raises_code("id_token_key_unknown"):
        validate(sign(), jwks={"keys": []})


# Times


@pytest.mark.compliance("IDT-05")
@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("exp", -59),
        ("exp", 0),
        ("exp", 86_400),
        ("exp", 0.5),
        ("iat", 60),
        ("iat", -86_400),
        ("nbf", 60),
        ("nbf", -5),
    ],
)
def test_times_are_checked_with_the_leeway(name, offset):
    assert validate(sign(**{name: TIMESTAMP + offset})).subject == "alice"


@pytest.mark.compliance("IDT-05")
@pytest.mark.parametrize(
    ("name", "offset"),
    [("exp", -60), ("exp", -61), ("exp", -86_400), ("iat", 61), ("nbf", 61)],
)
def test_times_beyond_the_leeway_are_refused(name, offset):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(**{name: TIMESTAMP + offset}))
    assert caught.value.claim == name


@pytest.mark.compliance("IDT-05")
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value", [None, True, "1772366400", [], -1, 253_402_300_800, 10**18, 1e300]
)
def test_a_time_that_is_none_is_refused(name, value):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(**{name: value}))
    assert caught.value.claim == name


@pytest.mark.compliance("IDT-05")
@pytest.mark.parametrize("name", ["exp", "iat"])
def test_a_token_without_its_times_is_refused(name):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(**{name: ABSENT}))
    assert caught.value.claim == name


def test_the_last_second_of_the_calendar_is_a_time():
    assert validate(sign(exp=253_402_300_799)).subject == "alice"


# Subject and nonce


@pytest.mark.compliance("IDT-09")
@pytest.mark.parametrize("subject", ["x", "é", "x" * 255])
def test_a_subject_is_any_text_of_up_to_255_characters(subject):
    assert validate(sign(sub=subject)).subject == subject


@pytest.mark.compliance("IDT-09")
@pytest.mark.parametrize("subject", [ABSENT, None, "", 7, True, ["alice"], "x" * 256])
def test_another_subject_is_refused(subject):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(sub=subject))
    assert caught.value.claim == "sub"


@pytest.mark.compliance("AUTH-16")
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("nonce", ["other", "", NONCE.upper(), 7, [NONCE], "é"])
def test_another_nonce_is_refused_whether_required_or_not(nonce, required):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(nonce=nonce), nonce_required=required)
    assert caught.value.claim == "nonce"


@pytest.mark.compliance("AUTH-16")
@pytest.mark.parametrize("nonce", [ABSENT, None])
def test_a_token_without_nonce_is_refused_if_it_is_required(nonce):
    token = sign(nonce=nonce)
    with pytest.raises(IDTokenClaimError) as caught:
        validate(token)
    assert caught.value.claim == "nonce"
    assert not validate(token, nonce_required=False).claims.get("nonce")


@pytest.mark.parametrize("sent", [None, ""])
def test_without_a_nonce_sent_the_claim_is_not_looked_at(sent):
    assert validate(sign(nonce="any"), nonce=sent).claims["nonce"] == "any"
    assert "nonce" not in validate(sign(nonce=ABSENT), nonce=sent).claims


# fhirUser


@pytest.mark.compliance("IDT-07", "IDT-08")
@pytest.mark.parametrize(
    ("claims", "reference"),
    [
        ({"fhirUser": "Patient/1"}, "Patient/1"),
        ({"fhirUser": ABSENT}, None),
        ({"fhirUser": None}, None),
        ({"fhirUser": ""}, None),
        ({"fhirUser": "", "profile": "Practitioner/1"}, "Practitioner/1"),
        ({"fhirUser": ABSENT, "profile": "Practitioner/1"}, "Practitioner/1"),
        ({"fhirUser": ABSENT, "profile": f"{BASE_URL}/Patient/1"}, "Patient/1"),
        ({"fhirUser": ABSENT, "profile": "https://people.example/alice"}, None),
        ({"fhirUser": ABSENT, "profile": 7}, None),
        ({"fhirUser": "Patient/1", "profile": "Patient/2"}, "Patient/1"),
    ],
)
def test_the_fhir_user_is_relative_or_absent(claims, reference):
    assert validate(sign(**claims)).fhir_user == reference


@pytest.mark.compliance("IDT-07", "IDT-08", "IDT-11")
@pytest.mark.parametrize(
    "value",
    [
        *("Device/1", "https://evil.example/fhir/Device/1", 7, ["Patient/1"]),
        f"{BASE_URL}/x/Patient/1",
        f"https://other.example/{'x' * 200}/Patient/1",
    ],
)
def test_another_fhir_user_is_refused(value):
    with pytest.raises(IDTokenClaimError) as caught:
        validate(sign(fhirUser=value))
    assert caught.value.claim == "fhirUser"


def test_fhir_user_at_another_server_is_text_and_no_reference():
    url = "https://other.example/fhir/Practitioner/1"
    claims = validate(sign(fhirUser=url))
    assert (claims.fhir_user, claims.foreign_fhir_user) == (None, url)
    assert validate(sign()).foreign_fhir_user == ""


# Discretion


@pytest.mark.compliance("SEC-01")
def test_neither_repr_nor_messages_show_who_it_is():
    assert repr(validate(sign())).startswith(f"IDTokenClaims(issuer={ISSUER!r}, dev")
    for claims in (
        {"iss": "secret"},
        {"aud": "secret"},
        {"sub": 7},
        {"nonce": "secret"},
    ):
        with pytest.raises(IDTokenClaimError) as caught:
            validate(sign(**claims))
        assert "secret" not in str(caught.value)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner)
    ),
    max_leaves=3,
)


# Once: signing takes longer than all that is tested with it.
_SIGNED = [sign("RS256"), sign("ES256")]


@pytest.mark.compliance("IDT-01")
@given(
    st.dictionaries(
        st.sampled_from([*CLAIMS, "azp", "nbf", "profile"]), _JSON, max_size=2
    ),
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), _JSON, max_size=1
    ),
)
def test_any_claims_and_header_give_claims_or_a_typed_error(claims, header):
    with contextlib.suppress(IDTokenError):
        validated = validate(sign(header=header, **claims))
        assert validated.issuer == ISSUER
        assert CLIENT_ID in validated.claims["aud"]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid"]),
            _JSON | st.sampled_from(["RSA", "EC", "P-256", "k1", "AQAB"]),
        ),
        max_size=3,
    )
)
def test_any_key_set_gives_claims_or_a_typed_error(keys):
    for token in _SIGNED:
        with pytest.raises(IDTokenSignatureError):
            validate(token, keys=keys)


@given(st.text("abcXYZ019-_.=é", max_size=60))
def test_any_text_is_refused_with_a_typed_error(token):
    with pytest.raises(IDTokenError):
        validate(token)


@given(st.integers(0, 10_000), st.characters(codec="ascii", categories=["L", "N"]))
def test_no_changed_character_survives(position, character):
    token = sign("ES256")
    # The last character has bits beyond the signature's 64 bytes, which may be ignored.
    position %= len(token) - 1
    changed = token[:position] + character + token[position + 1 :]
    if changed == token:
        return
    with pytest.raises(IDTokenError):
        validate(changed, keys=[to_jwk(make_ec_key(ec.SECP256R1))])


def test_pyjwt_agrees_that_the_tokens_of_these_tests_are_sound():
    token = sign("ES384")
    key = make_ec_key(ec.SECP384R1).public_key()
    decoded = jwt.decode(
        token,
        key,
        algorithms=["ES384"],
        audience=CLIENT_ID,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert decoded == CLAIMS
