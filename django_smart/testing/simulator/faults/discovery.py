"""Faults of the documents that lead an app to the endpoints and to the keys."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from jwt.algorithms import RSAAlgorithm

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    Verdict,
    edits,
    edits_json,
    leave_out,
    leave_out_each,
    put,
    put_each,
    replaces,
)

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "revocation_endpoint")
# What the specification requires, and whether an app can do without.
_REQUIRED: dict[str, Verdict] = {
    "authorization_endpoint": "refuse",
    "token_endpoint": "refuse",
    # These two the OpenID configuration has as well.
    "issuer": "tolerate",
    "jwks_uri": "tolerate",
    "grant_types_supported": "tolerate",
    "capabilities": "tolerate",
    "code_challenge_methods_supported": "tolerate",
}
# Member, what it is set to, and what an app does: it tolerates what no launch needs.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "object_issuer": ("refuse", "issuer", {"url": "https://ehr.example.org"}),
    "number_token_endpoint": ("refuse", "token_endpoint", 1),
    # Another host: the app may accept plain http for the EHR's own, in development.
    "http_endpoint": ("refuse", "token_endpoint", "http://plain.example.net/token"),
    "text_capabilities": ("refuse", "capabilities", "launch-ehr"),
    "number_method": ("refuse", "code_challenge_methods_supported", [256]),
    "plain_only": ("refuse", "code_challenge_methods_supported", ["plain"]),
    "text_iss_supported": (
        "refuse",
        "authorization_response_iss_parameter_supported",
        "true",
    ),
    "endpoint_open_bracket": (
        "refuse",
        "revocation_endpoint",
        "https://[::1/auth/revoke",
    ),
    "text_brand_identifier": ("tolerate", "user_access_brand_identifier", "harbour"),
    "number_brand_system": (
        "tolerate",
        "user_access_brand_identifier",
        {"value": "a", "system": 1},
    ),
    "object_associated_endpoints": ("tolerate", "associated_endpoints", {}),
    "associated_endpoint_no_url": (
        "tolerate",
        "associated_endpoints",
        [{"capabilities": []}],
    ),
}
# What comes in place of the token endpoint's URL, and in words; each is a fault.
_BROKEN_URLS: dict[str, tuple[str, Callable[[SplitResult], str]]] = {
    "endpoint_backslash": (
        "with a backslash, which browsers take for a slash",
        lambda url: f"{url.scheme}://{url.netloc}/auth\\token",
    ),
    "endpoint_space": ("with a line break", lambda url: f"{url.geturl()}\n/x"),
    "endpoint_fragment": ("with a fragment", lambda url: f"{url.geturl()}#x"),
    "user_info_endpoint": (
        "with a user's name and password",
        lambda url: url.geturl().replace("://", "://user:password@", 1),
    ),
    "endpoint_no_port": (
        "with a port that is not a number",
        lambda url: f"https://{url.hostname}:port{url.path}",
    ),
    "endpoint_no_host": (
        "with an invalid host name",
        lambda url: f"https://{url.hostname}!{url.path}",
    ),
}


def _replace_endpoint(
    build: Callable[[SplitResult], str], exchange: Exchange, document: dict[str, Any]
) -> None:
    document["token_endpoint"] = build(urlsplit(document["token_endpoint"]))


leave_out_each("discovery", _REQUIRED)
put_each("discovery", _VALUES)
for _name, (_words, _build) in _BROKEN_URLS.items():
    edits_json(f"discovery_{_name}", "refuse", f"token_endpoint {_words}")(
        partial(_replace_endpoint, _build)
    )


@edits_json("discovery_ftp_endpoint", "refuse", "token_endpoint of another scheme")
def _ftp_endpoint(exchange: Exchange, document: dict[str, Any]) -> None:
    # At a host that the app may accept plain http for.
    host = urlsplit(exchange.ehr.foreign_origin).netloc
    document["token_endpoint"] = f"ftp://{host}/auth/token"


@edits_json(
    "discovery_state_in_endpoint",
    "refuse",
    "authorization_endpoint with its own state parameter",
)
def _state_in_endpoint(exchange: Exchange, document: dict[str, Any]) -> None:
    document["authorization_endpoint"] += "?state=of-the-server"


@edits_json(
    "discovery_user_info_authorization",
    "refuse",
    "authorization_endpoint with another host's name as user",
)
def _user_info_authorization(exchange: Exchange, document: dict[str, Any]) -> None:
    host = urlsplit(exchange.ehr.foreign_origin).netloc
    document["authorization_endpoint"] = document["authorization_endpoint"].replace(
        "://", f"://{host}@", 1
    )


@edits("discovery_duplicate_member", "refuse", "token_endpoint twice")
def _duplicate_member(exchange: Exchange, response: Response) -> Response:
    url = f"{exchange.ehr.foreign_origin}/auth/token"
    return answers.with_duplicate(response.get_json(), "token_endpoint", url)


@edits_json(
    "discovery_relative_endpoints",
    "tolerate",
    "endpoints relative to the FHIR base URL",
)
def _relative_endpoints(exchange: Exchange, document: dict[str, Any]) -> None:
    for name in _ENDPOINTS:
        document[name] = urlsplit(document[name]).path


@edits_json("discovery_endpoint_query", "tolerate", "endpoints with a query")
def _endpoint_query(exchange: Exchange, document: dict[str, Any]) -> None:
    for name in _ENDPOINTS:
        document[name] += "?tenant=harbour&x="


@edits_json("discovery_unknown_members", "tolerate", "unknown members and capabilities")
def _unknown_members(exchange: Exchange, document: dict[str, Any]) -> None:
    document["future_endpoint"] = {"url": 1}
    document["capabilities"] += ["http://sdo.example.org/x", "future-thing"]


# The OpenID configuration


@edits_json(
    "openid_other_issuer",
    "refuse",
    "an issuer other than the SMART configuration's",
    "discovery_missing_jwks_uri",
)
def _other_issuer(exchange: Exchange, document: dict[str, Any]) -> None:
    document["issuer"] = exchange.ehr.foreign_origin


edits_json(
    "openid_missing_jwks_uri",
    "refuse",
    "no jwks_uri in either document",
    "discovery_missing_jwks_uri",
)(leave_out("jwks_uri"))
edits_json(
    "openid_http_jwks_uri",
    "refuse",
    "jwks_uri on plain http",
    "discovery_missing_jwks_uri",
)(put("jwks_uri", "http://plain.example.net/auth/jwks"))


@edits_json(
    "openid_long_jwks_uri",
    "refuse",
    "jwks_uri of 2,000 characters",
    "discovery_missing_jwks_uri",
)
def _long_jwks_uri(exchange: Exchange, document: dict[str, Any]) -> None:
    document["jwks_uri"] += f"?{'x' * 2000}"


replaces(
    "openid_absent",
    "refuse",
    "none, and no issuer in the SMART configuration",
    "discovery_missing_issuer",
)(lambda _: answers.html("Not found", 404))


# The keys


leave_out_each("jwks", {"keys": "refuse"})
edits_json("jwks_no_keys", "refuse", "an empty list of keys")(put("keys", []))


@edits_json("jwks_use_enc", "refuse", "the key is marked use: enc")
def _use_enc(exchange: Exchange, document: dict[str, Any]) -> None:
    for key in document["keys"]:
        key["use"] = "enc"


@edits_json("jwks_key_ops", "refuse", "the key is for encryption by key_ops")
def _key_ops(exchange: Exchange, document: dict[str, Any]) -> None:
    for key in document["keys"]:
        del key["use"]
        key["key_ops"] = ["encrypt"]


@edits_json("jwks_other_alg", "refuse", "the key is only for RS512")
def _other_alg(exchange: Exchange, document: dict[str, Any]) -> None:
    for key in document["keys"]:
        key["alg"] = "RS512"


@edits_json("jwks_symmetric", "refuse", "the key is a shared secret")
def _symmetric(exchange: Exchange, document: dict[str, Any]) -> None:
    value = base64.urlsafe_b64encode(b"0" * 32).rstrip(b"=").decode()
    document["keys"] = [
        {"kty": "oct", "k": value, "kid": key["kid"]} for key in document["keys"]
    ]


@edits_json("jwks_second_key", "tolerate", "another key besides the one in use")
def _second_key(exchange: Exchange, document: dict[str, Any]) -> None:
    key = RSAAlgorithm.to_jwk(answers.stranger().public_key(), as_dict=True)
    document["keys"].insert(0, {**key, "kid": "another-key", "use": "sig"})


@edits_json("jwks_unknown_keys", "tolerate", "keys of unknown types")
def _unknown_keys(exchange: Exchange, document: dict[str, Any]) -> None:
    odd = [{"kty": "PQC", "kid": "future"}, {}, {"kty": "RSA", "n": 1, "e": "AQAB"}]
    document["keys"] = [*odd, *document["keys"]]
