"""The page on numbers, by the code that it shows."""

from __future__ import annotations

from tests.docs.blocks import execute, read_blocks
from tests.fhir.servers import Grant, respond

_PAGE = "how-to/templates.rst"
_SECTION = "Keep the precision of numbers"


def test_code_of_the_page_keeps_the_digits(capsys):
    names = execute(
        *read_blocks("how-to/templates.rst", "Keep the precision of numbers")
    )
    grant = Grant()
    body = (
        b'{"resourceType":"Observation","id":"1","valueQuantity":{"value":7.10,'
        b'"unit":"percent"},"meta":{"versionId":"1"}}'
    )
    grant.server.on("Observation/1", respond(body))

    class Request:
        GET = {"id": "1"}
        smart = type("Smart", (), {"fhir": grant.client})

    names["correct_unit"].__wrapped__(Request())
    assert capsys.readouterr().out.split() == ["7.10", "True", "8.1", "8.10"]
    assert grant.server.requests[-1].body == body.replace(b"percent", b"%")

    resource = grant.client.read("Observation", "1")
    assert names["as_response"](resource).content == body
    assert str(names["copy_of"](resource)["valueQuantity"]["value"]) == "7.10"
