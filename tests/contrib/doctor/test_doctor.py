"""The doctor names each fault with its fix, and is silent where all is well."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.utils import timezone, translation
from requests import Request
from werkzeug.wrappers import Response

from django_smart import transport
from django_smart.contrib.doctor import examine
from django_smart.diagnoses import Finding
from django_smart.grants.deployment import adopt_grants
from django_smart.models import FHIRServer, SigningKey, TaskRun
from django_smart.models.task_run import ROTATE_KEYS
from django_smart.servers.signing_keys import ensure_active_key, generate_key
from django_smart.tasks import refresh_due_grants
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.celery import app as celery_app
from tests.contrib.doctor.conftest import World
from tests.contrib.doctor.faults import (
    SMART,
    encryption_keys_derived,
    offer,
    refreshes_stopped,
    set_broker,
    token_endpoint_is_a_page,
)
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, SITE
from tests.factories import make_grant, register_at
from tests.transport.servers import Server
from tests.transport.servers import answer as raw_answer

pytestmark = pytest.mark.django_db


def examine_world(world: World) -> list[Finding]:
    server = FHIRServer.objects.get(pk=world.server.pk)
    return examine([server])


def find(world: World, code: str) -> Finding:
    findings = [each for each in examine_world(world) if each.code == code]
    assert findings, code
    return findings[0]


def check(world: World, codes: set[str], fix: str) -> None:
    findings = examine_world(world)
    assert {each.code for each in findings} == codes, findings
    assert any(fix in each.fix for each in findings), findings
    for each in findings:
        assert each.what
        assert each.why
        assert each.fix
        assert CLIENT_SECRET not in str(each.to_json())


def test_right_configuration_of_a_client_with_a_key_is_silent(world: World) -> None:
    world.sign()
    world.set_registration(system_scope="system/Patient.rs")
    assert examine_world(world) == []


def test_right_configuration_of_an_app_in_frames_is_silent(world: World) -> None:
    world.set_server(frame_origins=["https://ehr.example.org"])
    assert examine_world(world) == []


def test_right_configuration_of_a_public_client_is_silent(world: World) -> None:
    world.ehr.register_client(
        CLIENT_ID, auth_method="none", redirect_uris=[f"{SITE}/smart/callback/"]
    )
    world.set_registration(token_endpoint_auth_method="none", client_secret="")
    assert examine_world(world) == []


def test_untrusted_certificate_is_named_with_its_fix(
    world: World, certificate: Any
) -> None:
    with Server(raw_answer(), context=certificate[0]) as server:
        world.set_server(base_url=server.url.partition("/metadata")[0])
        check(world, {"server_unreachable"}, 'PRIVATE_HOSTS = ["127.0.0.1"]')
        world.settings.SMART_PRIVATE_HOSTS = ["127.0.0.1"]
        check(world, {"certificate_untrusted"}, "certificate chain")
        assert server.requests == []


# What else it finds


@pytest.mark.compliance("SAL-03")
def test_launch_patient_is_missed_only_where_it_helps(world: World) -> None:
    def is_missed() -> bool:
        return "launch_patient_missing" in {one.code for one in examine_world(world)}

    world.set_registration(standalone_scope="openid patient/Patient.rs")
    assert is_missed()
    world.set_server(quirks={"patient_from_fhir_user": True})
    assert not is_missed()
    world.set_server(quirks={})
    offer(world, capabilities=["launch-ehr", "launch-standalone"])
    assert not is_missed()


def test_host_without_a_fhir_server_is_told_without_a_guess(world: World) -> None:
    world.ehr.interceptors.append(lambda *_: Response("", 404))
    check(world, {"base_url_wrong"}, "Compare the base URL")


def test_base_url_is_suggested_whatever_the_case_of_its_host(world: World) -> None:
    world.set_server(base_url=f"{BASE_URL.replace('ehr.', 'EHR.')}/R5")
    check(world, {"base_url_wrong"}, f"base URL to {BASE_URL},")


def test_fhir_server_without_smart_is_told(world: World) -> None:
    answer(world.ehr, SMART, status=404)

    def respond_otherwise(respond: Any, request: Any) -> Any:
        if request.path.endswith("/metadata"):
            return Response('{"resourceType": "CapabilityStatement"}')
        return respond(request)

    world.ehr.interceptors.append(respond_otherwise)
    check(world, {"configuration_missing"}, "enter the endpoints")


def test_inactive_server_is_not_asked(world: World) -> None:
    world.set_server(is_active=False)
    check(world, {"server_inactive"}, "Check “active”")
    assert world.ehr.requests == []


def test_plain_http_of_a_simulator_is_only_what_its_check_says(world: World) -> None:
    plain = EHRSimulator(base_url=BASE_URL.replace("https:", "http:"))
    register_at(plain)
    world.settings.SMART_INSECURE_HTTP_HOSTS = ["ehr.example.org"]
    world.server.base_url = plain.base_url
    world.server.save()
    with transport.mounted("http://ehr.example.org", plain.adapter()):
        found = examine_world(world)
    assert [each.code for each in found] == ["django_smart.W034"]


def test_endpoints_that_answer_nothing_are_told(world: World) -> None:
    world.set_server(
        overrides={
            "authorization_endpoint": "https://ehr.example.org/nothing",
            "token_endpoint": "https://ehr.example.org/nothing-either",
        }
    )
    overruled, *findings = examine_world(world)
    assert overruled.code == "configuration_overruled"
    assert [each.code for each in findings] == ["endpoint_wrong", "endpoint_wrong"]
    world.set_server(
        overrides={
            "authorization_endpoint": "https://away.example.org/authorize",
            "token_endpoint": "https://away.example.org/token",
        }
    )
    with transport.mounted("https://away.example.org", Away()):
        findings = examine_world(world)[1:]
    assert [each.code for each in findings] == ["endpoint_unreachable"] * 2


def test_overruled_members_are_told_with_both_values(world: World) -> None:
    world.set_server(overrides={"token_endpoint": world.ehr.token_endpoint})
    assert examine_world(world) == []
    world.set_server(overrides={"scopes_supported": None, "capabilities": []})
    findings = examine_world(world)
    assert [each.code for each in findings] == ["configuration_overruled"]
    assert 'capabilities: the server sends ["launch-ehr", ' in findings[0].what
    assert "[] is used" in findings[0].what


def test_list_without_scopes_for_data_accuses_no_registration(world: World) -> None:
    # As Epic's, which lists only what no app is registered for.
    offer(world, scopes_supported=["fhirUser", "launch", "openid", "profile"])
    assert examine_world(world) == []


def test_refresh_that_is_not_offered_is_told(world: World) -> None:
    # As athenahealth and Oracle Health publish it: SMART defines no other types.
    offer(world, grant_types_supported=["authorization_code", "client_credentials"])
    assert examine_world(world) == []
    offer(world, capabilities=["launch-ehr", "launch-standalone"])
    findings = examine_world(world)
    assert [each.code for each in findings] == ["refresh_not_offered"]
    assert "permission-offline" in findings[0].what


def test_site_that_somebody_else_answers_for_is_told(world: World) -> None:
    world.sign()
    world.site.content = b"<h1>Welcome to nginx</h1>"
    check(world, {"jwks_wrong"}, "without requiring sign-in")


def test_old_key_set_of_a_cache_is_told(world: World) -> None:
    world.sign()
    world.site.content = b'{"keys": []}'
    check(world, {"jwks_outdated"}, "clear it")


def test_proxy_that_loses_the_host_is_told(world: World) -> None:
    world.settings.ALLOWED_HOSTS = ["app.example.org", "127.0.0.1"]
    world.site.passes_host = False
    check(world, {"proxy_host_lost"}, "USE_X_FORWARDED_HOST")


def test_key_that_is_missing_is_told(world: World) -> None:
    world.sign()
    SigningKey.objects.all().delete()
    check(world, {"credentials_unusable"}, "smart_keys generate --algorithm RS384")


def lose_encryption_key(world: World) -> None:
    """Everything stored so far is unreadable; a restarted process has parsed no key."""
    world.settings.SMART_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    world.monkeypatch.setattr("django_smart.servers.http._parsed_keys", {})


def find_unreadable(world: World) -> list[Finding]:
    found = [each for each in examine_world(world) if each.code == "secret_unreadable"]
    assert all("back to" in each.fix for each in found)
    return found


def test_unreadable_request_headers_are_not_taken_for_the_client_secret(
    world: World,
) -> None:
    world.server.request_headers = '{"X-Api-Key": "abc"}'
    world.server.save()
    lose_encryption_key(world)
    world.registration.client_secret = CLIENT_SECRET
    world.registration.save()
    check(world, {"secret_unreadable"}, "enter the request headers again")
    world.server.request_headers = '{"X-Api-Key": "abc"}'
    world.server.save()
    assert examine_world(world) == []


def test_unreadable_signing_keys_are_told_with_commands_that_work(
    world: World,
) -> None:
    lost = [world.sign(), generate_key("RS384")]
    lose_encryption_key(world)
    found = find_unreadable(world)
    assert {each.code for each in examine_world(world)} == {"secret_unreadable"}
    for key, finding in zip(lost, found, strict=True):
        assert key.kid in finding.what
    assert "smart_keys rotate --algorithm RS384 --now" in found[0].fix
    assert f"smart_keys retire {lost[1].kid}" in found[1].fix
    call_command("smart_keys", "retire", lost[1].kid)
    call_command("smart_keys", "generate", "--algorithm", "RS384")
    call_command("smart_keys", "rotate", "--algorithm", "RS384", "--now")
    assert find_unreadable(world) == []


def test_tokens_that_cannot_be_decrypted_are_told(world: World) -> None:
    for _ in range(3):
        make_grant(world.registration)
    lose_encryption_key(world)
    make_grant(world.registration)
    world.registration.client_secret = CLIENT_SECRET
    world.registration.save()
    (finding,) = find_unreadable(world)
    assert "3 of 4" in finding.what
    assert "connect again" in finding.fix


def test_rotation_that_is_due_is_told_with_commands_that_work(world: World) -> None:
    world.sign()
    world.settings.SMART_KEY_ROTATION = 30 * 24 * 3600
    since = timezone.now() - timedelta(days=31)
    SigningKey.objects.update(activated_at=since, registration=world.registration)
    which = f"--algorithm RS384 --registration {world.registration.pk}"
    fix = find(world, "key_ending").fix
    assert f"smart_keys generate {which}" in fix
    assert f"smart_keys rotate {which}" in fix
    generate_key("RS384", world.registration)
    fix = find(world, "key_ending").fix
    assert "generate" not in fix
    assert f"smart_keys rotate {which}" in fix


def test_key_the_server_does_not_know_is_told(world: World) -> None:
    world.sign()
    SigningKey.objects.all().delete()
    ensure_active_key("RS384")
    check(world, {"credentials_refused"}, "JWK Set URL in the vendor's form")


def test_grants_that_nobody_looks_after_are_told(world: World) -> None:
    now = timezone.now()
    for _ in range(5):
        make_grant(
            world.registration,
            refresh_due_at=now - timedelta(hours=1),
            refresh_failures=9,
        )
    make_grant(
        world.registration,
        status="revoked",
        is_revocation_pending=True,
        ended_at=now - timedelta(minutes=16),
    )
    check(
        world,
        {"refresh_overdue", "refresh_failing", "revocation_overdue"},
        "Beat runs refresh_due_grants",
    )


def test_first_sign_out_without_celery_is_no_fault(world: World) -> None:
    world.set_registration(
        ehr_scope="launch openid fhirUser", standalone_scope="openid fhirUser"
    )
    TaskRun.objects.all().delete()
    make_grant(
        world.registration,
        status="revoked",
        is_offline=False,
        is_revocation_pending=True,
        ended_at=timezone.now(),
    )
    assert examine_world(world) == []


@pytest.mark.parametrize(
    ("redirect_uri", "what"),
    [
        (f"{SITE}/callback/", "its path is not /smart/callback/"),
        (f"{SITE}/smart/callback/?a=1", "its path is not /smart/callback/"),
        ("https://b.example.org/smart/callback/", "not in ALLOWED_HOSTS"),
    ],
)
def test_redirect_uri_that_is_not_ours_is_told(
    world: World, redirect_uri: str, what: str
) -> None:
    world.set_registration(redirect_uri=redirect_uri)
    with transport.mounted("https://b.example.org", world.site):
        (finding,) = [
            each for each in examine_world(world) if each.code == "redirect_uri_wrong"
        ]
    assert what in finding.what


@pytest.mark.parametrize(
    ("path", "is_wrong"),
    [
        ("/en/smart/callback/", False),
        ("/de/smart/callback/", False),
        ("/smart/callback/", True),
        ("/xx/smart/callback/", True),
        ("/en/smart/jwks.json", True),
    ],
)
@pytest.mark.parametrize("language", ["en", "de"])
def test_redirect_uri_may_be_in_any_language_of_this_site(
    world: World, language: str, path: str, is_wrong: bool
) -> None:
    world.settings.ROOT_URLCONF = "tests.site.i18n_package_urls"
    world.set_registration(redirect_uri=SITE + path)
    with translation.override(language):
        codes = {each.code for each in examine_world(world)}
    assert ("redirect_uri_wrong" in codes) is is_wrong


def test_second_address_of_this_site_is_fine(world: World) -> None:
    world.settings.ALLOWED_HOSTS = ["app.example.org", "b.example.org"]
    register_at(world.ehr, "https://b.example.org/smart/callback/")
    world.set_registration(redirect_uri="https://b.example.org/smart/callback/")
    with transport.mounted("https://b.example.org", world.site):
        assert examine_world(world) == []


def test_workers_are_missed_only_where_they_are_needed(world: World) -> None:
    TaskRun.objects.all().delete()
    world.set_registration(standalone_scope="")
    assert examine_world(world) == []


def refuse(world: World, error: str, *grant_types: str) -> None:
    """Let the server answer *error* to every request with one of the grant types."""

    def respond_otherwise(respond: Any, request: Any) -> Any:
        if request.form.get("grant_type") not in grant_types:
            return respond(request)
        status = 401 if error == "invalid_client" else 400
        return Response(f'{{"error": "{error}"}}', status, mimetype="application/json")

    world.ehr.interceptors.append(respond_otherwise)


def note_success(world: World) -> None:
    received_at = timezone.now() + timedelta(seconds=1)
    make_grant(world.registration, received_at=received_at, is_offline=False)


def test_right_secret_is_not_accused_of_what_a_server_says_to_any_code(
    world: World,
) -> None:
    refuse(world, "invalid_client", "authorization_code")
    assert examine_world(world) == []


def test_client_that_is_refused_without_a_proof_is_no_error(world: World) -> None:
    refuse(world, "invalid_client", "authorization_code", "refresh_token")
    finding = find(world, "credentials_refused")
    assert finding.severity == "warning"


def test_credentials_that_a_token_has_proven_are_not_doubted(world: World) -> None:
    refuse(world, "invalid_client", "authorization_code", "refresh_token")
    note_success(world)
    assert examine_world(world) == []


def test_backend_service_is_proven_by_a_token_of_its_own(world: World) -> None:
    world.sign()
    world.set_registration(
        ehr_scope="", standalone_scope="", system_scope="system/Patient.rs"
    )
    assert examine_world(world) == []
    asked = [each.form for each in world.ehr.requests_to("token")]
    assert any(("grant_type", "client_credentials") in form for form in asked)
    refuse(world, "invalid_client", "client_credentials")
    assert "invalid_client" in find(world, "credentials_refused").what


def test_refusal_of_a_gateway_is_not_called_one_of_the_client(world: World) -> None:
    def stand_in_front(respond: Any, request: Any) -> Any:
        is_token = "grant_type" in request.form
        return Response("Who are you?", 401) if is_token else respond(request)

    world.ehr.interceptors.append(stand_in_front)
    finding = find(world, "credentials_refused")
    assert "status 401 without an OAuth error" in finding.what
    assert "gateway or firewall" in finding.fix


@pytest.mark.parametrize("keys", [b'{"keys": []}', b'{"keys": null}', b"{}"])
def test_key_set_of_this_site_that_is_empty_is_told(world: World, keys: bytes) -> None:
    world.sign()
    world.site.content = keys
    assert {each.code for each in examine_world(world)} & {
        "jwks_outdated",
        "jwks_wrong",
    }


def test_server_that_looks_at_the_code_first_proves_nothing(world: World) -> None:
    refuse(world, "invalid_grant", "authorization_code", "refresh_token")
    assert examine_world(world) == []


def test_token_endpoint_that_is_a_sign_in_page_is_named(world: World) -> None:
    token_endpoint_is_a_page(world)
    finding = find(world, "endpoint_wrong")
    assert "sign-in page" in finding.what
    world.ehr.interceptors[:] = [
        lambda respond, request: (
            Response("", 302, {"Location": "/sign-in"})
            if request.form
            else respond(request)
        )
    ]
    assert "redirects the request" in find(world, "endpoint_wrong").what


# Basic credentials, raw or form-encoded: found out, and never on a guess


def set_secret(world: World, secret: str) -> None:
    register_at(world.ehr, client_secret=secret)
    world.registration.client_secret = secret
    world.registration.save()


@pytest.mark.parametrize(
    ("taken", "other"), [("raw", "form_encoded"), ("form_encoded", "raw")]
)
def test_other_encoding_is_tried_once_and_the_column_named(
    world: World, taken: str, other: str
) -> None:
    set_secret(world, "s3:cr/et+ %&=")
    world.ehr.quirks = [f"basic_{taken}"]
    world.set_server(quirks={"basic_credentials": other})
    found = {each.code: each for each in examine_world(world)}
    assert f"to {taken}" in found["basic_encoding_wrong"].fix
    world.set_server(quirks={"basic_credentials": taken})
    assert examine_world(world) == []


def test_secret_that_encodes_to_itself_is_asked_about_once(world: World) -> None:
    set_secret(world, "plain")
    world.ehr.clear_requests()
    examine_world(world)
    assert len(world.ehr.requests_to("token")) == 1


def test_client_id_beside_the_assertion_is_tried_and_the_field_named(
    world: World,
) -> None:
    world.sign()
    world.ehr.quirks = ["assertion_client_id"]
    found = {each.code: each for each in examine_world(world)}
    assert "client_id_with_assertion" in found["client_id_wanted"].fix
    world.set_server(quirks={"client_id_with_assertion": True})
    assert "client_id_wanted" not in {each.code for each in examine_world(world)}


# In the background


def answer_pings(world: World, *names: str) -> None:
    celery_app.set_current()
    world.monkeypatch.setattr(
        celery_app.control,
        "ping",
        lambda **_: [{name: {"ok": "pong"}} for name in names],
    )


def test_broker_that_went_down_after_a_good_run_is_told(world: World) -> None:
    set_broker(world, "amqp://clinic:not-for-anybody@127.0.0.1:1//")
    finding = find(world, "broker_unusable")
    assert "127.0.0.1:1" in finding.what
    assert "not-for-anybody" not in finding.what
    assert "Refused" in finding.what


def test_broker_that_cannot_be_loaded_names_the_module(world: World) -> None:
    set_broker(world, "sqs://")
    finding = find(world, "broker_unusable")
    assert "boto3" in finding.what or "No module named" in finding.what
    assert "celery[redis]" in finding.fix


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1 Celery worker responds"), (2, "2 Celery workers respond")],
)
def test_beat_that_just_started_is_a_note(
    world: World, number: int, words: str
) -> None:
    TaskRun.objects.all().delete()
    answer_pings(world, *"ab"[:number])
    finding = find(world, "beat_missing")
    assert finding.severity == "note"
    assert words in finding.what


def test_grants_of_a_stopped_registration_are_not_overdue(world: World) -> None:
    make_grant(world.registration, refresh_due_at=timezone.now() - timedelta(hours=1))
    find(world, "refresh_overdue")
    refreshes_stopped(world)
    find(world, "refresh_stopped")
    assert "refresh_overdue" not in {each.code for each in examine_world(world)}


def test_reason_of_a_stopped_registration_is_in_english(world: World) -> None:
    refreshes_stopped(world)
    english = find(world, "refresh_stopped").what
    with translation.override("de"):
        assert find(world, "refresh_stopped").what == english


def test_beat_that_stopped_is_an_error_though_workers_answer(world: World) -> None:
    TaskRun.objects.update(ran_at=timezone.now() - timedelta(hours=1))
    answer_pings(world, "a")
    finding = find(world, "beat_missing")
    assert finding.severity == "error"
    assert "refresh_due_grants (since 20" in finding.what


def test_cron_does_as_well_as_beat(world: World) -> None:
    TaskRun.objects.all().delete()
    world.settings.SMART_KEY_ROTATION = 30 * 24 * 3600
    call_command("smart_refresh")
    # Within a day, cron calls the others too.
    assert examine_world(world) == []
    call_command("smart_keys", "rotate", "--due")
    call_command("smart_purge")
    assert examine_world(world) == []
    TaskRun.objects.filter(name=ROTATE_KEYS).update(
        ran_at=timezone.now() - timedelta(hours=4)
    )
    finding = find(world, "beat_missing")
    assert finding.severity == "error"
    assert "rotate_keys" in finding.what
    assert "refresh_due_grants" not in finding.what


def test_beat_leaves_its_sign(world: World) -> None:
    TaskRun.objects.all().delete()
    refresh_due_grants()
    refresh_due_grants()
    assert TaskRun.objects.count() == 1
    assert examine_world(world) == []


def test_owner_of_the_grants_is_no_sign_of_a_run(world: World) -> None:
    TaskRun.objects.all().delete()
    adopt_grants()
    assert find(world, "beat_missing").severity == "error"


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("SMART_LAUNCH_LIFETIME", "60", "django_smart.E001"),
        ("SMART_LAUNCHES_PER_BROWSER", 0, "django_smart.E001"),
        ("SMART_REFRESH_THREADS", 0, "django_smart.E001"),
        ("SMART_LAUNCH_LIFETIM", 60, "django_smart.W021"),
    ],
)
def test_wrong_setting_says_what_follows_from_it(
    world: World, setting: str, value: object, code: str
) -> None:
    setattr(world.settings, setting, value)
    assert "the setting" in find(world, code).why.lower()


def test_silenced_checks_are_not_told(world: World) -> None:
    encryption_keys_derived(world)
    world.settings.SILENCED_SYSTEM_CHECKS = ["django_smart.W033"]
    assert examine_world(world) == []


def test_only_the_doctor_is_told_how_it_is_seen(world: World) -> None:
    for query in ("", "?probe=", "?probe=how do you see me:1:2"):
        page = world.site.send(Request(url=f"{SITE}/smart/jwks.json{query}"))
        assert page.status_code == 200
        assert "Smart-Seen-As" not in page.headers


# What a browser meets at this site


def test_landing_page_that_is_missing_is_named(world: World) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/dashboard/"
    assert "/dashboard/" in find(world, "landing_page_missing").what
    world.set_registration(landing_page="/admin/")
    assert examine([world.server]) == []
    world.set_registration(landing_page="/nothing/")
    transport.mount(SITE, Away())
    assert find(world, "landing_page_missing").severity == "warning"


@pytest.mark.parametrize(("language", "is_missing"), [("de", False), ("xx", True)])
def test_landing_page_may_be_in_any_language_of_this_site(
    world: World, language: str, is_missing: bool
) -> None:
    world.settings.ROOT_URLCONF = "tests.site.i18n_package_urls"
    world.set_registration(landing_page=f"/{language}/smart/jwks.json")
    transport.mount(SITE, Away())
    codes = {each.code for each in examine([world.server])}
    assert ("landing_page_missing" in codes) is is_missing


def test_page_that_something_before_django_serves_is_a_landing_page(
    world: World,
) -> None:
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/app/"
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.serve_app",
    ]
    assert examine([world.server]) == []


def test_site_that_cannot_reach_itself_is_a_note(world: World) -> None:
    transport.mount(SITE, Away())
    (finding,) = examine([world.server])
    assert (finding.code, finding.severity) == ("jwks_unreachable", "note")


def test_site_that_requires_a_sign_in_needs_launches_that_sign_in(
    world: World,
) -> None:
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    assert examine_world(world) == []
    world.set_registration(ehr_scope="launch patient/*.rs")
    check(world, {"openid_missing"}, "openid fhirUser")
