"""``request.smart.fhir`` under ``patient/`` scopes: what is sent, and what is not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from django_smart.exceptions import (
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRRequestError,
    ForeignPatientError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.guard import RecordRules
from django_smart.fhir.interactions import Interaction, parse_interaction
from django_smart.fhir.messages import process_resource_response
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, Grant, bundle, respond

MINE = {
    "resourceType": "Observation",
    "id": "o1",
    "subject": {"reference": "Patient/p1"},
}
OTHERS = {**MINE, "subject": {"reference": "Patient/p2"}}
FORM = "application/x-www-form-urlencoded"
STATUS = [{"op": "add", "path": "/status", "value": "final"}]


def make_grant(
    scope: str = "patient/*.cruds", *, patient_id: str | None = "p1", **rules: bool
) -> Grant:
    return Grant(
        patient_id=patient_id,
        get_scopes=lambda: ScopeSet.parse(scope),
        record_rules=RecordRules(**rules),
    )


def ask(grant: Grant, path: str) -> dict[str, Any]:
    """The resource at a path."""
    asked = parse_interaction("GET", path)
    return process_resource_response(grant.client.perform(asked), what="request")


def test_search_without_a_patient_is_about_the_launchs():
    grant = make_grant()
    grant.server.on("Observation?code=1&patient=p1", respond(bundle(MINE)))
    assert list(grant.client.search("Observation", code="1")) == [MINE]
    grant.server.on("Observation?patient=p1", respond(bundle(OTHERS)))
    with pytest.raises(ForeignPatientError):
        list(grant.client.search("Observation", patient="p1"))
    with pytest.raises(ForeignPatientError):
        list(grant.client.search("Observation", patient="p2"))
    assert len(grant.server.requests) == 2


@pytest.mark.parametrize("kind", ["references", "bundles", "scopes", "parameters"])
def test_check_takes_no_longer_than_what_is_checked(kind):
    """A server could keep a process busy for an hour, with one response."""
    number = 40_000
    entries: list[dict[str, Any]] = [{"fullUrl": f"urn:{n}"} for n in range(number)]
    scope = "patient/*.cruds"
    if kind == "references":
        target = [{"reference": f"urn:{n}"} for n in range(number)]
        own = [*target, {"reference": "Observation/o1"}]
        provenance = {"resourceType": "Provenance", "id": "p", "target": own}
        entries += [{"resource": provenance}, {"resource": MINE}]
    elif kind == "bundles":
        entries += [{"fullUrl": f"urn:more:{n}"} for n in range(2 * number)]
        entries += [{"resource": bundle(MINE)} for _ in range(number // 2)]
    elif kind == "scopes":
        entries = [{"resource": {**MINE, "id": f"{n}"}} for n in range(number)]
        scope += "".join(f" patient/A{n:x}.r".replace("0", "g") for n in range(5_000))
    else:
        entries = [{"resource": {**MINE, "id": f"{n}"}} for n in range(number // 8)]
        scope += "".join(f" user/Observation.r?code=c{n}" for n in range(5_000))
    grant = make_grant(scope)
    found = {**bundle(), "entry": entries}
    grant.server.on("Observation?patient=p1", respond(found))
    started = time.process_time()
    ask(grant, "Observation?patient=p1")
    assert time.process_time() - started < 10


MERGED = {
    "resourceType": "Patient",
    "id": "p1",
    "link": [{"other": {"reference": "Patient/old"}, "type": "replaces"}],
}


def test_patient_with_another_record_after_a_merge_is_read():
    grant = make_grant()
    grant.server.on("Patient/p1", respond(MERGED))
    assert grant.client.read("Patient", "p1") == MERGED
    grant.server.on("Patient/p1/_history/1", respond(MERGED))
    assert grant.client.vread("Patient", "p1", "1") == MERGED
    history = {**bundle(MERGED), "type": "history"}
    grant.server.on("Patient/p1/_history", respond(history))
    assert grant.client.history("Patient", "p1").versions() == [MERGED]
    grant.server.on("Patient?_id=p1", respond(bundle(MERGED)))
    assert list(grant.client.search("Patient")) == [MERGED]
    everything = bundle(MERGED, MINE)
    grant.server.on("Patient/p1/$everything", respond(everything))
    assert grant.client.operation("everything", "Patient", "p1") == everything


def test_patient_with_another_record_after_a_merge_is_changed():
    grant = make_grant("patient/Patient.cruds")
    grant.server.on("Patient/p1", respond(MERGED))
    assert grant.client.update(MERGED) == MERGED
    steps = [{"op": "replace", "path": "/gender", "value": "other"}]
    assert grant.client.patch("Patient", "p1", steps) == MERGED


@pytest.mark.parametrize(
    ("members", "is_own"),
    [
        ({"recipient": [{"reference": "Patient/p1"}]}, True),
        ({"recipient": [{"reference": f"Practitioner/{n}"} for n in "12"]}, False),
        ({"recipient": [{"reference": f"Patient/p{n}"} for n in "12"]}, False),
        ({"subject": {"reference": "Patient/p1"}}, True),
        (
            {
                "subject": {"reference": "Patient/p2"},
                "recipient": [{"reference": "Patient/p1"}],
            },
            False,
        ),
    ],
)
def test_message_to_the_patient_is_the_patients(members, is_own):
    grant = make_grant()
    message = {"resourceType": "Communication", "id": "c1", **members}
    grant.server.on("Communication/c1", respond(message))
    if is_own:
        assert grant.client.read("Communication", "c1") == message
    else:
        with pytest.raises(ForeignPatientError):
            grant.client.read("Communication", "c1")


ELSEWHERE = "https://hospital-b.example/fhir"


@pytest.mark.parametrize(
    ("resource", "is_own"),
    [
        (MINE, False),
        ({"resourceType": "Patient", "id": "p1"}, False),
        ({**MINE, "subject": {"reference": f"{BASE}/Patient/p1"}}, True),
        ({"resourceType": "Practitioner", "id": "d1"}, True),
    ],
)
def test_entry_of_another_hospital_is_not_about_the_patient(resource, is_own):
    grant = make_grant()
    url = f"{ELSEWHERE}/{resource['resourceType']}/{resource['id']}"
    found = {**bundle(), "entry": [{"fullUrl": url, "resource": resource}]}
    grant.server.on("Observation?patient=p1", respond(found))
    if is_own:
        assert ask(grant, "Observation?patient=p1") == found
    else:
        with pytest.raises(ForeignPatientError):
            ask(grant, "Observation?patient=p1")


@pytest.mark.parametrize(
    "base", [BASE, BASE.replace("https", "http"), BASE.replace("ehr.", "EHR."), ""]
)
def test_address_of_this_server_may_be_written_in_another_way(base):
    grant = make_grant()
    url = f"{base}/Observation/o1".removeprefix("/")
    found = {**bundle(), "entry": [{"fullUrl": url, "resource": MINE}]}
    grant.server.on("Observation?patient=p1", respond(found))
    assert list(grant.client.search("Observation", patient="p1")) == [MINE]


def test_included_resource_that_cannot_be_checked_is_left_out():
    grant = make_grant()
    provenance = {
        "resourceType": "Provenance",
        "id": "v1",
        "target": [{"reference": "Observation/o1/_history/1"}],
    }
    included = [
        provenance,
        {"resourceType": "Device", "id": "pump"},
        {"resourceType": "Device", "id": "other"},
        {**OTHERS, "id": "o2"},
    ]
    found = bundle(MINE)
    found["entry"] += [
        {"resource": one, "search": {"mode": "include"}} for one in included
    ]
    query = "Observation?patient=p1&_include=Observation%3Adevice"
    grant.server.on(query, respond(found))
    result = grant.client.search(
        "Observation", patient="p1", _include="Observation:device"
    )
    assert (list(result), result.included) == ([MINE], [provenance])
    assert not result.is_complete
    [issue] = result.outcomes[0]["issue"]
    assert (issue["severity"], issue["code"]) == ("warning", "incomplete")
    assert "2 Device, 1 Observation" in issue["diagnostics"]
    # A match is refused, whatever was included.
    found["entry"].append({"resource": OTHERS, "search": {"mode": "match"}})
    grant.server.on(query, respond(found))
    with pytest.raises(ForeignPatientError):
        ask(grant, query)


@pytest.mark.parametrize("scope", ["", "launch/patient", "user/Practitioner.r"])
@pytest.mark.parametrize("always", [True, False])
def test_record_is_kept_to_without_scopes_for_it_where_the_rules_say_so(scope, always):
    grant = make_grant(scope, always=always)
    grant.server.on("Patient/p2", respond({"resourceType": "Patient", "id": "p2"}))
    if always:
        with pytest.raises(ForeignPatientError):
            grant.client.read("Patient", "p2")
    else:
        assert grant.client.read("Patient", "p2")
    assert len(grant.server.requests) == (not always)


def test_patient_scopes_without_a_patient_allow_only_what_others_do():
    grant = make_grant("patient/*.rs user/Practitioner.r", patient_id=None)
    with pytest.raises(ForeignPatientError):
        grant.client.search("Observation", patient="p1")
    assert grant.server.requests == []
    own = {"resourceType": "Practitioner", "id": "d1"}
    grant.server.on("Practitioner/d1", respond(own))
    assert grant.client.read("Practitioner", "d1") == own


@pytest.mark.parametrize(
    ("actors", "is_read"),
    [
        (["Practitioner/d1", f"{BASE}/Location/1"], True),
        (["Patient/p1"], True),
        (["Practitioner/d1", "Patient/p2"], False),
        (["Practitioner/d1", "Device/1"], False),
        (["Practitioner/d1", "#p"], False),
        (["Practitioner/d1", None], False),
        ([""], False),
        ([], False),
    ],
)
def test_schedule_of_a_doctor_belongs_to_no_patient(actors, is_read):
    grant = make_grant()
    schedule = {
        "resourceType": "Schedule",
        "id": "s1",
        "actor": [{"reference": each} if each else {"display": "x"} for each in actors],
    }
    slot = {"resourceType": "Slot", "id": "t1"}
    for path in ("Slot?_include=Slot%3Aschedule", "Schedule?actor=Practitioner%2Fd1"):
        grant.server.on(path, respond(bundle(slot, schedule)))
        if is_read:
            assert ask(grant, path)["entry"]
        else:
            with pytest.raises(ForeignPatientError):
                ask(grant, path)
    with pytest.raises(ForeignPatientError):
        ask(grant, "Schedule?actor=Practitioner/d1,Patient/p2")
    if actors != ["Patient/p1"]:
        with pytest.raises(ForeignPatientError):
            grant.client.create(schedule)
        grant.server.on("Schedule/s1", respond(schedule))
        with pytest.raises(ForeignPatientError):
            grant.client.delete("Schedule", "s1")
        assert {request.method for request in grant.server.requests} == {"GET"}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("Practitioner?_has%3AObservation%3Aperformer%3Apatient=p2", ""),
        ("Slot?schedule.actor=Patient%2Fp2", ""),
        ("Medication?_list=l2", ""),
        ("Observation?_filter=patient%20eq%20p2", "&patient=p1"),
        ("Observation?patient.link.birthdate=2000", "&patient=p1"),
        ("Encounter/e2/Observation?code=1", "&patient=p1"),
    ],
)
def test_search_is_sent_as_written_and_its_result_is_checked(asked, sent):
    grant = make_grant()
    grant.server.on(f"{asked}{sent}", respond(bundle(MINE)), respond(bundle(OTHERS)))
    assert ask(grant, asked)["entry"] == [{"resource": MINE}]
    with pytest.raises(ForeignPatientError):
        ask(grant, asked)


@pytest.mark.parametrize(
    "path",
    [
        *("Observation?patient=p2", "Observation/$lastn?patient=p2", "Patient/p2"),
        *("Patient/p2/$everything", "Patient/$everything", "_history"),
        *("Observation/_history", "Questionnaire/q1/$populate?subject=p2"),
    ],
)
def test_another_patient_is_refused_before_anything_is_sent(path):
    grant = make_grant()
    with pytest.raises(ForeignPatientError):
        ask(grant, path)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "subject",
    [
        {"type": "Patient", "display": "Ada"},
        {"reference": "Patient/p1", "type": "Group"},
        {"reference": "Patient/p1#x"},
        {"reference": "Patient/p1/_history/"},
        {"reference": "Patient/p1/_history/1/x"},
    ],
)
def test_subject_is_the_reference_and_no_other_form(subject):
    grant = make_grant()
    odd = {**MINE, "subject": subject}
    grant.server.on("Observation/o1", respond(odd))
    with pytest.raises(ForeignPatientError):
        grant.client.read("Observation", "o1")
    with pytest.raises(ForeignPatientError):
        grant.client.create(odd)


@pytest.mark.parametrize("version", ["", "/_history/1"])
@pytest.mark.parametrize("base", ["", f"{BASE}/"])
def test_subject_is_named_relatively_or_at_the_server(base, version):
    grant = make_grant()
    reference = f"{base}Patient/p1{version}"
    typed = {**MINE, "subject": {"reference": reference, "type": "Patient"}}
    grant.server.on("Observation/o1", respond(typed))
    assert grant.client.read("Observation", "o1") == typed


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("Account", lambda *them: {"subject": list(them)}),
        ("Appointment", lambda *them: {"participant": [{"actor": x} for x in them]}),
        ("AuditEvent", lambda *them: {"entity": [{"what": x} for x in them]}),
        ("AuditEvent", lambda *them: {"agent": [{"who": x} for x in them]}),
        ("Group", lambda *them: {"member": [{"entity": x} for x in them]}),
        ("Person", lambda *them: {"link": [{"target": x} for x in them]}),
        ("Provenance", lambda *them: {"target": list(them)}),
    ],
)
def test_several_subjects_are_all_of_the_patient(kind, build):
    grant = make_grant()
    own = {"reference": "Patient/p1"}
    odd: tuple[list[Any], ...] = ([], [None, "Patient/p2", {"reference": 2}])
    for members in (*odd, [{"reference": "#p"}]):
        group = {"resourceType": kind, "id": "a1", **build(*members)}
        grant.server.on(f"{kind}/a1", respond(group))
        with pytest.raises(ForeignPatientError):
            grant.client.read(kind, "a1")
    for other, is_own in (
        ({"reference": "Practitioner/d1"}, True),
        ({"display": "A nurse"}, True),
        ({"reference": "Patient/p2"}, False),
        ({"reference": "Patient/p2", "type": "Practitioner"}, False),
        ({"reference": f"{ELSEWHERE}/Patient/p1"}, False),
        ({"identifier": {"value": "1"}}, False),
        ({"identifier": {"value": "1"}, "type": "Practitioner"}, True),
    ):
        for members in ([own, other], [other, own]):
            group = {"resourceType": kind, "id": "a1", **build(*members)}
            grant.server.on(f"{kind}/a1", respond(group))
            if is_own:
                assert grant.client.read(kind, "a1") == group
            else:
                with pytest.raises(ForeignPatientError):
                    grant.client.read(kind, "a1")


@pytest.mark.parametrize(
    "contained",
    [
        [{"resourceType": "Patient", "id": "c"}],
        [{"resourceType": "Patient", "id": "p1"}],
        {"resourceType": "Patient", "id": "c"},
        [{"resourceType": "Condition", "subject": {"reference": "Patient/p2"}}],
        [{"resourceType": "Parameters", "parameter": [{"resource": OTHERS}]}],
        [bundle(OTHERS)],
        [{"resourceType": "Device", "contained": [{"resourceType": "Patient"}]}],
    ],
)
def test_what_a_resource_contains_is_checked(contained):
    grant = make_grant()
    for kind in ("Observation", "Medication"):
        resource: dict[str, Any] = {**MINE, "resourceType": kind}
        told = {**resource, "contained": contained}
        grant.server.on(f"{kind}/o1", respond(told))
        with pytest.raises(ForeignPatientError):
            grant.client.read(kind, "o1")
        with pytest.raises(ForeignPatientError):
            grant.client.create(told)
        device = {"resourceType": "Device", "id": "c"}
        own = {**resource, "contained": [device]}
        grant.server.on(f"{kind}/o1", respond(own))
        assert grant.client.read(kind, "o1") == own


def test_what_is_nested_too_deeply_is_refused():
    grant = make_grant()
    levels = 1_100
    parts = '{"name": "x", "part": [' * levels + "]}" * levels
    told = f'{{"resourceType": "Parameters", "parameter": [{parts}]}}'
    grant.server.on("Observation/$lastn?patient=p1", respond(told.encode()))
    # Some versions of Python do not even parse it.
    with pytest.raises((ForeignPatientError, MalformedFHIRResponseError)):
        ask(grant, "Observation/$lastn")


@pytest.mark.parametrize(("patient_id", "is_own"), [("p1", True), ("p2", False)])
def test_subject_may_be_an_entry_that_is_the_patient(patient_id, is_own):
    grant = make_grant()
    patient = {"resourceType": "Patient", "id": patient_id}
    told = {**MINE, "subject": {"reference": "urn:uuid:1"}}
    found = bundle(told)
    entry = {"fullUrl": "urn:uuid:1", "resource": patient}
    found["entry"].append({**entry, "search": {"mode": "include"}})
    grant.server.on("Observation?patient=p1", respond(found))
    if is_own:
        assert list(grant.client.search("Observation")) == [told]
    else:
        with pytest.raises(ForeignPatientError):
            grant.client.search("Observation")


@pytest.mark.parametrize("type_", [None, [], {}])
def test_resource_without_a_type_is_refused(type_):
    grant = make_grant()
    found = bundle({**MINE, "resourceType": type_})
    grant.server.on("Observation?patient=p1", respond(found))
    with pytest.raises(ForeignPatientError):
        grant.client.search("Observation")


@pytest.mark.parametrize("type_", ["collection", "document", "message"])
def test_stored_bundle_has_something_of_the_patient(type_):
    grant = make_grant()
    doctor = {"resourceType": "Practitioner", "id": "d1"}
    # A further page of a search, as the proxy asks for it.
    page = Interaction(name="get", method="GET", path=f"{BASE}?page=2")
    for resources, is_own in (([doctor], False), ([doctor, MINE], True)):
        stored = bundle(*resources, type=type_, id="b1")
        grant.server.on("Bundle/b1", respond(stored))
        grant.server.on(page.path, respond(bundle(stored)))
        if is_own:
            assert grant.client.read("Bundle", "b1") == stored
            assert grant.client.perform(page).status_code == 200
        else:
            with pytest.raises(ForeignPatientError):
                grant.client.read("Bundle", "b1")
            with pytest.raises(ForeignPatientError):
                grant.client.perform(page)


def test_outcome_of_an_entry_is_checked():
    grant = make_grant()
    outcome = {"resourceType": "OperationOutcome", "contained": [OTHERS]}
    response = {"status": "400", "outcome": outcome}
    answer = bundle(type="batch-response", entry=[{"response": response}])
    grant.server.answers[BASE] = [respond(answer)]
    batch = grant.client.batch()
    batch.search("Observation")
    with pytest.raises(ForeignPatientError):
        batch.send()


@pytest.mark.parametrize("answer", [b"", OTHERS])
def test_body_about_another_patient_is_not_sent(answer):
    grant = make_grant()
    for path in ("Observation", "Observation/o1", "Observation/$validate", ""):
        grant.server.on(path, respond(answer))
    part = {"name": "resource", "part": [{"name": "x", "resource": OTHERS}]}
    told = {"resourceType": "Parameters", "parameter": [part]}
    stored = bundle(MINE, type="collection")
    # Left out where it comes; here, nothing is.
    stored["entry"].append({"resource": OTHERS, "search": {"mode": "include"}})
    for change in (
        lambda fhir: fhir.create(OTHERS),
        lambda fhir: fhir.update(OTHERS),
        lambda fhir: fhir.operation("validate", "Observation", body=OTHERS),
        lambda fhir: fhir.operation("validate", "Observation", body=told),
        lambda fhir: add_create(fhir.batch(), OTHERS).send(),
        lambda fhir: fhir.create(stored),
    ):
        with pytest.raises(ForeignPatientError):
            change(grant.client)
    assert grant.server.requests == []


def test_answer_to_a_change_is_checked():
    grant = make_grant()
    grant.server.on("Observation", respond(OTHERS, 201))
    with pytest.raises(ForeignPatientError):
        grant.client.create(MINE)
    grant.server.on("Observation/o1", respond(MINE), respond(OTHERS))
    with pytest.raises(ForeignPatientError):
        grant.client.update(MINE)
    assert [request.method for request in grant.server.requests] == [
        "POST",
        "GET",
        "PUT",
    ]


def test_other_elements_may_refer_to_anybody():
    grant = make_grant()
    told = {**MINE, "performer": [{"reference": "Patient/mother"}]}
    grant.server.on("Observation/o1", respond(told))
    assert grant.client.read("Observation", "o1") == told
    assert grant.client.update(told) == told
    steps = [{"op": "add", "path": "/performer", "value": told["performer"]}]
    assert grant.client.patch("Observation", "o1", steps) == told


@pytest.mark.parametrize("scope", ["", "Patient", "Group/1"])
def test_export_is_not_about_one_patient(scope):
    grant = make_grant("patient/*.rs user/Practitioner.rs")
    with pytest.raises(ForeignPatientError):
        grant.client.export(scope)
    if not scope.startswith("Group"):  # which is read first
        with pytest.raises(ForeignPatientError):
            ask(grant, f"{scope}/$export?_type=Patient".removeprefix("/"))
    assert grant.server.requests == []


@pytest.mark.parametrize("granted", ["system/*.rs", "user/*.rs patient/*.rs"])
def test_export_is_sent_where_the_server_decides(granted):
    grant = make_grant(granted)
    accepted = HTTPResponse(
        status_code=202, headers={"content-location": f"{BASE}/bulk/1"}
    )
    path = "Patient/$export?_outputFormat=application%2Ffhir%2Bndjson"
    grant.server.on(path, accepted)
    assert grant.client.export("Patient").state["status_url"] == f"{BASE}/bulk/1"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (
            "PractitionerRole?practitioner._has%3AObservation%3Aperformer%3Apatient=p1",
            "",
        ),
        ("Slot?schedule.actor=Practitioner%2Fd1%2CLocation%2F1", ""),
        ("Medication?code%3Ain=ValueSet%2F1", ""),
        ("Observation?subject%3APatient.family=Li", "&patient=p1"),
        ("Patient?_has%3AObservation%3Apatient%3Acode=1", "&_id=p1"),
        ("Coverage?beneficiary.identifier=1", "&patient=p1"),
        # A server may ignore a name, or a modifier, that it does not know.
        ("Observation?PATIENT=p1", "&patient=p1"),
    ],
)
def test_parameter_about_the_patient_is_sent(asked, sent):
    grant = make_grant()
    grant.server.on(f"{asked}{sent}", respond(bundle()))
    assert ask(grant, asked)["entry"] == []


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("code=1&_elements=id", "code=1&_elements=id%2Csubject"),
        ("code=1&_summary=true", "code=1"),
        ("_summary=text&code=1", "code=1"),
        ("_summary=count", "_summary=count"),
        ("_summary=data&code=1", "_summary=data&code=1"),
        ("_summary=false&code=1", "_summary=false&code=1"),
    ],
)
def test_search_leaves_out_nothing_that_names_the_patient(query, sent):
    grant = make_grant()
    grant.server.on(f"Observation?{sent}&patient=p1", respond(bundle(MINE)))
    assert ask(grant, f"Observation?{query}")["entry"]
    for path, body, sent_path, sent_body in (
        ("", query, "", f"{sent}&patient=p1"),
        (f"?{query}", "code=2", f"?{sent}", "code=2&patient=p1"),
    ):
        asked = parse_interaction(
            "POST", f"Observation/_search{path}", body=body.encode(), media_type=FORM
        )
        grant.server.on(f"Observation/_search{sent_path}", respond(bundle(MINE)))
        assert grant.client.perform(asked).status_code == 200
        assert grant.server.requests[-1].body == sent_body.encode()


def test_search_may_be_partial_where_the_server_decides():
    grant = make_grant("patient/*.rs user/Observation.rs")
    query = "Observation?_elements=id&_include=Observation%3Asubject"
    partial = {"resourceType": "Observation", "id": "o1"}
    own, other = ({"resourceType": "Patient", "id": name} for name in ("p1", "p2"))
    grant.server.on(query, respond(bundle(partial, own)))
    assert len(ask(grant, query)["entry"]) == 2
    # What comes along is of other types.
    grant.server.on(query, respond(bundle(partial, other)))
    with pytest.raises(ForeignPatientError):
        ask(grant, query)
    grant = make_grant("patient/*.rs user/*.rs", patient_id=None)
    grant.server.on(query, respond(bundle(partial, other)))
    assert len(ask(grant, query)["entry"]) == 2


def test_inclusion_in_any_case_keeps_the_elements_that_name_the_patient():
    grant = make_grant()
    query = "_Include=x&patient=p1"
    grant.server.on(f"Observation?{query}", respond(bundle()))
    assert ask(grant, f"Observation?{query}&_elements=id")["entry"] == []


def test_further_pages_are_checked_too():
    grant = make_grant()
    url = f"{BASE}?page=2"
    grant.server.on("Observation?patient=p1", respond(bundle(MINE, next_url=url)))
    grant.server.on(url, respond(bundle({**MINE, "id": "o2"})))
    assert len(list(grant.client.search("Observation"))) == 2
    grant.server.on(url, respond(bundle({**OTHERS, "id": "o2"})))
    with pytest.raises(ForeignPatientError):
        list(grant.client.search("Observation"))


@pytest.mark.parametrize(
    "change",
    [
        lambda fhir, own: fhir.create(own),
        lambda fhir, own: fhir.create(own, if_none_exist={"identifier": "1"}),
        lambda fhir, own: fhir.update(own, where={"identifier": "1"}),
        lambda fhir, own: add_create(fhir.transaction(), own).send(),
    ],
)
def test_no_second_patient_is_created(change: Any):
    grant = make_grant()
    own = {"resourceType": "Patient", "id": "p1"}
    grant.server.on("Patient/p1", respond(own, etag='W/"3"'))
    assert grant.client.update(own)["id"] == "p1"
    asked = len(grant.server.requests)
    with pytest.raises(ForeignPatientError):
        change(grant.client, own)
    assert len(grant.server.requests) == asked


def add_create(transaction: Any, resource: dict[str, Any]) -> Any:
    transaction.create(resource)
    return transaction


@pytest.mark.parametrize(
    "change",
    [
        lambda fhir: fhir.update(MINE),
        lambda fhir: fhir.patch("Observation", "o1", STATUS),
        lambda fhir: fhir.delete("Observation", "o1"),
    ],
)
def test_target_of_a_change_is_read_first(change: Any):
    grant = make_grant()
    grant.server.on("Observation/o1", respond(OTHERS, etag='W/"3"'))
    with pytest.raises(ForeignPatientError):
        change(grant.client)
    grant.server.on("Observation/o1", respond(b"", 404))
    with pytest.raises(FHIRNotFoundError):
        change(grant.client)
    assert [request.method for request in grant.server.requests] == ["GET", "GET"]
    grant.server.on("Observation/o1", respond(MINE, etag='W/"3"'))
    change(grant.client)
    assert grant.server.requests[-1].headers["If-Match"] == 'W/"3"'


def test_patch_that_moves_what_says_whose_a_resource_is_is_not_sent():
    grant = make_grant()
    move = {"op": "move", "from": "/subject/reference", "path": "/method/text"}
    with pytest.raises(ForeignPatientError):
        grant.client.patch("Observation", "o1", [move])
    assert grant.server.requests == []


def test_change_without_a_scope_for_reading_has_to_be_allowed():
    scope = "patient/Observation.cud"
    grant = make_grant(scope)
    with pytest.raises(InsufficientScopeError) as caught:
        grant.client.update(MINE)
    assert caught.value.missing == "patient/Observation.r"
    assert grant.server.requests == []
    grant = make_grant(scope, may_write_unread=True)
    grant.server.on("Observation/o1", respond(MINE))
    grant.client.update(MINE)
    grant.client.patch("Observation", "o1", STATUS)
    grant.client.delete("Observation", "o1")
    with pytest.raises(ForeignPatientError):
        grant.client.update(OTHERS)
    sent = [request.method for request in grant.server.requests]
    assert sent == ["PUT", "PATCH", "DELETE"]


def test_change_of_an_older_version_is_refused_before_it_is_sent():
    grant = make_grant()
    grant.server.on("Observation/o1", respond(MINE, etag='W/"3"'))
    with pytest.raises(FHIRPreconditionFailedError):
        grant.client.update(MINE, if_match="2")
    assert grant.client.update(MINE, if_match="3")["id"] == "o1"
    assert [request.method for request in grant.server.requests][-1] == "PUT"


def test_version_in_the_resource_decides_if_a_proxy_changes_the_etag():
    grant = make_grant()
    current = {**MINE, "meta": {"versionId": "3"}}
    # As Apache's mod_deflate writes it.
    grant.server.on("Observation/o1", respond(current, etag='W/"3-gzip"'))
    grant.client.modify("Observation", "o1", lambda one: one.update(status="amended"))
    assert grant.server.requests[-1].method == "PUT"
    assert grant.server.requests[-1].headers["If-Match"] == 'W/"3"'
    with pytest.raises(FHIRPreconditionFailedError):
        grant.client.update(current, if_match="2")
    assert grant.server.requests[-1].method == "GET"
    # A server without versions has nothing to compare.
    grant.server.on("Observation/o1", respond(MINE))
    grant.client.update(MINE)
    assert "If-Match" not in grant.server.requests[-1].headers


def test_condition_finds_what_is_changed():
    grant = make_grant()
    search = "Observation?identifier=1&patient=p1"
    grant.server.on(search, respond(bundle(MINE)))
    grant.server.on("Observation/o1", respond(MINE, etag='W/"3"'))
    new = {name: value for name, value in MINE.items() if name != "id"}
    grant.client.update(new, where={"identifier": "1"})
    assert grant.server.requests[-1].url == f"{BASE}/Observation/o1"
    with pytest.raises(FHIRRequestError):
        grant.client.update({**new, "id": "o9"}, where={"identifier": "1"})
    # What matches several, or nothing, is for the server to say.
    grant.server.on(search, respond(bundle()), respond(MINE, 201))
    grant.client.update(new, where={"identifier": "1"})
    assert grant.server.requests[-1].url == f"{BASE}/{search}"
    grant.server.on(search, respond(bundle(OTHERS)))
    with pytest.raises(ForeignPatientError):
        grant.client.delete("Observation", where={"identifier": "1"})


@pytest.mark.parametrize("level", ["user", "patient"])
def test_what_the_server_decides_on_is_not_therefore_the_patients(level):
    grant = make_grant(f"patient/*.rs {level}/Observation.rs")
    query = "Observation?patient=p1&_revinclude=Provenance%3Atarget"
    target = [{"reference": "Observation/o1"}]
    provenance = {"resourceType": "Provenance", "id": "v1", "target": target}
    grant.server.on(query, respond(bundle(MINE, provenance)))
    assert len(ask(grant, query)["entry"]) == 2
    grant.server.on(query, respond(bundle(OTHERS, provenance)))
    with pytest.raises(ForeignPatientError):
        ask(grant, query)
    # Alone, it is the server's to decide.
    grant.server.on(query, respond(bundle(OTHERS)))
    if level == "user":
        assert len(ask(grant, query)["entry"]) == 1


def test_older_names_of_elements_are_read_and_not_written():
    grant = make_grant()
    older = {
        "resourceType": "Condition",
        "id": "c1",
        "patient": {"reference": "Patient/p1"},
    }
    grant.server.on("Condition/c1", respond(older))
    assert grant.client.read("Condition", "c1") == older
    with pytest.raises(ForeignPatientError):
        grant.client.create(older)
    order = {**older, "resourceType": "MedicationOrder"}
    grant.server.on("MedicationOrder/c1", respond(order))
    assert grant.client.read("MedicationOrder", "c1") == order


def test_what_is_malformed_is_told_as_such():
    grant = make_grant()
    for value in (b"{", [MINE], {**MINE, "id": "o9"}, {"id": "o1"}):
        grant.server.on("Observation/o1", respond(value))
        with pytest.raises(MalformedFHIRResponseError):
            grant.client.read("Observation", "o1")


# It does not say whose it is.
COUNTED = respond(bundle(total=3))


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("Observation/o1/_history/1", MINE),
        # It does not say whose it is.
        ("Observation/o1/_history?_summary=count", bundle(type="history", total=3)),
    ],
)
def test_version_is_the_patients_only_while_the_resource_is(path, answer):
    grant = make_grant()
    grant.server.on(path, respond(answer))
    grant.server.on("Observation/o1", respond(OTHERS))
    with pytest.raises(ForeignPatientError):
        ask(grant, path)
    assert grant.server.urls == [f"{BASE}/Observation/o1"]
    grant.server.on("Observation/o1", respond(MINE))
    assert ask(grant, path) == answer


@pytest.mark.parametrize(
    "path",
    [
        "Patient/p1/$everything?_summary=count",
        "Patient/p1/_history?_summary=count",
        "Practitioner/dr/_history?_count=0",
        "Condition/c1/_history",
    ],
)
def test_nothing_is_read_first_where_that_is_certain(path):
    # Of a Condition, the server decides.
    grant = make_grant("patient/*.rs user/Condition.rs")
    deletion = {"request": {"method": "DELETE", "url": path.partition("/_")[0]}}
    grant.server.on(path, respond(bundle(type="history", total=3, entry=[deletion])))
    assert ask(grant, path)["total"] == 3
    assert grant.server.urls == [f"{BASE}/{path}"]
    with pytest.raises(ForeignPatientError):
        ask(grant, "Patient/p2/_history")


def test_operation_requires_a_scope_for_reading():
    grant = make_grant("patient/Observation.s")
    with pytest.raises(InsufficientScopeError) as caught:
        ask(grant, "Observation/o1/$everything")
    assert caught.value.missing == "patient/Observation.r"
    assert grant.server.requests == []


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("Observation/$lastn?_summary=text", "Observation/$lastn?patient=p1"),
        ("Encounter/$everything?_summary=true", "Encounter/$everything"),
        (
            "Observation/$lastn?_summary=count",
            "Observation/$lastn?_summary=count&patient=p1",
        ),
    ],
)
def test_count_comes_with_what_was_counted(asked, sent):
    grant = make_grant()
    grant.server.on(sent, respond(bundle(MINE)))
    assert ask(grant, asked)["entry"] == [{"resource": MINE}]
    grant.server.on(sent, respond(bundle(OTHERS)))
    with pytest.raises(ForeignPatientError):
        ask(grant, asked)


def call(path: str, grant: Grant, parameter: Any) -> Any:
    body = {"resourceType": "Parameters", "parameter": [parameter]}
    asked = parse_interaction("POST", path, body=body)
    return json.loads(grant.client.perform(asked).body)


@pytest.mark.parametrize("name", ["patient", "subject"])
def test_parameter_names_the_patient_at_any_depth(name):
    grant = make_grant()
    path = "Questionnaire/q1/$populate"
    grant.server.on(path, COUNTED)
    for patient_id in ("p1", "p2"):
        named = {"name": name, "valueId": patient_id}
        for parameter in (
            named,
            {"name": "x", "part": [named]},
            {"name": "x", "part": [{"name": "y", "part": [{"name": "z"}, named]}]},
        ):
            if patient_id == "p1":
                assert call(path, grant, parameter)["total"] == 3
            else:
                with pytest.raises(ForeignPatientError):
                    call(path, grant, parameter)
    own = {"name": name, "valueReference": {"reference": f"{BASE}/Patient/p1"}}
    assert call(path, grant, own)["total"] == 3
    assert len(grant.server.requests) == 4


@pytest.mark.parametrize(
    "entry",
    [
        *({"resource": OTHERS}, [{"resource": OTHERS}, 1], "x", [[OTHERS]], [None]),
        *([{"resource": [OTHERS]}], [{"resource": None}], [{"response": [OTHERS]}]),
        [{"response": {"outcome": [OTHERS]}}],
        [{"resource": bundle(entry=OTHERS)}],
    ],
)
def test_bundle_that_is_malformed_is_refused(entry):
    grant = make_grant()
    grant.server.on("Observation/o1", respond(MINE))
    grant.server.on(
        "Observation/o1/_history?x=1", respond(bundle(type="history", entry=entry))
    )
    with pytest.raises(MalformedFHIRResponseError):
        ask(grant, "Observation/o1/_history?x=1")
    # Also where the server decides.
    grant = make_grant("patient/Patient.r user/*.rs")
    grant.server.on(
        "Observation/o1/_history", respond(bundle(type="history", entry=entry))
    )
    with pytest.raises(MalformedFHIRResponseError):
        list(grant.client.history("Observation", "o1"))


def test_pages_are_read_as_the_server_links_to_them():
    grant = make_grant()
    # Such a search would be narrowed, or refused.
    pages = [f"{BASE}/Observation?ct=2", f"{BASE}/Observation/_search?ct=3", BASE]
    first = bundle(MINE, next_url=pages[0])
    first["link"][0]["url"] = f"{BASE}/Observation"
    for number, url in enumerate(pages, start=2):
        page = bundle({**MINE, "id": f"o{number}"}, next_url=[*pages, ""][number - 1])
        grant.server.on(url, respond(page))
    assert len(list(grant.client.iterate_pages(first))) == 4
    assert grant.server.urls == pages


@pytest.mark.parametrize(
    "scope", ["user/Bundle.rs user/Parameters.rs", "user/*.rs?category=laboratory"]
)
@pytest.mark.parametrize("members", [{}, {"type": "document"}])
def test_scope_for_what_carries_resources_is_none_for_them(scope, members):
    grant = make_grant(f"{scope} patient/Observation.rs")
    path = "Observation/$lastn?patient=p1"
    labelled = [{"coding": [{"code": "laboratory"}]}]
    carried = [{"name": "return", "resource": OTHERS}]
    for answer in (
        bundle(OTHERS, category=labelled),
        {"resourceType": "Parameters", "parameter": carried, **members},
    ):
        grant.server.on(path, respond(answer))
        with pytest.raises(ForeignPatientError):
            ask(grant, path)
    grant.server.on(path, respond(bundle(MINE)))
    assert ask(grant, path)["entry"] == [{"resource": MINE}]


def test_scope_may_leave_the_code_of_a_system_open():
    grant = make_grant("patient/*.rs user/Observation.rs?category=urn:lab|")
    labelled = {
        **OTHERS,
        "category": [{"coding": [{"system": "urn:lab", "code": "x"}]}],
    }
    grant.server.on("Observation/o1", respond(labelled), respond(OTHERS))
    assert grant.client.read("Observation", "o1") == labelled
    with pytest.raises(ForeignPatientError):
        grant.client.read("Observation", "o1")


@pytest.mark.parametrize("type_", ["collection", "document", "message"])
@pytest.mark.parametrize("level", ["user", "patient"])
def test_bundle_that_an_operation_makes_is_none_that_is_stored(level, type_):
    grant = make_grant(f"{level}/Bundle.rs patient/Observation.rs")
    stored = "Bundle/b1"
    others = bundle(OTHERS, type=type_, id="b1")
    grant.server.on("Observation/$lastn?patient=p1", respond(others))
    grant.server.on(stored, respond(others))
    for call in (
        lambda: grant.client.operation("lastn", "Observation"),
        lambda: ask(grant, "Observation/$lastn"),
    ):
        with pytest.raises(ForeignPatientError):
            call()
    grant.server.on("page", respond(others))
    first = bundle(next_url=f"{BASE}/page")
    with pytest.raises(ForeignPatientError):
        list(grant.client.iterate_pages(first))
    if level == "user":
        grant.server.on(f"{stored}/$meta", respond(others))
        assert ask(grant, stored) == others
        assert ask(grant, f"{stored}/$meta") == others


@pytest.mark.parametrize("number", [0, 2])
def test_patch_by_a_search_with_no_single_match_is_checked_as_unread(number):
    grant = make_grant()
    found = [{**MINE, "id": f"o{one}"} for one in range(number)]
    search = "Observation?identifier=1&patient=p1"
    move = {"op": "add", "path": "/subject", "value": {"reference": "Patient/p1"}}
    for patch, error in (
        ([move], ForeignPatientError),
        (STATUS, FHIRPreconditionFailedError),
    ):
        grant.server.on(search, respond(bundle(*found)), respond(b"", 412))
        with pytest.raises(error):
            grant.client.patch("Observation", None, patch, where={"identifier": "1"})
    assert [one.method for one in grant.server.requests] == ["GET", "PATCH"]


@pytest.mark.parametrize("scope", ["patient/*.cruds", "patient/*.cud"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "Observation/o1", None),
        ("PUT", "Observation/o1", MINE),
        ("PATCH", "Observation/o1", STATUS),
        ("POST", "Observation", MINE),
    ],
)
def test_change_without_a_condition_is_sent_without_a_query(method, path, body, scope):
    grant = make_grant(scope, may_write_unread=True)
    grant.server.on(path, respond(MINE))
    query = "_cascade=delete&subject=Patient/p2"
    asked = parse_interaction(method, f"{path}?{query}", body=body)
    assert grant.client.perform(asked).status_code == 200
    assert grant.server.urls[-1] == f"{BASE}/{path}"
