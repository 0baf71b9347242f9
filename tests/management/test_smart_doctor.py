"""``smart_doctor``: what it prints, what it looks at, and its exit status."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command

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
        "This site: nothing is wrong.\nharbour: nothing is wrong.\n"
    )


def test_fault_is_printed_with_reason_and_fix(world: World) -> None:
    world.registration.client_secret = "another secret"
    world.registration.save()
    out, error = fail("harbour")
    assert error == "1 to mend."
    _, _, report = out.partition("harbour:\n")
    assert report.splitlines()[0] == "  ERROR credentials_refused"
    assert "Why it matters: People approve at the EHR, and then" in report
    assert "What to do: Compare client id and authentication method" in report
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
            "what": "The server has no active client registration.",
            "why": "Nobody can launch from it, or connect to it.",
            "fix": "Register this site there and enter the client id it gives, in the "
            "admin or with smart_register.",
        }
    ]


def test_warning_makes_the_command_fail_if_it_is_asked_to(world: World) -> None:
    world.set_registration(is_active=False)
    out, error = fail("--fail-level", "warning", "--json")
    assert json.loads(out)["findings"][0]["code"] == "registration_missing"
    assert error == "1 to mend."


def test_server_is_named_by_its_base_url(world: World) -> None:
    assert "harbour: nothing" in run("smart_doctor", f"{BASE_URL}/").out


def test_server_that_is_not_registered_is_asked_and_not_stored(world: World) -> None:
    world.registration.delete()
    world.server.delete()
    assert f"{BASE_URL}: nothing is wrong" in run("smart_doctor", BASE_URL).out
    assert not FHIRServer.objects.exists()
    out, _ = fail(BASE_URL.replace("/fhir", "/nothing"))
    assert "ERROR base_url_wrong" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "There is no server nowhere"),
        ("https://ehr.example.org:port/", "https://ehr.example.org:port/: "),
    ],
)
def test_name_that_means_nothing_is_refused(
    world: World, name: str, message: str
) -> None:
    assert fail(name)[1].startswith(message)


def test_every_active_server_is_asked(world: World) -> None:
    make_server(
        slug="off", name="Off", base_url="https://off.example.org", is_active=False
    )
    assert run("smart_doctor", "--json").json["servers"] == ["harbour"]
