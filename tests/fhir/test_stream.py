"""Answers of the FHIR server that are read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from django_smart.exceptions import BearerBoundaryError, FHIRRequestError
from django_smart.protocol.messages import HTTPRequest
from django_smart.transport import ResponseStream
from tests.fhir.servers import BASE, Grant, respond


@pytest.fixture
def streaming() -> Grant:
    grant: Grant
    open_now = []

    @contextmanager
    def open_stream(request: HTTPRequest) -> Iterator[ResponseStream]:
        open_now.append(request)
        answer = grant.server(request)
        yield ResponseStream(head=answer, chunks=iter([answer.body]))
        open_now.remove(request)
        assert not open_now

    grant = Grant(open_stream=open_stream)
    return grant


@pytest.mark.compliance("FHIR-01", "FHIR-04")
def test_stream_carries_the_token_and_renews_it_once(streaming):
    streaming.server.on("Binary/1", respond({}, 401), respond(b"scan"))
    with streaming.client.stream(
        "GET", "Binary/1", headers={"Accept": "*/*"}
    ) as stream:
        assert b"".join(stream.chunks) == b"scan"
        assert streaming.exchanges == []
    assert streaming.server.bearers == ["Bearer token-1", "Bearer token-2"]
    assert streaming.server.requests[0].headers["Accept"] == "*/*"
    (exchange,) = streaming.exchanges
    assert (exchange.interaction, exchange.resource_type) == ("get", "Binary")
    assert exchange.status_code == 200


def test_stream_of_a_token_that_cannot_be_renewed_keeps_the_refusal(streaming):
    streaming.client._tokens.renew = lambda token: token
    streaming.server.on("Binary/1", respond({}, 401))
    with streaming.client.stream("GET", "Binary/1") as stream:
        assert stream.head.status_code == 401


@pytest.mark.compliance("FHIR-02")
def test_stream_goes_nowhere_else(streaming):
    for url, error in [
        ("https://other.example.org/Binary/1", BearerBoundaryError),
        (f"{BASE}/../Binary", BearerBoundaryError),
        ("../Binary/1", FHIRRequestError),
    ]:
        with pytest.raises(error), streaming.client.stream("GET", url):
            pass
    assert streaming.server.requests == []
    assert streaming.exchanges == []


def test_stream_is_told_of_when_its_reader_fails(streaming):
    streaming.server.on("Binary/1", respond(b"scan"))
    with pytest.raises(ZeroDivisionError), streaming.client.stream("GET", "Binary/1"):
        raise ZeroDivisionError
    assert [exchange.status_code for exchange in streaming.exchanges] == [200]
