"""Brand bundles of the specification and of any size, and a host that serves them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from django_smart import transport

__all__ = [
    "CITIES",
    "VECTORS",
    "Host",
    "bundle",
    "endpoint",
    "host",
    "organization",
    "write_large",
]

VECTORS = Path(__file__).resolve().parent / "vectors"
CITIES = ("Aurora", "Boston", "Cedar Rapids", "Dubuque", "Erie", "Fargo", "Grinnell")
BASE = "https://brands.example.org"
_STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"


def organization(key: str, name: str, **members: Any) -> dict[str, Any]:
    """An entry; ``endpoints=[…]`` are references, ``part_of`` one, ``logo`` a URL."""
    endpoints = members.pop("endpoints", [])
    part_of = members.pop("part_of", None)
    logo = members.pop("logo", None)
    logo_license = members.pop("logo_license", None)
    resource: dict[str, Any] = {
        "resourceType": "Organization",
        "id": key,
        "name": name,
        "endpoint": [{"reference": each} for each in endpoints],
        **members,
    }
    if part_of:
        resource["partOf"] = {"reference": part_of}
    parts = {"brandLogo": logo, "brandLogoLicense": logo_license}
    if logo:
        resource["extension"] = [
            {
                "url": f"{_STRUCTURE}organization-brand",
                "extension": [
                    {"url": key, "valueUrl": value}
                    for key, value in parts.items()
                    if value
                ],
            }
        ]
    return {"fullUrl": f"{BASE}/Organization/{key}", "resource": resource}


def endpoint(key: str, address: str, *versions: str, **members: Any) -> dict[str, Any]:
    """An entry."""
    return {
        "fullUrl": f"{BASE}/Endpoint/{key}",
        "resource": {
            "resourceType": "Endpoint",
            "id": key,
            "status": "active",
            "address": address,
            "connectionType": {"code": "hl7-fhir-rest"},
            "extension": [
                {"url": f"{_STRUCTURE}endpoint-fhir-version", "valueCode": version}
                for version in versions or ("4.0.1",)
            ],
            **members,
        },
    }


def bundle(*entries: dict[str, Any], **members: Any) -> bytes:
    """A whole bundle."""
    return json.dumps(
        {
            "resourceType": "Bundle",
            "type": "collection",
            "timestamp": "2026-01-02T03:04:05Z",
            **members,
            "entry": list(entries),
        }
    ).encode()


def _make_entries(count: int, each: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        city = CITIES[number % len(CITIES)]
        yield organization(
            f"org-{number}",
            f"Hospital {number:05} of {city}",
            alias=[f"Clinic {number:05}", "Good Health"],
            address=[{"city": city, "state": "IA", "country": "US"}],
            identifier=[
                {
                    "system": "urn:ietf:rfc:3986",
                    "value": f"https://hospital-{number}.example.org",
                }
            ],
            endpoints=[f"Endpoint/ep-{number}-{n}" for n in range(each)],
        )
        for n in range(each):
            yield endpoint(
                f"ep-{number}-{n}", f"https://fhir.example.org/{number}/{n}/r4"
            )


def write_large(path: Path, count: int, *, endpoints_each: int = 1) -> None:
    """A bundle with *count* organisations, each followed by its endpoints."""
    with path.open("w") as file:
        file.write('{"resourceType": "Bundle", "entry": [\n')
        for number, entry in enumerate(_make_entries(count, endpoints_each)):
            file.write((",\n" if number else "") + json.dumps(entry))
        file.write('\n], "type": "collection", "timestamp": "2026-01-02T03:04:05Z"}')


class Host(requests.adapters.BaseAdapter):
    """Answers with what it is told to, by URL."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.requests: list[requests.PreparedRequest] = []

    def on(self, url: str, body: bytes = b"", status: int = 200, **headers: str):
        self.answers[url] = status, body, headers

    def send(self, request, *args, **kwargs):
        self.requests.append(request)
        status, body, headers = self.answers[request.url]
        if headers.get("ETag") == request.headers.get("If-None-Match", ""):
            status, body = 304, b""
        response = requests.Response()
        response.status_code = status
        response.headers.update(headers)
        response.raw = io.BytesIO(body)
        response.request = request
        return response

    def close(self):
        """Nothing to close."""


@pytest.fixture
def host() -> Iterator[Host]:
    """Any host but the EHR's."""
    adapter = Host()
    with transport.mounted("https://", adapter), transport.mounted("http://", adapter):
        yield adapter
