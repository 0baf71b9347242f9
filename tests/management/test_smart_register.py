"""``smart_register``: rows made and updated, and every refusal."""

from __future__ import annotations

import io
import json
import socket
from datetime import timedelta

import pytest
from django.core.management import CommandError

from django_smart import transport
from django_smart.models import ClientRegistration, FHIRServer, SigningKey
from django_smart.servers.discovery import get_configuration
from django_smart.testing import EHRSimulator
from tests.answers import Away, answer
from tests.ehr import BASE_URL, CLIENT_ID, CLIENT_SECRET, EHR_SCOPE, STANDALONE_SCOPE
from tests.management.running import Ran, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ehr")]

_WHO = ("--base-url", BASE_URL, "--client-id", CLIENT_ID)
_SECRET = ("--client-secret", CLIENT_SECRET)
_EHR = ("--ehr-scope", EHR_SCOPE)
_SITE = "https://app.example.org"


def register(*arguments: str) -> Ran:
    return run("smart_register", *_WHO, *arguments)


def the_registration() -> ClientRegistration:
    return ClientRegistration.objects.select_related("server").get()


def assert_nothing_is_stored() -> None:
    assert not FHIRServer.objects.exists()
    assert not ClientRegistration.objects.exists()
    assert not SigningKey.objects.exists()


# What is stored and printed


def test_login_url_is_printed_only_where_it_starts_a_launch():
    assert register(*_SECRET, *_EHR).json["login_url"] is None
    ran = register("--standalone-scope", STANDALONE_SCOPE)
    assert ran.json["login_url"] == f"{_SITE}/smart/login/?server=ehr-example-org"


@pytest.mark.compliance("REG-01", "REG-02", "REG-03", "REG-04")
def test_registration_is_stored_and_its_urls_are_printed():
    ran = register(*_SECRET, *_EHR, "--standalone-scope", STANDALONE_SCOPE)
    assert ran.json == {
        "slug": "ehr-example-org",
        "launch_url": f"{_SITE}/smart/launch/",
        "login_url": f"{_SITE}/smart/login/?server=ehr-example-org",
        "redirect_uri": f"{_SITE}/smart/callback/",
        "jwks_url": f"{_SITE}/smart/jwks.json",
    }
    assert ran.err == ""
    row = the_registration()
    assert (row.server.base_url, row.server.name) == (BASE_URL, "ehr.example.org")
    assert (row.client_id, row.client_secret) == (CLIENT_ID, CLIENT_SECRET)
    assert row.token_endpoint_auth_method == "client_secret_basic"
    assert (row.ehr_scope, row.standalone_scope) == (EHR_SCOPE, STANDALONE_SCOPE)
    assert row.redirect_uri == f"{_SITE}/smart/callback/"


def test_every_option_reaches_its_column():
    register(
        *(
            "--client-secret-env",
            "EHR_SECRET",
            "--token-endpoint-auth-method",
            "client_secret_post",
        ),
        *("--slug", "harbour", "--name", "Harbour Hospital", *_EHR),
        *("--set", 'frame_origins=["https://a.example"]', "--preset", "smart_launcher"),
        *("--site-url", "https://other.example/"),
    )
    row = the_registration()
    server = row.server
    assert (server.slug, server.name) == ("harbour", "Harbour Hospital")
    assert server.frame_origins == ["https://a.example"]
    assert (server.preset, server.quirks.bearer_boundary) == (
        "smart_launcher",
        "origin",
    )
    assert (row.client_secret, row.client_secret_env) == ("", "EHR_SECRET")
    assert row.token_endpoint_auth_method == "client_secret_post"
    assert row.redirect_uri == "https://other.example/smart/callback/"


def test_command_line_and_file_give_the_same_row(tmp_path):
    file = tmp_path / "registrations.json"
    entry = {
        "base_url": BASE_URL,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "ehr_scope": EHR_SCOPE,
        "frame_origins": ["https://a.example"],
        "name": None,
        "aud_rule": "base_url",
        "rate_limit": 5,
    }
    file.write_text(json.dumps([entry]))
    from_file = run("smart_register", "--from", str(file))
    columns = ClientRegistration.objects.values(
        "server__quirks", "server__frame_origins", "redirect_uri"
    )
    stored = columns.get()
    from_line = register(
        *_SECRET,
        *_EHR,
        *("--set", 'frame_origins=["https://a.example"]'),
        *("--set", "aud_rule=base_url", "--set", "rate_limit=5"),
    )
    assert from_file.json == [from_line.json]
    assert columns.get() == stored


def test_secret_is_never_printed(tmp_path):
    secret = "do-not-print-me"
    ran = register("--client-secret", secret, *_EHR)
    assert secret not in ran.out + ran.err
    for arguments in (
        ("--token-endpoint-auth-method", "none"),
        ("--ehr-scope", "no such scope"),
        ("--set", f"rate_limit={secret}"),
    ):
        with pytest.raises(CommandError) as caught:
            register("--client-secret", secret, *_EHR, *arguments)
        assert secret not in str(caught.value)
    file = tmp_path / "broken.json"
    file.write_text(f'[{{"client_secret": "{secret}"')
    with pytest.raises(CommandError) as caught:
        run("smart_register", "--from", str(file))
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None or secret not in repr(
        vars(caught.value.__cause__)
    )


def test_two_servers_at_one_host_get_slugs_of_their_own():
    register(*_SECRET, *_EHR)
    other = run(
        "smart_register",
        *("--base-url", "https://ehr.example.org/other", "--client-id", "x"),
        *(*_SECRET, *_EHR, "--offline"),
    )
    assert other.json["slug"] == "ehr-example-org-2"


def test_registration_without_scopes_is_refused_with_an_example() -> None:
    with pytest.raises(CommandError, match=r"--ehr-scope: .*launch openid fhirUser"):
        register(*_SECRET)
    assert_nothing_is_stored()


def test_remark_on_a_variable_that_is_not_set(monkeypatch):
    monkeypatch.delenv("EHR_SECRET", raising=False)
    assert (
        "EHR_SECRET is not set"
        in register("--client-secret-env", "EHR_SECRET", *_EHR).err
    )
    monkeypatch.setenv("EHR_SECRET", "x")
    assert register("--client-secret-env", "EHR_SECRET", *_EHR).err == ""


# Again


def test_same_base_url_and_client_id_update_the_row():
    register(*_SECRET, *_EHR, "--name", "Harbour", "--set", "aud_rule=base_url")
    first = the_registration()
    # A slash at the end names the same server.
    run(
        "smart_register",
        *("--base-url", f"{BASE_URL}/", "--client-id", CLIENT_ID),
        *("--set", "create_users=false"),
    )
    row = the_registration()
    assert (row.pk, row.server.pk) == (first.pk, first.server.pk)
    assert row.create_users is False
    # What was not given stays.
    assert (row.server.name, row.server.quirks.aud_rule) == ("Harbour", "base_url")
    assert (row.ehr_scope, row.client_secret) == (EHR_SCOPE, CLIENT_SECRET)
    assert row.server.slug == first.server.slug


def test_redirect_uri_stays_until_a_site_url_is_given(settings):
    register(*_SECRET, *_EHR)
    settings.SMART_SITE_URL = "https://new.example"
    ran = register("--name", "Harbour")
    assert ran.json["redirect_uri"] == f"{_SITE}/smart/callback/"
    assert ran.json["launch_url"] == f"{_SITE}/smart/launch/"
    ran = register("--site-url", "https://new.example")
    assert ran.json["redirect_uri"] == "https://new.example/smart/callback/"
    assert ran.json["launch_url"] == "https://new.example/smart/launch/"


def test_new_secret_replaces_the_old_one_wherever_it_was():
    register(*_SECRET, *_EHR)
    register("--client-secret-env", "EHR_SECRET")
    row = the_registration()
    assert (row.client_secret, row.client_secret_env) == ("", "EHR_SECRET")
    register("--client-secret", "newer")
    row = the_registration()
    assert (row.client_secret, row.client_secret_env) == ("newer", "")


def test_secret_goes_when_the_method_needs_none():
    register(*_SECRET, *_EHR)
    register("--token-endpoint-auth-method", "none")
    assert the_registration().client_secret == ""


def test_embedding_is_switched_off_again():
    register(*_SECRET, *_EHR, "--set", 'frame_origins=["https://a.example"]')
    register("--set", "frame_origins=[]")
    assert the_registration().server.frame_origins == []


def test_client_ids_that_differ_by_case_are_two_clients():
    register(*_SECRET, "--set", "is_active=false")
    run(
        "smart_register",
        *("--base-url", BASE_URL, "--client-id", CLIENT_ID.upper(), *_SECRET, *_EHR),
    )
    assert ClientRegistration.objects.count() == 2
    assert FHIRServer.objects.count() == 1


# Keys


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_private_key_jwt_makes_a_key_if_none_is_active(algorithm):
    arguments = (
        *("--token-endpoint-auth-method", "private_key_jwt", *_EHR),
        *("--set", f"signing_algorithm={algorithm}"),
    )
    register(*arguments)
    key = SigningKey.objects.get()
    assert (key.algorithm, key.status) == (algorithm, "active")
    assert key.activated_at is not None
    assert set(key.public_jwk).isdisjoint({"d", "p", "q"})
    register(*arguments)
    assert SigningKey.objects.get() == key


def test_backend_services_authenticate_with_a_key_by_default():
    register("--system-scope", "system/Patient.rs")
    assert the_registration().token_endpoint_auth_method == "private_key_jwt"
    assert SigningKey.objects.active().count() == 1


def test_backend_services_with_a_secret_are_reminded_of_keys():
    ran = register(*_SECRET, "--system-scope", "system/Patient.rs")
    registration = the_registration()
    assert registration.token_endpoint_auth_method == "client_secret_basic"
    assert registration.client_secret == CLIENT_SECRET
    assert not SigningKey.objects.exists()
    assert "private_key_jwt" in ran.err
    assert CLIENT_SECRET not in ran.out + ran.err
    assert "private_key_jwt" not in register(*_SECRET, *_EHR, "--system-scope", "").err


# --set


def test_set_reaches_columns_of_both_tables_typed():
    register(
        *(*_SECRET, *_EHR),
        *("--set", "refresh_token_lifetime=90", "--set", "nonce_required=False"),
        *("--set", 'discovery_headers={"Epic-Client-ID": "abc"}'),
        *("--set", "rate_limit=0.16", "--set", "landing_page=/a=b/"),
        *("--set", "server.is_active=false", "--set", "create_users=False"),
    )
    row = the_registration()
    assert row.server.quirks.refresh_token_lifetime == timedelta(seconds=90)
    assert row.server.quirks.nonce_required is False
    assert row.server.quirks.discovery_headers == {"Epic-Client-ID": "abc"}
    assert row.server.quirks.rate_limit == 0.16
    assert row.landing_page == "/a=b/"
    assert (row.server.is_active, row.is_active, row.create_users) == (
        False,
        True,
        False,
    )
    register("--set", "rate_limit=", "--set", "refresh_token_lifetime=")
    row = the_registration()
    quirks = row.server.quirks
    assert (quirks.rate_limit, quirks.refresh_token_lifetime) == (None, None)


def test_values_of_a_wrong_preset_are_reset():
    register(*_SECRET, *_EHR, "--preset", "smart_launcher")
    register("--preset", "oracle_health")
    assert the_registration().server.quirks.bearer_boundary == "base"
    register("--preset", "epic")
    headers = {"Epic-Client-ID": "{client_id}"}
    assert the_registration().server.quirks.discovery_headers == headers
    register("--preset", "epic")
    assert the_registration().server.quirks.discovery_headers == headers
    register("--preset", "athenahealth", "--set", "aud_rule=base_url")
    quirks = the_registration().server.quirks
    assert quirks.as_json() == {"aud_rule": "base_url", "introspection_mode": "client"}
    register("--preset", "")
    quirks = the_registration().server.quirks
    assert quirks.as_json() == {"aud_rule": "base_url"}


def test_json_with_characters_that_no_database_takes_is_refused():
    pair = 'overrides={"scopes_supported": ["%s"]}'
    for text in ("\\u0000", "\\ud800"):
        with pytest.raises(CommandError, match="overrides must be a JSON object"):
            register(*_SECRET, *_EHR, "--offline", "--set", pair % text)
    assert_nothing_is_stored()
    register(*_SECRET, *_EHR, "--offline", "--set", pair % "\\\\u0000")
    assert the_registration().server.overrides["scopes_supported"] == ["\\u0000"]


def test_secrets_that_cannot_be_decrypted_are_entered_again(settings):
    headers = ("--set", 'request_headers={"X-Api-Key": "k"}')
    register(*_SECRET, *_EHR, *headers)
    settings.SECRET_KEY = "another key, which nothing was encrypted with: 0123456789"
    with pytest.raises(CommandError, match="--set request_headers: "):
        register("--standalone-scope", STANDALONE_SCOPE)
    with pytest.raises(CommandError, match="--client-secret: "):
        register("--standalone-scope", STANDALONE_SCOPE, *headers)
    register("--client-secret", "newer", *headers)
    row = the_registration()
    assert (row.client_secret, row.server.get_request_headers()["X-Api-Key"]) == (
        "newer",
        "k",
    )
    settings.SECRET_KEY = "yet another key, which encrypted nothing: 0123456789"
    register(
        "--token-endpoint-auth-method", "private_key_jwt", "--set", "request_headers="
    )
    assert the_registration().client_secret == ""


def test_set_wins_over_the_preset():
    register(
        *(*_SECRET, *_EHR, "--preset", "smart_launcher"),
        *("--set", "bearer_boundary=base"),
    )
    assert the_registration().server.quirks.bearer_boundary == "base"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("rate_limt=1", "Did you mean rate_limit?"),
        ("nothing=1", "There is no field nothing"),
        ("jwks={}", "There is no field jwks"),
        ("ehr_slot=x", "There is no field ehr_slot"),
        ("aud_rule", "FIELD=VALUE"),
        ("bearer_boundary=orign", "did you mean origin?"),
        ("nonce_required=perhaps", "nonce_required must be true or false"),
        ("rate_limit=many", "rate_limit must be a number"),
        ("rate_limit=0", "rate_limit"),
        ("turns=many", "turns must be a whole number"),
        ("turns=0", "turns"),
        ("rate_limit=-1", "rate_limit"),
        ("refresh_token_lifetime=soon", "must be a number of seconds"),
        ("refresh_token_lifetime=NaN", "must be a number of seconds"),
        ("refresh_token_lifetime=-1", "must be a number of seconds"),
        ("refresh_token_lifetime=1e300", "must be a number of seconds"),
        ("discovery_headers={", "must be a JSON object"),
        ("discovery_headers=[]", "must be a JSON object"),
        ('discovery_headers={"X": "a\\r\\nY: b"}', "must be a JSON object"),
        ("overrides={", "overrides must be a JSON object"),
        ("quirks={}", "There is no field quirks"),
        ("frame_origins=1", "must be a JSON list"),
        ("frame_origins=[1]", "list of strings"),
        ('discovery_headers={"a": 1}', "must be a JSON object"),
    ],
)
def test_set_refuses_what_the_column_does_not_take(pair, message):
    with pytest.raises(CommandError, match=message.replace("?", r"\?")):
        register(*_SECRET, *_EHR, "--set", pair)
    assert_nothing_is_stored()


# Refusals


@pytest.mark.compliance("REG-04")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*_EHR,), "--client-secret: client_secret_basic requires a client secret"),
        (
            (*_EHR, "--token-endpoint-auth-method", "client_secret_post"),
            "requires a client secret",
        ),
        ((*_EHR, *_SECRET, "--token-endpoint-auth-method", "none"), "public client"),
        (
            (*_EHR, *_SECRET, "--token-endpoint-auth-method", "private_key_jwt"),
            "uses no client secret",
        ),
        ((*_EHR, *_SECRET, "--client-secret-env", "X"), "only one place"),
        ((*_SECRET, "--ehr-scope", "launch patient/patient.rs"), "--ehr-scope: "),
        ((*_SECRET, "--ehr-scope", "fhirUser"), "fhirUser requires openid"),
        (
            (*_SECRET, "--ehr-scope", "launch patient/MedicationRequests.rs"),
            "--ehr-scope: .*Did you mean patient/MedicationRequest.rs",
        ),
        ((*_SECRET, "--standalone-scope", "launch"), "--standalone-scope: "),
        (
            (
                "--system-scope",
                "system/*.rs",
                "--token-endpoint-auth-method",
                "none",
                *_EHR,
            ),
            "must authenticate: with private_key_jwt",
        ),
        ((*_SECRET, *_EHR, "--slug", "no slug"), "--slug: "),
        (
            (*_SECRET, *_EHR, "--set", 'frame_origins=["https://a.example/p"]'),
            "--set frame_origins: ",
        ),
        (
            (*_SECRET, *_EHR, "--set", 'frame_origins=["http://a.example"]'),
            "not https",
        ),
        ((*_SECRET, *_EHR, "--site-url", "http://app.example"), "--site-url: .*https"),
        (
            (*_SECRET, *_EHR, "--site-url", "https://a.example/b"),
            "must be a scheme and host",
        ),
        ((*_SECRET, *_EHR, "--site-url", "app.example"), "--site-url: "),
        ((*_SECRET, *_EHR, "--preset", "acme"), "invalid choice"),
        ((*_SECRET, *_EHR, "--token-endpoint-auth-method", "tls"), "invalid choice"),
    ],
)
def test_fault_visible_in_the_row_refuses(arguments, message):
    with pytest.raises(CommandError, match=message):
        register(*arguments)
    assert_nothing_is_stored()


@pytest.mark.parametrize(
    "base_url",
    ["http://ehr.example.org/fhir", "ehr.example.org/fhir", "https://e.example/f?a=b"],
)
def test_base_url_that_is_not_fit_for_secrets_is_refused(base_url):
    with pytest.raises(CommandError, match="--base-url: "):
        run(
            "smart_register",
            *("--base-url", base_url, "--client-id", "x", *_SECRET, *_EHR),
        )
    assert_nothing_is_stored()


def test_plain_http_is_accepted_for_the_named_hosts(settings):
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost", "127.0.0.1"]
    ran = run(
        "smart_register",
        *("--base-url", "http://localhost:8010/fhir", "--client-id", "x", *_SECRET),
        *(*_EHR, "--site-url", "http://127.0.0.1:8000"),
    )
    assert ran.json["redirect_uri"] == "http://127.0.0.1:8000/smart/callback/"


@pytest.mark.parametrize("missing", ["--base-url", "--client-id"])
def test_what_names_the_row_is_required(missing):
    arguments = list(_WHO)
    del arguments[arguments.index(missing) : arguments.index(missing) + 2]
    with pytest.raises(CommandError, match=missing):
        run("smart_register", *arguments, *_SECRET, *_EHR)


def test_launch_needs_the_address_of_this_site(settings):
    del settings.SMART_SITE_URL
    with pytest.raises(CommandError, match="SMART_SITE_URL"):
        register(*_SECRET, *_EHR)
    assert_nothing_is_stored()
    # Backend services alone send nobody here.
    ran = register("--system-scope", "system/Patient.rs")
    assert ran.json == {
        "slug": "ehr-example-org",
        "launch_url": None,
        "login_url": None,
        "redirect_uri": None,
        "jwks_url": None,
    }
    assert "SMART_SITE_URL" in ran.err


def test_second_registration_of_a_server_is_no_default():
    register(*_SECRET, *_EHR, "--preset", "epic")
    other = ("--base-url", BASE_URL, "--client-id", "other")
    run("smart_register", *other, *_SECRET, *_EHR, "--preset", "epic")
    row = ClientRegistration.objects.select_related("server").get(client_id="other")
    assert (row.is_ehr_default, row.is_standalone_default) == (False, True)
    with pytest.raises(CommandError, match="default for EHR launches"):
        run("smart_register", *other, "--set", "is_ehr_default=true")


def test_headers_that_an_operator_removed_do_not_come_back():
    register(*_SECRET, *_EHR, "--preset", "epic")
    FHIRServer.objects.update(quirks={"discovery_headers": {}})
    other = ("--base-url", BASE_URL, "--client-id", "other", "--preset", "epic")
    run("smart_register", *other, *_SECRET, *_EHR)
    assert FHIRServer.objects.get().quirks.discovery_headers == {}


def test_slug_of_another_server_is_refused():
    register(*_SECRET, *_EHR, "--slug", "harbour")
    with pytest.raises(CommandError, match="--slug"):
        run(
            "smart_register",
            *("--base-url", "https://other.example/fhir", "--client-id", "x"),
            *(*_SECRET, *_EHR, "--slug", "harbour"),
        )
    assert FHIRServer.objects.count() == 1


def test_refused_update_leaves_the_row_as_it_was():
    register(*_SECRET, *_EHR, "--name", "Harbour")
    with pytest.raises(CommandError):
        register("--name", "Other", "--standalone-scope", "launch")
    row = the_registration()
    assert (row.server.name, row.standalone_scope) == ("Harbour", "")


def test_urls_that_are_not_included_are_named(settings):
    settings.ROOT_URLCONF = "tests.management.no_urls"
    with pytest.raises(CommandError, match="Include the URLs of django_smart"):
        register(*_SECRET, *_EHR)
    assert_nothing_is_stored()


# --from


def _write(tmp_path, *entries: object) -> tuple[str, str]:
    file = tmp_path / "registrations.json"
    file.write_text(json.dumps(entries))
    return "--from", str(file)


def _entry(number: int, **values: object) -> dict[str, object]:
    return {
        "base_url": f"https://ehr{number}.example/fhir",
        "client_id": f"client-{number}",
        "client_secret": "secret",
        "ehr_scope": "launch patient/Patient.rs",
        **values,
    }


def test_file_is_stored_and_answered_in_its_order(tmp_path):
    entries = [_entry(n, slug=f"server-{n}") for n in (3, 1, 2)]
    ran = run("smart_register", *_write(tmp_path, *entries))
    assert [answer["slug"] for answer in ran.json] == [
        "server-3",
        "server-1",
        "server-2",
    ]
    assert ClientRegistration.objects.count() == 3


def test_file_may_come_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([_entry(1)])))
    assert len(run("smart_register", "--from", "-").json) == 1


def test_empty_file_is_an_empty_list(tmp_path):
    assert run("smart_register", *_write(tmp_path)).json == []


def test_site_url_of_the_command_is_for_entries_without_one(tmp_path):
    entries = [_entry(1), _entry(2, site_url="https://two.example")]
    ran = run(
        "smart_register", *_write(tmp_path, *entries), "--site-url", "https://x.example"
    )
    assert [answer["redirect_uri"] for answer in ran.json] == [
        "https://x.example/smart/callback/",
        "https://two.example/smart/callback/ehr2-example/",
    ]


def test_one_bad_entry_refuses_the_whole_file(tmp_path):
    with pytest.raises(CommandError, match=r"Entry 2: --ehr-scope"):
        run(
            "smart_register",
            *_write(tmp_path, _entry(1), _entry(2, ehr_scope="x"), _entry(3)),
        )
    assert_nothing_is_stored()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry(1, colour="red"), "Entry 1: .*There is no field colour"),
        (_entry(1, slgu="x"), "Did you mean slug"),
        (_entry(1, base_url=None), "Entry 1: --base-url: This value is required"),
        (_entry(1, client_id=""), "--client-id: This value is required"),
        (_entry(1, ehr_scope=["launch"]), "ehr_scope must be text"),
        (_entry(1, name=5), "name must be text"),
        (_entry(1, client_secret={}), "client_secret must be text"),
        (_entry(1, frame_origins=5), "frame_origins must be a JSON list"),
        (_entry(1, frame_origins=[5]), "--set frame_origins: .*list of strings"),
        (_entry(1, site_url=5), "site_url must be text"),
        (_entry(1, turns=1.5), "turns must be a whole number"),
        (_entry(1, rate_limit=True), "rate_limit must be a number"),
        (_entry(1, refresh_token_lifetime=10**400), "number that is too l"),
        (_entry(1, refresh_token_lifetime=10**19), "a number of seconds"),
        (_entry(1, landing_page=5), "landing_page must be text"),
        (_entry(1, name="a\0b"), "text with NUL"),
        (_entry(1, client_id="a\0b"), "text with NUL"),
        (_entry(1, client_id="\ud800"), "an unpaired surrogate"),
        (
            _entry(1, overrides={"scopes_supported": ["a\0b"]}),
            "The file contains text with NUL",
        ),
        (_entry(1, preset="acme"), "--preset"),
        ("text", "list of objects"),
    ],
)
def test_entry_that_is_not_understood_is_refused(tmp_path, entry, message):
    with pytest.raises(CommandError, match=message):
        run("smart_register", *_write(tmp_path, entry))
    assert_nothing_is_stored()


@pytest.mark.parametrize(
    "text", ["", "{}", "[", '"x"', "[1]", '[{"name": "a", "name": "b"}]', "[" * 100_000]
)
def test_file_that_is_no_list_of_entries_is_refused(tmp_path, text):
    file = tmp_path / "registrations.json"
    file.write_text(text)
    with pytest.raises(CommandError, match=r"The file (is|contains) "):
        run("smart_register", "--from", str(file))


def test_file_that_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "missing.json"
    with pytest.raises(
        CommandError, match=r"Cannot read .*missing\.json: no such file"
    ):
        run("smart_register", "--from", str(missing))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="The file is not UTF-8"):
        run("smart_register", "--from", str(binary))


@pytest.mark.parametrize(
    "extra", [("--client-id", "x"), ("--set", "aud_rule=base_url")]
)
def test_file_and_options_are_not_mixed(tmp_path, extra):
    with pytest.raises(CommandError, match="from the file"):
        run("smart_register", *_write(tmp_path, _entry(1)), *extra)
    assert_nothing_is_stored()


# The server


def test_new_server_is_asked_once_and_offline_never(ehr):
    register(*_SECRET, *_EHR, "--offline")
    assert ehr.requests == []
    register(*_SECRET, *_EHR, "--name", "Harbour")
    assert ehr.requests == []  # it is known
    ClientRegistration.objects.all().delete()
    FHIRServer.objects.all().delete()
    assert register(*_SECRET, *_EHR).err == ""
    assert ehr.requests


def test_known_server_is_asked_again_after_its_overrides_have_changed(ehr):
    register(*_SECRET, *_EHR)
    get_configuration(the_registration().server)
    ehr.requests.clear()
    for value, is_asked in (("{}", False), ('{"jwks_uri": null}', True)):
        register("--set", f"overrides={value}")
        get_configuration(the_registration().server)
        assert bool(ehr.requests) is is_asked


@pytest.mark.parametrize(
    "pasted",
    [
        f"{BASE_URL}/metadata",
        f"{BASE_URL}/.well-known/smart-configuration",
        f"{BASE_URL}/Patient",
    ],
)
def test_wrong_base_url_is_refused_with_the_right_one(ehr, pasted):
    arguments = ("--base-url", pasted, "--client-id", CLIENT_ID, *_SECRET, *_EHR)
    with pytest.raises(CommandError, match=f"base URL to {BASE_URL}") as caught:
        run("smart_register", *arguments)
    assert "--offline" in str(caught.value)
    assert_nothing_is_stored()
    run("smart_register", *arguments, "--offline")
    assert FHIRServer.objects.get().base_url == pasted


def test_origin_is_refused_with_the_base_url_below_it():
    plain = EHRSimulator(base_url="https://plain.example.org/fhir")
    with (
        transport.mounted("https://plain.example.org", plain.adapter()),
        pytest.raises(CommandError, match=r"base URL to https://plain.*/fhir"),
    ):
        run(
            "smart_register",
            *("--base-url", "https://plain.example.org", "--client-id", CLIENT_ID),
            *(*_SECRET, *_EHR),
        )
    assert_nothing_is_stored()


def test_server_that_is_down_is_registered_with_a_remark():
    with transport.mounted("https://ehr.example.org", Away()):
        ran = register(*_SECRET, *_EHR)
    assert "cannot be reached" in ran.err
    assert "smart_doctor ehr-example-org" in ran.err
    assert FHIRServer.objects.exists()


def test_remark_on_a_server_with_a_private_address_has_the_line_to_add():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}/fhir"
        who = ("--base-url", base_url, "--client-id", CLIENT_ID)
        ran = run("smart_register", *who, *_SECRET, *_EHR)
    assert 'SMART_PRIVATE_HOSTS = ["127.0.0.1"]' in ran.err
    assert FHIRServer.objects.exists()


def test_what_a_new_server_lacks_is_remarked(ehr):
    answer(ehr, "/smart-configuration", capabilities=["launch-standalone"])
    ran = register(*_SECRET, *_EHR)
    assert "launch-ehr" in ran.err
    assert ran.json["slug"] == "ehr-example-org"


def test_headers_come_from_a_file_as_an_object(monkeypatch):
    entry = {
        "base_url": "https://ehr.example.org/fhir",
        "client_id": "abc",
        "client_secret": "x",
        "ehr_scope": "launch patient/*.rs",
        "request_headers": {"X-Api-Key": "s3cret-key"},
    }
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([entry])))
    assert "s3cret-key" not in str(run("smart_register", "--from", "-"))
    headers = the_registration().server.get_request_headers()
    assert headers == {"X-Api-Key": "s3cret-key"}
