"""The doctor names each fault with its fix, and is silent where all is well."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from django.utils import timezone
from requests import Request
from werkzeug.wrappers import Response

from django_smart import transport
from django_smart.contrib.doctor import KINDS, Finding, examine
from django_smart.models import FHIRServer, SigningKey, TaskRun, TokenGrant
from django_smart.servers.discovery import fetch_configuration
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.tasks import refresh_servers
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.celery import app as celery_app
from tests.contrib.doctor.conftest import World
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, SITE
from tests.factories import make_registration, make_server
from tests.transport.servers import Server
from tests.transport.servers import answer as raw_answer

pytestmark = pytest.mark.django_db

SMART = "/smart-configuration"
OFFSET = timedelta(minutes=3)


def examine_world(world: World) -> list[Finding]:
    server = FHIRServer.objects.get(pk=world.server.pk)
    return examine([server])


def offer(world: World, **values: Any) -> None:
    answer(world.ehr, SMART, **values)


# One function each


def base_url_wrong(world: World) -> None:
    world.set_server(base_url=f"{BASE_URL}/R5")


def base_url_not_fhir(world: World) -> None:
    def be_a_portal(*_: Any) -> Response:
        return Response("<h1>Our patient portal</h1>", content_type="text/html")

    world.ehr.interceptors.append(be_a_portal)


def plain_http(world: World) -> None:
    world.set_server(base_url=BASE_URL.replace("https:", "http:"))


def wrong_secret(world: World) -> None:
    world.registration.client_secret = "not the secret"
    world.registration.save()


def secret_variable_unset(world: World) -> None:
    world.monkeypatch.delenv("HARBOUR_SECRET", raising=False)
    world.set_registration(client_secret="", client_secret_env="HARBOUR_SECRET")


def method_not_offered(world: World) -> None:
    offer(world, token_endpoint_auth_methods_supported=["private_key_jwt"])


def algorithm_not_offered(world: World) -> None:
    world.sign()
    offer(world, token_endpoint_auth_signing_alg_values_supported=["ES384"])


def no_s256(world: World) -> None:
    offer(world, code_challenge_methods_supported=["plain"])


def no_launch_ehr(world: World) -> None:
    offer(
        world,
        capabilities=[
            "launch-standalone",
            "client-confidential-symmetric",
            "permission-offline",
            "permission-v2",
        ],
    )


def jwks_unreachable(world: World) -> None:
    world.sign()
    transport.mount(SITE, Away())


def jwks_cached_too_long(world: World) -> None:
    world.sign()
    world.site.headers["Cache-Control"] = "public, max-age=604800"


def key_ending(world: World) -> None:
    world.sign()
    world.settings.SMART_KEY_ROTATION = 30 * 24 * 3600
    since = timezone.now() - timedelta(days=30) + timedelta(hours=1)
    SigningKey.objects.update(activated_at=since)


def token_endpoint_moved(world: World) -> None:
    fetch_configuration(world.server)
    offer(world, token_endpoint="https://elsewhere.example.org/token")


def issuer_of_another_server(world: World) -> None:
    fetch_configuration(world.server)
    pinned = {"issuer": world.server.pinned["issuer"]}
    make_server(slug="nearer", base_url=f"{BASE_URL}/r4", pinned=pinned)


def callback_shared(world: World) -> None:
    world.set_registration(callback_group="vendor")
    make_registration(
        make_server(slug="other", base_url="https://other.example.org/r4"),
        callback_group="vendor",
    )


def redirect_uri_of_another_site(world: World) -> None:
    world.set_registration(redirect_uri="https://old.example.org/smart/callback/")


def proxy_header_missing(world: World) -> None:
    world.settings.SECURE_PROXY_SSL_HEADER = None


def clock_off(world: World) -> None:
    there = format_datetime(timezone.now() - OFFSET, usegmt=False)
    offer(world, headers={"Date": there})


def scopes_not_offered(world: World) -> None:
    offer(
        world,
        scopes_supported=[
            *("openid", "fhirUser", "launch", "launch/patient", "offline_access"),
            "patient/Patient.rs",
        ],
    )


def v1_scopes_at_a_v2_server(world: World) -> None:
    world.set_registration(ehr_scope="launch patient/Patient.read")
    offer(
        world,
        capabilities=[
            *("launch-ehr", "launch-standalone", "client-confidential-symmetric"),
            *("permission-offline", "permission-v2"),
        ],
    )


def offline_access_missing(world: World) -> None:
    world.set_registration(standalone_scope="openid fhirUser patient/Patient.rs")
    world.set_server(refresh_token_lifetime=timedelta(days=90))


def cookies_unfit_for_frames(world: World) -> None:
    world.set_server(allow_embedding=True, frame_origins=["https://ehr.example.org"])
    world.settings.SESSION_COOKIE_SECURE = False


def middleware_not_outermost(world: World) -> None:
    ours, *others = world.settings.MIDDLEWARE
    world.settings.MIDDLEWARE = [*others, ours]


def backend_missing(world: World) -> None:
    world.settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend"
    ]


def urls_not_included(world: World) -> None:
    world.settings.ROOT_URLCONF = "tests.management.no_urls"


def nobody_works(world: World) -> None:
    TaskRun.objects.all().delete()


def encryption_keys_derived(world: World) -> None:
    del world.settings.SMART_ENCRYPTION_KEYS
    world.registration.client_secret = CLIENT_SECRET
    world.registration.save()


# What spoils it, the codes it is told by, and a part of the fix.
SEEDS: list[tuple[Callable[[World], None], set[str], str]] = [
    (base_url_wrong, {"base_url_wrong"}, "Compare the base URL"),
    (base_url_not_fhir, {"base_url_not_fhir"}, "not the address of a portal"),
    (plain_http, {"plain_http"}, "Enter the https address"),
    (wrong_secret, {"credentials_refused"}, "enter the client secret again"),
    (secret_variable_unset, {"secret_missing"}, "Set HARBOUR_SECRET where"),
    (method_not_offered, {"method_not_offered"}, "Register the client there, and here"),
    (algorithm_not_offered, {"algorithm_not_offered"}, "Set the registration's sign"),
    (no_s256, {"s256_not_offered"}, "Have S256 switched on there"),
    (no_launch_ehr, {"ehr_launch_not_offered"}, "scope for EHR launch"),
    (token_endpoint_moved, {"issuer_disputed"}, "empty its pinned values"),
    (issuer_of_another_server, {"issuer_disputed"}, "one login group"),
    (callback_shared, {"callback_shared"}, "a callback id of its own"),
    (jwks_unreachable, {"jwks_unreachable"}, "let the outside in"),
    (jwks_cached_too_long, {"jwks_cached_too_long"}, "leave its Cache-Control"),
    (key_ending, {"key_ending"}, "smart_keys generate --algorithm RS384"),
    (
        redirect_uri_of_another_site,
        {"redirect_uri_wrong"},
        "Enter https://app.example.org/smart/callback/ as redirect URI",
    ),
    (proxy_header_missing, {"proxy_header_missing"}, "set SECURE_PROXY_SSL_HEADER ="),
    (clock_off, {"clock_off"}, "Set the clock of this machine by NTP"),
    (scopes_not_offered, {"scopes_not_offered"}, "correct their spelling"),
    (v1_scopes_at_a_v2_server, {"v1_scopes_not_offered"}, "Write patient/Patient.rs."),
    (offline_access_missing, {"offline_access_missing"}, "Add offline_access"),
    (
        cookies_unfit_for_frames,
        {"cookies_unfit_for_frames", "django_smart.W031"},
        "SESSION_COOKIE_SECURE = True",
    ),
    (middleware_not_outermost, {"django_smart.W020"}, "first in MIDDLEWARE"),
    (backend_missing, {"django_smart.E021"}, "AUTHENTICATION_BACKENDS"),
    (urls_not_included, {"django_smart.E024"}, 'include("django_smart.urls")'),
    (nobody_works, {"beat_missing"}, "Start “celery beat” and a worker"),
    (encryption_keys_derived, {"django_smart.W033"}, "Set SMART_ENCRYPTION_KEYS"),
]


def check(world: World, codes: set[str], fix: str) -> None:
    findings = examine_world(world)
    assert {each.code for each in findings} == codes, findings
    assert any(fix in each.fix for each in findings), findings
    for each in findings:
        assert each.what
        assert each.why
        assert each.fix
        assert CLIENT_SECRET not in str(each.to_json())


def test_right_configuration_is_silent(world: World) -> None:
    assert examine_world(world) == []


def test_right_configuration_of_a_client_with_a_key_is_silent(world: World) -> None:
    world.sign()
    world.set_registration(system_scope="system/Patient.rs")
    assert examine_world(world) == []


def test_right_configuration_of_an_app_in_frames_is_silent(world: World) -> None:
    world.set_server(allow_embedding=True, frame_origins=["https://ehr.example.org"])
    assert examine_world(world) == []


def test_right_configuration_of_a_public_client_is_silent(world: World) -> None:
    world.ehr.register_client(
        CLIENT_ID, auth_method="none", redirect_uris=[f"{SITE}/smart/callback/"]
    )
    world.set_registration(token_endpoint_auth_method="none", client_secret="")
    assert examine_world(world) == []


@pytest.mark.parametrize(
    ("spoil", "codes", "fix"), SEEDS, ids=[each[0].__name__ for each in SEEDS]
)
def test_misconfiguration_is_named_with_its_fix(
    world: World, spoil: Callable[[World], None], codes: set[str], fix: str
) -> None:
    spoil(world)
    check(world, codes, fix)


def test_untrusted_certificate_is_named_with_its_fix(
    world: World, certificate: Any
) -> None:
    with Server(raw_answer(), context=certificate[0]) as server:
        world.set_server(base_url=server.url.partition("/metadata")[0])
        check(world, {"certificate_untrusted"}, "whole chain of certificates")
        assert server.requests == []


def test_no_misconfiguration_has_been_lost() -> None:
    assert len(SEEDS) + 1 == 28


# What else it finds


def test_server_that_is_down_is_told_by_one_finding(world: World) -> None:
    with transport.mounted("https://ehr.example.org/v", Away()):
        check(world, {"server_unreachable"}, "firewall")


def test_server_that_fails_is_not_taken_for_a_wrong_address(world: World) -> None:
    world.ehr.faults.add("discovery_500")
    check(world, {"server_failing"}, "Try again later")


def test_fhir_server_without_smart_is_told(world: World) -> None:
    answer(world.ehr, SMART, status=404)

    def respond_otherwise(respond: Any, request: Any) -> Any:
        if request.path.endswith("/metadata"):
            return Response('{"resourceType": "CapabilityStatement"}')
        return respond(request)

    world.ehr.interceptors.append(respond_otherwise)
    check(world, {"configuration_missing"}, "enter the endpoints")


def test_unusable_configuration_is_told(world: World) -> None:
    offer(world, token_endpoint=1)
    check(world, {"configuration_unusable"}, "in place of what it says")


def test_inactive_server_is_not_asked(world: World) -> None:
    world.set_server(is_active=False)
    check(world, {"server_inactive"}, "if it is to be used")
    assert world.ehr.requests == []


def test_server_without_a_registration_is_told(world: World) -> None:
    world.set_registration(is_active=False)
    check(world, {"registration_missing"}, "smart_register")


def test_plain_http_of_a_simulator_is_a_warning(world: World) -> None:
    plain = EHRSimulator(base_url=BASE_URL.replace("https:", "http:"))
    plain.register_client(CLIENT_ID, client_secret=CLIENT_SECRET)
    world.settings.SMART_INSECURE_HTTP_HOSTS = ["ehr.example.org"]
    world.set_server(base_url=plain.base_url)
    with transport.mounted("http://ehr.example.org", plain.adapter()):
        findings = {each.code: each.severity for each in examine_world(world)}
    assert findings == {"django_smart.W034": "warning", "plain_http": "warning"}


def test_endpoints_that_answer_nothing_are_told(world: World) -> None:
    world.set_server(
        authorization_endpoint="https://ehr.example.org/nothing",
        token_endpoint="https://ehr.example.org/nothing-either",
    )
    findings = examine_world(world)
    assert [each.code for each in findings] == ["endpoint_wrong", "endpoint_wrong"]
    world.set_server(
        authorization_endpoint="https://away.example.org/authorize",
        token_endpoint="https://away.example.org/token",
    )
    with transport.mounted("https://away.example.org", Away()):
        findings = examine_world(world)
    assert [each.code for each in findings] == ["endpoint_unreachable"] * 2


def test_keys_of_id_tokens_are_looked_at(world: World) -> None:
    world.ehr.faults.add("jwks_500")
    check(world, {"id_token_keys_unusable"}, "leave openid and fhirUser out")


def test_refresh_that_is_not_offered_is_told(world: World) -> None:
    offer(
        world,
        grant_types_supported=["authorization_code"],
        capabilities=["launch-ehr", "launch-standalone"],
    )
    findings = examine_world(world)
    assert [each.code for each in findings] == ["refresh_not_offered"]
    assert "no refresh_token and its capabilities" in findings[0].what


def test_site_that_somebody_else_answers_for_is_told(world: World) -> None:
    world.sign()
    world.site.content = b"<h1>Welcome to nginx</h1>"
    check(world, {"jwks_wrong"}, "pass this path on")


def test_old_key_set_of_a_cache_is_told(world: World) -> None:
    world.sign()
    world.site.content = b'{"keys": []}'
    check(world, {"jwks_outdated"}, "empty it")


def test_proxy_that_loses_the_host_is_told(world: World) -> None:
    world.settings.ALLOWED_HOSTS = ["app.example.org", "127.0.0.1"]
    world.site.passes_host = False
    check(world, {"proxy_host_lost"}, "USE_X_FORWARDED_HOST")


def test_key_that_is_missing_is_told(world: World) -> None:
    world.sign()
    SigningKey.objects.all().delete()
    check(world, {"key_missing"}, "smart_keys generate --algorithm RS384")


def test_key_the_server_does_not_know_is_told(world: World) -> None:
    world.sign()
    SigningKey.objects.all().delete()
    ensure_active_key("RS384")
    check(world, {"credentials_refused"}, "JWK Set URL in the vendor's form")


def test_grants_that_nobody_looks_after_are_told(world: World) -> None:
    now = timezone.now()
    values = {
        "registration": world.registration,
        "is_offline": True,
        "received_at": now,
        "expires_at": now,
    }
    TokenGrant.objects.create(
        **values, refresh_due_at=now - timedelta(hours=1), refresh_failures=9
    )
    TokenGrant.objects.create(
        **values,
        status=TokenGrant.Status.REVOKED,
        is_revocation_pending=True,
        ended_at=now - timedelta(days=2),
    )
    check(
        world,
        {"refresh_overdue", "refresh_failing", "revocation_overdue"},
        "Run smart_purge",
    )


@pytest.mark.parametrize(
    ("redirect_uri", "what"),
    [
        (f"{SITE}/callback/", "its path is not /smart/callback/"),
        (f"{SITE}/smart/callback/?a=1", "its path is not /smart/callback/"),
        ("https://b.example.org/smart/callback/", "ALLOWED_HOSTS does not have"),
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


def test_second_address_of_this_site_is_fine(world: World) -> None:
    world.settings.ALLOWED_HOSTS = ["app.example.org", "b.example.org"]
    world.ehr.register_client(
        CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=["https://b.example.org/smart/callback/"],
    )
    world.set_registration(redirect_uri="https://b.example.org/smart/callback/")
    with transport.mounted("https://b.example.org", world.site):
        assert examine_world(world) == []


def test_workers_are_missed_only_where_they_are_needed(world: World) -> None:
    TaskRun.objects.all().delete()
    world.set_registration(standalone_scope="")
    assert examine_world(world) == []


def test_unreachable_broker_is_told(world: World) -> None:
    TaskRun.objects.update(ran_at=timezone.now() - timedelta(hours=1))
    celery_app.set_current()
    world.monkeypatch.setattr(
        celery_app,
        "connection_for_write",
        lambda: (_ for _ in ()).throw(ConnectionRefusedError),
    )
    (finding,) = examine_world(world)
    assert "since 20" in finding.what
    assert "broker cannot be reached (ConnectionRefusedError)" in finding.what


def test_beat_leaves_its_sign(world: World) -> None:
    TaskRun.objects.all().delete()
    refresh_servers()
    refresh_servers()
    assert TaskRun.objects.count() == 1
    assert examine_world(world) == []


def test_silenced_checks_are_not_told(world: World) -> None:
    encryption_keys_derived(world)
    world.settings.SILENCED_SYSTEM_CHECKS = ["django_smart.W033"]
    assert examine_world(world) == []


def test_only_the_doctor_is_told_how_it_is_seen(world: World) -> None:
    for query in ("", "?probe=", "?probe=how do you see me:1:2"):
        page = world.site.send(Request(url=f"{SITE}/smart/jwks.json{query}"))
        assert page.status_code == 200
        assert "Smart-Seen-As" not in page.headers


def test_every_kind_says_why_it_matters() -> None:
    assert all(why.endswith(".") for _, why in KINDS.values())
