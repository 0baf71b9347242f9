"""The page on async views, by the code that it shows."""

from __future__ import annotations

import ast
import asyncio
import json
from typing import Any

from django_smart.fhir import AsyncFHIRClient
from tests.docs.blocks import read_blocks
from tests.fhir.servers import Grant, bundle, respond


def test_view_of_the_page_reads_side_by_side():
    view, job = read_blocks("how-to/async.rst")
    names: dict[str, Any] = {}
    exec(view.code, names)
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
        "allergies": allergy,
        "a1c": results[:10],
    }
    compile(job.code, "how-to", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
