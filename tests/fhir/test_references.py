"""References, attachments, and the record of one patient."""

from __future__ import annotations

import io
import json
import time
from copy import deepcopy
from typing import Any
from urllib.parse import quote

import pytest

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRNotFoundError,
    FHIRRequestError,
    ForeignPatientError,
    MalformedFHIRResponseError,
    ResponseTooLargeError,
)
from django_smart.fhir.guard import RecordRules
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, Grant, bundle, respond

PATIENT = {"resourceType": "Patient", "id": "p-1"}
OTHER = {"resourceType": "Patient", "id": "p-1", "gender": "other"}
FAR = "https://far.example.org/fhir"


# References


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p-1",
        f"{BASE}/Patient/p-1",
        {"reference": "Patient/p-1", "display": "P"},
    ],
)
def test_reference_to_the_server_is_read(grant, reference):
    grant.server.on("Patient/p-1", respond(PATIENT))
    assert grant.client.resolve(reference) == PATIENT
    assert grant.exchanges[0].interaction == "read"


@pytest.mark.parametrize("base", ["", f"{BASE}/"])
def test_version_of_a_reference_is_read(grant, base):
    grant.server.on("Patient/p-1/_history/3", respond(PATIENT))
    assert grant.client.resolve(f"{base}Patient/p-1/_history/3") == PATIENT
    assert grant.exchanges[0].interaction == "vread"


def test_reference_that_brings_another_resource_is_refused(grant):
    grant.server.on("Patient/p-1", respond({**PATIENT, "id": "p-2"}))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.resolve("Patient/p-1")


@pytest.mark.compliance("FHIR-02")
@pytest.mark.parametrize(
    "reference",
    [
        f"{FAR}/Patient/p-1",
        "http://ehr.example.org/v/r4/sim/blob/fhir/Patient/p-1",
        f"{BASE}/../Patient/p-1",
    ],
)
def test_reference_to_another_server_is_refused_before_a_request(grant, reference):
    with pytest.raises(BearerBoundaryError) as caught:
        grant.client.resolve(reference)
    assert grant.server.requests == []
    assert "p-1" not in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        None,
        {},
        {"identifier": {"value": "x"}},
        {"reference": 5},
        "Patient",
        "patient/p-1",
        "Patient/p-1/name",
        "Patient?identifier=x",
        "Patient/p-1?x",
        "Patient/a_b",
        "../Patient/p-1",
        "urn:uuid:4b7c",
        "#org",
        "#",
    ],
)
def test_reference_without_a_target_is_refused_before_a_request(grant, reference):
    with pytest.raises(FHIRRequestError):
        grant.client.resolve(reference)
    assert grant.server.requests == []


def test_contained_resource_is_found_where_it_is(grant):
    organization = {"resourceType": "Organization", "id": "org"}
    holder = {**PATIENT, "contained": ["odd", organization]}
    assert grant.client.resolve("#org", within=holder) == organization
    assert grant.client.resolve("#", within=holder) == holder
    for within in (PATIENT, {**holder, "contained": {}}, bundle(organization)):
        with pytest.raises(FHIRRequestError):
            grant.client.resolve("#org", within=within)
    # Another resource means something else by the same id.
    other = {**PATIENT, "contained": [{**organization, "name": "x"}]}
    for reference in ("#org", "#"):
        with pytest.raises(FHIRRequestError):
            grant.client.resolve(reference, within=[holder, other])
    for more in ([PATIENT], [PATIENT, deepcopy(holder)]):
        found = grant.client.resolve("#org", within=[holder, *more])
        assert found == organization
    assert grant.server.requests == []


def pack(*pairs: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    entries = [{"fullUrl": url, "resource": resource} for url, resource in pairs]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


def test_entry_of_a_bundle_is_found_by_its_url(grant):
    inside = pack(("urn:uuid:1", PATIENT), (f"{FAR}/Patient/p-1", OTHER))
    assert grant.client.resolve("urn:uuid:1", within=inside) == PATIENT
    # It is at hand, so nobody has to be asked.
    assert grant.client.resolve(f"{FAR}/Patient/p-1", within=inside) == OTHER
    with pytest.raises(FHIRRequestError):
        grant.client.resolve("urn:uuid:2", within=inside)
    assert grant.server.requests == []


def test_relative_reference_is_relative_to_where_its_resource_is_from(grant):
    near = {"resourceType": "Observation", "id": "o-1"}
    far = {"resourceType": "Observation", "id": "o-2"}
    inside = pack(
        (f"{FAR}/Patient/p-1", OTHER),
        (f"{BASE}/Patient/p-1", PATIENT),
        (f"{BASE}/Observation/o-1", near),
        (f"{FAR}/Observation/o-2", far),
    )
    assert grant.client.resolve("Patient/p-1", within=inside) == PATIENT
    assert grant.client.resolve("Patient/p-1", within=[near, inside]) == PATIENT
    assert grant.client.resolve("Patient/p-1", within=[far, inside]) == OTHER


def test_same_id_from_another_server_is_another_patient(grant):
    grant.server.on("Patient/p-1", respond(PATIENT))
    inside = pack((f"{FAR}/Patient/p-1", OTHER))
    assert grant.client.resolve("Patient/p-1", within=inside) == PATIENT
    assert len(grant.server.requests) == 1


def test_resource_at_hand_is_not_asked_for(grant):
    included = [{**PATIENT, "meta": {"versionId": "2"}}]
    for reference in ("Patient/p-1", f"{BASE}/Patient/p-1", "Patient/p-1/_history/2"):
        assert grant.client.resolve(reference, within=included) == included[0]
    assert grant.server.requests == []
    grant.server.on("Patient/p-1/_history/1", respond(PATIENT))
    found = grant.client.resolve("Patient/p-1/_history/1", within=included)
    assert found["id"] == "p-1"
    with pytest.raises(BearerBoundaryError):
        grant.client.resolve(f"{FAR}/Patient/p-1", within=included)


@pytest.mark.parametrize("with_ids", [True, False])
def test_search_takes_no_longer_than_the_resources_at_hand(grant, with_ids):
    names = [{"id": f"{n}"} if with_ids else {"note": n} for n in range(40_000)]
    within = [PATIENT, *({"resourceType": "Basic", **each} for each in names)]
    started = time.process_time()
    assert grant.client.resolve("Patient/p-1", within=within) == PATIENT
    assert time.process_time() - started < 5
    # Whoever sends resources can send Bundles among them.
    bundles = [{"resourceType": "Bundle"} for _ in range(20_000)]
    started = time.process_time()
    assert grant.client.resolve("Patient/p-1", within=[*within, *bundles]) == PATIENT
    assert time.process_time() - started < 5


def test_version_is_found_in_a_bundle(grant):
    versions = [
        {
            **PATIENT,
            "meta": {"versionId": str(number), "lastUpdated": f"2026-0{number}"},
        }
        for number in (2, 3, 1)
    ]
    inside = {"resourceType": "Bundle", "entry": [{"resource": v} for v in versions]}
    found = grant.client.resolve("Patient/p-1/_history/2", within=inside)
    assert found["meta"]["versionId"] == "2"
    assert grant.client.resolve("Patient/p-1", within=inside) == versions[1]


@pytest.mark.parametrize("entry", [None, {}, ["x"], [{}], [{"resource": "x"}]])
def test_bundle_that_holds_nothing_is_passed_over(grant, entry):
    grant.server.on("Patient/p-1", respond(PATIENT))
    odd = {"resourceType": "Bundle", "entry": entry}
    assert grant.client.resolve("Patient/p-1", within=odd) == PATIENT


# Under scopes for one patient


MINE = {
    "resourceType": "Observation",
    "id": "o1",
    "subject": {"reference": "Patient/p1"},
}


def make_limited_grant(scope: str = "patient/*.rs", **options: Any) -> Grant:
    return Grant(
        patient_id="p1",
        boundary="origin",
        get_scopes=lambda: ScopeSet.parse(scope),
        record_rules=RecordRules(),
        **options,
    )


def test_same_id_at_another_base_is_another_patient():
    grant = make_limited_grant()
    fhir = grant.client
    own = {"resourceType": "Patient", "id": "p1"}
    beside = "https://ehr.example.org/other/Patient/p1"
    for url in (beside, f"{beside}/_history/1", f"{BASE}/tenant/Patient/p1"):
        grant.server.on(url, respond(own))
        with pytest.raises(ForeignPatientError):
            fhir.resolve(url)
    with pytest.raises(BearerBoundaryError):
        fhir.resolve("https://far.example.org/fhir/Patient/p1")
    assert grant.server.requests == []
    # The host in capitals is the same server.
    url = BASE.replace("ehr.", "EHR.")
    for path in ("Patient/p1", "Patient/p1/_history/1"):
        grant.server.on(path, respond(own))
        assert fhir.resolve(f"{BASE}/{path}/") == own
        assert fhir.resolve(f"{url}/{path}") == own
    # Pages may be anywhere within the boundary.
    page = "https://ehr.example.org/pages/2"
    grant.server.on(page, respond(bundle({**MINE, "id": "o2"})))
    first = bundle(MINE, next_url=page)
    grant.server.on("Observation?patient=p1", respond(first))
    assert len(fhir.search("Observation")) == 2
    assert len(list(fhir.iterate_pages(first))) == 2


@pytest.mark.parametrize(
    "scope", ["patient/Patient.rs user/Practitioner.rs", "patient/*.rs"]
)
def test_what_is_nobodys_is_read_at_another_base(scope):
    grant = make_limited_grant(scope)
    url = "https://ehr.example.org/other/Practitioner/dr"
    practitioner = {"resourceType": "Practitioner", "id": "dr"}
    grant.server.on(url, respond(practitioner))
    assert grant.client.resolve(url) == practitioner


# Attachments


def test_binary_is_written_piece_by_piece(grant):
    grant.server.on("Binary/b-1", respond(b"%PDF", media_type="application/pdf"))
    for source in (
        {"contentType": "application/pdf", "url": "Binary/b-1"},
        f"{BASE}/Binary/b-1",
    ):
        file = io.BytesIO()
        assert grant.client.download(source, file) == "application/pdf"
        assert file.getvalue() == b"%PDF"
    assert [one.headers["Accept"] for one in grant.server.requests] == [
        "application/pdf",
        "*/*",
    ]
    told = grant.exchanges[0]
    assert (told.interaction, told.resource_type) == ("read", "Binary")


def test_attachment_without_data_or_type_is_read_by_its_url(grant):
    grant.server.on("Binary/b-1", respond(b"%PDF", media_type="application/pdf"))
    file = io.BytesIO()
    attachment = {"contentType": None, "data": "", "url": "Binary/b-1"}
    assert grant.client.download(attachment, file) == "application/pdf"
    assert file.getvalue() == b"%PDF"
    assert grant.server.requests[0].headers["Accept"] == "*/*"


def test_attachment_with_its_data_needs_no_request(grant):
    file = io.BytesIO()
    assert grant.client.download({"data": ""}, file) == ""
    attachment = {"contentType": "text/plain", "data": "aGVs\nbG8="}
    assert grant.client.download(attachment, file) == "text/plain"
    assert file.getvalue() == b"hello"
    with pytest.raises(ResponseTooLargeError):
        grant.client.download(attachment, file, max_size=4)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "source",
    [{}, {"url": ""}, {"url": 5}, {"data": "%"}, {"data": 5}, "urn:uuid:1", "../x"],
)
def test_attachment_without_content_is_refused(grant, source):
    with pytest.raises(FHIRRequestError):
        grant.client.download(source, io.BytesIO())
    assert grant.server.requests == []


@pytest.mark.compliance("FHIR-02")
def test_attachment_elsewhere_is_refused_before_a_request(grant):
    with pytest.raises(BearerBoundaryError):
        grant.client.download({"url": f"{FAR}/Binary/b-1"}, io.BytesIO())
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "source", [{"contentType": "application/pdf", "url": "Binary/b-1"}, "Binary/b-1"]
)
def test_content_that_a_server_wraps_in_json_is_unwrapped(grant, source):
    binary = {"resourceType": "Binary", "contentType": "application/pdf"}
    grant.server.on("Binary/b-1", respond({**binary, "data": "JVBERg=="}))
    file = io.BytesIO()
    assert grant.client.download(source, file) == "application/pdf"
    assert file.getvalue() == b"%PDF"
    with pytest.raises(ResponseTooLargeError):
        grant.client.download(source, io.BytesIO(), max_size=3)


def test_resource_is_content_if_nothing_else_was_requested(grant):
    grant.server.on("Binary/b-1", respond({"resourceType": "Bundle"}))
    for source in (
        {"contentType": "application/fhir+json", "url": "Binary/b-1"},
        "Binary/b-1",
    ):
        file = io.BytesIO()
        assert grant.client.download(source, file) == "application/fhir+json"
        assert json.loads(file.getvalue()) == {"resourceType": "Bundle"}
    file = io.BytesIO()
    attachment = {"contentType": "application/pdf", "url": "Binary/b-1"}
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.download(attachment, file)
    assert file.getvalue() == b""


@pytest.mark.parametrize(
    ("status", "error"), [(404, FHIRNotFoundError), (204, MalformedFHIRResponseError)]
)
def test_refused_download_writes_nothing(grant, status, error):
    grant.server.on("Binary/b-1", respond(b"why", status))
    file = io.BytesIO()
    with pytest.raises(error):
        grant.client.download("Binary/b-1", file)
    assert file.getvalue() == b""


@pytest.mark.parametrize(("status", "size"), [(200, 11), (404, 1024**2 + 1)])
def test_download_has_a_limit(grant, status, size):
    grant.server.on("Binary/b-1", respond(bytes(size), status))
    file = io.BytesIO()
    with pytest.raises(ResponseTooLargeError):
        grant.client.download("Binary/b-1", file, max_size=10)
    assert len(file.getvalue()) <= 10


# The record of one patient


@pytest.fixture
def record(grant: Grant) -> Any:
    return grant.client.patient("p-1")


@pytest.mark.parametrize(
    ("resource_type", "query"),
    [
        ("Observation", "patient=p-1"),
        ("AllergyIntolerance", "patient=p-1"),
        ("Patient", "_id=p-1"),
        ("AdverseEvent", "subject=Patient%2Fp-1"),
        ("Schedule", "actor=Patient%2Fp-1"),
        ("Group", "member=Patient%2Fp-1"),
    ],
)
def test_record_selects_its_patient(grant, record, resource_type, query):
    grant.server.on(f"{resource_type}?_count=5&{query}", respond(bundle()))
    assert list(record.search(resource_type, _count=5)) == []


@pytest.mark.parametrize(
    "value",
    ["p-1", "Patient/p-1", f"{BASE}/Patient/p-1"],
)
def test_record_takes_its_own_patient(grant, record, value):
    sent = quote(str(value), safe="")
    grant.server.on(f"Observation?patient={sent}", respond(bundle()))
    assert list(record.search("Observation", patient=value)) == []
    assert list(record.search("Observation", {"patient": value})) == []


@pytest.mark.parametrize(
    ("resource_type", "params"),
    [
        ("Observation", {"patient": "p-2"}),
        ("Observation", {"patient": ["p-1", "p-2"]}),
        ("Observation", {"patient": "p-1,p-2"}),
        ("Observation", {"patient": f"{FAR}/Patient/p-1"}),
        ("Observation", {"subject": "Patient/p-2"}),
        ("Observation", {"subject:Patient": "p-2"}),
        ("Patient", {"_id": "p-2"}),
        ("AdverseEvent", {"subject": "Patient/p-2"}),
        ("Schedule", {"actor": "Patient/p-2"}),
    ],
)
def test_record_takes_nobody_else(grant, record, resource_type, params):
    with pytest.raises(ForeignPatientError) as caught:
        record.search(resource_type, params)
    assert "p-2" not in str(caught.value)
    assert grant.server.requests == []


def test_keywords_name_nobody_else_either(record):
    for name in ("patient", "subject__Patient", "patient_", "subject_"):
        with pytest.raises(ForeignPatientError):
            record.search("Observation", **{name: "p-2"})


@pytest.mark.parametrize("resource_type", ["Organization", "../x", ""])
def test_what_belongs_to_no_patient_is_not_searched_for(record, resource_type):
    with pytest.raises(FHIRRequestError):
        record.search(resource_type)


def test_record_is_read_as_a_whole(grant, record):
    page = f"{BASE}?page=2"
    grant.server.on("Patient/p-1", respond(PATIENT))
    grant.server.on(
        "Patient/p-1/$everything?_count=1", respond(bundle(PATIENT, next_url=page))
    )
    grant.server.on(page, respond(bundle({"resourceType": "Flag", "id": "f"})))
    assert record.read() == PATIENT
    kinds = [one["resourceType"] for one in record.everything(_count=1)]
    assert kinds == ["Patient", "Flag"]
    assert record.reference == "Patient/p-1"


def test_record_is_by_default_of_the_patient_in_context():
    assert Grant(patient_id="p-1").client.patient().id == "p-1"
    with pytest.raises(FHIRRequestError):
        Grant().client.patient()
    with pytest.raises(FHIRRequestError):
        Grant().client.patient("../x")


@pytest.mark.parametrize(
    ("scope", "is_refused"),
    [
        ("launch/patient patient/*.rs", True),
        ("patient/Observation.read patient/Patient.read", True),
        ("patient/*.rs user/Patient.r", False),
        ("system/*.rs", False),
        ("openid", False),
    ],
)
def test_scopes_for_one_patient_open_no_other_record(scope, is_refused):
    grant = Grant(patient_id="p-1", get_scopes=lambda: ScopeSet.parse(scope))
    assert grant.client.patient("p-1").id == "p-1"
    if is_refused:
        with pytest.raises(ForeignPatientError) as caught:
            grant.client.patient("p-2")
        assert "p-2" not in str(caught.value)
    else:
        assert grant.client.patient("p-2").id == "p-2"


def make_document(*full_urls: str) -> dict[str, Any]:
    entries = [
        {"fullUrl": url, "resource": {"resourceType": url.split("/")[-2]}}
        for url in full_urls
    ]
    return {"resourceType": "Bundle", "type": "document", "entry": entries}


def test_reference_in_a_document_of_another_server_is_not_to_this_one(grant):
    grant.server.on("Condition/2", respond({"resourceType": "Condition", "id": "2"}))
    elsewhere = "https://b.example/fhir"
    urls = [f"{elsewhere}/Composition/1", f"{elsewhere}/Condition/2"]
    document = make_document(*urls)
    found = grant.client.resolve("Condition/2", within=document)
    assert found == {"resourceType": "Condition"}
    for wrong in (
        make_document(urls[0]),
        make_document(urls[0], "https://c.example/fhir/Condition/2"),
    ):
        with pytest.raises(FHIRRequestError, match="another server"):
            grant.client.resolve("Condition/2", within=wrong)
    assert grant.server.requests == []
    own = make_document(f"{BASE}/Composition/1", urls[0])
    assert grant.client.resolve("Condition/2", within=own)["id"] == "2"
