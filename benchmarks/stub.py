"""
A server to measure against: FHIR, tokens and OpenID Connect, as little work as can be.

It is a process of its own, one event loop and no framework: threads of the measured
process would share its interpreter lock.  Everything that can be is made beforehand.

    python -m benchmarks.stub [CERTIFICATE]

prints its port, and ends with its standard input; with a certificate it speaks TLS.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["CLIENT_ID", "CLIENT_SECRET", "PAGE", "SUBJECT", "Stub", "running_stub"]

CLIENT_ID = "bench"
CLIENT_SECRET = "a secret of the benchmark's"
SUBJECT = "7a1c"
PAGE = 100
"""Observations on a page."""

_KID = "stub-1"
_NOTE = "Taken at rest in the sitting position, by the nurse, after five minutes. "
_DELAY = re.compile(r"/delay-(\d+)(/.*)")


class Stub:
    """A running stub, as the measuring process sees it."""

    def __init__(self, port: int, *, scheme: str = "http") -> None:
        self.origin = f"{scheme}://127.0.0.1:{port}"
        self.base_url = f"{self.origin}/fhir"

    def take_counts(self) -> dict[str, int]:
        """Connections, after their handshakes, and requests by path since the last."""
        # The opener that urllib keeps trusts what was trusted when it was made.
        trusted = ssl.create_default_context()
        with urllib.request.urlopen(f"{self.origin}/counts", context=trusted) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts


@contextmanager
def running_stub(*, certificate: str = "") -> Iterator[Stub]:
    """Run a stub until the block ends, over TLS if it has a *certificate* (a path)."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub", *filter(None, [certificate])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # Leaving the block closes its standard input.
        port = int(process.stdout.readline())
        yield Stub(port, scheme="https" if certificate else "http")


def _patient(patient_id: str) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": patient_id,
        "meta": {"versionId": "1", "lastUpdated": "2025-01-01T00:00:00Z"},
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{_NOTE * 12}</div>',
        },
        "identifier": [{"system": "urn:oid:1.2.36.146.595.217.0.1", "value": "12345"}],
        "active": True,
        "name": [{"use": "official", "family": "Chalmers", "given": ["Peter", "J"]}],
        "telecom": [{"system": "phone", "value": "(03) 5555 6473", "use": "work"}],
        "gender": "male",
        "birthDate": "1974-12-25",
        "address": [
            {
                "use": "home",
                "line": ["534 Erewhon St"],
                "city": "PleasantVille",
                "state": "Vic",
                "postalCode": "3999",
            }
        ],
    }


def _observation(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "meta": {"versionId": "1", "lastUpdated": "2025-01-01T00:00:00Z"},
        "status": "final",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "vital-signs",
                        "display": "Vital Signs",
                    }
                ]
            }
        ],
        "code": {
            "coding": [
                {
                    "system": "http://loinc.org",
                    "code": "85354-9",
                    "display": "Blood pressure panel",
                }
            ],
            "text": "Blood pressure",
        },
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2025-01-01T09:30:10+01:00",
        "component": [
            {
                "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                "valueQuantity": {
                    "value": 60.5 + number % 70,
                    "unit": "mmHg",
                    "system": "http://unitsofmeasure.org",
                    "code": "mm[Hg]",
                },
            }
            for code in ("8480-6", "8462-4")
        ],
        "note": [{"text": _NOTE * 11}],
    }


def _respond(body: bytes, *, media_type: str = "application/json") -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nCache-Control: no-store\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _respond_json(value: Any, media_type: str = "application/json") -> bytes:
    return _respond(
        json.dumps(value, separators=(",", ":")).encode(), media_type=media_type
    )


_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class _Server:
    """What is answered."""

    def __init__(self, origin: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import rsa
        from jwt.algorithms import RSAAlgorithm

        self.counts: Counter[str] = Counter()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self._origin = origin
        base = f"{origin}/fhir"
        fhir = "application/fhir+json"
        smart = {
            "issuer": origin,
            "jwks_uri": f"{origin}/jwks",
            "authorization_endpoint": f"{origin}/authorize",
            "token_endpoint": f"{origin}/token",
            "userinfo_endpoint": f"{origin}/userinfo",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "capabilities": [
                "launch-ehr",
                "launch-standalone",
                "client-confidential-symmetric",
                "sso-openid-connect",
                "context-ehr-patient",
                "context-standalone-patient",
                "permission-patient",
                "permission-offline",
                "permission-v2",
            ],
        }
        self._ready = {
            "/fhir/Patient/p1": _respond_json(_patient("p1"), fhir),
            "/fhir/Patient/p2": _respond_json(_patient("p2"), fhir),
            "/fhir/.well-known/smart-configuration": _respond_json(smart),
            "/.well-known/openid-configuration": _respond_json(smart),
            "/jwks": _respond_json({"keys": [{**jwk, "kid": _KID, "alg": "RS256"}]}),
            "/userinfo": _respond_json(
                {"sub": SUBJECT, "email": "doc@example.org", "name": "A Doctor"}
            ),
        }
        self._base = base
        self._pages: dict[str, bytes] = {}

    def answer(self, method: str, target: str, body: bytes) -> bytes:
        """The whole answer to one request."""
        path = target.partition("?")[0]
        self.counts[path] += 1
        ready = self._ready.get(path)
        if ready is not None:
            return ready
        if path == "/token":
            return self._get_tokens(body)
        if path == "/fhir/Observation":
            return self._get_page(target)
        if path == "/counts":
            return self._get_counts()
        return _NOT_FOUND

    def _get_counts(self) -> bytes:
        """Less this request and its connection."""
        counts = self.counts - Counter({"/counts": 1, "connections": 1})
        self.counts.clear()
        return _respond_json(counts)

    def _get_page(self, target: str) -> bytes:
        """``?total=…&page=…``; kept, as 100 pages are 20 MB."""
        known = self._pages.get(target)
        if known is None:
            query = parse_qs(urlsplit(target).query)
            total = int(query.get("total", ["10000"])[0])
            page = int(query.get("page", ["0"])[0])
            known = self._pages[target] = self._build_page(total, page)
        return known

    def _build_page(self, total: int, page: int) -> bytes:
        url = f"{self._base}/Observation?total={total}&page="
        links = [{"relation": "self", "url": f"{url}{page}"}]
        if (page + 1) * PAGE < total:
            links.append({"relation": "next", "url": f"{url}{page + 1}"})
        numbers = range(page * PAGE, min(total, (page + 1) * PAGE))
        entries = [
            {
                "fullUrl": f"{self._base}/Observation/o{number}",
                "resource": _observation(number),
                "search": {"mode": "match"},
            }
            for number in numbers
        ]
        bundle = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": total,
            "link": links,
            "entry": entries,
        }
        return _respond_json(bundle, "application/fhir+json")

    def _get_tokens(self, body: bytes) -> bytes:
        form = dict(part.split("=", 1) for part in body.decode().split("&") if part)
        # The code is the nonce, which a real server would keep by its code; before it,
        # there may be who signs in and which patient's chart is open.
        who, _, nonce = form.get("code", "").partition("nonce-")
        subject, patient = who.split(".")[:2] if who else (SUBJECT, "p1")
        answer: dict[str, Any] = {
            "access_token": secrets.token_urlsafe(32),
            "refresh_token": secrets.token_urlsafe(32),
            "token_type": "Bearer",
            "expires_in": 3600,
            "patient": patient,
        }
        if form.get("grant_type") == "refresh_token":
            answer["scope"] = "launch/patient patient/*.rs offline_access"
        else:
            answer["scope"] = "openid fhirUser launch/patient patient/*.rs"
            answer["id_token"] = self._sign(nonce, subject)
        return _respond_json(answer)

    def _sign(self, nonce: str, subject: str) -> str:
        import jwt

        now = int(time.time())
        claims = {
            "iss": self._origin,
            "sub": subject,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "fhirUser": f"{self._base}/Practitioner/d1",
            "email": "doc@example.org",
        } | ({"nonce": nonce} if nonce else {})
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": _KID})


class _Connection(asyncio.Protocol):
    """Requests of one connection, one after the other."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            start = end + 4
            length = 0
            place = head.lower().find(b"\r\ncontent-length:")
            if place >= 0:
                length = int(head[place + 17 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < start + length:
                return
            body = self._buffer[start : start + length]
            self._buffer = self._buffer[start + length :]
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            self._answer(method, target, body)

    def _answer(self, method: str, target: str, body: bytes) -> None:
        delay = _DELAY.fullmatch(target)
        if delay is None:
            self._transport.write(self._server.answer(method, target, body))
            return
        answer = self._server.answer(method, delay[2], body)
        loop = asyncio.get_running_loop()
        loop.call_later(int(delay[1]) / 1000, self._write, answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def _main(certificate: str = "") -> None:
    loop = asyncio.get_running_loop()
    holder: list[_Server] = []
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    listener = await loop.create_server(
        lambda: _Connection(holder[0]), "127.0.0.1", 0, backlog=256, ssl=context
    )
    port = listener.sockets[0].getsockname()[1]
    scheme = "https" if certificate else "http"
    holder.append(_Server(f"{scheme}://127.0.0.1:{port}"))
    print(port, flush=True)
    # Until whoever started it goes away.
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
