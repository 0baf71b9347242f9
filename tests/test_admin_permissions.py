"""What staff can reach with which permission: attacks through the admin."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.forms.models import model_to_dict
from django.test import Client

from django_smart.admin import FHIRServerAdmin
from django_smart.models import ClientRegistration, FHIRServer, Identity
from django_smart.testing import EHRSimulator
from tests.admin_forms import (
    grant_permissions,
    registration_form,
    server_form,
    url_of,
)
from tests.celery import Broker
from tests.docs.blocks import DOCS
from tests.ehr import BASE_URL, launch, make_browser, start_ehr_launch
from tests.factories import make_identity

pytestmark = pytest.mark.django_db

CHANGE = ("change_fhirserver", "change_clientregistration", "change_identity")
OPERATE = (*CHANGE, "operate_fhirserver")
TRUST = (*CHANGE, "trust_fhirserver")
EVIL = "https://evil.example.net"
EVERYTHING = {
    FHIRServer: {
        **server_form(base_url=f"{EVIL}/fhir", slug="evil", name="Evil", paused="on"),
        "overrides": json.dumps({"token_endpoint": f"{EVIL}/token"}),
        "login_group": "friends",
        "id_token_issuer": EVIL,
        "aud_rule": "base_url",
        "discovery_headers": '{"X-Api-Key": "mine"}',
        "authorization_parameters": '{"acr_values": "weak"}',
        "request_headers": '{"X-Api-Key": "mine"}',
        "scope_syntax": "v1",
        "context_in_access_token": "on",
        "patient_from_fhir_user": "on",
        "basic_credentials": "form_encoded",
        "assertion_audience": "token_endpoint",
        "client_id_with_assertion": "on",
        "send_scope_on_refresh": "on",
        "introspection_mode": "client",
        "rp_initiated_logout": "on",
        "bearer_boundary": "origin",
        "frame_origins": f'["{EVIL}"]',
        "refresh_token_lifetime": "1 00:00:00",
        "rate_limit": "5",
        "turns": "3",
    },
    ClientRegistration: registration_form(
        client_id="evil",
        token_endpoint_auth_method="client_secret_post",
        client_secret_file="/proc/self/environ",
        secret_source="client_secret_file",
        ehr_scope="launch patient/*.rs",
        redirect_uri="https://evil.example.net/callback/evil/",
        callback_id="evil",
        callback_group="friends",
        user_switch="switch",
        unread_changes="on",
        manage_groups="on",
    ),
}


def sign_in(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    grant_permissions(user, *permissions)
    browser = make_browser()
    browser.force_login(user)
    return browser


def read(row: Any) -> dict[str, Any]:
    row.refresh_from_db()
    return model_to_dict(row)


# Without a permission


@pytest.mark.parametrize("permissions", [CHANGE, OPERATE])
def test_secret_is_not_sent_where_staff_redirect_it(
    ehr: EHRSimulator, registration: ClientRegistration, permissions: tuple[str, ...]
) -> None:
    staff = sign_in(*permissions)
    overrides = {
        "authorization_endpoint": f"{EVIL}/authorize",
        "token_endpoint": f"{EVIL}/token",
    }
    url = url_of(FHIRServer, "change", registration.server.pk)
    staff.post(url, server_form(base_url=BASE_URL, overrides=json.dumps(overrides)))
    assert start_ehr_launch(make_browser(), ehr).startswith(ehr.authorization_endpoint)
    assert launch(make_browser(), ehr).status == "open"


@pytest.mark.parametrize("permissions", [CHANGE, OPERATE])
@pytest.mark.parametrize("model", [FHIRServer, ClientRegistration])
def test_only_operating_is_changed_without_trust(
    registration: ClientRegistration, model: Any, permissions: tuple[str, ...]
) -> None:
    staff = sign_in(*permissions)
    row = registration.server if model is FHIRServer else registration
    before = read(row)
    response = staff.post(url_of(model, "change", row.pk), EVERYTHING[model])
    changed = {name for name, value in read(row).items() if value != before[name]}
    if model is FHIRServer and permissions is OPERATE:
        assert response.status_code == 302
        changed |= read(row)["quirks"].as_json().keys()
        assert changed == {"quirks", *FHIRServerAdmin.operational_fields}
    else:
        assert response.status_code == 403
        assert not changed
    registration.refresh_from_db()
    assert registration.client_secret
    assert not registration.server.request_headers


@pytest.mark.parametrize("model", [FHIRServer, ClientRegistration])
@pytest.mark.parametrize("others", [(), ("operate_fhirserver",)])
def test_row_is_not_added_without_trust(
    registration: ClientRegistration, model: Any, others: tuple[str, ...]
) -> None:
    staff = sign_in(*CHANGE, "add_fhirserver", "add_clientregistration", *others)
    url = url_of(model, "add")
    assert staff.get(url).status_code == 403
    assert staff.post(url, EVERYTHING[model]).status_code == 403
    row = registration.server if model is FHIRServer else registration
    copied = {**EVERYTHING[model], "_saveasnew": "1"}
    assert staff.post(url_of(model, "change", row.pk), copied).status_code == 403
    assert staff.post(url_of(model, "changelist"), {"_save": "1"}).status_code == 200
    page = staff.get(url_of(FHIRServer, "change", registration.server.pk))
    assert "register_url" not in page.context
    assert model.objects.count() == 1


@pytest.mark.parametrize("permissions", [CHANGE, TRUST])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (FHIRServer, "pause"),
        (FHIRServer, "unpause"),
        (FHIRServer, "rediscover"),
        (ClientRegistration, "resume"),
    ],
)
def test_action_is_hidden_and_denied_without_operate(
    registration: ClientRegistration,
    broker: Broker,
    model: Any,
    name: str,
    permissions: tuple[str, ...],
) -> None:
    staff = sign_in(*permissions)
    row = registration.server if model is FHIRServer else registration
    url = url_of(model, "changelist")
    assert f'value="{name}"' not in staff.get(url).text
    before = read(row)
    data = {"action": name, "_selected_action": [row.pk]}
    assert staff.post(url, data).status_code == 403
    page = staff.get(url_of(model, "change", row.pk))
    assert not page.context["row_actions"]
    assert not page.context["may_test"]
    assert staff.post(url_of(model, "test", row.pk)).status_code == 403
    assert read(row) == before
    assert broker.messages == []


@pytest.mark.parametrize("permissions", [CHANGE, OPERATE])
def test_moved_values_are_not_accepted_without_trust(
    registration: ClientRegistration, permissions: tuple[str, ...]
) -> None:
    state = registration.server.discovered
    state.moved = {"token_endpoint": f"{EVIL}/token"}
    state.save()
    staff = sign_in(*permissions)
    page = staff.get(url_of(FHIRServer, "change", registration.server.pk))
    assert f"– → {EVIL}/token" in page.text
    assert "shown" not in page.context
    data = {"shown": json.dumps(state.moved)}
    url = url_of(FHIRServer, "accept", registration.server.pk)
    assert staff.post(url, data).status_code == 403
    assert staff.get(url).status_code == 403
    state.refresh_from_db()
    assert state.moved


def test_account_is_not_let_in_without_trust(
    registration: ClientRegistration, admin_user: User
) -> None:
    identity = make_identity(admin_user, may_sign_in=False)
    staff = sign_in(*OPERATE)
    url = url_of(Identity, "change", identity.pk)
    assert staff.post(url, {"may_sign_in": "on"}).status_code == 403
    assert not read(identity)["may_sign_in"]


@pytest.mark.parametrize("permissions", [CHANGE, OPERATE])
def test_stored_secrets_are_on_no_page_without_trust(
    registration: ClientRegistration, permissions: tuple[str, ...]
) -> None:
    server = registration.server
    server.request_headers = '{"X-Api-Key": "hush"}'
    server.save()
    staff = sign_in(*permissions)
    for row in (server, registration):
        page = staff.get(url_of(type(row), "change", row.pk))
        assert page.status_code == 200
        assert "hush" not in page.text
        assert registration.client_secret not in page.text


def test_test_needs_the_right_to_see_the_server(
    registration: ClientRegistration,
) -> None:
    staff = sign_in("operate_fhirserver")
    url = url_of(FHIRServer, "test", registration.server.pk)
    assert staff.post(url).status_code == 403


# With it


def test_trust_is_enough_for_the_whole_form(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    staff = sign_in(*TRUST, "add_fhirserver", "add_clientregistration")
    for model, row in (
        (FHIRServer, registration.server),
        (ClientRegistration, registration),
    ):
        url = url_of(model, "change", row.pk)
        fields = {*staff.get(url).context["adminform"].form.fields}
        if model is FHIRServer:
            assert {*FHIRServerAdmin.operational_fields} <= fields
        assert staff.get(url_of(model, "add")).status_code == 200
    page = staff.get(url_of(FHIRServer, "change", registration.server.pk))
    assert "register_url" in page.context
    data = registration_form(client_id="growth-chart", user_switch="switch")
    url = url_of(ClientRegistration, "change", registration.pk)
    assert staff.post(url, data).status_code == 302
    assert read(registration)["user_switch"] == "switch"


def test_operators_see_and_press_the_buttons_without_the_right_to_change(
    registration: ClientRegistration, broker: Broker
) -> None:
    staff = sign_in("view_fhirserver", "view_clientregistration", "operate_fhirserver")
    server = registration.server
    page = staff.get(url_of(FHIRServer, "change", server.pk))
    assert [name for name, _ in page.context["row_actions"]] == ["rediscover", "pause"]
    assert page.context["may_test"]
    data = {"action": "pause", "_selected_action": [server.pk], "_row": "1"}
    assert staff.post(url_of(FHIRServer, "changelist"), data).status_code == 302
    assert read(server)["paused"]
    assert staff.post(url_of(FHIRServer, "test", server.pk)).status_code == 200


def test_permissions_in_the_documentation_exist() -> None:
    page = (DOCS / "how-to/use-the-admin.rst").read_text(encoding="utf-8")
    named = {*re.findall(r"``((?:add|change|operate|trust|view)_[a-z]+)``", page)}
    found = Permission.objects.filter(codename__in=named)
    assert {each.codename for each in found} == named > {"change_fhirserver"}
