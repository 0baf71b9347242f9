"""Faults of a site and of a server, one function each; its docstring says what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

from cryptography.fernet import Fernet
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart.grants.deployment import hold_grants
from django_smart.models import SigningKey, TaskRun
from django_smart.servers.discovery import fetch_configuration
from tests.answers import Away, answer
from tests.celery import app as celery_app
from tests.contrib.doctor.conftest import World
from tests.ehr import BASE_URL, CLIENT_SECRET, SITE
from tests.factories import make_registration, make_server, register_at

__all__ = [
    "FAULTS",
    "SMART",
    "encryption_keys_derived",
    "offer",
    "refreshes_stopped",
    "set_broker",
    "sign_in_required",
    "token_endpoint_is_a_page",
]

SMART = "/smart-configuration"
OFFSET = timedelta(minutes=3)


def offer(world: World, **values: Any) -> None:
    answer(world.ehr, SMART, **values)


def base_url_wrong(world: World) -> None:
    """The base URL has a wrong path."""
    world.set_server(base_url=f"{BASE_URL}/R5")


def base_url_not_fhir(world: World) -> None:
    """The base URL is that of a portal."""

    def be_a_portal(*_: Any) -> Response:
        return Response("<h1>Our patient portal</h1>", content_type="text/html")

    world.ehr.interceptors.append(be_a_portal)


def plain_http(world: World) -> None:
    """The base URL is plain http."""
    world.set_server(base_url=BASE_URL.replace("https:", "http:"))


def wrong_secret(world: World) -> None:
    """The client secret is wrong."""
    world.registration.client_secret = "not the secret"
    world.registration.save()


def secret_variable_unset(world: World) -> None:
    """The environment variable with the secret is not set."""
    world.monkeypatch.delenv("HARBOUR_SECRET", raising=False)
    world.set_registration(client_secret="", client_secret_env="HARBOUR_SECRET")


def method_not_offered(world: World) -> None:
    """The server does not support the authentication method."""
    offer(world, token_endpoint_auth_methods_supported=["private_key_jwt"])


def algorithm_not_offered(world: World) -> None:
    """The server does not accept the registration's signing algorithm."""
    world.sign()
    offer(world, token_endpoint_auth_signing_alg_values_supported=["ES384"])


def no_s256(world: World) -> None:
    """The server does not support S256."""
    offer(world, code_challenge_methods_supported=["plain"])


def no_launch_ehr(world: World) -> None:
    """The server does not support EHR launch."""
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
    """This site, which signs requests, cannot be reached at its public URL."""
    world.sign()
    world.mount(SITE, Away())


def jwks_cached_too_long(world: World) -> None:
    """A proxy lets the JWK Set be cached for a week."""
    world.sign()
    world.site.headers["Cache-Control"] = "public, max-age=604800"


def key_ending(world: World) -> None:
    """A key is due for rotation, but no next key is published."""
    world.sign()
    world.settings.SMART_KEY_ROTATION = 30 * 24 * 3600
    since = timezone.now() - timedelta(days=30) + timedelta(hours=1)
    SigningKey.objects.update(activated_at=since)


def token_endpoint_moved(world: World) -> None:
    """The token endpoint moved to another origin."""
    fetch_configuration(world.server)
    offer(world, token_endpoint="https://elsewhere.example.org/token")


def issuer_of_another_server(world: World) -> None:
    """Another server names the same issuer."""
    fetch_configuration(world.server)
    pinned = {"issuer": world.server.state.pinned["issuer"]}
    make_server(slug="nearer", base_url=f"{BASE_URL}/r4", pinned=pinned)


def callback_shared(world: World) -> None:
    """Two servers share a redirect URI."""
    world.set_registration(callback_group="vendor")
    make_registration(
        make_server(slug="other", base_url="https://other.example.org/r4"),
        callback_group="vendor",
    )


def redirect_uri_of_another_site(world: World) -> None:
    """The redirect URI is that of another site."""
    world.set_registration(redirect_uri="https://old.example.org/smart/callback/")


def proxy_header_missing(world: World) -> None:
    """The proxy terminates TLS, but Django does not know."""
    world.settings.SECURE_PROXY_SSL_HEADER = None


def clock_off(world: World) -> None:
    """The clocks differ by three minutes."""
    there = format_datetime(timezone.now() - OFFSET, usegmt=False)
    offer(world, headers={"Date": there})


def scopes_not_offered(world: World) -> None:
    """A scope is not among those that the server lists."""
    offer(
        world,
        scopes_supported=[
            *("openid", "fhirUser", "launch", "launch/patient", "offline_access"),
            "patient/Patient.rs",
        ],
    )


def v1_scopes_at_a_v2_server(world: World) -> None:
    """A version 1 scope is requested from a version 2 server."""
    world.set_registration(ehr_scope="launch patient/Patient.read")
    offer(
        world,
        capabilities=[
            *("launch-ehr", "launch-standalone", "client-confidential-symmetric"),
            *("permission-offline", "permission-v2"),
        ],
    )


def launch_patient_missing(world: World) -> None:
    """A standalone launch requests a patient's data, but no patient."""
    world.set_registration(standalone_scope="openid patient/Patient.rs offline_access")


def offline_access_missing(world: World) -> None:
    """The server has a refresh token lifetime, but offline_access is not requested."""
    world.set_registration(
        standalone_scope="launch/patient openid fhirUser patient/Patient.rs"
    )
    world.set_server(quirks={"refresh_token_lifetime": 90 * 24 * 3600})


def middleware_not_outermost(world: World) -> None:
    """SMARTMiddleware is not first in MIDDLEWARE."""
    ours, *others = world.settings.MIDDLEWARE
    world.settings.MIDDLEWARE = [*others, ours]


def backend_missing(world: World) -> None:
    """The authentication backend is missing."""
    world.settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend"
    ]


def urls_not_included(world: World) -> None:
    """The package's URLs are not included."""
    world.settings.ROOT_URLCONF = "tests.management.no_urls"


def nobody_works(world: World) -> None:
    """Neither beat nor cron runs."""
    TaskRun.objects.all().delete()


def encryption_keys_derived(world: World) -> None:
    """SMART_ENCRYPTION_KEYS is not set."""
    del world.settings.SMART_ENCRYPTION_KEYS
    world.registration.client_secret = CLIENT_SECRET
    world.registration.save()


def debug_on(world: World) -> None:
    """DEBUG is on in production."""
    world.settings.DEBUG = True


def encryption_key_lost(world: World) -> None:
    """The key that encrypted the client secret is not in SMART_ENCRYPTION_KEYS."""
    world.settings.SMART_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]


def server_down(world: World) -> None:
    """The server is down."""
    world.mount("https://ehr.example.org/v", Away())


def server_failing(world: World) -> None:
    """The server responds to discovery with status 500."""
    world.ehr.faults.add("discovery_500")


def configuration_unusable(world: World) -> None:
    """The server's SMART configuration is malformed."""
    offer(world, token_endpoint=1)


def server_switched_off(world: World) -> None:
    """The server is inactive on this site."""
    world.set_server(is_active=False)


def registration_missing(world: World) -> None:
    """The server has no active registration."""
    world.set_registration(is_active=False)


def authorization_endpoint_gone(world: World) -> None:
    """There is nothing at the authorization endpoint."""
    nothing = "https://ehr.example.org/nothing"
    world.set_server(overrides={"authorization_endpoint": nothing})


def keys_of_id_tokens_gone(world: World) -> None:
    """The server's keys for ID tokens cannot be fetched."""
    world.ehr.faults.add("jwks_500")


def keys_of_id_tokens_elsewhere(world: World) -> None:
    """The keys for ID tokens are on another host, without an OpenID configuration."""
    offer(world, jwks_uri="https://keys.example.net/jwks")
    answer(world.ehr, "/openid-configuration", status=404)


def token_endpoint_is_a_page(world: World) -> None:
    """The token endpoint is a sign-in page."""

    def show_page(respond: Any, request: Any) -> Any:
        if not request.form:
            return respond(request)
        return Response("<form>Sign in</form>", mimetype="text/html")

    world.ehr.interceptors.append(show_page)


def redirect_uri_unknown(world: World) -> None:
    """The EHR does not know the redirect URI."""
    register_at(world.ehr, f"{SITE}/another/callback/")


def configuration_is_a_page(world: World) -> None:
    """A web page replaces the SMART configuration."""

    def show_page(respond: Any, request: Any) -> Any:
        if request.path.endswith(SMART):
            return Response("<h1>Welcome</h1>", mimetype="text/html")
        return respond(request)

    world.ehr.interceptors.append(show_page)


def landing_page_missing(world: World) -> None:
    """The landing page does not exist."""
    world.settings.SMART_LAUNCH_REDIRECT_URL = "/dashboard/"


def session_cookie_path(world: World) -> None:
    """SESSION_COOKIE_PATH hides the cookie from the callback."""
    world.settings.SESSION_COOKIE_PATH = "/clinic/"


def session_cookie_domain(world: World) -> None:
    """SESSION_COOKIE_DOMAIN names another site."""
    world.settings.SESSION_COOKIE_DOMAIN = "example.com"


def session_cookie_strict(world: World) -> None:
    """SESSION_COOKIE_SAMESITE is Strict."""
    world.settings.SESSION_COOKIE_SAMESITE = "Strict"


def sessions_in_a_dummy_cache(world: World) -> None:
    """Sessions are stored in a DummyCache."""
    world.settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    world.settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    }


def sign_in_required(world: World) -> None:
    """A middleware requires sign-in for every URL."""
    world.settings.MIDDLEWARE = [
        *world.settings.MIDDLEWARE,
        "tests.contrib.doctor.site.redirect_to_sign_in",
    ]


def loopback_names(world: World) -> None:
    """SMART_SITE_URL has localhost, but the redirect URI 127.0.0.1."""
    hosts = ["localhost", "127.0.0.1"]
    world.settings.SMART_INSECURE_HTTP_HOSTS = world.settings.ALLOWED_HOSTS = hosts
    world.settings.SMART_SITE_URL = "http://localhost:8000"
    uri = "http://127.0.0.1:8000/smart/callback/"
    register_at(world.ehr, uri)
    world.set_registration(redirect_uri=uri)
    for host in hosts:
        world.mount(f"http://{host}:8000", world.site)


def ssl_redirect_without_tls(world: World) -> None:
    """SECURE_SSL_REDIRECT is on, but Django does not see TLS."""
    world.settings.SECURE_SSL_REDIRECT = True
    world.settings.SECURE_PROXY_SSL_HEADER = None


def host_not_allowed(world: World) -> None:
    """ALLOWED_HOSTS lacks the site's host."""
    world.settings.ALLOWED_HOSTS = ["testserver"]


def login_page_missing(world: World) -> None:
    """People who must sign in first are sent to a page that does not exist."""
    world.settings.LOGIN_URL = "/accounts/login/"


def set_broker(world: World, url: str) -> None:
    """As of a site that has *url* for its broker, and workers."""
    celery_app.set_current()
    for name, value in (("broker_url", url), ("task_always_eager", False)):
        world.monkeypatch.setitem(celery_app.conf, name, value)
        # Celery 5.4 prefers the setting; later versions the app's configuration.
        setattr(world.settings, f"CELERY_{name.upper()}", value)


def broker_down(world: World) -> None:
    """The broker went down after a successful run."""
    set_broker(world, "amqp://clinic:secret@127.0.0.1:1//")


def lifetime_is_text(world: World) -> None:
    """SMART_LAUNCH_LIFETIME is a string."""
    world.settings.SMART_LAUNCH_LIFETIME = "60"


def keys_are_one_string(world: World) -> None:
    """SMART_ENCRYPTION_KEYS is a single string."""
    world.settings.SMART_ENCRYPTION_KEYS = "abc"


def time_zones_off(world: World) -> None:
    """USE_TZ is off."""
    world.settings.USE_TZ = False


def grants_of_another_deployment(world: World) -> None:
    """The database is a copy of another deployment's."""
    hold_grants()


def refreshes_stopped(world: World) -> None:
    """The refreshes of a registration are stopped."""
    world.set_registration(
        refresh_stopped_at=timezone.now(), refresh_stop_reason="invalid_client"
    )


def staff_server_unknown(world: World) -> None:
    """SMART_STAFF_SIGN_IN_SERVERS has a slug that no server has."""
    world.settings.SMART_STAFF_SIGN_IN_SERVERS = ["harbor"]


def cache_of_each_process(world: World) -> None:
    """The default cache is not shared between processes."""
    world.settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    }


# What spoils it, the code it is told by and those of what follows from it, and a part
# of the fix.
FAULTS: list[tuple[Callable[[World], None], list[str], str]] = [
    (base_url_wrong, ["base_url_wrong"], f"base URL to {BASE_URL}"),
    (base_url_not_fhir, ["base_url_not_fhir"], "not the URL of a portal"),
    (plain_http, ["base_url_wrong"], "a base URL with https"),
    (wrong_secret, ["credentials_refused"], "enter the client secret again"),
    (secret_variable_unset, ["credentials_unusable"], "Set HARBOUR_SECRET in"),
    (method_not_offered, ["method_not_offered"], "a method that the server supports"),
    (algorithm_not_offered, ["algorithm_not_offered"], "signing algorithm"),
    (no_s256, ["s256_not_offered"], "to enable S256"),
    (no_launch_ehr, ["ehr_launch_not_offered"], "scope for EHR launch"),
    (token_endpoint_moved, ["server_moved"], "accept the new values"),
    (issuer_of_another_server, ["values_shared"], "one login group"),
    (callback_shared, ["callback_shared"], "its own callback ID"),
    (jwks_unreachable, ["jwks_unreachable"], "SMART_SITE_URL"),
    (jwks_cached_too_long, ["jwks_cached_too_long"], "leave its Cache-Control"),
    (key_ending, ["key_ending"], "smart_keys generate --algorithm RS384"),
    (
        redirect_uri_of_another_site,
        ["redirect_uri_wrong", "authorization_refused"],
        "Enter https://app.example.org/smart/callback/ as",
    ),
    (proxy_header_missing, ["proxy_header_missing"], "set SECURE_PROXY_SSL_HEADER ="),
    (clock_off, ["clock_off"], "NTP"),
    (scopes_not_offered, ["scopes_not_offered"], "correct their spelling"),
    (v1_scopes_at_a_v2_server, ["v1_scopes_not_offered"], "patient/Patient.rs"),
    (offline_access_missing, ["offline_access_missing"], "Add offline_access"),
    (middleware_not_outermost, ["django_smart.W020"], "first in MIDDLEWARE"),
    (backend_missing, ["django_smart.E021"], "AUTHENTICATION_BACKENDS"),
    (
        urls_not_included,
        ["django_smart.E024", "landing_page_missing"],
        'include("django_smart.urls")',
    ),
    (nobody_works, ["beat_missing"], "Start “celery beat” and a worker"),
    (encryption_keys_derived, ["django_smart.W033"], "Set SMART_ENCRYPTION_KEYS"),
    (debug_on, ["django_smart.E072"], "Set DEBUG = False"),
    (encryption_key_lost, ["secret_unreadable"], "back to SMART_ENCRYPTION_KEYS"),
    (server_down, ["server_unreachable"], "firewall"),
    (server_failing, ["discovery_status"], "Try again later"),
    (configuration_unusable, ["discovery_malformed"], "override values"),
    (server_switched_off, ["server_inactive"], "Check “active”"),
    (registration_missing, ["registration_missing"], "smart_register"),
    (
        authorization_endpoint_gone,
        ["endpoint_wrong", "configuration_overruled"],
        "correct it there",
    ),
    (keys_of_id_tokens_gone, ["id_token_keys_unusable"], "remove openid and fhirUser"),
    (
        keys_of_id_tokens_elsewhere,
        ["id_token_keys_unusable"],
        "Set the server's ID token issuer",
    ),
    (token_endpoint_is_a_page, ["endpoint_wrong"], "correct it there"),
    (redirect_uri_unknown, ["authorization_refused"], "with the vendor's form"),
    (
        launch_patient_missing,
        ["launch_patient_missing", "authorization_refused"],
        "Add launch/patient",
    ),
    (configuration_is_a_page, ["configuration_missing"], "enter the endpoints"),
    (landing_page_missing, ["landing_page_missing"], "Set SMART_LAUNCH_REDIRECT_URL"),
    (session_cookie_path, ["django_smart.E073"], "Set SESSION_COOKIE_PATH"),
    (session_cookie_domain, ["django_smart.E073"], "Set SESSION_COOKIE_DOMAIN"),
    (session_cookie_strict, ["django_smart.W022"], 'SESSION_COOKIE_SAMESITE = "Lax"'),
    (sessions_in_a_dummy_cache, ["django_smart.W039"], "Redis"),
    (sign_in_required, ["url_blocked"], "without requiring sign-in"),
    (
        loopback_names,
        ["redirect_uri_wrong", "django_smart.W030", "django_smart.W034"],
        "as the redirect URI",
    ),
    (ssl_redirect_without_tls, ["jwks_wrong"], "SECURE_SSL_REDIRECT = False"),
    (
        host_not_allowed,
        ["django_smart.W038", "jwks_wrong", "redirect_uri_wrong"],
        "to ALLOWED_HOSTS",
    ),
    (login_page_missing, ["django_smart.W065"], "Set LOGIN_URL"),
    (broker_down, ["broker_unusable"], "Start the broker"),
    (lifetime_is_text, ["django_smart.E001"], "such a value"),
    (keys_are_one_string, ["django_smart.E001", "not_examined"], "such a value"),
    (time_zones_off, ["django_smart.E025"], "USE_TZ = True"),
    (grants_of_another_deployment, ["deployment_not_adopted"], "--adopt"),
    (refreshes_stopped, ["refresh_stopped"], "--resume"),
    (staff_server_unknown, ["staff_server_unknown"], "the slug of a server"),
    (cache_of_each_process, ["django_smart.W039"], "Redis"),
]
