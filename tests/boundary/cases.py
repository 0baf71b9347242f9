"""
The requests, in the order of the table in ``docs/reference/patient-boundary.rst``.

The launch's patient is ``mine``.  ``other`` is somebody else in the same hospital, and
``mother`` the mother of the launch's patient.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django_smart.fhir.compartment import get_compartment
from django_smart.testing.simulator.search import RESOURCE_TYPES

BASE = "https://ehr.example.org/fhir"
POPULATE = {"operations": {"populate"}}
SCOPE = "patient/*.cruds"
SECRET = "9f8b-secret"
JSON_PATCH = "application/json-patch+json"
FORM = "application/x-www-form-urlencoded"

# Kept by another part of the simulator, which has rules of its own.
_SKIPPED = {"Basic"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request, and what has to become of it."""

    about: str
    method: str = "GET"
    path: str
    body: Any = None
    """A resource, a JSON Patch, or text as it is sent."""
    headers: dict[str, str] = field(default_factory=dict)
    scope: str = SCOPE
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Of the view, beside all methods."""
    is_attack: bool = True
    expected: str = "refused"
    """
    ``refused``; ``answered``; ``own``: answered with nothing of anybody else;
    ``nothing``: refused, or answered with nothing of anybody else.
    """
    total: int | None = None
    is_for_proxy: bool = False
    """Whether it has no meaning for ``request.smart.fhir``."""
    media_type: str = "application/fhir+json"

    @property
    def needs_attribute(self) -> bool:
        """Whether the default view refuses this, and says what would allow it."""
        return not self.is_attack and bool(self.attributes)

    @property
    def request(self) -> str:
        """As the table shows it."""
        return f"{self.method} {self.path}".strip()


def ref(reference: str) -> dict[str, str]:
    return {"reference": reference}


def ref_to(patient: str) -> dict[str, str]:
    return ref(f"Patient/{patient}")


def about(resource_type: str, patient: str, /, **members: Any) -> dict[str, Any]:
    """A resource of *patient*'s, by the elements that say whose it is."""
    resource: dict[str, Any] = {
        "resourceType": resource_type,
        "id": f"{resource_type.lower()}-{patient}",
        "language": SECRET if patient == "other" else "en",
    }
    path = get_compartment(resource_type).subjects[0]
    value: Any = ref_to(patient)
    for step in reversed(path.split(".")):
        value = [value] if step.endswith("[]") else value
        value = {step.removesuffix("[]"): value}
    return {**resource, **value, **members}


def new(resource_type: str, patient: str, /, **members: Any) -> dict[str, Any]:
    """The same, still without an id."""
    resource = about(resource_type, patient, **members)
    return {name: value for name, value in resource.items() if name != "id"}


def observation(patient: str = "mine", /, **members: Any) -> dict[str, Any]:
    usual = {
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
        "category": [{"coding": [{"code": "laboratory"}]}],
        "performer": [ref("Practitioner/dr")],
    }
    return about("Observation", patient, **{**usual, **members})


TYPES = tuple(
    name
    for name in sorted(RESOURCE_TYPES - _SKIPPED)
    if get_compartment(name).subjects not in ((), ("-",)) and name != "Patient"
)


def build_data() -> Iterator[dict[str, Any]]:
    """What the server holds for every request."""
    for name in ("mine", "other", "mother"):
        language = SECRET if name == "other" else "en"
        yield {"resourceType": "Patient", "id": name, "language": language}
    for patient in ("mine", "other"):
        for resource_type in TYPES:
            if resource_type != "Observation":
                yield about(resource_type, patient)
        yield observation(patient)
        vital = [{"coding": [{"code": "vital-signs"}]}]
        yield {
            **observation(patient, identifier=[{"value": f"id-{patient}"}]),
            "id": f"vital-{patient}",
            "category": vital,
        }
    yield from _build_legitimate()


def build_odd() -> Iterator[dict[str, Any]]:
    """What only the requests see that ask for it: a search of it would be refused."""
    secret = {"language": SECRET}
    for number, subject in enumerate(ODD_SUBJECTS):
        yield {**observation(subject=subject), "id": f"odd-{number}", **secret}
    for number, (resource_type, members) in enumerate(NAMING_OTHERS):
        resource = {**about(resource_type, "mine"), **members, **secret}
        yield {**resource, "id": f"naming-{number}"}
    child = about("Coverage", "mine", subscriber=ref_to("mother"))
    yield {**child, "id": "naming-mother"}
    yield {
        "resourceType": "Bundle",
        "id": "document-other",
        "type": "document",
        "entry": [{"resource": about("Composition", "other")}],
    }
    yield {
        "resourceType": "Bundle",
        "id": "collection-shared",
        "type": "collection",
        "entry": [{"resource": {"resourceType": "Location", "id": "l"}}],
        **secret,
    }
    yield {
        "resourceType": "Parameters",
        "id": "parameters-other",
        "parameter": [{"name": "x", "resource": about("Condition", "other")}],
    }
    for patient in ("mine", "other"):
        yield {
            "resourceType": "Binary",
            "id": f"scan-{patient}",
            "contentType": "text/plain",
            "data": base64.b64encode(patient.encode()).decode(),
            "securityContext": ref_to(patient),
            **({"language": SECRET} if patient == "other" else {}),
        }
    yield {
        "resourceType": "Binary",
        "id": "scan-nobody",
        "contentType": "text/plain",
        "data": "QQ==",
        **secret,
    }


def _build_legitimate() -> Iterator[dict[str, Any]]:
    yield {"resourceType": "Practitioner", "id": "dr", "name": [{"family": "Quill"}]}
    yield {"resourceType": "Organization", "id": "hospital", "name": "Harbour"}
    yield {"resourceType": "Location", "id": "ward", "name": "Ward"}
    yield {"resourceType": "Medication", "id": "metformin", "status": "active"}
    item: dict[str, Any] = {"linkId": "deepest", "text": "x", "type": "string"}
    for level in range(16, 0, -1):
        item = {"linkId": f"{level}", "type": "group", "item": [item]}
    yield {
        "resourceType": "Questionnaire",
        "id": "deep",
        "status": "active",
        "item": [item],
    }
    absolute = observation(
        performer=[ref(f"{BASE}/Practitioner/dr")],
        encounter=ref("Encounter/encounter-mine"),
    )
    yield {**absolute, "id": "absolute", "subject": ref(f"{BASE}/Patient/mine")}
    attachment = {"contentType": "text/plain", "url": "Binary/scan-mine"}
    scan = about("DocumentReference", "mine", content=[{"attachment": attachment}])
    yield {**scan, "id": "scan"}
    yield {
        "resourceType": "Provenance",
        "id": "provenance-of-o",
        "target": [ref("Observation/observation-mine")],
    }
    document = about("Composition", "mine", author=[ref("Practitioner/dr")])
    yield {
        "resourceType": "Bundle",
        "id": "document-mine",
        "type": "document",
        "entry": [
            {"fullUrl": f"{BASE}/Composition/c", "resource": document},
            {"resource": {"resourceType": "Patient", "id": "mine"}},
            {"resource": {"resourceType": "Practitioner", "id": "dr"}},
        ],
    }


# Observations of somebody that no rule by the letter recognizes.
ODD_SUBJECTS: tuple[Any, ...] = (
    {"identifier": {"system": "urn:mrn", "value": "1"}},
    {"display": "Somebody Else"},
    ref("urn:uuid:6f0c3b52-5d0a-4c57-9d5e-3b7f4b6f1f10"),
    ref("#contained"),
    ref(" Patient/other"),
    ref("patient/other"),
    ref("Patient%2Fother"),
    ref("Patient/mine/../other"),
    ref("Patient?identifier=1"),
    ref("https://elsewhere.example.net/fhir/Patient/mine"),
    ref("//ehr.example.org/fhir/Patient/mine"),
    ref("Patient/mine "),
    ref("Patient/MINE"),
    [ref("Patient/mine"), ref("Patient/other")],
    [ref("Patient/other")],
    {"reference": ["Patient/mine", "Patient/other"]},
    {"reference": {"reference": "Patient/mine"}},
    "Patient/mine",
    {"reference": "Patient/mine", "type": "Group"},
    ref("Group/patients"),
    ref("Device/pump"),
    ref("Location/ward"),
)

# What is the patient's own, and names somebody else.
NAMING_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Observation", {"patient": ref_to("other")}),
    ("Observation", {"performer": [ref_to("other")]}),
    ("Observation", {"performer": [ref("Practitioner/dr"), ref_to("other")]}),
    ("Observation", {"performer": [{"identifier": {"value": "1"}}]}),
    ("Observation", {"performer": ["Patient/other"]}),
    (
        "Observation",
        {"performer": [{"resourceType": "Practitioner", "identifier": {"value": "1"}}]},
    ),
    ("Observation", {"performer": [{"resourceType": "X", **ref_to("other")}]}),
    ("Observation", {"performer": [{"type": "Patient", "reference": "other"}]}),
    ("Observation", {"performer": [ref("Patient%25252Fother")]}),
    ("Observation", {"focus": [ref_to("other")]}),
    ("Observation", {"focus": [ref("urn:uuid:1")]}),
    ("Observation", {"note": [{"text": "x", "authorReference": ref_to("other")}]}),
    ("Observation", {"extension": [{"url": "x", "valueReference": ref_to("other")}]}),
    ("Observation", {"extension": [{"url": "x", "valueUri": "Patient/other"}]}),
    ("Observation", {"contained": [{"resourceType": "Patient", "id": "c"}]}),
    ("Observation", {"contained": [about("Condition", "other")]}),
    ("Communication", {"recipient": [ref_to("other")]}),
    ("Communication", {"sender": ref_to("other")}),
    ("CommunicationRequest", {"requester": ref_to("other")}),
    ("QuestionnaireResponse", {"source": ref_to("other")}),
    (
        "QuestionnaireResponse",
        {"item": [{"answer": [{"valueReference": ref_to("other")}]}]},
    ),
    ("Invoice", {"recipient": ref_to("other")}),
    ("Coverage", {"subscriber": ref_to("other")}),
    ("Coverage", {"payor": [ref_to("other")]}),
    ("Provenance", {"agent": [{"who": ref_to("other")}]}),
    ("Provenance", {"agent": [{"who": {"identifier": {"value": "1"}}}]}),
    ("Appointment", {"participant": [{"actor": ref_to(p)} for p in ("mine", "other")]}),
    ("Group", {"member": [{"entity": ref_to(p)} for p in ("mine", "other")]}),
    ("Schedule", {"actor": [ref_to("mine"), ref("patient/other")]}),
    ("AuditEvent", {"entity": [{"what": ref_to("other")}]}),
    ("Task", {"owner": ref_to("other")}),
    ("DocumentReference", {"author": [ref_to("other")]}),
    ("Procedure", {"performer": [{"actor": ref_to("other")}]}),
    ("Claim", {"payee": {"party": ref_to("other")}}),
    ("Person", {"link": [{"target": ref_to("mine")}, {"target": ref_to("other")}]}),
    ("Linkage", {"item": [{"resource": ref_to(p)} for p in ("mine", "other")]}),
)


def _only_refers_to_others(name: str, members: dict[str, Any]) -> bool:
    """Whether it is the patient's all the same, which the site's own code may use."""
    paths = get_compartment(name).subjects
    subjects = {path.partition(".")[0].removesuffix("[]") for path in paths}
    # A message about the patient may be to somebody else.
    return not ((subjects - {"recipient"}) | {"contained"}) & set(members)


def build_cases() -> list[Case]:
    """All of them."""
    return [
        *_read_of_each_type(),
        *_reads(),
        *_searches(),
        *_writes_of_each_type(),
        *_creates(),
        *_changes(),
        *_patches(),
        *_operations(),
        *_bundles(),
        *_scopes(),
        *_legitimate(),
    ]


def _read_of_each_type() -> Iterator[Case]:
    for name in TYPES:
        path = f"{name}/{name.lower()}-other"
        yield Case(about=f"read another patient's {name}", path=path)


def _reads() -> Iterator[Case]:
    yield Case(about="read another patient", path="Patient/other")
    yield Case(about="version of another patient", path="Patient/other/_history/1")
    yield Case(about="history of another patient", path="Patient/other/_history")
    path = "Observation/observation-other"
    yield Case(about="version of another's resource", path=f"{path}/_history/1")
    yield Case(about="history of another's resource", path=f"{path}/_history")
    yield Case(about="history of a type", path="Observation/_history")
    yield Case(about="history of everything", path="_history")
    yield Case(about="only the id of another's resource", path=f"{path}?_elements=id")
    yield Case(
        about="only the text of another's resource", path=f"{path}?_summary=text"
    )
    etag = {"If-None-Match": 'W/"1"'}
    yield Case(
        about="read with If-None-Match", path=path, headers=etag, is_for_proxy=True
    )
    yield Case(about="HEAD", method="HEAD", path=path, is_for_proxy=True)
    for number, subject in enumerate(ODD_SUBJECTS):
        text = json.dumps(subject)
        yield Case(
            about=f"read with the subject {text}", path=f"Observation/odd-{number}"
        )
    for number, (name, members) in enumerate(NAMING_OTHERS):
        is_own = _only_refers_to_others(name, members)
        yield Case(
            about=f"read {name} with {json.dumps(members)}",
            path=f"{name}/naming-{number}",
            is_attack=not is_own,
            expected="answered" if is_own else "refused",
        )
    yield Case(about="another patient's document", path="Bundle/document-other")
    yield Case(about="Bundle without a patient", path="Bundle/collection-shared")
    yield Case(
        about="Parameters with another's resource", path="Parameters/parameters-other"
    )
    for name in ("other", "nobody"):
        yield Case(
            about="another's Binary" if name == "other" else "Binary without a patient",
            path=f"Binary/scan-{name}",
            is_for_proxy=name == "nobody",
        )
    yield Case(
        about="another's Binary, through a document that does not refer to it",
        path="Binary/scan-other?_of=DocumentReference/scan",
        is_for_proxy=True,
    )
    yield Case(
        about="Binary, through another's document",
        path="Binary/scan-nobody?_of=DocumentReference/documentreference-other",
        is_for_proxy=True,
    )
    for path in (
        "Patient/mine/../other",
        "Patient/mine/Patient/other",
        "Patient//other",
        "Patient%2Fother",
        "patient/other",
        "Patient/other?x=1",
    ):
        yield Case(about="path that is not the patient's", path=path)


def _searches() -> Iterator[Case]:
    for query in (
        "patient=other",
        "patient=Patient/other",
        "patient=mine,other",
        f"patient={BASE}/Patient/other",
        "patient=mine&patient=other",
        "patient:Patient=other",
        "subject=Patient/other",
        "subject:Patient=other",
        "subject=Group/1",
        "performer=Patient/other",
        "performer=patient/other",
        "_query=everybody",
        "patient=https://elsewhere.example.net/Patient/mine",
    ):
        yield Case(about="search outside the record", path=f"Observation?{query}")
    for path in (
        "Patient?_id=other",
        "Patient?_id=mine,other",
        "Patient?link=Patient/other",
        "Patient?identifier=1",
        "Patient?identifier:not=1",
        "Patient?_revinclude=Observation:performer",
        "Coverage?beneficiary=Patient/other",
        "Coverage?subscriber=Patient/other",
        "Appointment?actor=Patient/other",
        "Group?member=Patient/other",
        "Patient/other/Observation",
        "Patient/other/Observation?code=4548-4",
        "Patient/other/_search",
        "Practitioner?_has:Observation:performer:code=4548-4",
        "Practitioner?_has:Observation:performer:patient=other",
        "Practitioner?_HAS:Observation:performer:patient=other",
        "PractitionerRole?practitioner._has:Observation:performer:patient=other",
        "Practitioner?_list=1",
        "Practitioner?_has:Observation:performer:patient=other&_summary=count",
        "Location?_has:Encounter:location:patient=other&_count=0",
        "Binary",
        "Bundle",
        "Linkage",
        "MessageHeader",
        "VerificationResult",
        "EnrollmentResponse",
        "?_type=Observation",
        "Slot?schedule.actor=Patient/other",
        "Slot?schedule.actor:Patient.identifier=1&_summary=count",
        "DeviceMetric?source.patient=other",
        "DeviceMetric",
        "Slot?_has:Appointment:slot:patient=other&_summary=count",
        "Observation?_has:Provenance:target:agent=Patient/other",
        "Observation?_elements=subject&performer=Patient/other",
        "Encounter/encounter-other/Practitioner",
        "Schedule?actor=Practitioner/dr,Patient/other",
        "Medication?_in=List/list-other",
        "Practitioner?_id:in=CareTeam/careteam-other",
        # What the patient's own resource refers to, or what refers to it.
        "Observation?has-member.value-quantity=gt7&_summary=count",
        "Coverage?subscriber.birthdate=1980-01-01&_summary=count",
        "Coverage?subscriber:Patient.family=Li&_summary=count",
        "Group?member.family=Li&_summary=count",
        "Patient?_has:Observation:performer:code=4548-4&_summary=count",
        "Device?_has:Observation:device:code=4548-4&_summary=count",
        "Observation?_sort=has-member.date",
        "Observation?_filter=has-member.code eq 4548-4",
    ):
        yield Case(about="search outside the record", path=path)
    for query, total in (
        ("", None),
        ("?code=4548-4", None),
        ("?identifier=id-other", 0),
        ("?_summary=count", 3),
        ("?_elements=id", None),
        ("?_summary=text", None),
        ("?_id=vital-other", 0),
    ):
        path = f"Observation{query}"
        yield Case(
            about="search without a patient", path=path, expected="own", total=total
        )
    for query in (
        "_count=0",
        "_elements:x=id",
        "_summary=COUNT",
        "patient.family=x&_summary=count",
        "patient:missing=false",
        "patient:not=mine",
        "patient:identifier=1",
        "patient%00=other",
        "patient[]=other",
        "patient;subject=other",
        ".patient=other",
        "%70atient=other",
        "_has:Provenance:target:patient=mine&_summary=count",
        "code:in=List/list-other",
        "code:of-type=x",
        "Code=4548-4",
        "CODE=4548-4&_summary=count",
        "performer:Patient=other",
        "performer:identifier=1",
        "performer:identifier=Practitioner/dr",
        "performer:iterate=Practitioner/dr",
        "performer:missing=Patient/other",
        "performer=other",
        "performer=Practitioner/dr,Patient/other",
        "performer=RelatedPerson/relatedperson-other",
        "performer=Practitioner/dr%3FPatient/other",
        "performer=Patient%252Fother",
        "encounter=Encounter/encounter-other",
        "_include=*",
        "_include=Condition:encounter",
        "_include:iterate=Observation:performer",
        "_sort=performer.name",
        "_sort=_has:Provenance:target:agent",
        "_type=Patient",
        "_format=xml",
        "_total=all",
        "_contained=both",
        "_text=x",
        "_content=x",
        "name=x",
    ):
        yield Case(about="search by what is not listed", path=f"Observation?{query}")
    for parameter in ("PATIENT", "subject:PATIENT", "Subject"):
        yield Case(
            about="search by a parameter in capitals",
            path=f"Observation?{parameter}=other",
            headers={"Prefer": "handling=lenient"},
        )
    yield Case(
        about="search by a parameter that the server does not know",
        path="Coverage?subject=Patient/mine&_summary=count",
        headers={"Prefer": "handling=lenient"},
    )
    for name, parameter, value in (
        ("Observation", "subject", "Patient/other"),
        ("Observation", "patient", "other"),
        ("Observation", "performer", "Patient/other"),
        ("Observation", "performer", "Patient%252Fother"),
        ("Observation", "performer", "Group/group-other"),
        ("Observation", "focus", "Person/person-other"),
        ("Appointment", "actor", "Patient/other"),
        ("Group", "member", "Patient/other"),
        ("Slot", "schedule.actor", "Patient/other"),
        ("Practitioner", "_has:Observation:performer:patient", "other"),
        ("Practitioner", "_has:Observation:performer:subject", "Patient/other"),
        ("Patient", "_id", "other"),
        ("Patient", "identifier", "https://x/Patient/other"),
    ):
        yield Case(
            about="search for another patient, by a parameter that the view lists",
            path=f"{name}?{parameter}={value}&_summary=count",
            attributes={"parameters": {f"{name}.{parameter}"}},
        )
    for path in (
        "Patient",
        "Patient?_summary=count",
        "Condition?_revinclude=Provenance:target",
        "Patient?_revinclude=Condition:subject",
    ):
        yield Case(about="search without a patient", path=path, expected="own")
    for path in (
        "Practitioner?_revinclude=Observation:performer",
        "Practitioner?_include=Practitioner:*&_revinclude=Observation:performer",
    ):
        yield Case(about="included resources", path=path, expected="nothing")
    for form in (
        "patient=other",
        "subject=Patient/other",
        "patient=mine&patient=other",
    ):
        yield Case(
            about="search by POST",
            method="POST",
            path="Observation/_search",
            body=form,
            media_type=FORM,
        )
    yield Case(
        about="search by POST, with another patient in the URL",
        method="POST",
        path="Observation/_search?patient=other",
        body="code=4548-4",
        media_type=FORM,
    )
    yield Case(
        about="search by POST, without a patient",
        method="POST",
        path="Observation/_search",
        body="identifier=id-other",
        media_type=FORM,
        expected="own",
        total=0,
    )


def _writes_of_each_type() -> Iterator[Case]:
    for name in TYPES:
        other = f"{name}/{name.lower()}-other"
        yield Case(
            about=f"create another patient's {name}",
            method="POST",
            path=name,
            body=new(name, "other"),
        )
        yield Case(
            about=f"delete another patient's {name}", method="DELETE", path=other
        )


def _creates() -> Iterator[Case]:
    def create(text: str, body: Any, **options: Any) -> Case:
        kind = body["resourceType"] if isinstance(body, dict) else "Observation"
        return Case(about=text, method="POST", path=kind, body=body, **options)

    decoy = new("Observation", "other", patient=ref_to("mine"))
    yield create(
        "create another's, with an invented element that names the patient", decoy
    )
    decoy = new("Condition", "other", asserter=ref_to("mine"))
    yield create("create another's, with the patient as asserter", decoy)
    decoy = new("Task", "other", focus=ref_to("mine"))
    yield create("create another's, with the patient as focus", decoy)
    nobodys = {"resourceType": "Observation", "status": "final"}
    yield create("create without a subject", nobodys)
    yield create(
        "create without a subject, but with a patient",
        {**nobodys, "patient": ref_to("mine")},
    )
    yield create(
        "create a definition by which the server searches",
        {"resourceType": "SearchParameter", "code": "patient", "base": ["Observation"]},
        is_for_proxy=True,
    )
    yield create("create a Patient", {"resourceType": "Patient", "active": True})
    for subject in ODD_SUBJECTS:
        body = {**nobodys, "subject": subject}
        yield create(f"create with the subject {json.dumps(subject)}", body)
    for name, members in NAMING_OTHERS:
        text = json.dumps(members)
        is_own = _only_refers_to_others(name, members)
        # Without a literal reference, it leads nowhere.
        is_attack = not is_own or "other" in text
        yield create(
            f"create {name} with {text}",
            {**new(name, "mine"), **members},
            is_for_proxy=is_own and is_attack,
            is_attack=is_attack,
            expected="refused" if is_attack else "answered",
        )
    twice = (
        '{"resourceType": "Observation", "subject": {"reference": "Patient/other"}, '
        '"subject": {"reference": "Patient/mine"}}'
    )
    yield create("create with two subjects", twice, is_for_proxy=True)
    for name in ("EnrollmentResponse", "Subscription"):
        yield create(
            "create a resource without a known patient",
            {"resourceType": name, "status": "x"},
        )
    document = {
        "resourceType": "Bundle",
        "type": "document",
        "entry": [
            {"resource": new("Composition", "mine")},
            {"resource": new("Condition", "other")},
        ],
    }
    yield create("create a document with another's Condition", document)
    inner = {"resourceType": "Parameters", "parameter": [{"name": "x"}]}
    inner["parameter"][0]["resource"] = new("Condition", "other")  # type: ignore[index]
    yield create("create Parameters with another's Condition", inner)
    scan = {"resourceType": "Binary", "contentType": "text/plain", "data": "QQ=="}
    yield create("create a Binary without a patient", scan, is_for_proxy=True)
    yield create(
        "create another patient's Binary", {**scan, "securityContext": ref_to("other")}
    )
    for name in ("mine", "other", "nobody"):
        for url in (f"Binary/scan-{name}", f" {BASE}/Binary/scan-{name}/_history/1"):
            content = [{"attachment": {"url": url}}]
            yield create(
                "create a document that refers to a Binary",
                new("DocumentReference", "mine", content=content),
                is_for_proxy=True,
            )
    for reference in (
        "Practitioner?_has:Observation:performer:patient=other",
        "Observation?identifier=id-other",
        "Patient?identifier=1",
        "Practitioner%3F_has:Observation:performer:patient=other",
    ):
        yield create(
            f"create with the conditional reference {reference}",
            new("Observation", "mine", performer=[ref(reference)]),
            is_for_proxy=True,
        )
    for kind in ("Practitioner", "Organization", "Questionnaire"):
        yield create(
            f"create a {kind}, which belongs to no patient",
            {"resourceType": kind},
            is_for_proxy=True,
        )
    yield create(
        "conditional create, with a search for another patient's",
        new("Observation", "mine"),
        headers={"If-None-Exist": "patient=other&identifier=id-other"},
    )
    for condition in ("_has:Provenance:target:agent=x", "code:in=x", "x=1", "_count=1"):
        yield create(
            "conditional create, by what is not listed",
            new("Observation", "mine"),
            headers={"If-None-Exist": condition},
            is_for_proxy=True,
        )
    yield create(
        "conditional create, with the identifier of another's",
        new("Observation", "mine"),
        headers={"If-None-Exist": "identifier=id-other"},
        is_attack=False,
        expected="answered",
    )


def _changes() -> Iterator[Case]:
    mine = observation()
    for name in ("observation-other", "vital-other", "odd-0", "odd-13"):
        path = f"Observation/{name}"
        yield Case(
            about="replace another's resource with the patient's",
            method="PUT",
            path=path,
            body={**mine, "id": name},
        )
        yield Case(about="delete another's resource", method="DELETE", path=path)
    yield Case(
        about="update that changes the patient",
        method="PUT",
        path="Observation/observation-mine",
        body={**mine, "subject": ref_to("other")},
    )
    yield Case(
        about="update with another id in the body",
        method="PUT",
        path="Observation/observation-mine",
        body={**mine, "id": "observation-other"},
    )
    yield Case(
        about="update that creates a resource under a new id",
        method="PUT",
        path="Observation/new",
        body={**mine, "id": "new"},
    )
    yield Case(about="delete another patient", method="DELETE", path="Patient/other")
    yield Case(
        about="update another patient",
        method="PUT",
        path="Patient/other",
        body={"resourceType": "Patient", "id": "other", "active": False},
    )
    for query in (
        "patient=other",
        "subject=Patient/other&code=4548-4",
        "performer=Patient/other",
    ):
        path = f"Observation?{query}"
        body = {name: value for name, value in mine.items() if name != "id"}
        yield Case(
            about="conditional update",
            method="PUT",
            path=path,
            body=body,
            # The search is narrowed to the patient, and finds nothing.
            is_for_proxy=query.startswith("performer"),
        )
        yield Case(about="conditional delete", method="DELETE", path=path)
    yield Case(
        about="conditional delete by the identifier of another's",
        method="DELETE",
        path="Observation?identifier=id-other",
        expected="own",
    )
    yield Case(about="delete everything", method="DELETE", path="Observation?_count=1")
    yield Case(about="delete without a condition", method="DELETE", path="Observation")
    yield Case(
        about="delete an outdated version",
        method="DELETE",
        path="Observation/observation-mine",
        headers={"If-Match": 'W/"7"'},
    )


def _patches() -> Iterator[Case]:
    def patch(name: str, text: str, *steps: dict[str, Any], **options: Any) -> Case:
        return Case(
            about=text,
            method="PATCH",
            path=f"Observation/{name}",
            body=list(steps),
            media_type=JSON_PATCH,
            **options,
        )

    status = {"op": "replace", "path": "/status", "value": "amended"}
    other = ref_to("other")
    yield patch("observation-other", "patch another's resource", status)
    yield patch(
        "observation-other",
        "patch another's resource, without a response body",
        status,
        headers={"Prefer": "return=minimal"},
    )
    move = {"op": "replace", "path": "/subject", "value": ref_to("mine")}
    yield patch(
        "observation-other", "patch that makes another's resource the patient's", move
    )
    for text, steps in (
        (
            "replaces the subject",
            [{"op": "replace", "path": "/subject", "value": other}],
        ),
        (
            "replaces its reference",
            [{"op": "replace", "path": "/subject/reference", "value": "Patient/other"}],
        ),
        ("removes the subject", [{"op": "remove", "path": "/subject"}]),
        ("adds a performer", [{"op": "add", "path": "/performer", "value": [other]}]),
        (
            "copies a text into the subject",
            [
                {"op": "add", "path": "/note", "value": [{"text": "Patient/other"}]},
                {"op": "copy", "from": "/note/0/text", "path": "/subject/reference"},
            ],
        ),
        (
            "moves a reference into the subject",
            [
                {"op": "add", "path": "/x", "value": other},
                {"op": "move", "from": "/x", "path": "/subject"},
            ],
        ),
        (
            "replaces the whole resource",
            [{"op": "replace", "path": "", "value": observation("other")}],
        ),
        ("changes the id", [{"op": "replace", "path": "/id", "value": "x"}]),
        (
            "changes the type",
            [{"op": "replace", "path": "/resourceType", "value": "Media"}],
        ),
        (
            "names an element in capitals",
            [{"op": "replace", "path": "/Subject", "value": other}],
        ),
        (
            "adds a contained Patient",
            [
                {
                    "op": "add",
                    "path": "/contained",
                    "value": [{"resourceType": "Patient"}],
                }
            ],
        ),
    ):
        yield patch(
            "observation-mine",
            f"patch that {text}",
            *steps,
            is_for_proxy=text == "adds a performer",
        )

    def fhirpath(text: str, name: str, /, **parts: str) -> Case:
        part = [
            {
                "name": key,
                ("valueString" if key in {"path", "name"} else "valueCode"): one,
            }
            for key, one in parts.items()
            if key != "value"
        ]
        if "value" in parts:
            part.append({"name": "value", "valueString": parts["value"]})
        body = {
            "resourceType": "Parameters",
            "parameter": [{"name": "operation", "part": part}],
        }
        path = f"Observation/{name}"
        return Case(about=text, method="PATCH", path=path, body=body)

    yield fhirpath(
        "FHIRPath Patch of another's resource",
        "observation-other",
        type="replace",
        path="Observation.status",
        value="amended",
    )
    for text, parts in (
        (
            "the subject",
            {"path": "Observation.subject.reference", "value": "Patient/other"},
        ),
        ("a performer", {"path": "Observation.note.text", "value": "Patient/other"}),
        ("any descendant", {"path": "Observation.descendants()", "value": "x"}),
        ("an id", {"path": "Observation.id", "value": "x"}),
        ("a subject without the type", {"path": "subject.reference", "value": "x"}),
        (
            "a filtered subject",
            {"path": "Observation.where(status='final').subject.reference"},
        ),
        (
            "a performer's identifier",
            {"path": "Observation.performer.identifier.value"},
        ),
    ):
        yield fhirpath(
            f"FHIRPath Patch of {text}", "observation-mine", type="replace", **parts
        )
    yield fhirpath(
        "FHIRPath Patch that adds a subject",
        "observation-mine",
        type="add",
        path="Observation",
        name="subject",
        value="x",
    )


def _operations() -> Iterator[Case]:
    for path in (
        "Patient/other/$everything",
        "Patient/$everything",
        "Observation/$lastn?patient=other",
        "Observation/$lastn?subject=Patient/other",
        "Observation/$lastn?performer=Patient/other",
        "Observation/$lastn?_summary=count",
        "Observation/$lastn?_type=Patient",
        "DocumentReference/$docref?patient=other",
        "DocumentReference/$docref?subject:identifier=1",
        "Patient/mine/$everything?_Type=Patient&patient=other",
        "Patient/mine/$lastn",
        "Condition/$lastn",
        "CodeSystem/$expand",
        "ValueSet/$expand?context=Patient/other",
        f"ValueSet/$expand?url={BASE}/Patient/other",
        "$validate",
    ):
        yield Case(about="operation outside the record", path=path)
    for query in ("subject=Patient/other", "x=Patient/other", "_summary=count"):
        yield Case(
            about="operation that the view lists, about another patient",
            path=f"Questionnaire/deep/$populate?{query}",
            attributes=POPULATE,
        )
    # Nothing in the answer would say whose it is.
    for path in (
        "Encounter/encounter-other/$everything?_type=Medication",
        "Observation/observation-other/_history?_summary=count",
        "Observation/observation-other/$everything?_count=0",
        "Patient/mine/$everything?patient=other&_count=0",
    ):
        yield Case(about="operation or history of another's resource", path=path)
    for path in ("$export", "Patient/$export", "Patient/mine/$purge", "$graphql"):
        yield Case(
            about="operation that the view does not allow", path=path, is_for_proxy=True
        )
    yield Case(
        about="$lastn without a patient", path="Observation/$lastn", expected="own"
    )

    def call(text: str, path: str, body: Any) -> Case:
        return Case(about=text, method="POST", path=path, body=body)

    yield call(
        "$validate of another's resource", "Observation/$validate", observation("other")
    )
    yield call(
        "$validate of the patient's resource, in place of another's",
        "Observation/observation-other/$validate",
        observation(),
    )
    yield call(
        "$validate of a Patient", "Patient/$validate", {"resourceType": "Patient"}
    )
    for part in (
        {"name": "subject", "valueReference": ref_to("other")},
        {"name": "patient", "valueString": "other"},
        {"name": "content", "resource": new("QuestionnaireResponse", "other")},
    ):
        body = {"resourceType": "Parameters", "parameter": [part]}
        text = f"$populate with {json.dumps(part)}"
        populate = call(text, "Questionnaire/deep/$populate", body)
        yield replace(populate, attributes=POPULATE)
    yield call(
        "$lastn with a body",
        "Observation/$lastn",
        {"resourceType": "Parameters", "parameter": [{"name": "max"}]},
    )
    yield call(
        "$expand with a parameter that is not listed",
        "ValueSet/$expand",
        {"resourceType": "Parameters", "parameter": [{"name": "context"}]},
    )


def _bundles() -> Iterator[Case]:
    def send(text: str, *entries: dict[str, Any], kind: str = "batch") -> Case:
        body = {"resourceType": "Bundle", "type": kind, "entry": list(entries)}
        # A strict server refuses the entry alone.
        expected = (
            "nothing" if text == "batch that reads another's resource" else "refused"
        )
        return Case(
            about=text,
            method="POST",
            path="",
            body=body,
            expected=expected,
            attributes={"batch": True},
        )

    def entry(
        method: str, url: str, resource: Any = None, **more: Any
    ) -> dict[str, Any]:
        body = {} if resource is None else {"resource": resource}
        return {"request": {"method": method, "url": url}, **body, **more}

    mine = entry("GET", "Observation/observation-mine")
    other = "Observation/observation-other"
    for kind in ("batch", "transaction"):
        for text, one in (
            ("reads another's resource", entry("GET", other)),
            ("reads another patient", entry("GET", "Patient/other")),
            ("reads another's history", entry("GET", f"{other}/_history")),
            ("validates another's resource", entry("GET", f"{other}/$validate")),
            ("searches another's resources", entry("GET", "Observation?patient=other")),
            ("reads another's record", entry("GET", "Patient/other/Observation")),
            (
                "creates another's Condition as an Observation",
                entry("POST", "Observation", new("Condition", "other")),
            ),
            (
                "creates another's Observation",
                entry("POST", "Observation", new("Observation", "other")),
            ),
            ("deletes another's resource", entry("DELETE", other)),
            (
                "updates another's resource",
                entry("PUT", other, {**observation(), "id": "observation-other"}),
            ),
            (
                "creates a Patient",
                entry(
                    "POST", "Patient", {"resourceType": "Patient"}, fullUrl="urn:uuid:1"
                ),
            ),
            ("contains a batch", entry("POST", "", {"resourceType": "Bundle"})),
            ("has a path with ..", entry("GET", "Patient/mine/../other")),
            ("has an absolute URL", entry("GET", f"{BASE}/{other}")),
        ):
            yield send(f"{kind} that {text}", mine, one, kind=kind)
    patch = json.dumps(
        [{"op": "replace", "path": "/subject", "value": ref_to("other")}]
    )
    binary = {
        "resourceType": "Binary",
        "contentType": JSON_PATCH,
        "data": base64.b64encode(patch.encode()).decode(),
    }
    yield send(
        "batch that changes the patient of a resource",
        entry("PATCH", "Observation/observation-mine", binary),
    )
    subject = {**new("Observation", "mine"), "subject": ref("urn:uuid:1")}
    yield send(
        "transaction that creates its own subject",
        entry("POST", "Patient", {"resourceType": "Patient"}, fullUrl="urn:uuid:1"),
        entry("POST", "Observation", subject),
        kind="transaction",
    )
    yield send("Bundle of another type", kind="document")


def _scopes() -> Iterator[Case]:
    write = "patient/Observation.cruds user/Observation.rs"
    yield Case(
        about="create another's resource, with read-only user/ scopes",
        method="POST",
        path="Observation",
        body=new("Observation", "other"),
        scope=write,
    )
    yield Case(
        about="delete another's resource, with read-only user/ scopes",
        method="DELETE",
        path="Observation/observation-other",
        scope=write,
    )
    yield Case(
        about="update another's resource, with read-only user/ scopes",
        method="PUT",
        path="Observation/observation-other",
        body={**observation(), "id": "observation-other"},
        scope=write,
    )
    narrow = "patient/Observation.rs user/Observation.rs?category=vital-signs"
    yield Case(
        about="read another's resource that the user/ scope does not select",
        path="Observation/observation-other",
        scope=narrow,
    )
    laboratory = "patient/Observation.cruds?category=laboratory"
    yield Case(
        about="read a resource that the scope does not select",
        path="Observation/vital-mine",
        scope=laboratory,
    )
    yield Case(
        about="search for resources that the scope does not select",
        path="Observation?category=vital-signs",
        scope=laboratory,
        expected="own",
        total=0,
    )
    yield Case(
        about="create a resource that the scope does not select",
        method="POST",
        path="Observation",
        body=new("Observation", "mine", category=[{"coding": [{"code": "x"}]}]),
        scope=laboratory,
        is_for_proxy=True,
    )
    yield Case(
        about="delete a resource that the scope does not select",
        method="DELETE",
        path="Observation/vital-mine",
        scope=laboratory,
        is_for_proxy=True,
    )
    for method in ("DELETE", "PATCH"):
        yield Case(
            about=f"{method} of a resource that no scope allows reading",
            method=method,
            path="Observation/observation-mine",
            body=[{"op": "remove", "path": "/status"}] if method == "PATCH" else None,
            media_type=JSON_PATCH,
            scope="patient/Observation.cud",
        )
    yield Case(
        about="included resources, with a user/ scope for Bundles",
        path="Practitioner?_revinclude=Observation:performer",
        scope="user/Bundle.rs patient/Practitioner.rs patient/Observation.rs",
        expected="nothing",
    )
    yield Case(
        about="search for practitioners by others' resources, with a user/ scope",
        path="Practitioner?_has:Observation:performer:patient=other&_summary=count",
        scope="user/Practitioner.rs patient/Observation.rs",
    )
    yield Case(
        about="document that no scope selects",
        path="Bundle/document-mine",
        scope="patient/Bundle.rs?type=collection patient/Composition.rs",
    )
    yield Case(
        about="type without a scope", path="Condition/condition-mine", scope=laboratory
    )
    yield Case(
        about="search without the scope letter for it",
        path="Observation",
        scope="patient/*.r",
    )


def _legitimate() -> Iterator[Case]:
    def fine(text: str, path: str, method: str = "GET", **options: Any) -> Case:
        values = {"is_attack": False, "expected": "answered", **options}
        return Case(about=text, path=path, method=method, **values)

    for name in TYPES:
        if get_compartment(name).parameter:
            yield fine(f"read {name}", f"{name}/{name.lower()}-mine")
            yield fine(f"search {name}", name)
    mine = "Observation/observation-mine"
    for text, path in (
        ("capabilities", "metadata"),
        ("read the patient", "Patient/mine"),
        ("read with a trailing slash", "Patient/mine/"),
        ("search with a trailing slash", "Observation/?code=4548-4"),
        ("version", f"{mine}/_history/1"),
        ("history", f"{mine}/_history"),
        ("history of the patient", "Patient/mine/_history"),
        ("number of versions", f"{mine}/_history?_summary=count"),
        ("$everything", "Patient/mine/$everything?_type=Condition"),
        ("$lastn", "Observation/$lastn?max=1&code=4548-4"),
        ("search in the compartment", "Patient/mine/Condition"),
        ("read with a query", f"{mine}?_elements=code"),
        ("read with a summary", f"{mine}?_summary=true"),
        ("search for some elements", "Observation?code=4548-4&_elements=code"),
        ("search by id", "Patient?_id=mine"),
        (
            "search by a profile",
            "Observation?_profile=http://hl7.org/fhir/StructureDefinition/Patient",
        ),
        ("search by an actor", "Appointment?actor=Patient/mine"),
        ("search by the beneficiary", "Coverage?beneficiary=Patient/mine"),
        (
            "patient with resources that refer to them",
            "Patient?_revinclude=Condition:patient",
        ),
        ("search by subject", "Observation?subject=Patient/mine"),
        ("search by URL", f"Observation?patient={BASE}/Patient/mine&code=4548-4"),
        ("Device by patient", "Device?patient=mine"),
        ("Questionnaire of 16 levels", "Questionnaire/deep"),
        ("absolute references", "Observation/absolute"),
        ("document", "Bundle/document-mine"),
        ("Practitioner", "Practitioner/dr"),
        ("Organization by name", "Organization?name=harbour"),
        ("Location", "Location/ward"),
        ("Medication", "Medication/metformin"),
        ("Binary", "Binary/scan-mine"),
        (
            "included resources",
            "Observation?_id=absolute&_include=Observation:performer",
        ),
        ("search in pages", "Condition?_count=1"),
        ("search by a doctor", "Observation?performer=Practitioner/dr"),
        ("search by a doctor's id", "Observation?performer:Practitioner=dr"),
        ("search by the id of what is shared", "Encounter?location=ward"),
        ("search by the patient in another role", "Observation?performer=Patient/mine"),
        ("search by a modifier", "Observation?code:not=1&value-string:exact=x"),
        ("search by what is missing", "Observation?performer:missing=true"),
        (
            "search with the parameters of all types",
            "Condition?_lastUpdated=ge2026&_tag=x&_security=R&_sort=-_lastUpdated"
            "&_total=accurate&_count=50&_format=json&_pretty=true",
        ),
        ("sorted search", "Observation?_sort=-date,code"),
        ("schedules of a doctor", "Schedule?actor=Practitioner/dr"),
        (
            "Provenance",
            "Observation?_id=observation-mine&_revinclude=Provenance:target",
        ),
    ):
        yield fine(text, path)
    yield fine(
        "Binary that a document refers to",
        "Binary/scan-mine?_of=DocumentReference/scan",
        is_for_proxy=True,
    )
    yield fine("HEAD", mine, "HEAD", is_for_proxy=True)
    for text, kind, name, value in (
        ("search by an encounter", "Observation", "encounter", "Encounter/e1"),
        ("search by the id of an encounter", "Observation", "encounter", "e1"),
        ("chain to what is shared", "MedicationRequest", "medication.code", "1"),
        ("chain within the record", "Observation", "has-member.code", "4548-4"),
        (
            "search by what refers to it",
            "Patient",
            "_has:Observation:patient:code",
            "1",
        ),
        ("free appointments of a doctor", "Slot", "schedule.actor", "Practitioner/dr"),
    ):
        yield fine(
            text,
            f"{kind}?{name}={value}",
            attributes={"parameters": {f"{kind}.{name}"}},
        )
    yield fine(
        "child's coverage, with the mother as subscriber", "Coverage/naming-mother"
    )
    yield fine(
        "search by POST",
        "Observation/_search",
        "POST",
        body="code=4548-4",
        media_type=FORM,
    )
    for name in ("Observation", "Condition", "DocumentReference", "Task", "Coverage"):
        yield fine(f"create {name}", name, "POST", body=new(name, "mine"))
    yield fine(
        "conditional create",
        "Observation",
        "POST",
        body=new("Observation", "mine"),
        headers={"If-None-Exist": "identifier=new"},
    )
    yield fine("update", mine, "PUT", body=observation(status="amended"))
    yield fine(
        "update with If-Match",
        mine,
        "PUT",
        body=observation(status="amended"),
        headers={"If-Match": 'W/"1"'},
    )
    yield fine(
        "conditional update",
        "Observation?identifier=id-mine",
        "PUT",
        body={**observation(identifier=[{"value": "id-mine"}]), "id": "vital-mine"},
    )
    yield fine(
        "conditional update without a match",
        "Observation?identifier=new",
        "PUT",
        body=new("Observation", "mine", identifier=[{"value": "new"}]),
    )
    status = {"op": "replace", "path": "/status", "value": "amended"}
    yield fine("patch", mine, "PATCH", body=[status], media_type=JSON_PATCH)
    parts = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Observation.status"},
        {"name": "value", "valueCode": "amended"},
    ]
    yield fine(
        "FHIRPath Patch",
        mine,
        "PATCH",
        expected="refused",
        is_for_proxy=True,
        body={
            "resourceType": "Parameters",
            "parameter": [{"name": "operation", "part": parts}],
        },
    )
    yield fine("delete", mine, "DELETE")
    yield fine("conditional delete", "Observation?identifier=id-mine", "DELETE")
    populate = "Questionnaire/deep/$populate"
    yield fine("$populate", f"{populate}?subject=Patient/mine", attributes=POPULATE)
    part = {"name": "subject", "valueReference": ref_to("mine")}
    parameters = {"resourceType": "Parameters", "parameter": [part]}
    yield fine(
        "$populate with Parameters",
        populate,
        "POST",
        body=parameters,
        attributes=POPULATE,
    )
    yield fine("$validate", "Observation/$validate", "POST", body=observation())
    yield fine(
        "$validate in place of a resource",
        f"{mine}/$validate",
        "POST",
        body=observation(),
    )
    entries = [
        {"request": {"method": "GET", "url": mine}},
        {"request": {"method": "GET", "url": "Condition?_count=1"}},
        {"request": {"method": "POST", "url": "Task"}, "resource": new("Task", "mine")},
        {
            "request": {"method": "PUT", "url": mine},
            "resource": observation(status="amended"),
        },
        {"request": {"method": "DELETE", "url": "Condition/condition-mine"}},
    ]
    for kind in ("batch", "transaction"):
        body = {"resourceType": "Bundle", "type": kind, "entry": entries}
        yield fine(kind, "", "POST", body=body, attributes={"batch": True})
    encounter: dict[str, Any] = {
        "fullUrl": "urn:uuid:1",
        "request": {"method": "POST", "url": "Encounter"},
        "resource": new("Encounter", "mine"),
    }
    linked: dict[str, Any] = {
        "request": {"method": "POST", "url": "Observation"},
        "resource": new("Observation", "mine", encounter=ref("urn:uuid:1")),
    }
    body = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [encounter, linked],
    }
    yield fine(
        "transaction whose entries refer to each other",
        "",
        "POST",
        body=body,
        attributes={"batch": True},
    )
    user = "patient/*.cruds user/Observation.cruds"
    other = "Observation/observation-other"
    yield fine("read another's resource, with user/ scopes", other, scope=user)
    yield fine(
        "delete another's resource, with user/ scopes", other, "DELETE", scope=user
    )
    yield fine(
        "read another's resource that a user/ scope selects",
        "Observation/vital-other",
        scope="patient/Observation.rs user/Observation.rs?category=vital-signs",
    )
    yield fine(
        "search for patients, with a user/ scope",
        "Patient?_id=other",
        scope="patient/Observation.rs user/Patient.rs",
    )
    yield fine(
        "read another's document, with a user/ scope",
        "Bundle/document-other",
        scope="patient/Observation.rs user/Bundle.rs",
    )
    yield fine(
        "search, with a scope for some Bundles",
        "Observation",
        scope="patient/Bundle.rs?type=document patient/Observation.rs",
    )
    laboratory = "patient/Observation.cruds?category=laboratory"
    yield fine("read a resource that the scope selects", mine, scope=laboratory)
    yield fine(
        "search for resources that the scope selects", "Observation", scope=laboratory
    )
