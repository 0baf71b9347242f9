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
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart.contrib.doctor import Finding, examine
from django_smart.models import TaskRun, TokenGrant
from django_smart.models.task_run import ROTATE_KEYS
from tests.contrib.doctor.conftest import World
from tests.contrib.doctor.faults import MORE, SEEDS, offer
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, SITE

pytestmark = pytest.mark.django_db

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "doctor-faults.csv"
HEADER = ("What is wrong", "Reported as", "What to do")
FAULTS = [
    *SEEDS,
    *((spoil, {code}, fix) for spoil, code, fix in MORE),
]


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
    world: World, spoil: Callable[[World], None], codes: set[str], fix: str
) -> None:
    spoil(world)
    findings = [each for each in examine([world.server]) if each.code in codes]
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
    world.set_server(scope_syntax="v1")
    world.set_registration(
        ehr_scope="launch openid fhirUser patient/*.read",
        standalone_scope="launch/patient openid fhirUser patient/*.read",
    )


def with_a_server_that_refuses_codes_as_clients(world: World) -> None:
    def refuse(respond: Any, request: Any) -> Any:
        if request.form.get("grant_type") != "authorization_code":
            return respond(request)
        return Response('{"error": "invalid_client"}', 401, mimetype="application/json")

    world.ehr.interceptors.append(refuse)


def with_a_server_that_looks_at_codes_first(world: World) -> None:
    def refuse(respond: Any, request: Any) -> Any:
        if not request.form.get("grant_type"):
            return respond(request)
        return Response('{"error": "invalid_grant"}', 400, mimetype="application/json")

    world.ehr.interceptors.append(refuse)
    TokenGrant.objects.create(
        registration=world.registration,
        received_at=timezone.now() + timedelta(seconds=1),
        expires_at=timezone.now() + timedelta(hours=1),
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


def with_a_cookie_of_the_domain(world: World) -> None:
    world.settings.SESSION_COOKIE_DOMAIN = ".example.org"


def with_csrf_in_the_session(world: World) -> None:
    world.settings.CSRF_USE_SESSIONS = True
    world.settings.CSRF_COOKIE_SECURE = False


def with_a_landing_page_by_name(world: World) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "admin:index"


def with_a_landing_page_of_a_middleware(world: World) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/app/"
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.serve_app",
    ]


def without_a_prefix(world: World) -> None:
    world.settings.SMART_LAUNCH_PREFIX = ""
    world.settings.SILENCED_SYSTEM_CHECKS = ["django_smart.W020"]


def in_debug(world: World) -> None:
    world.settings.DEBUG = True


def with_a_key(world: World) -> None:
    world.sign()


def with_a_public_client(world: World) -> None:
    world.ehr.register_client(
        CLIENT_ID, auth_method="none", redirect_uris=[f"{SITE}/smart/callback/"]
    )
    world.set_registration(token_endpoint_auth_method="none", client_secret="")


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


def with_a_server_that_refuses_aud(world: World) -> None:
    world.ehr.quirks = ["aud_none"]
    world.set_server(aud_rule="none")


def with_a_server_that_wants_a_parameter(world: World) -> None:
    world.ehr.quirks = ["parameter_wanted"]
    world.set_server(authorization_parameters={"tenant": "harbour"})


def with_a_slash_after_the_base_url(world: World) -> None:
    world.set_server(base_url=f"{BASE_URL}/")


def with_a_capital_letter_in_its_address(world: World) -> None:
    world.settings.SMART_SITE_URL = "https://App.example.org"


def with_the_usual_port_in_its_address(world: World) -> None:
    world.settings.SMART_SITE_URL = f"{SITE}:443"


HEALTHY = [
    *(with_cron_alone, with_v1_scopes, with_a_server_that_refuses_codes_as_clients),
    *(with_a_server_that_looks_at_codes_first, with_requests_in_transactions),
    *(with_translated_urls, with_sessions_in_cookies, with_sessions_in_files),
    *(with_sessions_in_the_cache, with_a_cookie_of_the_domain),
    *(with_csrf_in_the_session, with_a_landing_page_by_name),
    *(with_a_landing_page_of_a_middleware, without_a_prefix, in_debug, with_a_key),
    *(with_a_public_client, with_a_server_that_says_little),
    *(with_launches_from_the_ehr_alone, with_a_secret_in_the_environment),
    *(with_a_server_that_refuses_aud, with_a_server_that_wants_a_parameter),
    *(with_a_slash_after_the_base_url, with_a_capital_letter_in_its_address),
    with_the_usual_port_in_its_address,
]


@pytest.mark.parametrize("change", HEALTHY, ids=[each.__name__ for each in HEALTHY])
def test_healthy_site_is_not_accused(
    world: World, change: Callable[[World], None]
) -> None:
    change(world)
    assert [each for each in examine([world.server]) if each.severity != "note"] == []
