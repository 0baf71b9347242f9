"""The admin: what it shows, what it never shows, and what its actions do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError

from django_smart import transport
from django_smart.admin.grant import TokenGrantAdmin
from django_smart.admin.launch import LaunchAdmin
from django_smart.launches.held import end_held_launches
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    Launch,
    ServerState,
    SigningKey,
    TokenGrant,
)
from django_smart.protocol.quirks import Quirks
from django_smart.servers.signing_keys import OVERLAP, create_signing_key
from django_smart.testing import EHRSimulator
from tests import factories
from tests.admin_forms import (
    grant_permissions,
    levels_of,
    read_form,
    registration_form,
    server_form,
    url_of,
)
from tests.answers import Away
from tests.celery import Broker
from tests.celery import app as celery_app
from tests.factories import find_due, make_identity

pytestmark = pytest.mark.django_db

SECRET = "hush-client-secret-1"
ACCESS_TOKEN = "hush-access-token-2"
REFRESH_TOKEN = "hush-refresh-token-3"
CODE_VERIFIER = "hush-code-verifier-4"
NONCE = "hush-nonce-5"
LEASE_OWNER = "hush-lease-owner-6"
PATIENT = "hush-patient-7"
CONTEXT = "hush-context-8"
STATE_DIGEST = "hush-state-digest-9"
BROWSER_DIGEST = "hush-browser-digest-10"

MODELS = (ClientRegistration, FHIRServer, Identity, Launch, SigningKey, TokenGrant)


@pytest.fixture(autouse=True)
def _no_server_answers() -> Iterator[None]:
    """Registrations are saved although their server cannot be asked."""
    with transport.mounted("https://ehr.example.org", Away()):
        yield


def make_server(number: int = 0, **values: Any) -> FHIRServer:
    return factories.make_server(
        slug=f"harbour-{number}",
        base_url=f"https://ehr.example.org/{number}/fhir",
        **values,
    )


def make_registration(server: FHIRServer, **values: Any) -> ClientRegistration:
    values = {"client_secret": SECRET, "standalone_scope": "", **values}
    return factories.make_registration(server, **values)


def make_grant(registration: ClientRegistration, **values: Any) -> TokenGrant:
    return factories.make_grant(
        registration,
        access_token=ACCESS_TOKEN,
        refresh_token=REFRESH_TOKEN,
        patient_id=PATIENT,
        lease_owner=LEASE_OWNER,
        scope_asked="patient/Patient.rs offline_access",
        scope_granted="patient/Patient.r",
        scope="patient/Patient.r",
        **values,
    )


def make_launch(registration: ClientRegistration, **values: Any) -> Launch:
    return factories.make_launch(
        registration,
        state_digest=f"{STATE_DIGEST}{Launch.objects.count()}",
        nonce=NONCE,
        code_verifier=CODE_VERIFIER,
        browser_digest=BROWSER_DIGEST,
        context={"patient": PATIENT, "intent": CONTEXT},
        fhir_user=f"Patient/{PATIENT}",
        **values,
    )


@pytest.fixture
def rows(admin_user: User) -> dict[type[Any], Any]:
    """One row of each model, with every value that must not be seen."""
    server = make_server(
        configuration={
            "authorization_endpoint": "https://ehr.example.org/authorize",
            "token_endpoint": "https://ehr.example.org/token",
            "grant_types_supported": ["authorization_code"],
            "capabilities": ["launch-ehr", "client-public", "vendor-speciality"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        },
        configuration_fetched_at=timezone.now(),
    )
    registration = make_registration(server)
    identity = make_identity(admin_user, fhir_user=f"Patient/{PATIENT}")
    grant = make_grant(registration, user=admin_user, identity=identity)
    launch = make_launch(registration, user=admin_user, identity=identity, grant=grant)
    return {
        FHIRServer: server,
        ClientRegistration: registration,
        Identity: identity,
        TokenGrant: grant,
        Launch: launch,
        SigningKey: create_signing_key("ES384"),
    }


def hidden_values(rows: dict[type[Any], Any]) -> list[str]:
    grant, launch, key = rows[TokenGrant], rows[Launch], rows[SigningKey]
    return [
        SECRET,
        ACCESS_TOKEN,
        REFRESH_TOKEN,
        CODE_VERIFIER,
        NONCE,
        LEASE_OWNER,
        CONTEXT,
        STATE_DIGEST,
        BROWSER_DIGEST,
        grant.refresh_token_digest,
        launch.key,
        launch.key_digest,
        key.private_key.splitlines()[1],
        "PRIVATE KEY",
        "fernet:",
    ]


def pages_of(model: Any, row: Any) -> dict[str, str]:
    return {
        "list": url_of(model, "changelist"),
        "search": url_of(model, "changelist") + "?q=harbour",
        "row": url_of(model, "change", row.pk),
        "history": url_of(model, "history", row.pk),
        "delete": url_of(model, "delete", row.pk),
    }


@pytest.fixture
def viewer(rows: dict[type[Any], Any]) -> Client:
    """A browser of somebody who may view everything and change nothing."""
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    grant_permissions(user, *(f"view_{model._meta.model_name}" for model in MODELS))
    client = Client()
    client.force_login(user)
    return client


def changed_by(client: Client, row: Any) -> list[str]:
    """What the admin has on record of changes of *row* by the client's user."""
    entries = LogEntry.objects.filter(
        user=client.session["_auth_user_id"],
        content_type=ContentType.objects.get_for_model(row),
        object_id=row.pk,
        action_flag=CHANGE,
    )
    return [each.get_change_message() for each in entries]


def open_form(client: Client, row: Any) -> tuple[str, dict[str, Any]]:
    """The URL of the page of *row*, and what its form sends if nobody types in it."""
    url = url_of(type(row), "change", row.pk)
    return url, read_form(client.get(url))


def save(client: Client, url: str, data: dict[str, Any]) -> None:
    """Send the form of a page, in which nothing is wrong."""
    response = client.post(url, data)
    assert response.status_code == 302, response.context["errors"]


def run_action(
    client: Client,
    model: Any,
    name: str,
    *rows: Any,
    **values: Any,
) -> Any:
    """The page after an action on *rows*."""
    data = {"action": name, "_selected_action": [row.pk for row in rows], **values}
    return client.post(url_of(model, "changelist"), data, follow=True)


# What is never shown


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.compliance("JWKS-02")
def test_no_page_shows_a_secret_to_whoever_may_do_everything(admin_client, rows, model):
    hidden = hidden_values(rows)
    for name, url in pages_of(model, rows[model]).items():
        content = admin_client.get(url).content.decode()
        assert [value for value in hidden if value in content] == [], name


@pytest.mark.parametrize("model", MODELS)
def test_no_page_shows_a_secret_to_whoever_may_only_look(viewer, rows, model):
    hidden = hidden_values(rows)
    pages = pages_of(model, rows[model])
    for name in ("list", "search", "row", "history"):
        response = viewer.get(pages[name])
        assert response.status_code == 200
        content = response.content.decode()
        assert [value for value in hidden if value in content] == [], name
    assert viewer.get(pages["delete"]).status_code == 403


@pytest.mark.parametrize("model", MODELS)
def test_no_list_shows_a_patient_and_no_page_of_a_launch(admin_client, rows, model):
    pages = pages_of(model, rows[model])
    for name in ("list", "search", "history", "delete", *["row"] * (model is Launch)):
        assert PATIENT not in admin_client.get(pages[name]).content.decode(), name


@pytest.mark.parametrize(
    ("model", "column"),
    [
        *((Launch, f"context__{name}__startswith") for name in ("patient", "intent")),
        *((Launch, name) for name in ("browser_digest", "fhir_user", "key", "nonce")),
        *((Launch, name) for name in ("held__isnull", "next_url", "state_digest")),
        *((TokenGrant, name) for name in ("lease_owner", "refresh_token_digest")),
    ],
)
def test_column_that_no_page_shows_cannot_be_guessed(viewer, rows, model, column):
    response = viewer.get(url_of(model, "changelist"), {column: "x"})
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (Launch, {"pk__in": "1,2", "user__id__exact": "1", "nothing": "x"}),
        (Launch, {"error_code": "state_used", "registration": "1", "grant": "1"}),
        (Launch, {"scope_asked__contains": "x"}),
        (TokenGrant, {"ends_at__isempty": "0", "user_id": "1", "patient_id": "1"}),
        (TokenGrant, {"scope__contains": "x"}),
        (Identity, {"issuer": "https://ehr.example.org", "user": "1"}),
    ],
)
def test_list_is_filtered_by_what_its_pages_show(viewer, rows, model, query):
    for name, value in query.items():
        response = viewer.get(url_of(model, "changelist"), {name: value})
        # An unknown name is ignored, with a redirect.
        assert response.status_code == (302 if name == "nothing" else 200), name


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.usefixtures("viewer")
def test_site_may_add_filters(rf, kind):
    class SiteLaunchAdmin(LaunchAdmin):
        def get_list_filter(self, request: Any) -> Any:
            added = kind(("fhir_user", admin.AllValuesFieldListFilter))
            return (*super().get_list_filter(request), added)

    request = rf.get("/")
    request.user = User.objects.get(username="viewer")
    page = SiteLaunchAdmin(Launch, admin.site)
    for name, is_allowed in (("fhir_user", True), ("status", True), ("key", False)):
        assert page.lookup_allowed(f"{name}__exact", "x", request) == is_allowed


@pytest.mark.parametrize("model", [Identity, Launch, TokenGrant])
def test_user_is_shown_by_name_and_leads_to_the_account(admin_client, model):
    user = User.objects.create_user(f"smart-{'a' * 26}", first_name="Dr. Helena")
    user.last_name = "Brandvold"
    user.save()
    registration = make_registration(make_server())
    row = {
        Identity: lambda: make_identity(user),
        Launch: lambda: make_launch(registration, user=user),
        TokenGrant: lambda: make_grant(registration, user=user),
    }[model]()
    page = admin_client.get(url_of(model, "changelist"))
    assert "Dr. Helena Brandvold" in page.text
    assert user.username not in page.text
    page = admin_client.get(url_of(model, "change", row.pk))
    account = reverse("admin:auth_user_change", args=[user.pk])
    assert f'<a href="{account}">Dr. Helena Brandvold</a>' in page.text
    User.objects.filter(pk=user.pk).update(first_name="", last_name="")
    assert user.username in admin_client.get(url_of(model, "changelist")).text


def test_front_page_and_autocomplete_show_no_secret(admin_client, rows):
    autocomplete = (
        reverse("admin:autocomplete") + "?app_label=django_smart"
        "&model_name=clientregistration&field_name=server&term="
    )
    for url in (reverse("admin:index"), autocomplete):
        response = admin_client.get(url)
        assert response.status_code == 200
        content = response.content.decode()
        assert [value for value in hidden_values(rows) if value in content] == []


# Lists


@pytest.mark.parametrize("model", MODELS)
def test_list_of_fifty_rows_takes_as_many_queries_as_of_one(admin_client, model):
    def fill(numbers: range) -> None:
        for number in numbers:
            user = User.objects.create_user(f"user-{number}")
            registration = make_registration(make_server(number))
            make_grant(registration, user=user)
            make_launch(registration, user=user)
            make_identity(user, subject=str(number))
            SigningKey.objects.create(
                kid=str(number),
                algorithm="ES384",
                private_key="x",
                public_jwk={},
                status=SigningKey.Status.RETIRED,
            )

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            response = admin_client.get(url_of(model, "changelist"))
        assert response.status_code == 200
        return len(queries)

    fill(range(1))
    count()
    for_one = count()
    fill(range(1, 50))
    assert count() == for_one


def test_server_page_leads_to_its_registrations(admin_client):
    own = make_registration(make_server())
    other = make_registration(make_server(1))
    page = admin_client.get(url_of(FHIRServer, "change", own.server_id))
    page = admin_client.get(page.context["registrations_url"])
    assert list(page.context["cl"].result_list) == [own] != [other]


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (TokenGrant, "Harbour"),
        (TokenGrant, "admin"),
        (TokenGrant, "invalid_client"),
        (Launch, "Harbour"),
        (Launch, "admin"),
        (Launch, "state_used"),
        (Identity, "admin"),
        (Identity, "ehr.example.org"),
        (ClientRegistration, "growth"),
        (FHIRServer, "ehr.example.org/0"),
    ],
)
def test_rows_are_found_by_safe_columns(admin_client, rows, model, query):
    TokenGrant.objects.update(last_error="invalid_client")
    Launch.objects.update(error_code="state_used")
    url = url_of(model, "change", rows[model].pk)
    found = admin_client.get(url_of(model, "changelist"), {"q": query})
    assert url in found.content.decode()
    not_found = admin_client.get(url_of(model, "changelist"), {"q": "zebra"})
    assert url not in not_found.content.decode()


@pytest.mark.parametrize("model", [TokenGrant, Launch, Identity, FHIRServer])
def test_nothing_is_found_by_a_patient(admin_client, rows, model):
    url = url_of(model, "change", rows[model].pk)
    found = admin_client.get(url_of(model, "changelist"), {"q": PATIENT})
    assert f'href="{url}' not in found.content.decode()


def test_grants_with_an_end_are_found_and_sorted(admin_client, rows):
    now = timezone.now()
    soon, later, _ = (
        rows[TokenGrant],
        *(make_grant(rows[TokenGrant].registration) for _ in range(2)),
    )
    for grant, days in ((soon, 1), (later, 90)):
        ends_at = now + timedelta(days=days)
        TokenGrant.objects.filter(pk=grant.pk).update(ends_at=ends_at)
    column = 1 + TokenGrantAdmin.list_display.index("ends_at")
    page = admin_client.get(
        url_of(TokenGrant, "changelist"), {"ends_at__isempty": "0", "o": column}
    )
    assert list(page.context["cl"].result_list) == [soon, later]


# Servers


@pytest.fixture
def sent(broker: Broker) -> list[tuple[str, Any]]:
    """What was given to the broker: names of tasks with their arguments."""
    return broker.messages


def test_preset_fills_in_what_was_not_typed(admin_client, sent):
    data = server_form(preset="smart_launcher")
    admin_client.post(url_of(FHIRServer, "add"), data)
    assert FHIRServer.objects.get().quirks.bearer_boundary == "origin"


def test_values_of_the_preset_before_are_reset_unless_somebody_changed_them(
    admin_client, sent
):
    admin_client.post(url_of(FHIRServer, "add"), server_form(preset="smart_launcher"))
    server = FHIRServer.objects.get()
    make_registration(server)
    url = url_of(FHIRServer, "change", server.pk)

    def choose(preset: str, **values: Any) -> FHIRServer:
        data = {**read_form(admin_client.get(url)), "preset": preset, **values}
        save(admin_client, url, data)
        return FHIRServer.objects.get()

    headers = {"Epic-Client-ID": "{client_id}"}
    assert choose("epic").quirks.discovery_headers == headers
    stored = choose("oracle_health")
    assert stored.quirks == Quirks()
    assert choose("athenahealth").quirks.introspection_mode == "client"
    # What was typed counts, and what the preset had not filled in stays.
    stored = choose("smart_launcher", client_id_with_assertion="on")
    assert stored.quirks.as_json() == {
        "bearer_boundary": "origin",
        "client_id_with_assertion": True,
    }
    stored = choose("athenahealth", bearer_boundary="base")
    stored = choose("epic", discovery_headers='{"X": "y"}')
    stored = choose("", introspection_mode="client")
    assert stored.quirks.as_json() == {
        "client_id_with_assertion": True,
        "discovery_headers": {"X": "y"},
        "introspection_mode": "client",
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base_url", "http://ehr.example.org/fhir", "https"),
        ("base_url", "HTTPS://EHR.example.org/0/fhir/", "already registered"),
        ("overrides", '{"token_endpoint": "ftp://ehr.example.org"}', "https"),
        ("overrides", '{"capabilities": "launch-ehr"}', "not a list"),
        ("frame_origins", '["https://ehr.example.org/path"]', "not an origin"),
        ("discovery_headers", '{"X": 1}', "printable ASCII"),
    ],
)
def test_fault_of_a_server_stands_beside_its_field(
    admin_client, rows, name, value, message
):
    response = admin_client.post(
        url_of(FHIRServer, "add"), server_form(**{name: value})
    )
    assert response.status_code == 200
    errors = response.context["adminform"].form.errors
    assert list(errors) == [name]
    assert message in errors[name].as_text()


def test_server_page_has_no_empty_sections(admin_client, rows):
    def fields(url):
        return flatten_fieldsets(admin_client.get(url).context["adminform"].fieldsets)

    readonly = {"configuration", "health", "moved_values", "report"}
    assert readonly.isdisjoint(fields(url_of(FHIRServer, "add")))
    server = rows[FHIRServer]
    shown = fields(url_of(FHIRServer, "change", server.pk))
    assert readonly.intersection(shown) == readonly - {"moved_values"}
    server.discovered.moved = {"token_endpoint": "https://new.example.org/token"}
    server.discovered.save()
    assert "moved_values" in fields(url_of(FHIRServer, "change", server.pk))


def test_server_page_tells_what_it_offers(admin_client, rows):
    url = url_of(FHIRServer, "change", rows[FHIRServer].pk)
    content = admin_client.get(url).content.decode()
    for words in (
        "launch-ehr",
        "vendor-speciality",
        "https://ehr.example.org/token",
        "S256",
        "client_secret_basic",
    ):
        assert words in content


def test_server_page_tells_which_endpoints_were_entered_by_hand(admin_client, rows):
    server = rows[FHIRServer]
    server.overrides = {"token_endpoint": "https://other.example.org/token"}
    server.save()
    content = admin_client.get(url_of(FHIRServer, "change", server.pk)).content.decode()
    assert "https://other.example.org/token (set manually)" in content
    assert "https://ehr.example.org/token" not in content


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (None, "Not fetched yet."),
        (
            {"token_endpoint": 1},
            "The stored configuration cannot be used: token_endpoint",
        ),
        (
            {"token_endpoint": "https://ehr.example.org/token"},
            "codes.html#discovery_member_missing",
        ),
    ],
)
def test_server_page_says_what_is_wrong_with_what_is_stored(
    admin_client, configuration, words
):
    server = make_server(configuration=configuration)
    content = admin_client.get(url_of(FHIRServer, "change", server.pk)).content.decode()
    assert words in content


def test_new_base_url_forgets_what_was_discovered_at_the_old_one(admin_client, sent):
    server = make_server(
        configuration={"token_endpoint": "https://ehr.example.org/token"},
        issuer="https://ehr.example.org",
        jwks={"keys": []},
        jwks_uri="https://ehr.example.org/jwks",
        pinned={"token_endpoint": "https://ehr.example.org/token"},
        moved={"token_endpoint": "https://new.example.org/token"},
    )
    url, data = open_form(admin_client, server)
    data["base_url"] = "https://new.example.org/fhir"
    save(admin_client, url, data)
    server.refresh_from_db()
    assert server.base_url == "https://new.example.org/fhir"
    assert (server.state.configuration, server.state.jwks) == (None, None)
    assert (server.state.issuer, server.state.jwks_uri) == ("", "")
    assert (server.state.pinned, server.state.moved) == ({}, {})


def accept(client: Client, server: FHIRServer, page: Any) -> Any:
    """Press the button of a server's *page* that accepts the values it shows."""
    url = url_of(FHIRServer, "accept", server.pk)
    return client.post(url, {"shown": page.context["shown"]}, follow=True)


@pytest.mark.django_db(transaction=True)
def test_values_that_an_operator_accepts_are_those_of_the_page(admin_client):
    ehr = EHRSimulator("https://ehr.example.org/0/fhir")
    old = "https://old.example.org/token"
    server = make_server(
        pinned={"token_endpoint": old}, moved={"token_endpoint": ehr.token_endpoint}
    )
    page = admin_client.get(url_of(FHIRServer, "change", server.pk))
    assert f"token_endpoint: {old} → {ehr.token_endpoint}" in page.text
    with transport.mounted(ehr.origin, ehr.adapter()):
        accept(admin_client, server, page)
    server.refresh_from_db()
    assert server.state.pinned["token_endpoint"] == ehr.token_endpoint
    assert server.state.moved == {}
    assert changed_by(admin_client, server) == ["Changed moved values."]
    assert levels_of(accept(admin_client, server, page)) == ["warning"]
    page = admin_client.get(url_of(FHIRServer, "change", server.pk))
    assert "shown" not in page.context


@pytest.mark.django_db(transaction=True)
def test_value_that_came_after_the_page_was_opened_is_not_accepted(admin_client):
    pinned = {"token_endpoint": "https://old.example.org/token"}
    server = make_server(
        pinned=pinned, moved={"token_endpoint": "https://new.example.org/token"}
    )
    page = admin_client.get(url_of(FHIRServer, "change", server.pk))
    later = {"token_endpoint": "https://evil.example.net/token"}
    ServerState.objects.filter(pk=server.pk).update(moved=later)
    assert levels_of(accept(admin_client, server, page)) == ["warning"]
    server.refresh_from_db()
    assert (server.state.pinned, server.state.moved) == (pinned, later)


@pytest.mark.django_db(transaction=True)
def test_message_about_a_private_address_has_the_line_to_add(admin_client):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}/fhir"
        data = server_form(base_url=base_url)
        page = admin_client.post(url_of(FHIRServer, "add"), data, follow=True)
    messages = " ".join(map(str, page.context["messages"]))
    assert 'SMART_PRIVATE_HOSTS = ["127.0.0.1"]' in messages


def test_base_url_of_a_server_with_tokens_cannot_be_changed(admin_client, rows, sent):
    server = rows[FHIRServer]
    data = server_form(base_url="https://evil.example.org/fhir", name="Renamed")
    admin_client.post(url_of(FHIRServer, "change", server.pk), data)
    server.refresh_from_db()
    assert server.name == "Renamed"
    assert server.base_url == "https://ehr.example.org/0/fhir"


def test_base_url_that_cannot_be_changed_says_what_to_do(admin_client, rows):
    page = admin_client.get(url_of(FHIRServer, "change", rows[FHIRServer].pk)).text
    assert 'name="base_url"' not in page
    assert "When an EHR moves its base URL" in page


def test_server_with_registrations_is_not_deleted(admin_client, rows):
    response = admin_client.post(
        url_of(FHIRServer, "delete", rows[FHIRServer].pk), {"post": "yes"}
    )
    assert response.context["protected"]
    assert FHIRServer.objects.exists()


def test_server_without_registrations_is_deleted(admin_client):
    server = make_server()
    admin_client.post(url_of(FHIRServer, "delete", server.pk), {"post": "yes"})
    assert not FHIRServer.objects.exists()


@pytest.mark.parametrize("make", [make_grant, make_launch])
def test_registration_that_was_used_is_deactivated_and_not_deleted(admin_client, make):
    registration = make_registration(make_server())
    for _ in range(20):
        make(registration, status="revoked" if make is make_grant else "ended")
    url = url_of(ClientRegistration, "delete", registration.pk)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(url)
    # The grants are neither read nor listed.
    (reason,) = response.context["protected"]
    assert "deactivate" in str(reason)
    assert len(queries) < 10
    admin_client.post(url, {"post": "yes"})
    assert ClientRegistration.objects.get() == registration
    TokenGrant.objects.all().delete()
    Launch.objects.all().delete()
    admin_client.post(url, {"post": "yes"})
    assert not ClientRegistration.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_servers_are_asked_again(admin_client, rows, sent):
    server = rows[FHIRServer]
    ServerState.objects.update(discovery_failed_at=timezone.now())
    response = run_action(admin_client, FHIRServer, "rediscover", server)
    assert levels_of(response) == ["success"]
    assert sent == [("refresh_servers", ())]
    server.refresh_from_db()
    assert server.state.configuration is not None
    assert server.state.configuration_fetched_at is None
    # The worker would leave it alone for minutes.
    assert server.state.discovery_failed_at is None


def test_inactive_servers_are_not_asked(admin_client, sent):
    server = make_server(is_active=False)
    response = run_action(admin_client, FHIRServer, "rediscover", server)
    assert levels_of(response) == ["warning"]
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_servers_are_asked_later_without_a_broker(admin_client, rows, broker):
    broker.error = OperationalError()
    response = run_action(admin_client, FHIRServer, "rediscover", rows[FHIRServer])
    assert levels_of(response) == ["warning"]


@pytest.mark.parametrize("overrides", ["", "{}"])
def test_what_is_changed_on_a_server_page_is_stored(admin_client, overrides):
    server = make_server(paused=True, overrides={"capabilities": []})
    url, data = open_form(admin_client, server)
    save(admin_client, url, {**data, "overrides": overrides, "is_active": ""})
    server.refresh_from_db()
    assert server.overrides == {}
    assert (server.paused, server.is_active) == (True, False)


# Registrations


def test_registration_is_added_with_a_secret(admin_client):
    server = make_server()
    data = registration_form(server=server.pk, client_secret=f" {SECRET} ")
    save(admin_client, url_of(ClientRegistration, "add"), data)
    assert ClientRegistration.objects.get().client_secret == f" {SECRET} "


@pytest.mark.parametrize(
    ("debug", "expected"), [(True, "http://testserver/smart/callback/"), (False, None)]
)
def test_redirect_uri_is_made_of_the_request_only_under_debug(
    admin_client, settings, debug, expected
):
    settings.SMART_SITE_URL = ""
    settings.DEBUG = debug
    response = admin_client.get(url_of(ClientRegistration, "add"))
    assert response.context["adminform"].form.initial.get("redirect_uri") == expected


def test_empty_secret_keeps_the_stored_one(admin_client, rows):
    registration = rows[ClientRegistration]
    url = url_of(ClientRegistration, "change", registration.pk)
    save(admin_client, url, registration_form(landing_page="/start/"))
    registration.refresh_from_db()
    assert registration.client_secret == SECRET
    assert registration.landing_page == "/start/"


def test_new_secret_replaces_the_stored_one_and_stays_out_of_the_history(
    admin_client, rows
):
    registration = rows[ClientRegistration]
    url = url_of(ClientRegistration, "change", registration.pk)
    admin_client.post(url, registration_form(client_secret="another secret"))
    registration.refresh_from_db()
    assert registration.client_secret == "another secret"
    entry = LogEntry.objects.get()
    assert "another secret" not in entry.change_message
    assert "Client secret" in entry.get_change_message()


@pytest.mark.parametrize("has_grants", [True, False])
def test_client_id_can_be_changed_until_there_are_grants(
    admin_client, rows, has_grants
):
    registration = rows[ClientRegistration]
    if not has_grants:
        TokenGrant.objects.all().delete()
    url = url_of(ClientRegistration, "change", registration.pk)
    data = registration_form(client_id="another", landing_page="/start/")
    save(admin_client, url, data)
    registration.refresh_from_db()
    assert registration.landing_page == "/start/"
    assert (registration.client_id == "another") is not has_grants


def test_secret_is_removed(admin_client, rows):
    registration = rows[ClientRegistration]
    url = url_of(ClientRegistration, "change", registration.pk)
    save(admin_client, url, registration_form(token_endpoint_auth_method="none"))
    registration.refresh_from_db()
    assert registration.client_secret == ""


def test_secret_is_in_one_place(admin_client, rows):
    registration = rows[ClientRegistration]

    def choose(**values: str) -> tuple[str, str, str]:
        url, data = open_form(admin_client, registration)
        save(admin_client, url, {**data, **values})
        registration.refresh_from_db()
        return (
            registration.client_secret,
            registration.client_secret_env,
            registration.client_secret_file,
        )

    assert choose(secret_source="client_secret_env", client_secret_env="A") == (
        ("", "A", "")
    )
    # What is chosen counts, whatever is left in the other fields.
    assert choose(secret_source="client_secret_file", client_secret_file="/b") == (
        ("", "", "/b")
    )
    assert choose(landing_page="/start/") == ("", "", "/b")
    assert choose(secret_source="client_secret", client_secret="x") == ("x", "", "")
    assert choose(landing_page="/other/") == ("x", "", "")
    assert choose(token_endpoint_auth_method="private_key_jwt") == ("", "", "")


def test_secret_needs_the_place_that_was_chosen(admin_client, rows):
    url, data = open_form(admin_client, rows[ClientRegistration])
    data["secret_source"] = "client_secret_env"
    errors = admin_client.post(url, data).context["adminform"].form.errors
    assert "variable or file" in errors["client_secret"].as_text()
    rows[ClientRegistration].refresh_from_db()
    assert rows[ClientRegistration].client_secret == SECRET


def test_new_credentials_lift_a_stop(admin_client, rows):
    registration = rows[ClientRegistration]
    ClientRegistration.objects.update(
        refresh_stopped_at=timezone.now(), refresh_stop_reason="invalid_client"
    )
    url, data = open_form(admin_client, registration)
    save(admin_client, url, {**data, "client_secret": "anew"})
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None


def test_new_registration_leads_to_its_next_steps(admin_client):
    data = registration_form(server=make_server().pk, client_secret="x")
    page = admin_client.post(url_of(ClientRegistration, "add"), data, follow=True)
    registration = ClientRegistration.objects.get()
    url = url_of(ClientRegistration, "change", registration.pk)
    assert page.redirect_chain[-1][0] == url
    assert page.context["steps"]["urls"]


def test_four_inputs_are_open_and_all_others_closed(admin_client, rows):
    for url in (
        url_of(ClientRegistration, "add"),
        url_of(ClientRegistration, "change", rows[ClientRegistration].pk),
    ):
        page = admin_client.get(url)
        is_open = {
            name
            for fieldset in page.context["adminform"]
            if not fieldset.is_collapsible
            for name in flatten_fieldsets([(None, {"fields": fieldset.fields})])
        }
        assert is_open == {
            *("server", "client_id", "token_endpoint_auth_method"),
            # Of these, the script shows what the method needs.
            *("secret_source", "client_secret", "client_secret_env"),
            *("client_secret_file", "signing_algorithm"),
            *("ehr_scope", "standalone_scope", "system_scope"),
        }


def test_secret_that_was_typed_is_not_sent_back_with_an_error(admin_client, rows):
    url = url_of(ClientRegistration, "change", rows[ClientRegistration].pk)
    data = registration_form(client_secret="typed-just-now", ehr_scope="Launch")
    response = admin_client.post(url, data)
    assert response.status_code == 200
    assert "typed-just-now" not in response.content.decode()


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"ehr_scope": "user/Observations.rs"}, "ehr_scope", "user/Observation.rs?"),
        ({"ehr_scope": ""}, "ehr_scope", "scopes for at least one use"),
        ({"redirect_uri": "foo"}, "redirect_uri", "not an absolute http"),
        ({"redirect_uri": "javascript:alert(1)"}, "redirect_uri", "not an absolute"),
        ({"redirect_uri": "https://[abc/callback/"}, "redirect_uri", "invalid host"),
        ({"redirect_uri": "https://a.example:99999/"}, "redirect_uri", "invalid host"),
    ],
)
@pytest.mark.compliance("REG-04")
def test_fault_of_a_registration_stands_beside_its_field(
    admin_client, rows, values, field, message
):
    url = url_of(ClientRegistration, "change", rows[ClientRegistration].pk)
    data = read_form(admin_client.get(url))
    response = admin_client.post(url, {**data, **values})
    assert response.status_code == 200
    errors = response.context["adminform"].form.errors
    assert list(errors) == [field]
    assert message in errors[field].as_text()
    rows[ClientRegistration].refresh_from_db()
    assert rows[ClientRegistration].client_secret == SECRET


@pytest.mark.parametrize(
    ("client_id", "message"),
    [
        ("growth-chart", "already registered at this server"),
        ("another", "default for EHR launches"),
    ],
)
def test_second_registration_for_launches_is_refused(
    admin_client, rows, client_id, message
):
    data = registration_form(
        server=rows[FHIRServer].pk, client_id=client_id, client_secret="x"
    )
    response = admin_client.post(url_of(ClientRegistration, "add"), data)
    assert response.status_code == 200
    assert message in response.content.decode()


def test_registration_page_shows_what_the_vendor_asks_for(admin_client, rows):
    url = url_of(ClientRegistration, "change", rows[ClientRegistration].pk)
    content = admin_client.get(url).content.decode()
    for path in ("launch/", "callback/"):
        assert f">https://app.example.org/smart/{path}</code>" in content
    assert "jwks.json" not in content
    assert "smart/login/" not in content
    ClientRegistration.objects.update(standalone_scope="patient/Patient.rs")
    content = admin_client.get(url).content.decode()
    assert ">https://app.example.org/smart/login/?server=harbour-0</code>" in content


def test_new_registration_with_a_fault_shows_the_urls_again(admin_client):
    data = registration_form(server=make_server(0).pk)
    content = admin_client.post(
        url_of(ClientRegistration, "add"), data
    ).content.decode()
    for path in ("launch/", "callback/", "jwks.json"):
        assert f">https://app.example.org/smart/{path}</code>" in content


def test_page_of_a_new_registration_shows_the_urls_of_this_site(admin_client):
    page = admin_client.get(url_of(ClientRegistration, "add"))
    for path in ("launch/", "callback/", "jwks.json"):
        assert f">https://app.example.org/smart/{path}</code>" in page.text
    assert 'value="https://app.example.org/smart/callback/"' in page.text
    assert "callback/&lt;callback ID&gt;/" in page.text
    # One line, for a client ID that is pasted.
    fields = page.context["adminform"].form.fields
    assert fields["client_id"].widget.input_type == "text"


def test_registration_page_says_how_this_site_gets_an_address(
    admin_client, rows, settings
):
    settings.SMART_SITE_URL = ""
    registration = rows[ClientRegistration]
    ClientRegistration.objects.update(redirect_uri="")
    url = url_of(ClientRegistration, "change", registration.pk)
    assert "Set SMART_SITE_URL" in admin_client.get(url).content.decode()


def test_registration_keeps_its_server(admin_client, rows):
    registration = rows[ClientRegistration]
    other = make_server(1)
    url = url_of(ClientRegistration, "change", registration.pk)
    admin_client.post(url, registration_form(server=other.pk))
    registration.refresh_from_db()
    assert registration.server == rows[FHIRServer]


@pytest.mark.parametrize("server", ["9" * 23, "12345", "x", "\0", ""])
def test_link_to_a_server_that_does_not_exist_opens_an_empty_form(admin_client, server):
    url = url_of(ClientRegistration, "add")
    response = admin_client.get(url, {"server": server})
    assert response.status_code == 200
    assert response.context["adminform"].form["callback_id"].value() == ""


def test_key_is_made_for_a_registration_that_signs(admin_client):
    server = make_server()
    data = registration_form(
        server=server.pk,
        token_endpoint_auth_method="private_key_jwt",
        signing_algorithm="ES384",
    )
    response = admin_client.post(url_of(ClientRegistration, "add"), data, follow=True)
    assert SigningKey.objects.active().get().algorithm == "ES384"
    assert "/smart/jwks.json</code>" in response.text


def test_registration_with_a_key_of_its_own_needs_no_other_one(admin_client, rows):
    registration = rows[ClientRegistration]
    SigningKey.objects.all().delete()
    own = create_signing_key("ES384", registration=registration)
    data = registration_form(
        token_endpoint_auth_method="private_key_jwt",
        signing_algorithm="ES384",
    )
    url = url_of(ClientRegistration, "change", registration.pk)
    save(admin_client, url, data)
    assert SigningKey.objects.get() == own


@pytest.fixture
def lost_encryption_key(rows: Any, settings: Any) -> None:
    settings.SECRET_KEY = "another key, which nothing was encrypted with: 0123456789"


@pytest.mark.parametrize("model", MODELS)
def test_pages_work_without_the_encryption_key(
    admin_client, rows, settings, model, lost_encryption_key, admin_user
):
    admin_client.force_login(admin_user)
    for name, url in pages_of(model, rows[model]).items():
        assert admin_client.get(url).status_code == 200, name


def test_secret_that_cannot_be_decrypted_is_asked_for_again(
    admin_client, rows, lost_encryption_key, admin_user
):
    admin_client.force_login(admin_user)
    url = url_of(ClientRegistration, "change", rows[ClientRegistration].pk)
    response = admin_client.post(url, registration_form())
    errors = response.context["adminform"].form.errors
    assert "cannot be decrypted" in errors["client_secret"].as_text()
    response = admin_client.post(url, registration_form(client_secret="anew"))
    assert response.status_code == 302
    assert ClientRegistration.objects.get().client_secret == "anew"


def test_server_page_stores_every_kind_of_field_that_was_changed(admin_client):
    server = make_server(rate_limit=5, frame_origins=["https://ehr.example.org"])
    url, data = open_form(admin_client, server)
    del data["nonce_required"]
    typed = {
        "rate_limit": "",
        "frame_origins": "[]",
        "refresh_token_lifetime": "0:05:00",
        "login_group": "harbours",
        "aud_rule": "base_url",
    }
    save(admin_client, url, {**data, **typed})
    stored = FHIRServer.objects.get()
    assert (stored.frame_origins, stored.login_group) == ([], "harbours")
    assert stored.quirks == Quirks(
        aud_rule="base_url",
        nonce_required=False,
        refresh_token_lifetime=timedelta(minutes=5),
    )


# Signing keys


def test_key_is_added_by_its_algorithm(admin_client):
    page = admin_client.get(url_of(SigningKey, "add"))
    fields = page.context["adminform"].form.fields
    assert list(fields) == ["algorithm", "registration"]
    admin_client.post(url_of(SigningKey, "add"), {"algorithm": "ES384"})
    key = SigningKey.objects.get()
    assert key.status == SigningKey.Status.ACTIVE
    assert key.private_key.startswith("-----BEGIN PRIVATE KEY-----")
    assert "d" not in key.public_jwk


def test_key_of_one_registration_is_published_before_it_signs(admin_client):
    shared = create_signing_key("ES384")
    registration = make_registration(make_server())
    data = {"algorithm": "ES384", "registration": registration.pk}
    for _ in range(2):
        admin_client.post(url_of(SigningKey, "add"), data)
    own = SigningKey.objects.of(registration).get()
    assert own.status == SigningKey.Status.NEXT
    SigningKey.objects.filter(pk=own.pk).update(created_at=timezone.now() - OVERLAP)
    run_action(admin_client, SigningKey, "activate", own)
    assert set(SigningKey.objects.active()) == {shared, own}


def test_later_key_is_published_before_it_signs(admin_client):
    old = create_signing_key("ES384")
    admin_client.post(url_of(SigningKey, "add"), {"algorithm": "ES384"})
    new = SigningKey.objects.exclude(pk=old.pk).get()
    assert new.status == SigningKey.Status.NEXT
    response = run_action(admin_client, SigningKey, "activate", new)
    assert levels_of(response)[-1] == "error"
    assert SigningKey.objects.active().get() == old
    assert changed_by(admin_client, new) == []
    SigningKey.objects.filter(pk=new.pk).update(created_at=timezone.now() - OVERLAP)
    response = run_action(admin_client, SigningKey, "activate", new)
    assert levels_of(response) == ["success"]
    for key in (old, new):
        key.refresh_from_db()
    assert (old.status, new.status) == ("retired", "active")
    assert changed_by(admin_client, new) == ["Changed status."]
    assert old.retired_at is not None
    assert new.activated_at is not None


def test_key_page_shows_the_public_half(admin_client, rows):
    key = rows[SigningKey]
    content = admin_client.get(url_of(SigningKey, "change", key.pk)).content.decode()
    assert key.public_jwk["x"] in content
    assert json.dumps(key.kid).replace('"', "&quot;") in content
    url = url_of(SigningKey, "change", key.pk)
    assert admin_client.post(url, {"algorithm": "ES384"}).status_code == 403


def test_only_published_keys_are_activated(admin_client):
    active = create_signing_key("ES384")
    response = run_action(admin_client, SigningKey, "activate", active)
    assert levels_of(response) == ["warning"]
    assert [key.pk for key in SigningKey.objects.active()] == [active.pk]


def test_of_each_algorithm_one_key_is_published_as_next(admin_client):
    create_signing_key("ES384")
    create_signing_key("ES384", status="next")
    url = url_of(SigningKey, "add")
    response = admin_client.post(url, {"algorithm": "ES384"}, follow=True)
    assert "warning" in levels_of(response)
    assert admin_client.post(url, {"algorithm": "RS384"}).status_code == 302
    assert SigningKey.objects.count() == 3


def test_second_click_that_adds_a_key_shows_the_key_of_the_first(admin_client):
    create_signing_key("ES384")
    made: list[SigningKey | None] = []

    def click_again(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if "django_smart_signingkey" in sql and not made:
            made.append(None)
            made.append(create_signing_key("ES384", status="next"))
        return result

    with connection.execute_wrapper(click_again):
        url = url_of(SigningKey, "add")
        response = admin_client.post(url, {"algorithm": "ES384"}, follow=True)
    assert response.status_code == 200
    assert "warning" in levels_of(response)
    assert SigningKey.objects.following().get() == made[-1]
    assert SigningKey.objects.count() == 2


def test_keys_that_do_not_sign_are_taken_out_of_the_key_set(admin_client):
    active = create_signing_key("ES384")
    retired = create_signing_key("ES384", status="retired")
    response = run_action(admin_client, SigningKey, "withdraw", active)
    assert levels_of(response) == ["warning"]
    response = run_action(admin_client, SigningKey, "withdraw", active, retired)
    assert levels_of(response) == ["success"]
    assert [key["kid"] for key in SigningKey.objects.as_jwks()["keys"]] == [active.kid]
    assert changed_by(admin_client, retired) == ["Changed status."]
    assert changed_by(admin_client, active) == []


def test_key_is_deleted_only_once_it_is_out_of_the_key_set(admin_client):
    active = create_signing_key("ES384")
    removed = create_signing_key("ES384", status="removed")
    for key in (active, removed):
        admin_client.post(url_of(SigningKey, "delete", key.pk), {"post": "yes"})
    response = run_action(
        admin_client, SigningKey, "delete_selected", active, post="yes"
    )
    (reason,) = response.context["protected"]
    assert "JWK Set" in str(reason)
    assert list(SigningKey.objects.all()) == [active]


# Grants and launches


@pytest.mark.parametrize("model", [TokenGrant, Launch])
def test_what_launches_write_is_neither_added_nor_edited(admin_client, rows, model):
    assert admin_client.get(url_of(model, "add")).status_code == 403
    url = url_of(model, "change", rows[model].pk)
    assert '<input type="submit"' not in admin_client.get(url).content.decode()
    assert admin_client.post(url, {"status": "revoked"}).status_code == 403


def test_identity_takes_one_change_whether_it_signs_in(admin_client, rows):
    identity = rows[Identity]
    assert admin_client.get(url_of(Identity, "add")).status_code == 403
    url = url_of(Identity, "change", identity.pk)
    assert admin_client.post(url, {"subject": "other", "user": 5}).status_code == 302
    changed = Identity.objects.get()
    assert (changed.subject, changed.user) == (identity.subject, identity.user)
    assert not changed.may_sign_in
    admin_client.post(url, {"may_sign_in": "on"})
    assert Identity.objects.get().may_sign_in


@pytest.mark.parametrize("is_allowed", [False, True])
def test_staff_with_the_permission_remove_an_identity(client, rows, is_allowed):
    staff = User.objects.create_user("staff", is_staff=True)
    grant_permissions(staff, "view_identity")
    if is_allowed:
        grant_permissions(staff, "delete_identity")
    client.force_login(staff)
    url = url_of(Identity, "delete", rows[Identity].pk)
    response = client.post(url, {"post": "yes"})
    assert response.status_code == (302 if is_allowed else 403)
    assert Identity.objects.exists() == (not is_allowed)


def test_grant_page_shows_status_scopes_and_errors(admin_client, rows):
    TokenGrant.objects.update(last_error="server_timeout", refresh_failures=3)
    url = url_of(TokenGrant, "change", rows[TokenGrant].pk)
    content = admin_client.get(url).content.decode()
    for words in ("active", "offline_access", "patient/Patient.r<", "server_timeout"):
        assert words in content


def test_launch_page_shows_status_error_and_scopes(admin_client, rows):
    Launch.objects.update(status="failed", error_code="state_expired")
    url = url_of(Launch, "change", rows[Launch].pk)
    content = admin_client.get(url).content.decode()
    for words in ("failed", "state_expired", "patient/Patient.rs", "EHR launch"):
        assert words in content


@pytest.mark.parametrize(
    ("code", "words", "turn"),
    [
        ("token_server_error", "Harbour Hospital is unavailable", "the EHR"),
        ("id_token_invalid", "Harbour Hospital could not prove", "the EHR"),
        # A code without words of its own has those of its nearest parent class.
        ("id_token_claim", "Harbour Hospital could not prove", "the EHR"),
    ],
)
def test_page_of_a_failed_launch_explains_its_code(
    admin_client, rows, code, words, turn
):
    Launch.objects.update(status="failed", error_code=code)
    page = admin_client.get(url_of(Launch, "change", rows[Launch].pk))
    assert f'reference/codes.html#{code}"' in page.text
    assert words in page.text
    assert f": {turn}." in page.text
    registration = rows[ClientRegistration]
    assert url_of(ClientRegistration, "change", registration.pk) in page.text


def test_launch_page_does_not_guess_what_depends_on_the_error_of_the_ehr(
    admin_client, rows
):
    Launch.objects.update(status="failed", error_code="token_refused")
    page = admin_client.get(url_of(Launch, "change", rows[Launch].pk))
    assert 'reference/codes.html#token_refused"' in page.text
    assert "The error page says" not in page.text


@pytest.mark.parametrize(
    ("status", "code"),
    [("failed", "ended_by_staff"), ("ended", "signed_out"), ("open", "")],
)
def test_launch_that_no_error_ended_has_no_error_to_explain(
    admin_client, rows, status, code
):
    Launch.objects.update(status=status, error_code=code)
    page = admin_client.get(url_of(Launch, "change", rows[Launch].pk))
    assert "reference/codes.html" not in page.text


@pytest.mark.django_db(transaction=True)
def test_grants_are_refreshed_by_a_worker(admin_client, rows, sent):
    grant = rows[TokenGrant]
    response = run_action(admin_client, TokenGrant, "refresh", grant)
    assert levels_of(response) == ["success"]
    assert sent == [("refresh_grants", (grant.registration.server_id,))]
    assert list(find_due()) == [grant]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="has no clock of its own")
def test_grants_are_due_at_once_though_the_clock_of_the_host_is_fast(
    admin_client, rows, sent
):
    grant = rows[TokenGrant]
    with time_machine.travel(timezone.now() + timedelta(minutes=10)):
        run_action(admin_client, TokenGrant, "refresh", grant)
    assert sent == [("refresh_grants", (grant.registration.server_id,))]
    assert list(find_due()) == [grant]


@pytest.mark.django_db(transaction=True)
def test_grants_of_a_paused_server_wait_until_it_is_resumed(admin_client, rows, sent):
    FHIRServer.objects.update(paused=True)
    grant = rows[TokenGrant]
    response = run_action(admin_client, TokenGrant, "refresh", grant)
    assert levels_of(response) == ["warning"]
    assert sent == []
    other = make_grant(make_registration(make_server(1)))
    response = run_action(admin_client, TokenGrant, "refresh", grant, other)
    assert sorted(levels_of(response)) == ["success", "warning"]
    assert sent == [("refresh_grants", (other.registration.server_id,))]
    FHIRServer.objects.update(paused=False)
    assert set(find_due()) == {grant, other}


@pytest.mark.django_db(transaction=True)
def test_selected_grants_that_end_with_their_sign_in_are_counted(
    admin_client, rows, sent
):
    online = [make_grant(rows[ClientRegistration], is_offline=False) for _ in range(2)]
    response = run_action(
        admin_client, TokenGrant, "refresh", rows[TokenGrant], *online
    )
    assert sorted(levels_of(response)) == ["success", "warning"]
    left_out = [
        each for each in response.context["messages"] if each.level_tag == "warning"
    ]
    assert left_out[0].message.startswith("2 ")
    assert sent == [("refresh_grants", (rows[FHIRServer].pk,))]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (FHIRServer, {"is_active": False}),
        (ClientRegistration, {"is_active": False}),
        (TokenGrant, {"is_offline": False}),
        (TokenGrant, {"status": "revoked"}),
    ],
)
def test_grants_that_cannot_be_refreshed_are_left_alone(
    admin_client, rows, sent, model, values
):
    model.objects.update(**values)
    response = run_action(admin_client, TokenGrant, "refresh", rows[TokenGrant])
    assert levels_of(response) == ["warning"]
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_grants_are_due_even_without_a_broker(admin_client, rows, broker):
    broker.error = OperationalError()
    response = run_action(admin_client, TokenGrant, "refresh", rows[TokenGrant])
    assert levels_of(response) == ["warning"]
    assert find_due().exists()


@pytest.mark.compliance("SEC-12")
@pytest.mark.django_db(transaction=True)
def test_grants_are_revoked_with_their_launches(admin_client, rows, sent):
    grant = rows[TokenGrant]
    response = run_action(admin_client, TokenGrant, "revoke", grant)
    assert levels_of(response) == ["success"]
    assert list(TokenGrant.objects.awaiting_revocation()) == [grant]
    grant.refresh_from_db()
    rows[Launch].refresh_from_db()
    assert (grant.status, rows[Launch].status) == ("revoked", "ended")
    response = run_action(admin_client, TokenGrant, "revoke", grant)
    assert levels_of(response) == ["warning"]
    assert len(changed_by(admin_client, grant)) == 1


@pytest.mark.django_db(transaction=True)
def test_launches_are_ended_with_the_grants_that_do_not_outlive_them(
    admin_client, rows, sent
):
    grant, launch = rows[TokenGrant], rows[Launch]
    TokenGrant.objects.update(is_offline=False)
    pending = make_launch(
        launch.registration,
        status="pending",
        completed_at=None,
    )
    response = run_action(admin_client, Launch, "end", launch, pending)
    assert levels_of(response) == ["success"]
    assert list(TokenGrant.objects.awaiting_revocation()) == [grant]
    assert changed_by(admin_client, grant) == ["Changed status."]
    for row in (launch, pending):
        row.refresh_from_db()
        assert row.error_code == "ended_by_staff"
        assert changed_by(admin_client, row) == ["Changed status."]
    assert (launch.status, pending.status) == ("ended", "failed")
    response = run_action(admin_client, Launch, "end", launch)
    assert levels_of(response) == ["warning"]
    assert len(changed_by(admin_client, launch)) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("model", "name", "status"),
    [(TokenGrant, "revoke", "revoked"), (Launch, "end", "ended")],
)
def test_row_is_ended_on_its_own_page(admin_client, rows, sent, model, name, status):
    row = rows[model]
    page = url_of(model, "change", row.pk)
    assert (
        f'form="smart-row" name="action" value="{name}"' in admin_client.get(page).text
    )
    response = run_action(admin_client, model, name, row, _row="1")
    assert response.redirect_chain == [(page, 302)]
    assert levels_of(response) == ["success"]
    row.refresh_from_db()
    assert row.status == status
    # An auditor can tell who ended a patient's access, and when.
    assert changed_by(admin_client, row) == ["Changed status."]
    assert f'name="action" value="{name}"' not in response.text


def test_server_is_paused_on_its_own_page_and_goes_on(admin_client, rows):
    server = rows[FHIRServer]
    FHIRServer.objects.update(login_group="harbours")
    for name, other, paused in (
        ("pause", "unpause", True),
        ("unpause", "pause", False),
    ):
        response = run_action(admin_client, FHIRServer, name, server, _row="1")
        assert levels_of(response) == ["success"]
        assert f'name="action" value="{other}"' in response.text
        server.refresh_from_db()
        assert (server.paused, server.login_group) == (paused, "harbours")
    assert changed_by(admin_client, server) == ["Changed paused."] * 2
    assert levels_of(run_action(admin_client, FHIRServer, "unpause", server)) == [
        "warning"
    ]


def test_buttons_of_a_row_are_for_those_who_may_change(viewer, rows, sent):
    page = viewer.get(url_of(TokenGrant, "change", rows[TokenGrant].pk))
    assert page.status_code == 200
    assert "smart-row" not in page.text
    run_action(viewer, TokenGrant, "revoke", rows[TokenGrant], _row="1")
    rows[TokenGrant].refresh_from_db()
    assert rows[TokenGrant].status == "active"


def test_urls_for_the_vendor_need_no_setting_under_debug(admin_client, settings):
    settings.SMART_SITE_URL = ""
    add = url_of(ClientRegistration, "add")
    assert "http://testserver/smart/launch/" not in admin_client.get(add).text
    settings.DEBUG = True
    settings.SMART_INSECURE_HTTP_HOSTS = ["testserver"]
    page = admin_client.get(add).text
    for path in ("launch/", "callback/", "jwks.json"):
        assert f'value">http://testserver/smart/{path}<' in page


def test_two_servers_on_one_host_have_two_names(admin_client, sent):
    for port in ("", ":8443"):
        data = server_form(
            name="", slug="", base_url=f"https://ehr.example.org{port}/fhir"
        )
        admin_client.post(url_of(FHIRServer, "add"), data)
    names = FHIRServer.objects.order_by("pk").values_list("name", "slug")
    assert list(names) == [
        ("ehr.example.org", "ehr-example-org"),
        ("ehr.example.org:8443/fhir", "ehr-example-org-2"),
    ]


def test_offline_grant_outlives_a_launch_that_staff_ends(admin_client, rows, sent):
    run_action(admin_client, Launch, "end", rows[Launch])
    rows[TokenGrant].refresh_from_db()
    assert rows[TokenGrant].status == "active"
    assert sent == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (TokenGrant, "refresh"),
        (TokenGrant, "revoke"),
        (Launch, "end"),
        (SigningKey, "activate"),
        (SigningKey, "withdraw"),
    ],
)
def test_actions_are_for_those_who_may_change(viewer, rows, sent, model, name):
    page = viewer.get(url_of(model, "changelist"))
    assert f'value="{name}"' not in page.content.decode()
    assert run_action(viewer, model, name, rows[model]).status_code == 403
    assert sent == []
    operator = User.objects.create_user("operator", is_staff=True)
    grant_permissions(operator, f"change_{model._meta.model_name}")
    client = Client()
    client.force_login(operator)
    page = client.get(url_of(model, "changelist"))
    assert f'value="{name}"' in page.content.decode()


def test_whoever_may_only_add_servers_is_not_led_to_a_closed_page(client, sent):
    user = User.objects.create_user("adder", is_staff=True)
    grant_permissions(user, "add_fhirserver", "trust_fhirserver")
    client.force_login(user)
    response = client.post(url_of(FHIRServer, "add"), server_form(), follow=True)
    assert response.status_code == 200
    assert FHIRServer.objects.exists()


def test_pages_are_closed_to_those_without_any_permission(rows):
    client = Client()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    for model in MODELS:
        assert client.get(url_of(model, "changelist")).status_code == 403


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "revoke it first"),
        (
            {"status": "revoked", "is_revocation_pending": True},
            "its tokens have not been revoked at the EHR yet",
        ),
    ],
)
def test_grant_is_not_deleted_while_the_ehr_honours_it(
    admin_client, rows, values, message
):
    TokenGrant.objects.update(**values)
    grant = rows[TokenGrant]
    response = admin_client.post(
        url_of(TokenGrant, "delete", grant.pk), {"post": "yes"}
    )
    assert message in response.content.decode()
    response = run_action(
        admin_client, TokenGrant, "delete_selected", grant, post="yes"
    )
    assert TokenGrant.objects.exists()


def test_launch_is_not_deleted_while_it_holds_tokens(admin_client, rows):
    Launch.objects.update(status="held", held="claims")
    launch = rows[Launch]
    url = url_of(Launch, "delete", launch.pk)
    response = admin_client.post(url, {"post": "yes"})
    assert response.context["protected"]
    run_action(admin_client, Launch, "delete_selected", launch, post="yes")
    assert Launch.objects.exists()
    end_held_launches(Launch.objects.all(), reason="decision_declined")
    admin_client.post(url, {"post": "yes"})
    assert not Launch.objects.exists()


def test_grant_that_is_over_is_deleted(admin_client, rows):
    TokenGrant.objects.update(status="revoked")
    admin_client.post(
        url_of(TokenGrant, "delete", rows[TokenGrant].pk), {"post": "yes"}
    )
    assert not TokenGrant.objects.exists()


def test_user_with_grants_can_be_deleted(admin_client, rows):
    patient = User.objects.create_user("patient")
    make_grant(rows[ClientRegistration], user=patient)
    admin_client.post(
        reverse("admin:auth_user_delete", args=[patient.pk]), {"post": "yes"}
    )
    assert not User.objects.filter(username="patient").exists()


def test_every_model_is_in_the_admin():
    assert {model for model in MODELS if admin.site.is_registered(model)} == set(MODELS)


@pytest.mark.django_db(transaction=True)
def test_actions_work_inside_the_transaction_of_a_request(
    admin_client, rows, broker, monkeypatch
):
    seen: list[tuple[str, bool]] = []

    def note(*_: Any, **__: Any) -> None:
        # In a thread of its own: only what is committed is visible.
        seen.append((TokenGrant.objects.get().status, find_due().exists()))

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(celery_app, "send_task", note)
    response = run_action(admin_client, TokenGrant, "refresh", rows[TokenGrant])
    assert levels_of(response) == ["success"]
    run_action(admin_client, TokenGrant, "revoke", rows[TokenGrant])
    assert seen == [("active", True)]
    assert TokenGrant.objects.awaiting_revocation().exists()


# Registrations whose credentials were refused


def test_registration_that_was_refused_is_seen_and_can_be_tried_again(
    admin_client: Client, rows: dict[type[Any], Any]
) -> None:
    registration = rows[ClientRegistration]
    url = url_of(ClientRegistration, "change", registration.pk)
    assert "field-refresh_stopped_at" not in admin_client.get(url).text
    response = run_action(admin_client, ClientRegistration, "resume", registration)
    assert levels_of(response) == ["warning"]
    stopped_at = timezone.now() - timedelta(days=1)
    ClientRegistration.objects.update(refresh_stopped_at=stopped_at)
    assert "field-refresh_stopped_at" in admin_client.get(url).text
    response = run_action(admin_client, ClientRegistration, "resume", registration)
    assert levels_of(response) == ["success"]
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None
    assert changed_by(admin_client, registration) == ["Changed refresh stopped at."]


def test_second_registration_of_a_server_starts_as_no_default_and_named_after_it(
    admin_client, rows
):
    url = url_of(ClientRegistration, "add")
    initial = admin_client.get(url).context["adminform"].form.initial
    assert "is_ehr_default" not in initial
    page = admin_client.get(url, {"server": rows[FHIRServer].pk})
    initial = page.context["adminform"].form.initial
    assert initial["is_ehr_default"] is False
    slug = rows[FHIRServer].slug
    assert initial["callback_id"] == slug
    assert initial["redirect_uri"].endswith(f"/callback/{slug}/")
