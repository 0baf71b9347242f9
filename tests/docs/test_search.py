"""The page on search, by the code that it shows."""

from __future__ import annotations

from typing import Any

from tests.docs.blocks import read_blocks
from tests.fhir.servers import Grant, bundle, respond

PATIENT = "p-1"
QUERY = (
    "patient=p-1&code=http%3A%2F%2Floinc.org%7C4548-4&date=ge2024-01-01"
    "&status=final%2Camended%2Ccorrected&_sort=-date"
)


class Request:
    def __init__(self, fhir: Any) -> None:
        self.smart = type("Smart", (), {"fhir": fhir, "patient_id": PATIENT})()


def test_view_of_the_page_searches_as_it_says() -> None:
    view, exact = read_blocks("how-to/search.rst")
    names: dict[str, Any] = {}
    exec(view.code, names)
    grant = Grant()
    found = [{"resourceType": "Observation", "id": f"o-{n}"} for n in range(30)]
    grant.server.on(f"Observation?{QUERY}", respond(bundle(*found)))
    names["render"] = lambda request, template, context: context
    context = names["a1c"].__wrapped__(Request(grant.client))
    assert list(context["results"]) == found[:20]

    grant.server.on(
        "Observation?_sort%3Adesc=date&patient.identifier=urn%3Amrn%7C12",
        respond(bundle(total=4)),
    )
    assert eval(exact.code, {"fhir": grant.client}).total == 4
