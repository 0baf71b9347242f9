"""A process that exports, keeps its place in a file, and may be killed at any time."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from django_smart import transport
from django_smart.fhir import BulkExport, FHIRClient
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from tests.fhir.servers import Carrier, Tokens

_EVERY = 500  # resources between two notes of the place
_TIMEOUTS = transport.Timeouts(total=600.0)
_LIMITS: dict[str, Any] = {
    "timeouts": _TIMEOUTS,
    "max_body": 10**10,
    "insecure_hosts": frozenset({"127.0.0.1", "localhost"}),
}


def send(request: HTTPRequest) -> HTTPResponse:
    return transport.send(request, **_LIMITS)


def refuse(token: str) -> NoReturn:
    raise AssertionError("the token should be good")


def make_client(base_url: str, access_token: str) -> FHIRClient:
    return FHIRClient(
        base_url=base_url,
        tokens=Tokens(lambda: access_token, refuse),
        transport=Carrier(
            send, lambda request: transport.open_stream(request, **_LIMITS)
        ),
    )


def run(base_url: str, folder: Path) -> None:
    """Export into ``ids``; afterwards ``peak`` has how much memory grew, in KiB."""
    client = make_client(base_url, os.environ["ACCESS_TOKEN"])
    place = folder / "state.json"
    export = (
        client.resume_export(json.loads(place.read_text()))
        if place.exists()
        else client.export(types=["Observation"])
    )
    note(export, place)
    before = 0
    with (folder / "ids").open("a") as ids:
        for number, found in enumerate(export):
            ids.write(f"{found['id']}\n")
            if number % _EVERY == 0:
                ids.flush()
                note(export, place)
                time.sleep(0.02)  # as if there were something to do
            # Once the connection and the first files are there.
            if number == 1000:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (folder / "peak").write_text(str(grown))
    export.delete()


def note(export: BulkExport, place: Path) -> None:
    """At once or not at all."""
    new = place.with_suffix(".new")
    new.write_text(json.dumps(export.state))
    new.replace(place)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
