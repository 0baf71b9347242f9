"""Client registrations: what may be saved, and what the form says against it."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from django_smart.exceptions import InsecureURLError
from django_smart.models import ClientRegistration
from tests.ehr import CLIENT_SECRET, REDIRECT_URI
from tests.factories import make_grant, make_registration

pytestmark = pytest.mark.django_db

OPENID_URI = "http://openid.net/specs/openid-connect-core-1_0#"
SMART_URI = "http://smarthealthit.org/fhir/scopes/"


def _messages(registration: ClientRegistration) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as raised:
        registration.full_clean()
    return raised.value.message_dict


def _another(first: ClientRegistration, **values: Any) -> ClientRegistration:
    """One more registration at the same server."""
    return ClientRegistration(
        server=first.server,
        **{
            "client_id": "another",
            "client_secret": CLIENT_SECRET,
            "ehr_scope": "launch openid fhirUser",
            "redirect_uri": REDIRECT_URI,
            **values,
        },
    )


def test_server_has_one_default_for_each_kind_of_launch() -> None:
    first = make_registration()
    second = _another(first, standalone_scope="launch/patient")
    ehr, standalone, callback = _messages(second)["__all__"]
    assert "default for EHR launches" in ehr
    assert "default for standalone launches" in standalone
    assert "callback" in callback
    with pytest.raises(IntegrityError), transaction.atomic():
        second.save()
    # Without being a default, it is a registration like any other.
    second.leave_defaults()
    second.callback_id = "clinicians"
    second.full_clean()
    second.save()
    assert (first.launch_slug, second.launch_slug) == ("harbour", "harbour-2")
    assert list(ClientRegistration.objects.standalone()) == [first]
    assert list(ClientRegistration.objects.startable()) == [first, second]
    second.is_ehr_default = second.is_standalone_default = True
    second.callback_id = ""
    with pytest.raises(IntegrityError), transaction.atomic():
        second.save()
    # One that is off, and one that is for backend services alone, may stand beside it.
    second.is_active = False
    second.full_clean()
    second.save()
    backend = _another(
        first,
        client_id="backend",
        client_secret="",
        ehr_scope="",
        redirect_uri="",
        system_scope="system/*.rs",
        token_endpoint_auth_method="private_key_jwt",
    )
    backend.full_clean()
    backend.save()
    iss = first.server.base_url
    assert ClientRegistration.objects.find_ehr(iss) == first
    # The other one takes its place once it is off.
    first.is_active = False
    first.save()
    second.is_active = True
    second.full_clean()
    second.save()
    assert ClientRegistration.objects.find_ehr(iss) == second


@pytest.mark.compliance("REG-01")
def test_client_id_is_unique_at_its_server_and_compared_exactly() -> None:
    first = make_registration(client_id="abc")
    twin = _another(first, client_id="abc", is_active=False)
    (message,) = _messages(twin)["__all__"]
    assert "already registered at this server" in message
    with pytest.raises(IntegrityError), transaction.atomic():
        twin.save()
    for client_id in ("ABC", "abc ", "x" * 5000):
        other = _another(first, client_id=client_id, is_active=False)
        other.full_clean()
        other.save()
    make_registration(
        server__slug="elsewhere",
        server__base_url="https://elsewhere.example.net/fhir",
        client_id="abc",
    )


@pytest.mark.parametrize(
    ("values", "is_refused"),
    [
        ({}, True),
        ({"status": "needs_reauthorization"}, True),
        # Lost for good: its tokens were deleted a day later.
        ({"status": "needs_reauthorization", "refresh_token": ""}, False),
        ({"status": "revoked", "is_revocation_pending": True}, True),
        ({"status": "revoked"}, False),
        # It asks for its next token with the new client ID.
        ({"kind": "client_credentials"}, False),
    ],
)
def test_client_id_stays_while_tokens_of_it_are_kept(
    values: dict[str, Any], is_refused: bool
) -> None:
    registration = make_registration()
    make_grant(registration, **values)
    registration = ClientRegistration.objects.get()
    registration.landing_page = "/chart/"
    registration.full_clean()
    registration.client_id = "another"
    if is_refused:
        assert list(_messages(registration)) == ["client_id"]
    else:
        registration.full_clean()


def test_only_a_new_client_id_asks_for_grants() -> None:
    registration = make_registration()
    with CaptureQueriesContext(connection) as queries:
        registration.clean()
    assert not any("django_smart_tokengrant" in each["sql"] for each in queries)


@pytest.mark.compliance("REG-04", "AUTH-12", "SAL-02", "REF-01")
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"client_secret": ""}, "client_secret"),
        (
            {"client_secret": "", "token_endpoint_auth_method": "client_secret_post"},
            "client_secret",
        ),
        ({"token_endpoint_auth_method": "none"}, "client_secret"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "client_secret"),
        ({"client_secret_env": "NAME"}, "client_secret_env"),
        (
            {"token_endpoint_auth_method": "none", "client_secret": "",
             "client_secret_file": "/run/secret"},
            "client_secret_file",
        ),
        (
            {
                "system_scope": "system/*.rs",
                "client_secret": "",
                "token_endpoint_auth_method": "none",
            },
            "token_endpoint_auth_method",
        ),
        ({"token_endpoint_auth_method": "tls_client_auth"},
         "token_endpoint_auth_method"),
        ({"redirect_uri": ""}, "redirect_uri"),
        ({"ehr_scope": "launch fhirUser"}, "ehr_scope"),
        ({"ehr_scope": "launch patient/Observation.sr"}, "ehr_scope"),
        ({"standalone_scope": "launch patient/*.rs"}, "standalone_scope"),
        (
            {"standalone_scope": "offline_access online_access launch/patient"},
            "standalone_scope",
        ),
        ({"standalone_scope": f"{SMART_URI}launch patient/*.rs"}, "standalone_scope"),
        ({"ehr_scope": f"launch {OPENID_URI}fhirUser"}, "ehr_scope"),
        (
            {"ehr_scope": f"launch {SMART_URI}offline_access online_access"},
            "ehr_scope",
        ),
        ({"system_scope": "system/*.rs user/Patient.rs"}, "system_scope"),
        ({"system_scope": "launch system/*.rs"}, "system_scope"),
        ({"system_scope": f"system/*.rs {OPENID_URI}openid"}, "system_scope"),
        ({"system_scope": "offline_access"}, "system_scope"),
        ({"signing_algorithm": "HS256"}, "signing_algorithm"),
    ],
)  # fmt: skip
def test_what_is_visibly_wrong_is_named_at_its_field(
    values: dict[str, str], field: str
) -> None:
    registration = make_registration()
    for name, value in values.items():
        setattr(registration, name, value)
    assert field in _messages(registration)


@pytest.mark.compliance("REG-04", "REG-05")
@pytest.mark.parametrize(
    "values",
    [
        {"token_endpoint_auth_method": "none", "client_secret": ""},
        {"token_endpoint_auth_method": "client_secret_post"},
        {"client_secret": "", "client_secret_env": "NAME"},
        {"client_secret": "", "client_secret_file": "/run/secret"},
        {
            "client_secret": "",
            "token_endpoint_auth_method": "private_key_jwt",
            "system_scope": "system/*.rs",
        },
    ],
)
def test_methods_with_fitting_credentials_are_fine(values: dict[str, str]) -> None:
    assert make_registration(**values).pk


@pytest.mark.parametrize(
    ("change", "finds_ehr", "finds_standalone"),
    [
        ({}, True, True),
        ({"is_active": False}, False, False),
        ({"server__is_active": False}, False, False),
        ({"ehr_scope": ""}, False, True),
        ({"standalone_scope": ""}, True, False),
    ],
)
def test_launches_find_no_registration_that_is_switched_off_for_them(
    change: dict[str, Any], finds_ehr: bool, finds_standalone: bool
) -> None:
    registration = make_registration(**change)
    iss, objects = registration.server.base_url, ClientRegistration.objects
    assert bool(objects.find_ehr(iss)) is finds_ehr
    assert bool(objects.find_ehr(iss, "harbour")) is finds_ehr
    assert bool(objects.find_standalone("harbour")) is finds_standalone
    assert bool(objects.find_standalone("", "harbour")) is finds_standalone
    # As the picker lists them.
    assert objects.standalone().exists() is finds_standalone
    is_on = not {"is_active", "server__is_active"} & set(change)
    assert objects.active().exists() is is_on


def test_text_of_a_registration_names_its_server() -> None:
    registration = make_registration()
    assert str(registration) == "Harbour Hospital (client_secret_basic)"
    assert registration.client_id not in str(registration)


@pytest.mark.compliance("BACK-04", "SCOPE-17")
def test_backend_service_may_request_scopes_of_the_vendors_own() -> None:
    scope = "system/*.rs https://ehr.example.org/.default __bulk"
    make_registration(system_scope=scope)


@pytest.mark.compliance("CAPS-08")
@pytest.mark.parametrize(
    ("field", "scope", "fix"),
    [
        ("ehr_scope", "launch patient/Patient.rs", "Use patient/Patient.read instead"),
        ("standalone_scope", "user/*.cruds", "Use user/*.* instead of user/*.cruds"),
        ("ehr_scope", "launch patient/Patient.c", "Use patient/Patient.write instead"),
        (
            "ehr_scope",
            "launch patient/Observation.rs?category=laboratory",
            "Remove its parameters",
        ),
    ],
)
def test_server_of_version_1_is_asked_for_scopes_of_version_1(
    field: str, scope: str, fix: str
) -> None:
    values = {"ehr_scope": "launch", "standalone_scope": "launch/patient"}
    registration = make_registration(server__scope_syntax="v1", **values)
    setattr(registration, field, scope)
    (message,) = _messages(registration)[field]
    assert fix in message
    assert "set the server's scope syntax to v2" in message
    registration.server.quirks = {"scope_syntax": "v2"}
    registration.full_clean()


def test_version_1_scopes_are_fine_at_a_server_of_version_1() -> None:
    scope = "launch openid fhirUser patient/Patient.read patient/*.* offline_access"
    registration = make_registration(
        server__scope_syntax="v1",
        ehr_scope=scope,
        standalone_scope="launch/patient patient/Observation.write",
    )
    registration.full_clean()


@pytest.mark.compliance("AUTH-02")
def test_scopes_of_several_lines_are_stored_as_one() -> None:
    registration = make_registration(
        ehr_scope="launch\r\nopenid  fhirUser\n", standalone_scope=" \n launch/patient"
    )
    stored = ClientRegistration.objects.get(pk=registration.pk)
    assert stored.ehr_scope == "launch openid fhirUser"
    assert stored.standalone_scope == "launch/patient"
    registration.system_scope = "system/Patient.rs\r\nsystem/Group.rs"
    registration.save()
    registration.refresh_from_db()
    assert registration.system_scope == "system/Patient.rs system/Group.rs"


def test_launch_from_the_ehr_finds_its_registration_by_iss_or_slug(
    django_assert_num_queries: Any,
) -> None:
    registration = make_registration()
    second = make_registration(
        registration.server,
        client_id="another",
        launch_slug="second",
        is_ehr_default=False,
        is_standalone_default=False,
    )
    iss = registration.server.base_url
    find = ClientRegistration.objects.find_ehr
    for slug, expected in (("", registration), ("second", second)):
        with django_assert_num_queries(1):
            found = find(f"{iss}/", slug)
            assert found == expected
            assert found is not None
            assert found.server.slug == registration.server.slug
    assert find(iss, "third") is None
    assert find("https://elsewhere.example/fhir") is None
    with pytest.raises(InsecureURLError):
        find("nowhere")


def test_login_finds_its_registration_by_the_exact_slug(
    django_assert_num_queries: Any,
) -> None:
    registration = make_registration()
    with django_assert_num_queries(1):
        found = ClientRegistration.objects.find_standalone("harbour")
        assert found == registration
        assert found is not None
        assert found.server.slug == "harbour"
    for slug in ("HARBOUR", "nowhere", ""):
        assert ClientRegistration.objects.find_standalone(slug) is None
    with django_assert_num_queries(1):
        assert ClientRegistration.objects.find_standalone("", "harbour") == registration
    for launch_slug in ("HARBOUR", "nowhere"):
        assert (
            ClientRegistration.objects.find_standalone("harbour", launch_slug) is None
        )
