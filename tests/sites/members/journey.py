"""Tests of that site; ``tests/sites/test_users_of_sites.py`` runs them."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.checks import run_checks
from django.test import Client

from django_smart.contrib.doctor import examine
from django_smart.contrib.doctor.launch import try_launch
from tests.contrib.doctor.conftest import world
from tests.ehr import get_callback, launch, make_browser, start_ehr_launch

__all__ = ["world"]

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("registration"),
]

Member: Any = get_user_model()


def _sign_in(email: str, **values: Any) -> Client:
    browser = make_browser()
    browser.force_login(Member.objects.create_user(email, "secret", **values))
    return browser


def _read(browser: Client, url: str) -> str:
    return str(browser.get(url).content.decode())


@pytest.mark.parametrize(
    ("values", "shown"),
    [({"name": "Maria Silva"}, "Maria Silva"), ({}, "maria@clinic.example")],
)
def test_pages_name_the_user_who_is_signed_in(ehr, values, shown):
    browser = _sign_in("maria@clinic.example", **values)
    pages = [_read(browser, "/smart/login/?server=harbour")]
    # Somebody else's chart is opened at her workstation.
    asked = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    pages.append(_read(browser, asked["Location"]))
    for page in pages:
        assert f"{shown}</" in page
        assert "None" not in page


def test_page_names_the_other_user_of_the_chart(ehr):
    opened = launch(make_browser(), ehr)
    Member.objects.filter(pk=opened.user_id).update(name="Sam Okafor")
    browser = _sign_in("maria@clinic.example", name="Maria Silva")
    asked = get_callback(browser, ehr.authorize(start_ehr_launch(browser, ehr)))
    page = _read(browser, asked["Location"])
    assert "Maria Silva" in page
    assert "Sam Okafor" in page
    assert "None" not in page


def test_admin_saves_a_user_whom_an_ehr_signed_in(ehr):
    user: Any = launch(make_browser(), ehr).user
    assert user.email.endswith(".invalid")
    admin = _sign_in("ada@clinic.example", is_staff=True, is_superuser=True)
    url = f"/admin/members/member/{user.pk}/change/"
    response = admin.post(url, {"email": user.email, "name": "Sam Okafor"})
    assert response.status_code == 302
    user.refresh_from_db()
    assert user.name == "Sam Okafor"


def test_generated_address_is_not_shown_as_a_name(ehr):
    browser = make_browser()
    address = launch(browser, ehr).user.email  # type: ignore[union-attr]
    assert address not in _read(browser, "/smart/login/?server=harbour")


def test_checks_and_doctor_are_silent(world, settings):
    found = run_checks(include_deployment_checks=True)
    assert [each for each in found if not each.is_silenced()] == []
    # As the site has it, not as the doctor's tests do.
    settings.LOGIN_URL = "account_login"
    settings.SMART_LAUNCH_REDIRECT_URL = "chart"
    assert [each for each in examine([world.server]) if each.severity != "note"] == []
    assert list(try_launch()) == []
