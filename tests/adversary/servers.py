"""
The honest EHRs, and the hostile one that shares an origin with one of them.

Three tenants of one vendor have its users and its issuer in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request, Response

from django_smart import transport
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.id_tokens import SigningKey
from django_smart.testing.simulator.state import Store
from tests.answers import Respond
from tests.known import SITE

__all__ = [
    "BASE_URLS",
    "CLIENT_IDS",
    "EVERY_HONEST",
    "HONEST",
    "SECRET",
    "TENANTS",
    "Hostile",
    "get_redirect_uri",
    "mounted",
    "register_clients",
]

HONEST = ("harbour", "meadow")
#: A login group: whom one of them knows, the others know.
TENANTS = ("east", "north", "west")
EVERY_HONEST = (*HONEST, *TENANTS)
BASE_URLS = {
    "harbour": "https://harbour.example/r4/fhir",
    # Two tenants of one origin.
    "meadow": "https://tenants.example/meadow/fhir",
    "evil": "https://tenants.example/evil/fhir",
    **{name: f"https://vendor.example/{name}/fhir" for name in TENANTS},
}
# Another service on the host of an honest server.
_DEN = "https://harbour.example:8443"
_MOUNTS = {
    "harbour": "https://harbour.example",
    "meadow": "https://tenants.example/meadow",
    "evil": "https://tenants.example/evil",
    **{name: f"https://vendor.example/{name}" for name in TENANTS},
}
# Who registers a client chooses its id.  The hostile server gave out the one that the
# site has at Harbour, and that its owner's own app has at Meadow.
CLIENT_IDS = {
    "harbour": "growth-chart",
    "meadow": "site",
    "evil": "growth-chart",
    **dict.fromkeys(TENANTS, "site-of-a-tenant"),
}
SECRET = "a secret of the site's"
_PROMISE = "authorization_response_iss_parameter_supported"
_APP_SECRET = "a secret of the attacker's"
_APP_CALLBACK = "https://app-of-the-attacker.example/callback"


def get_redirect_uri(server: str) -> str:
    """Where *server* sends browsers back to."""
    return f"{SITE}/smart/callback/{server}/"


class Hostile:
    """
    What the hostile server says and does beside what it should.

    Attributes:
        ehr: the server itself.
        den: what its owner runs on another port of Harbour's host.
        meadow: where its owner has an app, as anybody may.
        claims: members of its metadata; ``None`` leaves one out.
        forges: whether it signs ID tokens of the issuer that it claims.
        captured: genuine ID tokens of that app, by their nonce.
    """

    def __init__(self, ehr: EHRSimulator, others: Mapping[str, EHRSimulator]) -> None:
        self.ehr, self.others = ehr, others
        self.den = EHRSimulator(f"{_DEN}/r4/fhir")
        others["harbour"].interceptors.append(self._tamper)
        self.meadow = others["meadow"]
        self.forges = True
        self.forget()
        ehr.interceptors.append(self._respond)

    def forget(self) -> None:
        """Be as on the day of the registration."""
        self.behave()
        self.captured: dict[str, str] = {}
        self.tampered: dict[str, str] = {}

    def behave(self) -> None:
        """Tell the truth, and promise nothing that could be missed."""
        self.claims: dict[str, str | None] = {_PROMISE: None}

    def capture(self, nonce: str, person: str) -> None:
        """*person* signs in to the attacker's app, which asks with this *nonce*."""
        verifier = "v" * 43
        challenge = "7w_YNF9DSfIdPf_pRjSq646_kPr-2-o9NAl16JGghdM"
        query = {
            "response_type": "code",
            "client_id": CLIENT_IDS["evil"],
            "redirect_uri": _APP_CALLBACK,
            # A fhirUser would tell of the other server.
            "scope": "openid",
            "state": "theirs",
            "aud": self.meadow.base_url,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "nonce": nonce,
        }
        url = f"{self.meadow.authorization_endpoint}?{urlencode(query)}"
        callback = self.meadow.authorize(url, user=person)
        (code,) = parse_qs(urlsplit(callback).query)["code"]
        answer = self._redeem(code, _APP_CALLBACK, verifier)
        self.captured[nonce] = json.loads(answer.get_data())["id_token"]

    def _redeem(self, code: str, redirect_uri: str, verifier: str) -> Response:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
            "client_id": CLIENT_IDS["evil"],
            "client_secret": _APP_SECRET,
        }
        builder = EnvironBuilder(
            urlsplit(self.meadow.token_endpoint).path,
            method="POST",
            base_url=self.meadow.origin,
            data=form,
        )
        return self.meadow.wsgi_app.respond(Request(builder.get_environ()))

    def _respond(self, respond: Respond, request: Request) -> Response:
        if request.path.endswith("/auth/token"):
            return self._answer_token(respond, request)
        response = respond(request)
        if request.path.endswith("-configuration"):
            self._change(response, lambda document: document | self.claims)
        elif request.path.endswith("/auth/jwks"):
            # The honest keys, too: then the honest tokens verify.
            keys = [
                key.as_jwk() for ehr in self.others.values() for key in ehr.signing_keys
            ]
            self._change(response, lambda jwks: {"keys": jwks["keys"] + keys})
        return response

    def _answer_token(self, respond: Respond, request: Request) -> Response:
        # Before it is parsed: the simulator reads the body itself.
        form = dict(parse_qsl(request.get_data(as_text=True)))
        code = form.get("code", "")
        if code in self.meadow.store.codes:
            respond(request)
            return self._redeem(code, form["redirect_uri"], form["code_verifier"])
        response = respond(request)
        if response.status_code == 200:
            self._change(response, self._change_identity)
        return response

    def _change_identity(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "id_token" not in answer:
            return answer
        claims = jwt.decode(answer["id_token"], options={"verify_signature": False})
        if genuine := self.captured.get(claims.get("nonce", "")):
            return answer | {"id_token": genuine}
        if not self.forges:
            return answer
        claims["iss"] = self.claims.get("issuer") or claims["iss"]
        key = self.ehr.signing_keys[-1]
        token = jwt.encode(
            claims, key.private_key, key.algorithm, headers={"kid": key.kid}
        )
        return answer | {"id_token": token}

    def _tamper(self, respond: Respond, request: Request) -> Response:
        """Harbour's configuration is a file that somebody else could write once."""
        response = respond(request)
        if request.path.endswith("-configuration") and self.tampered:
            self._change(response, lambda document: document | self.tampered)
        return response

    @staticmethod
    def _change(response: Response, change: Any) -> None:
        document = change(json.loads(response.get_data()))
        response.set_data(
            json.dumps({name: each for name, each in document.items() if each})
        )


def _withhold_iss(respond: Respond, request: Request) -> Response:
    """Most EHRs send no ``iss`` to the callback, and promise none."""
    response = respond(request)
    if request.path.endswith("-configuration"):
        document = json.loads(response.get_data())
        document.pop(_PROMISE)
        response.set_data(json.dumps(document))
    return response


@contextmanager
def mounted() -> Iterator[tuple[dict[str, EHRSimulator], Hostile]]:
    """All of them, reached by the site inside the ``with`` block."""
    ehrs = {
        name: EHRSimulator(
            url,
            id_token_algorithm="ES256",
            issuer="https://vendor.example/users" if name in TENANTS else None,
        )
        for name, url in BASE_URLS.items()
    }
    for ehr in ehrs.values():
        ehr.signing_keys = [SigningKey.generate("ES256")]
    for name in TENANTS:
        ehrs[name].signing_keys = ehrs[TENANTS[0]].signing_keys
    for name in ("meadow", *TENANTS):
        ehrs[name].interceptors.append(_withhold_iss)
    hostile = Hostile(ehrs["evil"], {name: ehrs[name] for name in HONEST})
    with ExitStack() as stack:
        for name, ehr in ehrs.items():
            stack.enter_context(transport.mounted(_MOUNTS[name], ehr.adapter()))
        stack.enter_context(transport.mounted(_DEN, hostile.den.adapter()))
        yield ehrs, hostile


def register_clients(ehrs: Mapping[str, EHRSimulator], jwks: dict[str, Any]) -> None:
    """Start anew: this site at each of *ehrs*, and the attacker's app at one."""
    for name, ehr in ehrs.items():
        ehr.store = Store()
        ehr.clients.clear()
        ehr.clear_requests()
        has_secret = name == "meadow"
        ehr.register_client(
            CLIENT_IDS[name],
            auth_method="client_secret_basic" if has_secret else "private_key_jwt",
            client_secret=SECRET if has_secret else None,
            jwks=None if has_secret else jwks,
            redirect_uris=[get_redirect_uri(name)],
        )
    ehrs["meadow"].register_client(
        CLIENT_IDS["evil"],
        auth_method="client_secret_post",
        client_secret=_APP_SECRET,
        # An app may be registered with any callback, this site's as well.
        redirect_uris=[_APP_CALLBACK, get_redirect_uri("evil")],
    )
