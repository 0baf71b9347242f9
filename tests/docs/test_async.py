"""The page on async views, by the code that it shows."""

from __future__ import annotations

import ast
import asyncio
import json

from django_smart.fhir import AsyncFHIRClient
from tests.docs.blocks import execute, read_blocks
from tests.fhir.servers import BASE, Grant, bundle, respond


def test_view_of_the_page_reads_side_by_side():
    _, view, _, job = read_blocks("how-to/views.rst", "Async views")
    names = execute(view)
    grant = Grant()
    patient = {"resourceType": "Patient", "id": "p"}
    allergy = {"resourceType": "AllergyIntolerance", "id": "a"}
    results = [{"resourceType": "Observation", "id": f"o-{n}"} for n in range(12)]
    grant.server.on("Patient/p", respond(patient))
    grant.server.on("AllergyIntolerance/a", respond(allergy))
    grant.server.on("Observation?patient=p&code=4548-4", respond(bundle(*results)))

    class Request:
        GET = {"allergy": "a"}
        smart = type(
            "Smart", (), {"afhir": AsyncFHIRClient(grant.client), "patient_id": "p"}
        )

    response = asyncio.run(names["summary"].__wrapped__(Request()))
    assert json.loads(response.content) == {
        "patient": patient,
        "allergy": allergy,
        "a1c": results[:10],
    }
    compile(job.code, "how-to", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_what_the_page_does_after_that_is_async_as_well(capsys):
    _, _, more, _ = read_blocks("how-to/views.rst", "Async views")
    names = execute(more)
    grant = Grant(patient_id="p")
    result = {"resourceType": "Observation", "id": "o-1"}
    condition = {"resourceType": "Condition", "id": "c-1"}
    grant.server.on("Observation?patient=p", respond(bundle(result)))
    grant.server.on("Condition?patient=p", respond(bundle(condition)))
    entry = {"resource": condition, "response": {"status": "200"}}
    answer = {"resourceType": "Bundle", "type": "batch-response", "entry": [entry]}
    grant.server.on(BASE, respond(answer))

    afhir = AsyncFHIRClient(grant.client)
    (sent,) = asyncio.run(names["review"](afhir, "p"))
    assert sent.get() == condition
    assert capsys.readouterr().out.splitlines() == ["o-1"]
