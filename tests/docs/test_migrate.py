"""The page on migrating: users keep their accounts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import call_command

from django_smart.models import FHIRServer, Identity, ServerState
from django_smart.testing import EHRSimulator
from tests.docs.blocks import execute, read_blocks
from tests.ehr import launch, make_browser
from tests.factories import make_identity, make_server, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def page() -> dict[str, Any]:
    """What the blocks of the page define."""
    return execute(*read_blocks("how-to/migrate.rst"))


@pytest.fixture
def subject(ehr: EHRSimulator, registration: Any) -> str:
    """Who the EHR says is signing in; nobody here has an account for them yet."""
    identity = launch(make_browser(), ehr).identity
    assert identity is not None
    identity.user.delete()
    assert not Identity.objects.exists()
    return identity.subject


def test_linked_user_is_the_one_who_is_signed_in(
    page: dict[str, Any], ehr: EHRSimulator, subject: str
) -> None:
    user = make_user("maria")
    for _ in range(2):
        page["link_users"]("harbour", [(user, subject)])
    assert launch(make_browser(), ehr).user == user


def test_user_is_still_known_after_the_ehr_changed_its_issuer(
    page: dict[str, Any], ehr: EHRSimulator, registration: Any
) -> None:
    user = launch(make_browser(), ehr).user
    old, new = ehr.issuer, "https://ehr.example.org/v"
    ehr._issuer = new
    browser = make_browser()
    ServerState.objects.update(configuration_fetched_at=None)
    response = browser.get("/smart/login/", {"server": "harbour"})
    assert response.context["code"] == "server_moved"
    page["carry_over"]("harbour", old=old, new=new)
    options = ("--accept", "--no-input")
    call_command("smart_discover", "harbour", *options, stdout=io.StringIO())
    assert launch(browser, ehr).user == user


def test_carry_over_changes_nothing_if_people_have_both_issuers(
    page: dict[str, Any], registration: Any
) -> None:
    old, new = "https://ehr.example.org/u", "https://ehr.example.org/v"
    known = [
        make_identity(make_user(f"{issuer}/{subject}"), issuer=issuer, subject=subject)
        for issuer in (old, new)
        for subject in ("1", "2")
    ]
    alone = make_identity(make_user("maria"), issuer=old, subject="3")
    with pytest.raises(ValueError, match="issuers") as raised:
        page["carry_over"]("harbour", old=old, new=new)
    assert all(str(each.pk) in str(raised.value) for each in known[2:])
    assert Identity.objects.filter(issuer=old).count() == 3
    Identity.objects.filter(pk__in=[each.pk for each in known[2:]]).delete()
    page["carry_over"]("harbour", old=old, new=new)
    assert Identity.objects.filter(issuer=new).count() == 3
    found = Identity.objects.with_subject(new, "3", server=alone.server)
    assert found.get().user == alone.user


def test_sign_in_by_mozilla_django_oidc_records_the_identity(
    page: dict[str, Any], ehr: EHRSimulator, subject: str, settings: Any
) -> None:
    for name in ("TOKEN", "USER"):
        setattr(settings, f"OIDC_OP_{name}_ENDPOINT", "https://ehr.example.org/x")
    settings.OIDC_RP_CLIENT_ID = settings.OIDC_RP_CLIENT_SECRET = "x"
    user = make_user("maria")
    for _ in range(2):
        page["RecordingBackend"]().update_user(user, {"sub": subject})
    assert Identity.objects.get().user == user
    assert launch(make_browser(), ehr).user == user


@pytest.mark.parametrize("group", ["harbour", ""])
def test_user_is_still_known_at_a_new_base_url_of_the_same_login_group(
    ehr: EHRSimulator, registration: Any, group: str
) -> None:
    user = launch(make_browser(), ehr).user
    # The EHR was at this address, where it has been switched off since.
    old = make_server(slug="old", base_url="https://ehr.example.org/old/fhir")
    FHIRServer.objects.filter(pk=old.pk).update(is_active=False)
    Identity.objects.update(server=old)
    FHIRServer.objects.update(login_group=group)
    assert (launch(make_browser(), ehr).user == user) is bool(group)
