"""The admin for whoever registers clients: from a pasted address to a passed test."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone
from django.utils.html import escape

from django_smart import transport
from django_smart.models import ClientRegistration, FHIRServer, TaskRun
from django_smart.models.task_run import REFRESH
from django_smart.testing import EHRSimulator
from tests.admin_forms import (
    grant_permissions,
    levels_of,
    server_form,
    url_of,
)
from tests.answers import Away
from tests.contrib.doctor.conftest import World, _fresh_pool, world
from tests.ehr import BASE_URL, CLIENT_SECRET
from tests.factories import make_launch

__all__ = ["_fresh_pool", "world"]

pytestmark = pytest.mark.django_db

PASTED = server_form(base_url=BASE_URL)
del PASTED["name"], PASTED["slug"]


def test_url_of(row: Any) -> str:
    return url_of(type(row), "test", row.pk)


test_url_of.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name


@pytest.fixture
def operator(client: Client) -> Client:
    """Somebody who may operate servers, and see them and their registrations."""
    user = User.objects.create_user("operator", is_staff=True)
    names = ("view_fhirserver", "view_clientregistration", "operate_fhirserver")
    grant_permissions(user, *names)
    client.force_login(user)
    return client


# A new server


@pytest.mark.django_db(transaction=True)
def test_pasted_base_url_is_enough_and_its_offer_is_shown(
    admin_client: Client, ehr: EHRSimulator
) -> None:
    response = admin_client.post(url_of(FHIRServer, "add"), PASTED, follow=True)
    server = FHIRServer.objects.get()
    assert (server.name, server.slug) == ("ehr.example.org", "ehr-example-org")
    assert response.redirect_chain[-1][0] == url_of(FHIRServer, "change", server.pk)
    content = response.content.decode()
    assert set(levels_of(response)) == {"success"}
    assert ehr.token_endpoint in content
    register = f"{url_of(ClientRegistration, 'add')}?server={server.pk}"
    assert f'href="{register}"' in content


@pytest.mark.django_db(transaction=True)
def test_server_that_says_nothing_is_kept_and_the_reason_is_shown(
    admin_client: Client,
) -> None:
    with transport.mounted("https://ehr.example.org", Away()):
        response = admin_client.post(url_of(FHIRServer, "add"), PASTED, follow=True)
    assert "warning" in levels_of(response)
    assert "(server_unreachable): " in response.content.decode()
    # It is an attempt as any other: workers leave the server alone for a while.
    assert FHIRServer.objects.get().state.discovery_failed_at is not None


@pytest.mark.parametrize(
    "base_url", ["", "ehr.example.org", "http://ehr.example.org", "https://[ehr/r4"]
)
def test_what_is_no_base_url_is_told_at_its_field(
    admin_client: Client, base_url: str
) -> None:
    response = admin_client.post(
        url_of(FHIRServer, "add"), {**PASTED, "base_url": base_url}
    )
    errors = response.context["adminform"].form.errors
    assert set(errors) == {"base_url"}


# The test of the connection


def test_nothing_wrong_is_said(admin_client: Client, world: World) -> None:
    for row in (world.server, world.registration):
        response = admin_client.post(test_url_of(row), secure=True)
        assert response.text.count('class="smart-well"') == 2
        assert [findings for _, findings in response.context["parts"]] == [[], []]


def test_report_names_what_is_wrong(admin_client: Client, world: World) -> None:
    world.registration.client_secret = "another secret"
    world.registration.save()
    response = admin_client.post(test_url_of(world.registration), secure=True)
    content = response.content.decode()
    (finding,) = [each for _, found in response.context["parts"] for each in found]
    assert f"<code>{finding.code}</code>" in content
    for words in (finding.what, finding.why, finding.fix):
        assert escape(words) in content
    assert "invalid_client" in finding.what
    assert content.count('class="smart-well"') == 1
    for secret in (CLIENT_SECRET, "another secret"):
        assert secret not in content


def test_button_is_there_for_those_who_may_press_it(
    operator: Client, world: World
) -> None:
    for row in (world.server, world.registration):
        content = operator.get(
            url_of(type(row), "change", row.pk), secure=True
        ).content.decode()
        assert f'action="{test_url_of(row)}"' in content
        assert operator.post(test_url_of(row), secure=True).status_code == 200


def test_test_is_for_those_who_may_operate(client: Client, world: World) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    grant_permissions(user, "change_fhirserver", "change_clientregistration")
    client.force_login(user)
    world.ehr.clear_requests()
    for row in (world.server, world.registration):
        page = client.get(url_of(type(row), "change", row.pk), secure=True)
        assert test_url_of(row) not in page.content.decode()
        assert client.post(test_url_of(row), secure=True).status_code == 403
    assert world.ehr.requests == []


def test_link_to_a_test_asks_nobody(admin_client: Client, world: World) -> None:
    world.ehr.clear_requests()
    response = admin_client.get(test_url_of(world.server), secure=True)
    assert response["Location"] == url_of(FHIRServer, "change", world.server.pk)
    assert world.ehr.requests == []


@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_a_server_inside_a_transaction(
    admin_client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    seen: list[bool] = []

    def note(respond: Any, request: Any) -> Any:
        seen.append(connection.in_atomic_block)
        return respond(request)

    world.ehr.interceptors.append(note)
    admin_client.post(test_url_of(world.server), secure=True)
    assert seen
    assert not any(seen)


# In another admin than the default one


@pytest.mark.urls("tests.site.second_admin_urls")
def test_pages_of_another_admin_lead_to_each_other(
    admin_client: Client, world: World
) -> None:
    root = "/ops/django_smart"
    server = f"{root}/fhirserver/{world.server.pk}"
    registration = f"{root}/clientregistration/{world.registration.pk}"
    linked = {
        f"{registration}/change/": f"{registration}/test/",
        f"{server}/change/": f"{root}/clientregistration/add/?server=",
    }
    for page, link in linked.items():
        content = admin_client.get(page, secure=True).content.decode()
        assert f'"{link}' in content
        assert '"/admin/' not in content
    report = admin_client.post(f"{server}/test/", secure=True).content.decode()
    assert f'"{server}/change/"' in report
    assert '"/admin/' not in report


@pytest.mark.urls("tests.site.second_admin_urls")
def test_redirects_of_another_admin_stay_there(
    admin_client: Client, world: World
) -> None:
    root = "/ops/django_smart/fhirserver"
    page = f"{root}/{world.server.pk}/change/"
    paused = admin_client.post(
        f"{root}/",
        {"action": "pause", "_selected_action": world.server.pk, "_row": "1"},
        secure=True,
    )
    assert paused["Location"] == page
    link = admin_client.get(f"{root}/{world.server.pk}/test/", secure=True)
    assert link["Location"] == page
    nothing = admin_client.post(f"{root}/999999/test/", secure=True)
    assert nothing["Location"] == "/ops/"


@pytest.mark.urls("tests.site.second_admin_urls")
def test_admin_without_registrations_offers_none(
    admin_client: Client, world: World
) -> None:
    page = f"/servers/django_smart/fhirserver/{world.server.pk}/change/"
    response = admin_client.get(page, secure=True)
    assert response.status_code == 200
    assert "register_url" not in response.context


# The next steps


def find_open_steps(page: Any) -> list[str]:
    """The beginning of each step that is left to do."""
    items = re.findall(r">To do</span>.*?<p>(.*?)</p>", page.text, re.DOTALL)
    return [" ".join(each.split())[:12] for each in items]


def test_next_steps_say_what_is_done(admin_client: Client, world: World) -> None:
    scope = "launch openid fhirUser offline_access"
    world.set_registration(ehr_scope=scope, standalone_scope="")
    url = url_of(ClientRegistration, "change", world.registration.pk)
    TaskRun.objects.all().delete()
    todo = ["Enter these ", "Test the con", "Run beat and", "Launch once,"]
    assert find_open_steps(admin_client.get(url, secure=True)) == todo
    TaskRun.objects.create(name=REFRESH, ran_at=timezone.now())
    admin_client.post(test_url_of(world.registration), secure=True)
    page = admin_client.get(url, secure=True)
    assert find_open_steps(page) == ["Enter these ", "Launch once,"]
    # A change may have broken it.
    world.registration.save()
    assert "Test the con" in find_open_steps(admin_client.get(url, secure=True))
    make_launch(world.registration)
    assert find_open_steps(admin_client.get(url, secure=True)) == []


def test_test_that_finds_an_error_is_not_done(
    admin_client: Client, world: World
) -> None:
    world.registration.client_secret = "another secret"
    world.registration.save()
    admin_client.post(test_url_of(world.registration), secure=True)
    url = url_of(ClientRegistration, "change", world.registration.pk)
    assert "Test the con" in find_open_steps(admin_client.get(url, secure=True))


def test_service_has_no_launch_to_try(admin_client: Client, world: World) -> None:
    world.set_registration(
        ehr_scope="", standalone_scope="", system_scope="system/*.rs"
    )
    url = url_of(ClientRegistration, "change", world.registration.pk)
    steps = find_open_steps(admin_client.get(url, secure=True))
    assert steps[-1] == "Request the "
