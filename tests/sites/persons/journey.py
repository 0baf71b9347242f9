"""Tests of that site; ``tests/sites/test_users_of_sites.py`` runs them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from django_smart.checks import check_structure
from django_smart.clients import fhir_client_for
from django_smart.exceptions import NoGrantError, ReauthorizationRequiredError
from django_smart.launches.purge import purge
from django_smart.models import Identity, Launch, TokenGrant
from tests.ehr import PATIENT, connect, get_callback, make_browser, start_login
from tests.factories import find_due
from tests.grants.working import refresh_grants
from tests.sites.journey import Visitor, visit

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.sites.urls"),
    pytest.mark.usefixtures("registration"),
]

Person: Any = get_user_model()


@pytest.fixture(autouse=True)
def _pages(settings: Any) -> None:
    settings.LOGIN_URL = "login"
    settings.SMART_LAUNCH_REDIRECT_URL = "chart"


def test_tables_refer_to_the_site_s_users():
    assert Person._meta.label == "persons.Person"
    with connection.cursor() as cursor:
        for model in (Identity, Launch, TokenGrant):
            found = connection.introspection.get_relations(cursor, model._meta.db_table)
            assert found["user_id"][:2] == ("id", "persons_person")
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_everything_on_the_site_stays_in_its_launch(ehr):
    visit(Visitor(make_browser()), Visitor(make_browser()), ehr)
    (person,) = Person.people.all()
    assert isinstance(person.pk, uuid.UUID)
    assert person.email.startswith("smart-")
    assert not person.has_usable_password()
    assert set(Launch.objects.values_list("user", flat=True)) == {person.pk}


def test_person_who_is_signed_in_connects_records(ehr, registration):
    browser = make_browser()
    person = Person.people.create_user("maria@clinic.example", "secret")
    browser.force_login(person)
    opened = connect(browser, ehr, patient=PATIENT)
    assert opened.user == person
    client = fhir_client_for(person, registration.server)
    assert client.read("Patient", PATIENT)["id"] == PATIENT
    assert PATIENT not in browser.get("/smart/connections/").content.decode()
    # What belongs to Maria is not another person's to connect.
    other = make_browser()
    other.force_login(Person.people.create_user("sam@clinic.example", "secret"))
    response = get_callback(other, ehr.authorize(start_login(other), patient=PATIENT))
    assert b"<code>identity_in_use</code>" in response.content


def test_grants_of_users_who_cannot_be_deactivated_are_refreshed_and_purged(
    ehr, registration
):
    browser = make_browser()
    browser.force_login(Person.people.create_user("maria@clinic.example", "secret"))
    connect(browser, ehr, patient=PATIENT)
    grant = TokenGrant.objects.get()
    TokenGrant.objects.update(refresh_due_at=timezone.now())
    assert list(find_due()) == [grant]
    assert refresh_grants([grant.pk]).refreshed == 1
    purge()
    assert TokenGrant.objects.get().status == "active"


def test_person_who_is_deactivated_by_other_means_than_a_column(
    ehr, registration, monkeypatch, host_clock
):
    browser = make_browser()
    person = Person.people.create_user("maria@clinic.example", "secret")
    browser.force_login(person)
    connect(browser, ehr, patient=PATIENT)
    client = fhir_client_for(person, registration.server)
    client.read("Patient", PATIENT)
    assert check_structure() == []
    monkeypatch.setattr(Person, "is_active", property(lambda self: False))
    for values in (
        {"user": person, "server": registration.server},
        {"grant": TokenGrant.objects.get()},
    ):
        with pytest.raises(NoGrantError):
            fhir_client_for(**values)
    host_clock.shift(61)
    with pytest.raises(ReauthorizationRequiredError):
        client.read("Patient", PATIENT)
    # Background work asks the database alone.
    (message,) = check_structure()
    assert message.id == "django_smart.W070"


def test_admin_finds_launches_by_person(ehr):
    opened = connect(make_browser(), ehr, patient=PATIENT)
    admin = make_browser()
    admin.force_login(
        Person.people.create_user("ada", is_staff=True, is_superuser=True)
    )
    for model in ("launch", "tokengrant", "identity"):
        url = f"/admin/django_smart/{model}/"
        assert admin.get(url, {"q": "smart"}).status_code == 200
    url = f"/admin/django_smart/launch/{opened.pk}/change/"
    assert admin.get(url).status_code == 200
