"""The page on search, by the code that it shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.docs.blocks import execute, read_blocks
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
    view, exact, _, operation, stream = read_blocks("how-to/search.rst")
    names = execute(view)
    grant = Grant()
    found = [
        {
            "resourceType": "Observation",
            "id": f"o-{n}",
            "effectiveDateTime": f"2024-0{n // 10 + 1}-03",
        }
        for n in range(30)
    ]
    grant.server.on(f"Observation?{QUERY}", respond(bundle(*found)))
    names["render"] = lambda request, template, context: context
    context = names["a1c"].__wrapped__(Request(grant.client))
    assert context["results"] == found[:20]
    assert not context["results"].is_complete

    grant.server.on("Observation?date=ge2024&_count=500", respond(bundle(*found)))
    names["Counter"] = Counter
    exec(stream.code, names)
    assert names["count_by_month"](grant.client, "2024") == {
        "2024-01": 10,
        "2024-02": 10,
        "2024-03": 10,
    }

    exec(operation.code, names)
    parameter = {"name": "result", "valueBoolean": False}
    answer = {"resourceType": "Parameters", "parameter": [parameter]}
    grant.server.on("ValueSet/$validate-code?code=1&url=urn%3Ax", respond(answer))
    assert names["is_known"](grant.client, "1", "urn:x") is False

    grant.server.on(
        "Observation?_sort%3Adesc=date&patient.identifier=urn%3Amrn%7C12",
        respond(bundle(*found[:4])),
    )
    assert eval(exact.code, {"fhir": grant.client}).total == 4
