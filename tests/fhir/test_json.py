"""Numbers keep their digits: read, shown, computed with, and written back."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
from decimal import Decimal
from typing import Any

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.http import JsonResponse
from django.template import Context, Template
from django.utils import translation
from django.utils.html import json_script
from fhir.resources.R4B.observation import Observation
from fhirclient.models.observation import Observation as ClientObservation
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import FHIRRequestError, MalformedFHIRResponseError
from django_smart.fhir import Number, Quantity, dump_json, load_json
from tests.fhir.servers import Grant, respond

LITERALS = [
    *("7.10", "0.010", "-0.0", "-0", "100", "1.0E3", "1.50e-7", "1e400", "-1e-400"),
    *("123456789012345678.123456789", "123456789012345678901234567890", "9" * 5000),
]
# A literal as JSON has it, wherever a value may begin.
_NUMBERS = re.compile(rb"(?<=[:\[,])-?[0-9][0-9.eE+\-]*(?=[,\]}])")


def write_observation(*literals: str) -> bytes:
    """The body of an Observation with *literals* in nested places."""
    value, *others = literals
    component = '{"code":{"text":"x"},"valueQuantity":{"value":%s}}'
    others_text = ",".join(component % literal for literal in others)
    return (
        '{"resourceType":"Observation","id":"1","status":"final","code":{"text":"x"},'
        f'"valueQuantity":{{"value":{value}}},"component":[{others_text}]}}'
    ).encode()


def find_numbers(body: bytes | None) -> list[str]:
    return [each.decode() for each in _NUMBERS.findall(body or b"")]


def read(grant: Grant, *literals: str) -> dict[str, Any]:
    grant.server.on("Observation/1", respond(write_observation(*literals)))
    return grant.client.read("Observation", "1")


@pytest.mark.parametrize("literal", LITERALS)
def test_str_and_template_show_the_digits_that_came(grant, literal):
    value = read(grant, literal)["valueQuantity"]["value"]
    if len(literal) < 1000:
        assert str(value) == f"{value}" == literal
        shown = Template("{% load l10n %}{{ value|unlocalize }}")
        assert shown.render(Context({"value": value})) == literal
    assert find_numbers(dump_json([value])) == [literal]


@pytest.mark.parametrize(
    ("language", "expected"), [("en-us", "7.10 1234.50"), ("de", "7,10 1234,50")]
)
def test_templates_show_all_digits_with_the_separator_of_the_language(
    language, expected
):
    with translation.override(language):
        values = Context({"a": Number("7.10"), "b": Number("1234.50")})
        assert Template("{{ a }} {{ b }}").render(values) == expected
        assert Template("{{ a|floatformat:-2 }}").render(values)[-2:] == "10"


def test_thousand_separators_are_those_of_the_site(settings):
    settings.USE_THOUSAND_SEPARATOR = True
    text = Template("{{ value }}").render(Context({"value": Number("12345.10")}))
    assert text == "12,345.10"


def test_everything_else_takes_it_for_a_number():
    value = Number("7.10")
    assert isinstance(value, float)
    assert value == 7.1
    assert value + 1 == 8.1
    assert 7 < value < Number("7.11")
    assert round(value) == 7
    assert f"{value:.1f}" == "7.1"
    assert hash(value) == hash(7.1)
    assert value.decimal.as_tuple() == Decimal("7.10").as_tuple()
    assert repr([value]) == "[7.10]"
    assert json.loads(json.dumps({"a": value}, indent=1)) == {"a": 7.1}
    assert json.dumps(value, cls=DjangoJSONEncoder) == "7.1"
    assert JsonResponse({"a": value}).content == b'{"a": 7.1}'
    assert ">7.1<" in json_script(value)


@pytest.mark.parametrize("literal", LITERALS)
def test_copies_and_pickles_keep_the_digits(literal):
    value = {"a": [Number(literal)]}
    copies = [copy.copy(value["a"][0]), copy.deepcopy(value)["a"][0]]
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    copies += [pickle.loads(pickle.dumps(value, each))["a"][0] for each in protocols]
    assert {(type(each), str(each)) for each in copies} == {(Number, literal)}


@pytest.mark.parametrize(
    "literal", ["NaN", "Infinity", "-Infinity", "inf", "", "1_0", " 1", "٣", "1.", "+1"]
)
def test_what_is_no_number_of_json_is_no_number(grant, literal):
    with pytest.raises(ValueError, match="JSON"):
        Number(literal)
    with pytest.raises(MalformedFHIRResponseError):
        read(grant, f"x{literal}" if literal == " 1" else literal)


def test_decimals_and_floats_can_be_written():
    value = {"a": Decimal("7.10"), "b": 7.5, "c": (Decimal("1E+3"), 1), "d": True}
    assert dump_json(value) == b'{"a":7.10,"b":7.5,"c":[1E+3,1],"d":true}'


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("-inf")),
        *(object(), {1: 2}, {"a": {None: 1}}, "\ud800", {"\udfff": 1}, b""),
    ],
)
def test_what_json_has_no_place_for_is_refused(value):
    with pytest.raises(FHIRRequestError):
        dump_json([value])


def test_what_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(FHIRRequestError):
        dump_json(endless)


_LITERALS = st.from_regex(
    r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z"
)


@given(st.lists(_LITERALS, min_size=2, max_size=4))
def test_every_literal_is_read_and_written_back(literals):
    grant = Grant()
    resource = read(grant, *literals)
    sent = grant.server.requests

    grant.client.update(resource)
    assert sent[-1].body == write_observation(*literals)

    value = resource["valueQuantity"]["value"]
    step = {"op": "replace", "path": "/valueQuantity/value", "value": value}
    grant.client.patch("Observation", "1", [step])
    assert find_numbers(sent[-1].body) == literals[:1]

    entry = {"response": {"status": "200"}}
    answer = {"resourceType": "Bundle", "entry": [entry, entry]}
    for kind in ("batch", "transaction"):
        answer["type"] = f"{kind}-response"
        grant.server.on(grant.client.base_url, respond(answer))
        batch = getattr(grant.client, kind)()
        batch.update(resource)
        batch.patch("Observation", "1", [step])
        batch.send()
        entries = load_json(sent[-1].body)["entry"]
        assert find_numbers(dump_json(entries[0])) == literals
        patch = base64.b64decode(entries[1]["resource"]["data"])
        assert find_numbers(patch) == literals[:1]

    model = Observation.model_validate(grant.client.read("Observation", "1"))
    assert model.valueQuantity is not None
    value = model.valueQuantity.value
    assert value == Decimal(literals[0])
    assert "e" in literals[0].lower() or str(value) == literals[0]


def test_fhirpy_keeps_the_digits_both_ways(grant):
    read(grant, "7.10", "123456789012345678.123456789")
    client = grant.client.as_fhirpy()
    resource = client.resource("Observation", **client.get("Observation", "1"))
    assert str(resource.valueQuantity.value) == "7.10"
    resource.save()
    request = grant.server.requests[-1]
    assert find_numbers(request.body) == ["7.10", "123456789012345678.123456789"]
    assert request.headers["Content-Type"] == "application/fhir+json"


def test_fhirclient_reads_all_digits(grant):
    read(grant, "7.10")
    smart = grant.client.as_fhirclient()
    resource = ClientObservation.read("1", smart.server)
    assert str(resource.valueQuantity.value) == "7.10"


def test_session_reads_all_digits_unless_told_otherwise(grant):
    read(grant, "7.10")
    response = grant.client.session.get(f"{grant.client.base_url}/Observation/1")
    assert str(response.json()["valueQuantity"]["value"]) == "7.10"
    told = response.json(parse_float=Decimal)
    assert isinstance(told["valueQuantity"]["value"], Decimal)


def test_search_parameter_keeps_the_digits():
    assert str(Quantity(Number("7.10"), "%")) == "7.10|http://unitsofmeasure.org|%"


def test_docs_say_what_other_libraries_write(grant):
    read(grant, "7.10")
    model = Observation.model_validate(grant.client.read("Observation", "1"))
    assert model.model_dump()["valueQuantity"]["value"] == 7.1
    assert '"value":7.1}' in model.model_dump_json()

    smart = grant.client.as_fhirclient()
    ClientObservation.read("1", smart.server).update(smart.server)
    session = grant.client.session
    url = f"{grant.client.base_url}/Observation/1"
    resource = session.get(url).json()
    session.put(url, json=resource)
    session.put(url, data=dump_json(resource))
    writes = [each for each in grant.server.requests if each.method == "PUT"]
    assert [find_numbers(each.body.replace(b" ", b"")) for each in writes] == [
        ["7.1"],
        ["7.1"],
        ["7.10"],
    ]
