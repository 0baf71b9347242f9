"""``smart_doctor``: what it prints, what it looks at, and its exit status."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command

from django_smart.diagnoses import build_docs_url
from django_smart.models import FHIRServer
from tests.contrib.doctor.conftest import World, _fresh_pool, world
from tests.ehr import BASE_URL, CLIENT_SECRET
from tests.factories import make_server
from tests.management.running import run

__all__ = ["_fresh_pool", "world"]

pytestmark = pytest.mark.django_db


def fail(*arguments: str) -> tuple[str, str]:
    """What is printed with exit status 1, and the error."""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("smart_doctor", *arguments, stdout=out)
    return out.getvalue(), str(caught.value)


def test_nothing_wrong_is_said_of_each_server(world: World) -> None:
    assert run("smart_doctor").out == (
        "This site: no problems found.\nharbour: no problems found.\n"
    )


def test_fault_is_printed_with_reason_and_fix(world: World) -> None:
    world.registration.client_secret = "another secret"
    world.registration.save()
    out, error = fail("harbour", "--fail-level", "warning")
    assert error == "1 warning found."
    _, _, report = out.partition("harbour:\n")
    assert report.splitlines()[0] == "  WARNING credentials_refused"
    assert "people approve access at the EHR" in report
    assert "enter the client secret again" in report
    assert CLIENT_SECRET not in out
    assert "another secret" not in out


def test_json_is_for_programs(world: World) -> None:
    assert run("smart_doctor", "--json").json == {
        "servers": ["harbour"],
        "findings": [],
    }
    world.set_registration(is_active=False)
    assert run("smart_doctor", "--json").json["findings"] == [
        {
            "code": "registration_missing",
            "severity": "warning",
            "subject": "harbour",
            "turn": "site",
            "what": "The server has no active client registration.",
            "why": "No one can launch from this server or connect to it.",
            "fix": "Register this site at the vendor and enter its client ID, in the "
            "admin or with smart_register.",
            "docs_url": build_docs_url("registration_missing"),
        }
    ]


def test_warning_makes_the_command_fail_if_it_is_asked_to(world: World) -> None:
    world.set_registration(is_active=False)
    out, error = fail("--fail-level", "warning", "--json")
    assert json.loads(out)["findings"][0]["code"] == "registration_missing"
    assert error == "1 warning found."


def test_server_is_named_by_its_base_url(world: World) -> None:
    assert "harbour: no problems" in run("smart_doctor", f"{BASE_URL}/").out


def test_server_that_is_not_registered_is_asked_and_not_stored(world: World) -> None:
    world.registration.delete()
    world.server.delete()
    assert f"{BASE_URL}: no problems found" in run("smart_doctor", BASE_URL).out
    assert not FHIRServer.objects.exists()
    out, _ = fail(BASE_URL.replace("/fhir", "/nothing"))
    assert "ERROR base_url_wrong" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere"),
        ("https://ehr.example.org:port/", "https://ehr.example.org:port/: "),
    ],
)
def test_name_that_means_nothing_is_refused(
    world: World, name: str, message: str
) -> None:
    assert message in fail(name)[1]


def test_every_active_server_is_asked(world: World) -> None:
    make_server(
        slug="off", name="Off", base_url="https://off.example.org", is_active=False
    )
    assert run("smart_doctor", "--json").json["servers"] == ["harbour"]
