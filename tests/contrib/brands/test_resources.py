"""What the entries of a brand bundle say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.contrib.brands.resources import (
    CATEGORIES,
    MAX_LOGO_BYTES,
    BrandIdentifier,
    label_place,
    parse_brand,
    parse_brand_endpoint,
    resolve_reference,
    sanitize_logo_url,
)
from django_smart.exceptions import BrandError
from tests.bundles import VECTORS

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
SVG = "<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0'/></svg>"


def read_vector(number: int) -> dict[str, dict[str, Any]]:
    """The resources of one of the specification's bundles, by full URL."""
    text = (VECTORS / f"Bundle-example{number}.json").read_text(encoding="utf-8")
    return {each["fullUrl"]: each["resource"] for each in json.loads(text)["entry"]}


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@pytest.mark.compliance("BRAND-04", "BRAND-05")
def test_brand_is_read_from_the_first_vector():
    brand = parse_brand(
        read_vector(1)["https://fhir.labs.example.com/Organization/examplelabs"]
    )
    assert brand is not None
    assert brand.name == "ExampleLabs"
    assert brand.aliases[0] == "ExampleLabs Alaska"
    assert brand.categories == ("laboratory",)
    assert brand.places[0] == {
        "city": "Anchorage",
        "state": "AK",
        "postal_code": "99508",
        "country": "US",
    }
    assert label_place(brand.places[0]) == "Anchorage, AK"
    assert brand.identifiers == (
        BrandIdentifier(system="urn:ietf:rfc:3986", value="https://examplelabs.org"),
    )
    assert brand.logo.startswith("data:image/svg+xml;base64,")
    (portal,) = brand.portals
    assert portal == "Example Labs HealthCentral Portal"
    assert brand.endpoints == {"Endpoint/examplelabs": portal}
    assert brand.part_of == ""


@pytest.mark.compliance("BRAND-05")
def test_portals_and_parents_are_read_from_the_other_vectors():
    brand = parse_brand(
        read_vector(3)[
            "https://examplehospital.example.org/Organization/examplehospital"
        ]
    )
    assert brand is not None
    assert brand.portals == (
        "ExampleHospital Patient Gateway",
        "ExampleHospital Pediatric Portal",
    )
    affiliate = parse_brand(
        read_vector(2)["https://ehr.example.com/Organization/ehchospital"]
    )
    assert affiliate is not None
    assert affiliate.part_of == "Organization/examplehealth"
    # Its logo is no base64.
    assert affiliate.logo == ""
    assert affiliate.portals == ()
    assert affiliate.endpoints == {}


@pytest.mark.compliance("BRAND-07")
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_references_of_every_vector_lead_to_an_entry(number):
    resources = read_vector(number)
    found = 0
    for full_url, resource in resources.items():
        if resource["resourceType"] != "Organization":
            continue
        brand = parse_brand(resource)
        assert brand is not None
        for reference in [*brand.endpoints, *filter(None, [brand.part_of])]:
            url, _ = resolve_reference(reference, full_url=full_url)
            assert url in resources
            found += 1
    assert found


@pytest.mark.parametrize(
    ("reference", "full_url", "expected"),
    [
        (
            "Endpoint/1",
            "https://a.example/fhir/Organization/2",
            ("https://a.example/fhir/Endpoint/1", "Endpoint/1"),
        ),
        ("Endpoint/1", "urn:uuid:0d1c", ("", "Endpoint/1")),
        ("Endpoint/1", "", ("", "Endpoint/1")),
        (
            "https://b.example/Endpoint/1/_history/3",
            "https://a.example/Organization/2",
            ("https://b.example/Endpoint/1", ""),
        ),
        ("urn:uuid:7f3e", "urn:uuid:0d1c", ("urn:uuid:7f3e", "")),
        ("#contained", "https://a.example/Organization/2", ("", "")),
        ("x/Endpoint/1", "https://a.example/Organization/2", ("", "Endpoint/1")),
        ("x/y:z", "https://a.example/Organization/2", ("", "")),
        ("Endpoint/1", "https://[broken/Organization/2", ("", "Endpoint/1")),
    ],
)
def test_reference_is_resolved_against_its_entry(reference, full_url, expected):
    assert resolve_reference(reference, full_url=full_url) == expected


@pytest.mark.compliance("BRAND-12")
@pytest.mark.parametrize("reason", ["asked-declined", "asked-unknown"])
def test_declined_values_read_as_absent(reason):
    absent = {
        "extension": [
            {
                "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                "valueCode": reason,
            }
        ]
    }
    brand = parse_brand(
        {
            "resourceType": "Organization",
            "name": "Quiet Clinic",
            "extension": [
                {
                    "url": "http://hl7.org/fhir/StructureDefinition/organization-portal",
                    "extension": [
                        {"url": "portalName", "_valueString": absent},
                    ],
                }
            ],
        }
    )
    assert brand is not None
    assert brand.portals == ()


def test_every_text_is_cut_to_what_its_column_takes():
    def part(name, value):
        return {"url": name, "valueString": value}

    def extension(name, *parts):
        url = f"http://hl7.org/fhir/StructureDefinition/{name}"
        return {"url": url, "extension": list(parts)}

    long, link = "x" * 3000, "http://a.example/" + "x" * 3000
    place = dict.fromkeys(("city", "state", "postalCode", "country"), long)
    brand = parse_brand(
        {
            "name": f"\x00{long}",
            "alias": [long],
            "identifier": [{"system": long, "value": long}],
            "address": [place],
            "partOf": {"reference": long},
            "extension": [
                extension(
                    "organization-brand",
                    part("brandLogoLicense", link),
                ),
                extension(
                    "organization-portal",
                    part("portalName", long),
                ),
            ],
        }
    )
    assert brand is not None
    assert brand.name == brand.aliases[0] == "x" * 300
    assert brand.identifiers == (BrandIdentifier(system="x" * 300, value="x" * 300),)
    city = "x" * 100
    assert brand.places == (
        {"city": city, "state": city, "postal_code": "x" * 20, "country": city},
    )
    assert brand.logo_license == link[:1000]
    assert brand.part_of == "x" * 1000
    assert brand.portals == ("x" * 300,)


def test_address_of_an_endpoint_is_not_cut():
    address = "https://a.example/" + "x" * 982
    assert parse_brand_endpoint({"address": address}) == address
    with pytest.raises(BrandError, match="more than 1000"):
        parse_brand_endpoint({"address": f"{address}x"})


def test_brand_without_a_name_is_refused():
    with pytest.raises(BrandError, match="no name"):
        parse_brand({"resourceType": "Organization", "name": " \n"})


def test_brand_that_is_not_active_is_left_out():
    assert parse_brand({"name": "Closed", "active": False}) is None


@pytest.mark.compliance("BRAND-14")
def test_categories_are_those_of_hl7():
    system = "http://terminology.hl7.org/CodeSystem/organization-type"
    codes = [*sorted(CATEGORIES), "team"]
    brand = parse_brand(
        {
            "name": "All",
            "type": [
                {"coding": [{"system": system, "code": code} for code in codes]},
                {"coding": [{"system": "urn:other", "code": "prov"}]},
            ],
        }
    )
    assert brand is not None
    assert brand.categories == tuple(sorted(CATEGORIES))
    assert len(CATEGORIES) == 7


@pytest.mark.compliance("BRAND-06")
@pytest.mark.parametrize(
    ("system", "value", "expected"),
    [
        (
            "urn:ietf:rfc:3986",
            "https://www.Example.org/",
            ("urn:ietf:rfc:3986", "https://example.org"),
        ),
        (
            "urn:ietf:rfc: 3986",
            "https://example.org/clinic",
            ("urn:ietf:rfc:3986", "https://example.org/clinic"),
        ),
        (
            "http://hl7.org/fhir/sid/us-npi",
            "WWW.1",
            ("http://hl7.org/fhir/sid/us-npi", "WWW.1"),
        ),
        ("urn:ietf:rfc:3986", "urn:oid:1.2", ("urn:ietf:rfc:3986", "urn:oid:1.2")),
    ],
)
def test_merge_key_is_the_same_for_one_website(system, value, expected):
    brand = parse_brand(
        {"name": "A", "identifier": [{"system": system, "value": value}]}
    )
    assert brand is not None
    assert brand.merge_key == expected


@pytest.mark.compliance("BRAND-06")
def test_website_is_preferred_among_identifiers():
    brand = parse_brand(
        {
            "name": "A",
            "identifier": [
                {"system": "http://hl7.org/fhir/sid/us-npi", "value": "1"},
                {"system": "urn:ietf:rfc:3986", "value": "https://a.example"},
            ],
        }
    )
    assert brand is not None
    assert brand.merge_key == ("urn:ietf:rfc:3986", "https://a.example")
    nameless = parse_brand({"name": "A", "identifier": [{"system": "urn:x"}]})
    assert nameless is not None
    assert nameless.merge_key is None


@pytest.mark.compliance("BRAND-10")
def test_endpoints_of_the_second_vector_are_told_apart_by_version():
    resources = read_vector(2)
    for version, is_r4 in (("r2", False), ("r4", True)):
        url = f"https://ehr.example.com/Endpoint/examplehealth-{version}"
        address = resources[url]["address"]
        assert parse_brand_endpoint(resources[url]) == (address if is_r4 else "")


@pytest.mark.compliance("BRAND-10")
@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["4.0"], True),
        (["4.0.0"], True),
        (["3.0.2", "4.0.1"], True),
        (["4.3.0"], False),
        (["5.0.0"], False),
        ([], True),
        (["4.0." + "1" * 30], True),
        ([7, ""], True),
    ],
)
def test_r4_is_told_from_other_versions(versions, expected):
    url = "http://hl7.org/fhir/StructureDefinition/endpoint-fhir-version"
    address = "https://a.example/r4"
    extensions = [{"url": url, "valueCode": each} for each in versions]
    parsed = parse_brand_endpoint({"address": address, "extension": extensions})
    assert parsed == (address if expected else "")


@pytest.mark.parametrize(
    "members",
    [
        {"connectionType": {"code": "dicom-wado-rs"}},
        {"status": "off"},
        {"status": "entered-in-error"},
    ],
)
def test_endpoint_of_no_use_is_left_out(members):
    assert parse_brand_endpoint({"address": "https://a.example", **members}) is None


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "http://a.example",
        "https://u:p@a.example",
        "https://a.example/r4?a=b",
        "https://a.example/x/../r4",
        "javascript:alert(1)",
        7,
    ],
)
def test_endpoint_without_a_safe_address_is_refused(address):
    with pytest.raises(BrandError, match="An Endpoint is unusable"):
        parse_brand_endpoint({"address": address})


def test_plain_http_is_accepted_where_it_is_named():
    parsed = parse_brand_endpoint(
        {"address": "http://localhost/r4"}, insecure_hosts=frozenset({"localhost"})
    )
    assert parsed is not None


@pytest.mark.parametrize(
    "place", [{}, {"line": ["only a street"]}, {"city": 7}, "Boston", None]
)
def test_place_that_nobody_could_look_for_is_left_out(place):
    brand = parse_brand({"name": "A", "address": [place]})
    assert brand is not None
    assert brand.places == ()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"state": "WI"}, "WI"),
        ({"postal_code": "53726"}, "53726"),
        ({"country": "US"}, "US"),
    ],
)
def test_label_of_a_place_is_what_there_is(place, expected):
    assert label_place(place) == expected


@pytest.mark.compliance("BRAND-07")
def test_endpoint_of_no_portal_is_the_brand_s_own():
    brand = parse_brand({"name": "A", "endpoint": [{"reference": "Endpoint/1"}]})
    assert brand is not None
    assert brand.endpoints == {"Endpoint/1": ""}


def test_members_of_a_wrong_type_read_as_absent():
    brand = parse_brand(
        {
            "name": "A",
            "alias": ["", 7, "B"],
            "endpoint": [{"reference": 7}, {"display": "none"}, "Endpoint/1"],
            "partOf": "Organization/1",
            "type": [{"coding": [{"code": []}]}],
        }
    )
    assert brand is not None
    assert brand.aliases == ("B",)
    assert brand.endpoints == {}
    assert brand.categories == ()
    assert brand.part_of == ""


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=5,
)
MEMBERS = [
    "active",
    "address",
    "alias",
    "connectionType",
    "contact",
    "endpoint",
    "extension",
    "identifier",
    "name",
    "partOf",
    "status",
    "telecom",
    "type",
]


@given(st.dictionaries(st.sampled_from(MEMBERS), ANY_JSON, max_size=4))
def test_any_resource_is_read_or_refused_by_name(resource):
    for parse in (parse_brand, parse_brand_endpoint):
        try:
            parse(resource)
        except BrandError:
            continue


# Logos


@pytest.mark.compliance("BRAND-11")
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/logo.svg", "https://a.example/logo.svg"),
        ("https://a.example/my logo.png", "https://a.example/my%20logo.png"),
        ("https://a.example/é.png", "https://a.example/%C3%A9.png"),
        (data_url("image/png", PNG), data_url("image/png", PNG)),
        (data_url("IMAGE/PNG", PNG), data_url("image/png", PNG)),
        (
            data_url("image/png", PNG).replace("Rw0K", "Rw0 \nK"),
            data_url("image/png", PNG),
        ),
        (
            data_url("image/png", PNG + b"\0" * (MAX_LOGO_BYTES - len(PNG))),
            data_url("image/png", PNG + b"\0" * (MAX_LOGO_BYTES - len(PNG))),
        ),
        ("https://a.example/" + "x" * 982, "https://a.example/" + "x" * 982),
        (
            data_url("image/jpeg", b"\xff\xd8\xff\xe0"),
            data_url("image/jpeg", b"\xff\xd8\xff\xe0"),
        ),
        (data_url("image/gif", b"GIF89a!"), data_url("image/gif", b"GIF89a!")),
        (data_url("image/webp", b"RIFF...."), data_url("image/webp", b"RIFF....")),
        (
            f"data:image/svg+xml;utf8,{SVG.replace(' ', '%20')}",
            data_url("image/svg+xml", SVG.encode()),
        ),
    ],
)
def test_logo_that_an_image_element_can_show_is_kept(url, expected):
    assert sanitize_logo_url(url) == expected


@pytest.mark.compliance("BRAND-11")
@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "http://a.example/logo.png",
        "javascript:alert(1)",
        "//a.example/logo.png",
        "https://" + "a" * 1000,
        "https://a.example/\ud800.png",
        "data:text/html,<b>no</b>",
        "data:image/png,not a picture",
        "data:image/png;base64,!!!",
        data_url("image/png", PNG).replace("base64,", "base64,!"),
        "data:image/png;base64,é",
        "data:image/png;base64,\ud800",
        "data:image/png",
        data_url("image/png", PNG + b"\0" * (MAX_LOGO_BYTES + 1 - len(PNG))),
        "data:image/png;base64," + "A" * 4 * MAX_LOGO_BYTES,
        data_url("image/svg+xml", b"\xff<svg/>"),
        data_url("image/svg+xml", b"<html/>"),
        data_url("image/svg+xml", b"<svg><script>alert(1)</script></svg>"),
        data_url("image/svg+xml", b"<svg onload ='alert(1)'/>"),
        data_url("image/svg+xml", b"<svg><foreignObject/></svg>"),
        data_url("image/svg+xml", b"<!DOCTYPE svg [<!ENTITY a 'b'>]><svg/>"),
        data_url("image/svg+xml", b"<svg><a href='JavaScript:alert(1)'/></svg>"),
        data_url("image/bmp", b"BM"),
    ],
)
def test_logo_that_could_be_anything_else_is_dropped(url):
    assert sanitize_logo_url(url) == ""
