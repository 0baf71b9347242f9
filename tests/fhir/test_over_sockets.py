"""The client over the real transport."""

from __future__ import annotations

import gzip
import json
from functools import partial

import pytest

from django_smart import transport
from django_smart.fhir import FHIRClient
from tests.fhir.servers import Carrier, Tokens
from tests.transport.servers import LOOPBACK, Server, answer

PATIENT = {"resourceType": "Patient", "id": "p-1", "text": "x" * 5000}


@pytest.fixture(autouse=True)
def _fresh_pool():
    transport.close()
    yield
    transport.close()


def connect(server: Server) -> FHIRClient:
    return FHIRClient(
        base_url=f"http://127.0.0.1:{server.port}/fhir",
        tokens=Tokens(),
        transport=Carrier(
            partial(
                transport.send,
                timeouts=transport.Timeouts(),
                max_body=1_000_000,
                insecure_hosts=LOOPBACK,
            )
        ),
    )


def test_reads_share_a_connection_and_are_unpacked():
    handler = answer(
        gzip.compress(json.dumps(PATIENT).encode()),
        headers=("Content-Type: application/fhir+json", "Content-Encoding: gzip"),
    )
    with Server(handler) as server:
        for _ in range(3):
            assert connect(server).read("Patient", "p-1") == PATIENT
        with connect(server).session as session:
            url = f"http://127.0.0.1:{server.port}/fhir/Patient/p-1"
            assert session.get(url).json() == PATIENT
        assert server.connections == 1
        assert len(server.requests) == 4
        for request in server.requests:
            assert request.startswith(b"GET /fhir/Patient/p-1 HTTP/1.1\r\n")
            assert request.count(b"Authorization: Bearer token-1\r\n") == 1
