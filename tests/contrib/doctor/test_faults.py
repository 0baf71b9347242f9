"""
Each fault is named with its fix, and a healthy site of any kind is not accused.

``WRITE_TABLES=1`` writes the table of ``docs/reference/doctor.rst`` anew.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test.utils import override_script_prefix
from django.urls import reverse

from django_smart.contrib.doctor import examine
from django_smart.diagnoses import Finding
from django_smart.models import FHIRServer, TaskRun
from django_smart.models.task_run import ROTATE_KEYS
from tests.contrib.doctor.conftest import World
from tests.contrib.doctor.faults import FAULTS, offer
from tests.ehr import BASE_URL, CLIENT_SECRET, SITE
from tests.factories import register_at

pytestmark = pytest.mark.django_db

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "doctor-faults.csv"
HEADER = ("What is wrong", "Reported as", "What to do")


def read_table() -> dict[str, tuple[str, ...]]:
    """The rows of the page by what is wrong."""
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row[0]: tuple(row) for row in csv.reader(file)}


def describe(spoil: Callable[[World], None]) -> str:
    return (spoil.__doc__ or "").strip().rstrip(".")


def build_row(spoil: Callable[[World], None], finding: Finding) -> tuple[str, ...]:
    fix = re.sub(r"\s+", " ", finding.fix)
    return describe(spoil), f"``{finding.code}`` ({finding.severity})", fix


@pytest.mark.parametrize(
    ("spoil", "codes", "fix"), FAULTS, ids=[each[0].__name__ for each in FAULTS]
)
def test_fault_is_named_with_its_fix_as_the_page_says(
    world: World, spoil: Callable[[World], None], codes: list[str], fix: str
) -> None:
    spoil(world)
    findings = examine([FHIRServer.objects.get(pk=world.server.pk)])
    assert {each.code for each in findings} == {*codes}, findings
    for each in findings:
        assert each.what
        assert each.why
        assert CLIENT_SECRET not in str(each.to_json())
    (finding, *_) = [each for each in findings if fix in each.fix]
    row = build_row(spoil, finding)
    rows = read_table()
    if os.environ.get("WRITE_TABLES"):
        rows[row[0]] = row
        order = [describe(each[0]) for each in FAULTS]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows[each] for each in order if each in rows)
        TABLE.write_text(out.getvalue(), encoding="utf-8")
    assert read_table()[row[0]] == row


def test_page_has_every_fault_and_no_other() -> None:
    assert len(FAULTS) >= 50
    assert list(read_table()) == [HEADER[0], *(describe(each[0]) for each in FAULTS)]


# Healthy sites


def with_cron_alone(world: World) -> None:
    TaskRun.objects.filter(name=ROTATE_KEYS).delete()
    world.settings.CELERY_BROKER_URL = None


def with_v1_scopes(world: World) -> None:
    world.set_server(quirks={"scope_syntax": "v1"})
    world.set_registration(
        ehr_scope="launch openid fhirUser patient/*.read",
        standalone_scope="launch/patient openid fhirUser patient/*.read",
    )


def with_requests_in_transactions(world: World) -> None:
    world.monkeypatch.setitem(
        world.settings.DATABASES["default"], "ATOMIC_REQUESTS", False
    )


def with_translated_urls(world: World) -> None:
    world.settings.ROOT_URLCONF = "tests.site.i18n_urls"
    world.settings.USE_I18N = True


def with_sessions_in_cookies(world: World) -> None:
    world.settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"


def with_sessions_in_files(world: World) -> None:
    world.settings.SESSION_ENGINE = "django.contrib.sessions.backends.file"


def with_sessions_in_the_cache(world: World) -> None:
    world.settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"


def with_csrf_in_the_session(world: World) -> None:
    world.settings.CSRF_USE_SESSIONS = True
    world.settings.CSRF_COOKIE_SECURE = False


def with_a_landing_page_by_name(world: World) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "admin:index"


def without_a_prefix(world: World) -> None:
    world.settings.SMART_LAUNCH_PREFIX = ""
    world.settings.SILENCED_SYSTEM_CHECKS = ["django_smart.W020"]


def in_debug(world: World) -> None:
    world.settings.DEBUG = True
    world.settings.SMART_SITE_URL = ""


def with_a_server_that_says_little(world: World) -> None:
    offer(world, scopes_supported=[], grant_types_supported=["authorization_code"])
    world.set_registration(
        standalone_scope="launch/patient openid fhirUser patient/Patient.rs"
    )


def with_launches_from_the_ehr_alone(world: World) -> None:
    world.set_registration(standalone_scope="")


def with_a_secret_in_the_environment(world: World) -> None:
    world.monkeypatch.setenv("HARBOUR_SECRET", CLIENT_SECRET)
    world.set_registration(client_secret="", client_secret_env="HARBOUR_SECRET")


def with_a_server_that_wants_a_slash_in_aud(world: World) -> None:
    world.ehr.quirks = ["aud_slash"]
    world.set_server(base_url=f"{BASE_URL}/", quirks={"aud_rule": "base_url"})


def with_a_server_that_wants_a_parameter(world: World) -> None:
    world.ehr.quirks = ["parameter_wanted"]
    world.set_server(authorization_parameters={"tenant": "harbour"})


def with_a_slash_after_the_base_url(world: World) -> None:
    world.set_server(base_url=f"{BASE_URL}/")


def with_a_capital_letter_in_its_address(world: World) -> None:
    world.settings.SMART_SITE_URL = "https://App.example.org"


def with_the_usual_port_in_its_address(world: World) -> None:
    world.settings.SMART_SITE_URL = f"{SITE}:443"


def below_a_path(world: World) -> None:
    world.stack.enter_context(override_script_prefix("/app/"))
    world.settings.SMART_LAUNCH_REDIRECT_URL = "admin:index"
    uri = SITE + reverse("django_smart:callback")
    world.set_registration(redirect_uri=uri)
    register_at(world.ehr, uri)


def below_a_path_with_cookies_of_its_own(world: World) -> None:
    below_a_path(world)
    world.settings.SESSION_COOKIE_PATH = world.settings.CSRF_COOKIE_PATH = "/app"


HEALTHY = [
    *(with_cron_alone, with_v1_scopes, with_requests_in_transactions),
    *(with_translated_urls, with_sessions_in_cookies, with_sessions_in_files),
    *(with_sessions_in_the_cache, with_csrf_in_the_session),
    *(with_a_landing_page_by_name, without_a_prefix, in_debug),
    *(with_a_server_that_says_little, with_launches_from_the_ehr_alone),
    *(with_a_secret_in_the_environment, with_a_server_that_wants_a_slash_in_aud),
    *(with_a_server_that_wants_a_parameter, with_a_slash_after_the_base_url),
    *(with_a_capital_letter_in_its_address, with_the_usual_port_in_its_address),
    *(below_a_path, below_a_path_with_cookies_of_its_own),
]


@pytest.mark.parametrize("change", HEALTHY, ids=[each.__name__ for each in HEALTHY])
def test_healthy_site_is_not_accused(
    world: World, change: Callable[[World], None]
) -> None:
    change(world)
    assert [each for each in examine([world.server]) if each.severity != "note"] == []
