"""``fhirUser``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import IDTokenClaimError
from django_smart.protocol.id_token import FHIR_USER_TYPES, parse_fhir_user
from tests.protocol.helpers import BASE_URL, VECTORS


@pytest.mark.compliance("IDT-07")
def test_the_published_fhir_user_is_read():
    value = VECTORS["id_token"]["fhirUser"]
    reference = parse_fhir_user(value, base_url="https://my-ehr.org/fhir")
    assert reference == "Practitioner/123"


@pytest.mark.compliance("IDT-07", "IDT-08")
@pytest.mark.parametrize("resource_type", FHIR_USER_TYPES)
@pytest.mark.parametrize("base_url", [BASE_URL, f"{BASE_URL}/", BASE_URL.upper()])
def test_each_allowed_type_is_read_relative_and_absolute(resource_type, base_url):
    reference = f"{resource_type}/a.B-9"
    assert parse_fhir_user(reference, base_url=base_url) == reference
    absolute = f"{base_url.removesuffix('/')}/{reference}"
    assert parse_fhir_user(absolute, base_url=base_url) == reference


@pytest.mark.compliance("IDT-07", "IDT-08", "IDT-11")
@pytest.mark.parametrize(
    "value",
    [
        "",
        "123",
        "Device/1",
        "practitioner/1",
        "Practitioner",
        "Practitioner/",
        "Practitioner/.",
        "Practitioner/..",
        "Practitioner/a b",
        "Practitioner/1\n",
        "Practitioner/" + "x" * 65,
        "Practitioner/1/_history/2",
        "/Practitioner/1",
        BASE_URL,
        f"{BASE_URL}/Device/1",
        f"{BASE_URL}/Practitioner",
        f"{BASE_URL}//Practitioner/1",
        f"{BASE_URL}/Practitioner/1/_history/2",
        f"{BASE_URL}/Practitioner/1?x=1",
        f"{BASE_URL}/Practitioner/1#x",
        f"{BASE_URL}/x/../Practitioner/1",
        f"{BASE_URL}s/Practitioner/1",
        "http://ehr.example.org/fhir/Practitioner/1",
        "https://evil.example/fhir/Practitioner/1",
        "https://ehr.example.org/other/Practitioner/1",
        "https://u@ehr.example.org/fhir/Practitioner/1",
        "javascript:Practitioner/1",
    ],
)
def test_another_server_type_or_form_is_refused(value):
    with pytest.raises(IDTokenClaimError, match="fhirUser") as caught:
        parse_fhir_user(value, base_url=BASE_URL)
    assert caught.value.claim == "fhirUser"


@given(st.text("Practioner/.1?#:%\n é", max_size=20), st.booleans())
def test_any_text_gives_a_reference_or_the_error(text, absolute):
    value = f"{BASE_URL}/{text}" if absolute else text
    try:
        reference = parse_fhir_user(value, base_url=BASE_URL)
    except IDTokenClaimError:
        return
    assert reference.partition("/")[0] in FHIR_USER_TYPES
    assert value.endswith(reference)
