"""A small app that launches by hand, so that each request can be made wrong."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.clients import Client
from django_smart.testing.simulator.id_tokens import SigningKey

CLIENT_ID = "growth-chart"
CLIENT_SECRET = "a-secret-of-the-app"
REDIRECT_URI = "https://app.example.com/callback"
LAUNCH_URL = "https://app.example.com/launch"
PATIENT = "87a339d0-8cae-418e-89c7-8651e6aab3c6"
OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"
STANDALONE_SCOPE = "launch/patient patient/Patient.rs patient/Observation.rs"
VERIFIER = secrets.token_urlsafe(48)
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
KEY = SigningKey.generate("RS384")


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def challenge_of(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


class App:
    """One registered app and its HTTP session."""

    def __init__(self, ehr: EHRSimulator, session: requests.Session) -> None:
        self.ehr = ehr
        self.session = session
        self.client = register(ehr)

    def authorization_params(self, **changes: str | None) -> dict[str, str]:
        """A correct standalone request; None takes a parameter out."""
        params: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.client.client_id,
            "redirect_uri": REDIRECT_URI,
            "scope": STANDALONE_SCOPE,
            "state": "a-state-that-is-long-enough",
            "aud": self.ehr.base_url,
            "code_challenge": challenge_of(VERIFIER),
            "code_challenge_method": "S256",
            **changes,
        }
        return {name: value for name, value in params.items() if value is not None}

    def authorization_url(self, **changes: str | None) -> str:
        query = urlencode(self.authorization_params(**changes))
        return f"{self.ehr.authorization_endpoint}?{query}"

    def ehr_launch_url(self, scope: str = "launch", **launch: Any) -> str:
        launch_id = self.ehr.create_launch(
            self.client.client_id, **{"patient": PATIENT, **launch}
        )
        return self.authorization_url(scope=scope, launch=launch_id)

    def get_code(self, *, patient: str = PATIENT, **changes: str | None) -> str:
        url = self.ehr.authorize(self.authorization_url(**changes), patient=patient)
        return query_of(url)["code"]

    def post_token(
        self, form: dict[str, str] | Iterable[tuple[str, str]], **options: Any
    ) -> requests.Response:
        """POST to the token endpoint, with the client's own authentication."""
        pairs = dict(form)
        if self.client.auth_method == "client_secret_basic":
            options.setdefault("auth", (CLIENT_ID, CLIENT_SECRET))
        elif self.client.auth_method == "client_secret_post":
            pairs = {
                "client_id": CLIENT_ID,
                "client_secret": CLIENT_SECRET,
                **pairs,
            }
        elif self.client.auth_method == "private_key_jwt":
            pairs = {**assertion_form(self.ehr), **pairs}
        else:
            pairs = {"client_id": CLIENT_ID, **pairs}
        return self.session.post(self.ehr.token_endpoint, data=pairs, **options)

    def exchange(self, code: str, /, **changes: str | None) -> requests.Response:
        params: dict[str, str | None] = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": VERIFIER,
            **changes,
        }
        return self.post_token(
            {name: value for name, value in params.items() if value is not None}
        )

    def launch(
        self, scope: str = STANDALONE_SCOPE, /, **options: Any
    ) -> dict[str, Any]:
        """A whole standalone launch; returns the token response."""
        url = self.ehr.authorize(
            self.authorization_url(scope=scope), **{"patient": PATIENT, **options}
        )
        response = self.exchange(query_of(url)["code"])
        assert response.status_code == 200, response.text
        return dict(response.json())

    def refresh(self, refresh_token: str, **changes: str) -> requests.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return self.post_token({**form, **changes})

    def register_itself(self, **changes: Any) -> requests.Response:
        """POST to the registration endpoint; None takes a member out."""
        metadata = {
            "client_name": "Growth chart",
            "redirect_uris": [REDIRECT_URI],
            "grant_types": ["authorization_code"],
            "response_types": ["code"],
            "scope": STANDALONE_SCOPE,
            **changes,
        }
        return self.session.post(
            self.ehr.registration_endpoint,
            json={name: one for name, one in metadata.items() if one is not None},
        )

    def get(
        self, path: str, tokens: dict[str, Any] | None = None, **options: Any
    ) -> requests.Response:
        return self.send("GET", path, tokens, **options)

    def send(
        self,
        method: str,
        path: str,
        tokens: dict[str, Any] | None = None,
        **options: Any,
    ) -> requests.Response:
        """A request to the FHIR base, to a path below it, or to a whole URL."""
        is_url = path.startswith("http")
        url = path if is_url else f"{self.ehr.base_url}/{path}".rstrip("/")
        headers = dict(options.pop("headers", {}))
        if tokens is not None:
            headers["Authorization"] = f"Bearer {tokens['access_token']}"
        return self.session.request(method, url, headers=headers, **options)


def register(ehr: EHRSimulator, **changes: Any) -> Client:
    """Register the app; by default as a confidential symmetric client."""
    values: dict[str, Any] = {
        "client_secret": CLIENT_SECRET,
        "redirect_uris": [REDIRECT_URI],
        "launch_url": LAUNCH_URL,
        "name": "Growth chart",
        **changes,
    }
    if values.get("auth_method") in {"none", "private_key_jwt"}:
        values["client_secret"] = None
    if values.get("auth_method") == "private_key_jwt":
        values.setdefault("jwks", None if "jwks_url" in values else {"keys": [jwk()]})
    return ehr.register_client(CLIENT_ID, **values)


def jwk(key: SigningKey = KEY) -> dict[str, Any]:
    return key.as_jwk()


def private_jwk() -> dict[str, Any]:
    """The same key, as nobody should publish it."""
    assert isinstance(KEY.private_key, rsa.RSAPrivateKey)
    members = RSAAlgorithm.to_jwk(KEY.private_key, as_dict=True)
    return {**members, "kid": KEY.kid}


def assertion_form(
    ehr: EHRSimulator, *, key: SigningKey = KEY, headers: Any = None, **claims: Any
) -> dict[str, str]:
    """A correct client assertion; ``claims`` and ``headers`` change it."""
    payload = {
        "iss": CLIENT_ID,
        "sub": CLIENT_ID,
        "aud": ehr.token_endpoint,
        "exp": int(ehr.clock()) + 300,
        "jti": secrets.token_urlsafe(16),
        **claims,
    }
    payload = {name: value for name, value in payload.items() if value is not None}
    header = {"kid": key.kid, "typ": "JWT", **(headers or {})}
    assertion = jwt.encode(payload, key.private_key, key.algorithm, headers=header)
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
