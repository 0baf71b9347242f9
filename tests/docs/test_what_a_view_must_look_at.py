"""The page on what a view must look at, by the code that it shows."""

from __future__ import annotations

from django.template import engines

from tests.docs.blocks import execute, read_blocks
from tests.fhir.servers import Grant, bundle, respond


def test_page_shows_what_changes_the_meaning() -> None:
    page, view = read_blocks(
        "how-to/templates.rst", "Show data without changing its meaning"
    )
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "warning", "code": "suppressed"}],
    }
    results = [
        {
            "resourceType": "Observation",
            "id": str(number),
            "status": "entered-in-error",
            "code": {"text": "HbA1c"},
            "valueQuantity": {"value": 7, "comparator": "<", "unit": "%"},
        }
        for number in range(3)
    ]
    grant = Grant()
    grant.server.on("Observation", respond(bundle(*results, outcome, total=5)))
    found = grant.client.search("Observation", limit=2)
    condition = {
        "code": {"text": "Asthma"},
        "verificationStatus": {"coding": [{"code": "refuted"}]},
    }
    shown = engines["django"].from_string(page.code)
    html = shown.render({"results": found, "conditions": [condition]})
    assert html.count("HbA1c: &lt; 7 % (entered in error)") == 2
    assert "Asthma (refuted)" in html
    assert "No results" in shown.render({"results": []})

    assert execute(view)["describe"](found) == [
        "There may be more than the 2 shown here.",
        "suppressed",
    ]
