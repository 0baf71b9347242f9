"""Scopes: grammar, comparison, combination, both versions."""

from __future__ import annotations

import contextlib
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import ScopeSyntaxError
from django_smart.protocol.scopes import (
    LaunchScope,
    OtherScope,
    ResourceScope,
    ScopeSet,
    is_for_service,
    required_letter,
)
from tests.protocol.helpers import SEED, VECTORS

SCOPES = VECTORS["scopes"]
LAB = (
    "patient/Observation.rs"
    "?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
)
SMART_URI = "http://smarthealthit.org/fhir/scopes/"


def parse_one(text, *, strict=True):
    (scope,) = ScopeSet.parse(text, strict=strict)
    return scope


@pytest.mark.compliance("SCOPE-01", "SCOPE-08")
@pytest.mark.parametrize("text", SCOPES["valid"])
def test_the_published_resource_scopes_are_read_and_written_alike(text):
    scope = parse_one(text)
    assert isinstance(scope, ResourceScope)
    level, _, rest = text.partition("/")
    resource_type, _, rest = rest.partition(".")
    assert (scope.level, scope.type) == (level, resource_type)
    assert scope.letters == rest.partition("?")[0]
    assert scope.text == str(ScopeSet.parse(text)) == text


@pytest.mark.compliance("SCOPE-01", "SCOPE-03", "SCOPE-12")
@pytest.mark.parametrize(
    "text",
    [
        *SCOPES["invalid"],
        "patient/Observation.x",
        "patient/Observation.reads",
        "patient/Observation.crudss",
        "patient/Observation.CRUDS",
        "patient/Observation.Read",
        "patient/.rs",
        "patient/Obs ervation.rs",
        "patient/Observation1.rs",
        "practitioner/Observation.rs",
        "/Observation.rs",
        "patient/*",
        "patient/Observation.rs?",
        "patient/Observation.rs?category",
        "patient/Observation.rs?=x",
        "patient/Observation.rs?category=",
        "patient/Observation.rs?category=x&",
        "patient/Observation.read?category=x",
        "patient/Observation.*?category=x",
        'patient/Observation.rs?code="x"',
        "patient/Observation.rs?code=\\",
        "patient/Observation.rs?code=é",
        "patient/Observation.rſ",
        "anything",
        "_single.underscore",
        "OPENID",
        "openid,fhirUser",
    ],
)
def test_scopes_outside_the_grammar_are_refused_when_an_operator_enters_them(text):
    with pytest.raises(ScopeSyntaxError):
        ScopeSet.parse(f"openid {text}", strict=True)


def test_the_error_names_the_offending_scope():
    with pytest.raises(ScopeSyntaxError, match=r"patient/Observation\.dus") as caught:
        ScopeSet.parse("openid patient/Observation.dus fhirUser", strict=True)
    assert caught.value.scope == "patient/Observation.dus"


@pytest.mark.parametrize(
    ("scope", "suggestion"),
    [
        ("patient/Patient.sr", "patient/Patient.rs"),
        ("user/*.rsdc", "user/*.crds"),
        ("patient/Patient.sx", ""),
        ("Patient/Patient.sr", ""),
        ("nothing", ""),
        ("patient/MedicationRequests.rs", "patient/MedicationRequest.rs"),
        ("user/Medicationrequest.read", "user/MedicationRequest.read"),
        ("patient/patient.rs?a=b.c", "patient/Patient.rs?a=b.c"),
        ("system/Observations.sr", "system/Observation.rs"),
        ("patient/Xyz.rs", ""),
    ],
)
def test_the_error_suggests_type_and_letters(scope, suggestion):
    with pytest.raises(ScopeSyntaxError) as caught:
        ScopeSet.parse(scope, strict=True)
    assert str(caught.value).partition("Did you mean ")[2] == (
        f"{suggestion}?" if suggestion else ""
    )


def test_granted_scope_for_a_type_of_another_version_is_kept():
    assert ScopeSet.parse("patient/ActorDefinition.rs").covers(
        "patient/ActorDefinition.r"
    )


@pytest.mark.parametrize(
    "text", ["launch,patient/Patient.rs", "launch; openid", "launch openid,"]
)
def test_the_error_suggests_spaces(text):
    with pytest.raises(ScopeSyntaxError, match="by spaces"):
        ScopeSet.parse(text, strict=True)


@pytest.mark.compliance("SCOPE-03")
@pytest.mark.parametrize("text", SCOPES["invalid"])
def test_granted_scopes_that_are_not_understood_are_kept_and_allow_nothing(text):
    granted = ScopeSet.parse(text)
    assert str(granted) == text
    if text not in ("Patient/Observation.rs", "patient/observation.rs"):
        assert isinstance(parse_one(text, strict=False), OtherScope)
        assert not granted.covers("patient/Observation.r")
        assert not granted.covers("patient/Observation.d")


@pytest.mark.parametrize(
    "granted",
    [
        "Patient/Observation.rs",
        "patient/observation.rs",
        "PATIENT/OBSERVATION.RS",
        "patient/Observation.Read",
        "PATIENT/Observation.READ",
        "  patient/Observation.r \t\n patient/Observation.s  ",
    ],
)
def test_letter_case_and_spacing_of_granted_scopes_do_not_matter(granted):
    assert ScopeSet.parse(granted).covers("patient/Observation.rs")
    assert not ScopeSet.parse(granted).covers("patient/Observation.c")
    assert not ScopeSet.parse(granted).covers("user/Observation.rs")


@pytest.mark.compliance("SCOPE-13", "SCOPE-14")
@pytest.mark.parametrize("text", SCOPES["launch"])
def test_the_published_launch_scopes_are_read(text):
    scope = parse_one(text)
    assert isinstance(scope, LaunchScope)
    assert f"launch/{scope.type}".removesuffix("/") == text.partition("?")[0]
    assert scope.role == text.partition("?role=")[2]


@pytest.mark.compliance("SCOPE-13", "SCOPE-14")
@pytest.mark.parametrize(
    "text",
    [
        "launch/DiagnosticReport",
        "launch/Patient",
        "LAUNCH",
        "launch/",
        "launch/list?",
        "launch/list?role=",
        "launch/list?role=a&role=b",
        "launch/list?rule=a",
        "launch?role=a",
    ],
)
def test_other_launch_scopes_are_refused(text):
    with pytest.raises(ScopeSyntaxError):
        ScopeSet.parse(text, strict=True)


@pytest.mark.compliance("SCOPE-15")
def test_launch_scopes_are_compared_by_type_and_role():
    granted = ScopeSet.parse(
        "launch/Patient launch/list?role=https%3A%2F%2Fa.example%2Fx"
    )
    assert granted.covers("launch/patient")
    assert granted.covers("launch/list?role=https://a.example/x")
    assert not granted.covers("launch/list")
    assert not granted.covers("launch")


@pytest.mark.compliance("SCOPE-17", "SCOPE-19", "AUTH-12")
@pytest.mark.parametrize(
    "text",
    [
        *SCOPES["extension"],
        "openid",
        "fhirUser",
        "profile",
        "email",
        "address",
        "phone",
        "online_access",
        "offline_access",
        "api:fhir",
    ],
)
def test_identity_access_and_extension_scopes_are_kept_verbatim(text):
    scope = parse_one(text)
    assert isinstance(scope, OtherScope)
    assert scope.text == text
    assert ScopeSet.parse(text).covers(text)
    assert not ScopeSet.parse("launch").covers(text)


@pytest.mark.compliance("BACK-04")
def test_scopes_for_a_backend_service_are_those_of_the_system_and_extensions():
    usable = "system/*.rs https://ehr.example.org/.default __bulk"
    scopes = ScopeSet.parse(f"{usable} patient/*.rs user/*.rs launch openid")
    assert " ".join(each.text for each in scopes if is_for_service(each)) == usable


@pytest.mark.parametrize("text", ["__", "urn:", "1https://x", "https"])
def test_what_only_looks_like_an_extension_is_refused(text):
    with pytest.raises(ScopeSyntaxError):
        ScopeSet.parse(text, strict=True)


@pytest.mark.compliance("SCOPE-18")
@pytest.mark.parametrize(
    "vector", SCOPES["uri_form"], ids=lambda vector: vector["scope"]
)
def test_the_uri_form_of_a_scope_equals_its_short_form(vector):
    short, uri = ScopeSet.parse(vector["scope"]), ScopeSet.parse(vector["uri"])
    assert short.covers(uri)
    assert uri.covers(short)
    assert str(uri) == vector["uri"]


@pytest.mark.compliance("SCOPE-18")
def test_launch_and_openid_scopes_have_a_uri_form_too():
    openid = SCOPES["openid_uri_prefix"]
    granted = ScopeSet.parse(
        f"{openid}openid {openid}fhirUser {SMART_URI}launch/patient", strict=True
    )
    assert granted.covers("openid fhirUser launch/patient")
    assert ScopeSet.parse("openid").covers(f"{openid}openid")
    assert not granted.covers("offline_access")
    assert "openid" in granted
    assert f"{SMART_URI}launch/patient" in ScopeSet.parse("launch/patient")
    assert "offline_access" not in granted
    assert "patient/Patient.rs" in ScopeSet.parse(f"{SMART_URI}patient/Patient.read")
    assert "patient/Patient.r" not in ScopeSet.parse("patient/Patient.rs")


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ("user/*.rs patient/Patient.r", True),
        ("PATIENT/PATIENT.READ", True),
        ("launch/patient user/*.rs system/*.rs", False),
    ],
)
def test_scopes_for_one_patient_are_told_by_their_level(scopes, expected):
    assert ScopeSet.parse(scopes).are_for_patient is expected


def test_thousands_of_scopes_take_no_time():
    # As many as fit into a response, that a hostile server has a worker compare.
    asked, granted = (
        ScopeSet.parse(" ".join(f"patient/A.rs?{name}={n}" for n in range(3600)))
        for name in ("a", "b")
    )
    assert len(asked.resource_scopes) == len(granted.resource_scopes) == 3600
    started = process_time()
    assert not asked.limited_to(granted)
    assert process_time() - started < 2


@pytest.mark.compliance("SCOPE-04", "SCOPE-05")
@pytest.mark.parametrize(
    ("suffix", "letters"),
    [(suffix, letters.lstrip(".")) for suffix, letters in SCOPES["v1_to_v2"].items()],
)
def test_version_1_suffixes_have_their_letters_and_no_more(suffix, letters):
    scope = parse_one(f"patient/Observation{suffix}")
    assert isinstance(scope, ResourceScope)
    assert scope.letters == letters
    assert scope.is_v1
    assert not parse_one(f"patient/Observation.{letters}").is_v1
    assert not parse_one(f"patient/Observation.{letters}?code=a{suffix}").is_v1


@pytest.mark.compliance("SCOPE-02", "SCOPE-16")
@pytest.mark.parametrize(
    ("interaction", "letter"),
    [
        ("create", "c"),
        ("read", "r"),
        ("vread", "r"),
        ("history", "r"),
        ("history-instance", "r"),
        ("update", "u"),
        ("patch", "u"),
        ("delete", "d"),
        ("search", "s"),
        ("search-type", "s"),
        ("search-system", "s"),
        ("history-type", "s"),
        ("history-system", "s"),
    ],
)
def test_each_interaction_needs_its_letter(interaction, letter):
    assert required_letter(interaction) == letter


@pytest.mark.compliance("SCOPE-16")
@pytest.mark.parametrize("interaction", ["batch", "transaction", "Read", ""])
def test_other_interactions_have_no_letter(interaction):
    assert required_letter(interaction) == ""


@pytest.mark.compliance("SCOPE-06", "SCOPE-11", "SCOPE-12", "SCOPE-20")
@pytest.mark.parametrize(
    ("granted", "required", "covered"),
    [
        ("patient/Observation.rs", "patient/Observation.rs", True),
        ("patient/Observation.rs", "patient/Observation.r", True),
        ("patient/Observation.r patient/Observation.s", "patient/Observation.rs", True),
        ("patient/Observation.r", "patient/Observation.rs", False),
        ("patient/*.rs", "patient/Observation.rs", True),
        ("patient/*.r patient/Observation.s", "patient/Observation.rs", True),
        ("patient/Observation.rs", "patient/*.rs", False),
        ("patient/Observation.rs", "patient/Condition.rs", False),
        ("user/Observation.rs", "patient/Observation.rs", False),
        ("patient/Observation.rs", "user/Observation.rs", False),
        ("patient/Observation.cud", "patient/Observation.r", False),
        ("patient/Observation.read", "patient/Observation.rs", True),
        ("patient/Observation.read", "patient/Observation.d", False),
        ("patient/Observation.write", "patient/Observation.cud", True),
        ("patient/*.*", "patient/Observation.cruds", True),
        ("patient/Observation.cruds", "patient/Observation.*", True),
        ("", "patient/Observation.rs", False),
        ("patient/Observation.rs", "", True),
        ("", "", True),
    ],
)
def test_a_grant_covers_what_its_scopes_together_allow(granted, required, covered):
    assert ScopeSet.parse(granted).covers(required) is covered
    assert ScopeSet.parse(granted).covers(ScopeSet.parse(required)) is covered


@pytest.mark.compliance("SCOPE-06")
@pytest.mark.parametrize("pair", SCOPES["equivalent"])
def test_the_published_equivalents_cover_each_other(pair):
    one, split = (ScopeSet.parse(text) for text in pair)
    assert one.covers(split)
    assert split.covers(one)


@pytest.mark.compliance("RESP-03", "RESP-04")
@pytest.mark.parametrize(
    ("granted", "missing"),
    [
        ("patient/AllergyIntolerance.cruds", ""),
        ("patient/AllergyIntolerance.rs patient/AllergyIntolerance.cud", ""),
        ("patient/AllergyIntolerance.rs", "patient/AllergyIntolerance.cud"),
        ("patient/AllergyIntolerance.cud", "patient/AllergyIntolerance.rs"),
        ("patient/*.rs", "patient/AllergyIntolerance.cud"),
        ("patient/*.cruds", ""),
        ("patient/Observation.rs", "patient/AllergyIntolerance.cruds"),
        ("", "patient/AllergyIntolerance.cruds"),
    ],
)
def test_each_answer_to_one_request_says_what_is_missing(granted, missing):
    requested = ScopeSet.parse("patient/AllergyIntolerance.cruds")
    assert str(ScopeSet.parse(granted).missing(requested)) == missing


@pytest.mark.compliance("SCOPE-08", "SCOPE-10")
@pytest.mark.parametrize(
    ("granted", "required", "covered"),
    [
        (LAB, "patient/Observation.rs", False),
        ("patient/Observation.rs", LAB, True),
        ("patient/*.cruds", LAB, True),
        (LAB, LAB, True),
        (LAB, LAB.replace(":", "%3A").replace("|", "%7C"), True),
        (LAB, LAB.replace("laboratory", "vital-signs"), False),
        ("patient/Observation.rs?a=1&b=2", "patient/Observation.rs?b=2&a=1", True),
        ("patient/Observation.rs?a=1=2", "patient/Observation.rs?a=1%3D2", True),
        ("patient/Observation.rs?a=1&a=1", "patient/Observation.rs?a=1", True),
        ("patient/Observation.rs?a=1&b=2", "patient/Observation.rs?a=1", False),
        ("patient/Observation.rs?a=1", "patient/Observation.rs?a=1&b=2", False),
        ("patient/*.rs?a=1", "patient/Observation.rs?a=1", True),
        ("patient/Observation.rs?a=1%2B2", "patient/Observation.rs?a=1+2", True),
        ("patient/Observation.rs?a=1+2", "patient/Observation.rs?a=1 2", False),
    ],
)
def test_a_narrowed_grant_covers_only_the_same_parameters(granted, required, covered):
    assert ScopeSet.parse(granted).covers(required) is covered


def test_a_scope_that_is_missing_whole_is_named_as_it_was_written():
    required = "patient/Observation.read user/*.write"
    assert str(ScopeSet().missing(required)) == required


def test_a_narrowed_scope_keeps_its_parameters_as_written_when_it_is_cut_down():
    missing = ScopeSet.parse("patient/Observation.r").missing(LAB)
    assert str(missing) == LAB.replace(".rs", ".s")


@pytest.mark.compliance("SCOPE-09")
@pytest.mark.parametrize(
    "query",
    [
        "code:in=http://valueset.example.org/x",
        "patient.birthdate=1990",
        "_filter=code%20eq%20x",
    ],
)
def test_modifiers_chains_and_filters_narrow_a_scope_as_others_do(query):
    text = f"patient/Observation.rs?{query}"
    narrowed = ScopeSet((parse_one(text),))
    assert narrowed.covers(text)
    assert not narrowed.covers("patient/Observation.rs")
    assert not narrowed.covers(LAB)


def test_the_order_of_the_wire_string_is_kept_and_repetition_is_not():
    text = SEED["authorization_request"]["params"]["scope"]
    assert str(ScopeSet.parse(text, strict=True)) == text
    assert str(ScopeSet.parse("b  a b\na", strict=False)) == "b a"


def test_sets_are_equal_whatever_the_order():
    one, other = ScopeSet.parse("openid launch"), ScopeSet.parse("launch openid")
    assert one == other
    assert hash(one) == hash(other)
    assert one != ScopeSet.parse("launch")
    assert one != "openid launch"
    assert str(one) != str(other)


def test_a_set_is_a_container_of_what_was_written():
    scopes = ScopeSet.parse("launch patient/*.rs")
    assert "patient/*.rs" in scopes
    assert "patient/Observation.rs" not in scopes
    assert "patient/Observation.sr" not in scopes
    assert len(scopes) == 2
    assert [scope.text for scope in scopes] == ["launch", "patient/*.rs"]
    assert [scope.text for scope in scopes.resource_scopes] == ["patient/*.rs"]
    assert not ScopeSet()
    assert ScopeSet.parse(" \t") == ScopeSet()


def test_what_is_missing_is_found_wherever_it_stands():
    asked = ScopeSet.parse("openid patient/Patient.r launch")
    assert str(ScopeSet.parse("openid").missing(asked)) == "patient/Patient.r launch"


@pytest.mark.compliance("EHRL-04")
def test_a_union_begins_with_the_first_set():
    registered = ScopeSet.parse("openid fhirUser launch")
    assert str(ScopeSet.parse("launch") | registered) == "launch openid fhirUser"
    assert str(registered | ScopeSet.parse("launch")) == str(registered)


@pytest.mark.compliance("REF-05")
def test_a_set_is_limited_to_what_was_granted():
    granted = ScopeSet.parse("patient/Observation.rs openid")
    answer = ScopeSet.parse("openid offline_access patient/Observation.cruds user/*.rs")
    assert str(answer.limited_to(granted)) == "openid patient/Observation.rs"
    assert answer.limited_to(answer) == answer


@pytest.mark.compliance("SCOPE-04", "CAPS-08")
def test_version_2_is_written_for_version_1():
    scopes = ScopeSet.parse("openid patient/*.read user/Observation.write system/*.*")
    assert str(scopes.to_v2()) == (
        "openid patient/*.rs user/Observation.cud system/*.cruds"
    )
    assert scopes.to_v2().covers(scopes)
    uri = ScopeSet.parse(f"{SMART_URI}patient/*.rs Patient/*.r")
    assert str(uri.to_v2()) == str(uri)
    for scope, written in zip(
        scopes.to_v2().resource_scopes, scopes.resource_scopes, strict=True
    ):
        assert scope.to_v1() == written
        # Not only in how it is written.
        assert scope.to_v1().letters == written.letters


@pytest.mark.compliance("CAPS-08")
@pytest.mark.parametrize(
    ("v2", "v1"),
    [
        ("patient/Observation.r", "patient/Observation.read"),
        ("patient/Observation.s", "patient/Observation.read"),
        ("patient/Observation.c", "patient/Observation.write"),
        ("patient/Observation.u", "patient/Observation.write"),
        ("patient/Observation.d", "patient/Observation.write"),
        ("patient/Observation.cr", "patient/Observation.*"),
        ("patient/Observation.ru", "patient/Observation.*"),
        ("patient/Observation.rd", "patient/Observation.*"),
        ("patient/*.read", "patient/*.read"),
    ],
)
def test_version_1_is_written_as_narrow_as_it_can_be(v2, v1):
    (scope,) = ScopeSet.parse(v2).resource_scopes
    written = ScopeSet((scope.to_v1(),))
    assert str(written) == v1
    # Read again it is the same, in what it allows too.
    assert written.covers(ScopeSet.parse(v1))
    assert ScopeSet.parse(v1).covers(v2)


@pytest.mark.compliance("CAPS-08")
def test_parameters_cannot_be_written_in_version_1():
    (scope,) = ScopeSet.parse(LAB).resource_scopes
    with pytest.raises(ScopeSyntaxError, match="v1 scopes cannot express") as caught:
        scope.to_v1()
    assert caught.value.scope == LAB


_SCOPE_TEXTS = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}{}{}.{}{}".format,
        st.sampled_from(["patient", "user", "system", "Patient", "launch", ""]),
        st.sampled_from(["/", "", ":"]),
        st.sampled_from(["*", "Observation", "Patient", "observation", ""]),
        st.sampled_from(["r", "rs", "cud", "cruds", "read", "write", "*", "dus", ""]),
        st.sampled_from(["", "?a=1", "?b=2&a=1", "?", "?role=x", "?a"]),
    ),
)
_STRINGS = st.lists(_SCOPE_TEXTS, max_size=5).map(" ".join)


@given(_STRINGS)
def test_any_text_is_a_set_of_scopes_that_covers_itself(text):
    scopes = ScopeSet.parse(text)
    assert str(scopes).split() == list(dict.fromkeys(text.split()))
    assert scopes.covers(scopes)
    assert ScopeSet.parse(str(scopes)) == scopes


@given(_STRINGS)
def test_any_text_parses_strictly_as_it_does_leniently_or_is_refused(text):
    lenient = ScopeSet.parse(text)
    with contextlib.suppress(ScopeSyntaxError):
        strict = ScopeSet.parse(text, strict=True)
        assert strict == lenient
        assert list(map(type, strict)) == list(map(type, lenient))


@given(_STRINGS, _STRINGS)
def test_what_is_missing_and_what_is_covered_make_up_the_request(granted, required):
    grant, request = ScopeSet.parse(granted), ScopeSet.parse(required)
    missing, covered = grant.missing(request), request.limited_to(grant)
    assert grant.covers(covered)
    assert request.covers(covered)
    assert (missing | covered).covers(request)
    assert not missing or not grant.covers(missing)
