"""FHIR servers: their base URL, and the values of their columns."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import serializers
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from django_smart.exceptions import InsecureURLError
from django_smart.models import FHIRServer, Identity, ServerState
from django_smart.protocol.quirks import Quirks
from tests.ehr import BASE_URL
from tests.factories import make_identity, make_server, make_user

pytestmark = pytest.mark.django_db


def _server(**values: Any) -> FHIRServer:
    return FHIRServer(
        **{"slug": "harbour", "name": "Harbour", "base_url": BASE_URL, **values}
    )


@pytest.mark.parametrize(
    "twin", [BASE_URL, f"{BASE_URL}/", BASE_URL.replace("ehr.example", "EHR.Example")]
)
def test_base_url_is_unique_in_the_form_that_is_compared(twin: str) -> None:
    first = _server()
    first.full_clean()
    first.save()
    second = _server(slug="another", base_url=twin)
    with pytest.raises(ValidationError) as raised:
        second.full_clean()
    assert raised.value.message_dict["base_url"] == [
        "A server with this base URL is already registered."
    ]
    with pytest.raises(IntegrityError), transaction.atomic():
        second.save()
    assert FHIRServer.objects.with_base_url(twin).get() == first


def test_paths_that_differ_in_case_are_two_servers() -> None:
    for slug, base_url in (("a", BASE_URL), ("b", BASE_URL.replace("abc", "ABC"))):
        server = _server(slug=slug, base_url=base_url)
        server.full_clean()
        server.save()
    assert FHIRServer.objects.with_base_url(BASE_URL).get().slug == "a"
    with pytest.raises(InsecureURLError):
        FHIRServer.objects.with_base_url("not a URL")


@pytest.mark.compliance("SEC-04", "DISC-14")
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"base_url": "http://ehr.example.org/fhir"}, "base_url"),
        ({"base_url": "ftp://ehr.example.org/fhir"}, "base_url"),
        ({"base_url": "https://u:p@ehr.example.org/fhir"}, "base_url"),
        ({"overrides": {"token_endpoint": "http://e.example.org/"}}, "overrides"),
        ({"overrides": {"token_endpoint": "/token"}}, "overrides"),
        ({"overrides": {"token_endpoint": None}}, "overrides"),
        ({"overrides": {"jwks_uri": ["https://ehr.example.org/"]}}, "overrides"),
        ({"overrides": {"scopes_supported": "openid"}}, "overrides"),
        ({"overrides": {"raw": {}}}, "overrides"),
        ({"overrides": ["token_endpoint"]}, "overrides"),
        ({"authorization_parameters": {"state": "x"}}, "authorization_parameters"),
        ({"authorization_parameters": {"max_age": "0"}}, "authorization_parameters"),
        ({"authorization_parameters": {"claims": "{}"}}, "authorization_parameters"),
        ({"authorization_parameters": {"tenant": ""}}, "authorization_parameters"),
        ({"authorization_parameters": ["tenant"]}, "authorization_parameters"),
        ({"request_headers": "X-Api-Key: 1"}, "request_headers"),
        ({"request_headers": '["X-Api-Key"]'}, "request_headers"),
        ({"request_headers": '{"X-Api-Key": 1}'}, "request_headers"),
        ({"request_headers": '{"X-Api-Key": "a\\r\\nb"}'}, "request_headers"),
        ({"request_headers": '{"X Api": "a"}'}, "request_headers"),
        ({"request_headers": '{"authorization": "Bearer x"}'}, "request_headers"),
        ({"request_headers": '{"Host": "x"}'}, "request_headers"),
        ({"request_headers": '{"Cookie": "x"}'}, "request_headers"),
        ({"frame_origins": "https://ehr.example.org"}, "frame_origins"),
        ({"frame_origins": ["https://ehr.example.org/path"]}, "frame_origins"),
        ({"frame_origins": ["http://ehr.example.org"]}, "frame_origins"),
        ({"frame_origins": ["https://a.example.org;script-src"]}, "frame_origins"),
        ({"frame_origins": ["https://ehr.example.org?x"]}, "frame_origins"),
        ({"id_token_issuer": "https://[ehr.example.org"}, "id_token_issuer"),
        ({"id_token_issuer": "ehr.example.org"}, "id_token_issuer"),
        ({"slug": "no slug"}, "slug"),
    ],
)
def test_unsafe_values_are_refused_at_their_field(
    values: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        _server(**values).full_clean()
    assert field in raised.value.message_dict


@pytest.mark.parametrize(
    "base_url",
    [f"{BASE_URL}?x=1", f"{BASE_URL}#x", "https://ehr.example.org/a/../fhir"],
)
def test_base_url_that_cannot_be_compared_is_refused_and_no_crash(
    base_url: str,
) -> None:
    with pytest.raises(ValidationError) as raised:
        _server(base_url=base_url).full_clean()
    assert "base_url" in raised.value.message_dict


def test_plain_http_is_for_the_named_hosts_alone(settings: Any) -> None:
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    _server(base_url="http://localhost:8001/fhir").full_clean()
    with pytest.raises(ValidationError):
        _server(base_url="http://localhost.example.org/fhir").full_clean()


def test_defaults_are_the_safe_ones() -> None:
    server = _server()
    server.full_clean()
    quirks = server.quirks
    assert (quirks.nonce_required, quirks.bearer_boundary) == (True, "base")
    assert (quirks.aud_rule, quirks.send_scope_on_refresh) == ("as_received", False)
    assert server.frame_origins == []
    assert str(server) == "Harbour"


OLD, NEW = "https://ehr.example.org/oauth2", "https://ehr.example.org/oauth2/"


def _server_with_identity(**values: Any) -> FHIRServer:
    server = make_server(issuer=OLD, **values)
    make_identity(make_user(), server=server, issuer=OLD)
    return server


@pytest.mark.parametrize(
    ("field", "value"),
    [("id_token_issuer", NEW), ("overrides", {"issuer": NEW})],
)
def test_issuer_is_not_changed_while_identities_have_the_old_one(
    field: str, value: object
) -> None:
    server = _server_with_identity()
    setattr(server, field, value)
    with pytest.raises(ValidationError) as raised:
        server.full_clean()
    assert field in raised.value.message_dict
    # Those of another server do not count.
    Identity.objects.update(server=_make_twin())
    server.full_clean()
    # Those of its login group do: they sign in at this server as well.
    FHIRServer.objects.update(login_group="harbours")
    server.login_group = "harbours"
    with pytest.raises(ValidationError):
        server.full_clean()
    for identity in Identity.objects.all():
        identity.issuer = NEW
        identity.save()
    server.full_clean()


def _make_twin() -> FHIRServer:
    twin = _server(slug="twin", base_url=f"{BASE_URL}/twin")
    twin.save()
    return twin


@pytest.mark.parametrize(
    "values", [{"id_token_issuer": OLD}, {"overrides": {"issuer": OLD}}]
)
def test_entered_issuer_is_removed_only_if_the_server_has_the_same(
    values: dict[str, Any],
) -> None:
    server = _server_with_identity(configuration={"issuer": OLD}, **values)
    (name,) = values
    setattr(server, name, "" if name == "id_token_issuer" else {})
    server.full_clean()
    ServerState.objects.update(configuration={"issuer": NEW})
    if name == "id_token_issuer":
        ServerState.objects.update(issuer=NEW)
    server = FHIRServer.objects.get()
    setattr(server, name, "" if name == "id_token_issuer" else {})
    with pytest.raises(ValidationError) as raised:
        server.full_clean()
    assert name in raised.value.message_dict


def test_issuer_that_differs_keeps_no_other_value_from_being_changed() -> None:
    server = _server_with_identity(configuration={"issuer": NEW})
    server.name = "Renamed"
    server.overrides = {"token_endpoint": "https://ehr.example.org/token"}
    server.full_clean()
    server.id_token_issuer = OLD
    server.full_clean()


def test_quirks_that_are_assigned_are_checked_and_stored() -> None:
    server = make_server(quirks={"aud_rule": "base_url"})
    server.refresh_from_db()
    assert server.quirks == Quirks(aud_rule="base_url")
    for values in ({"aud_rul": "base_url"}, {"aud_rule": "none"}):
        with pytest.raises(ValidationError, match="aud_rul"):
            server.quirks = values
        with pytest.raises(ValidationError, match="aud_rul"), transaction.atomic():
            FHIRServer.objects.update(quirks=values)
    server.save()
    assert FHIRServer.objects.get().quirks == Quirks(aud_rule="base_url")


def test_quirks_of_another_version_survive_a_save_and_a_fixture() -> None:
    make_server(quirks={"rate_limit": 5})
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_smart_fhirserver SET quirks = %s",
            ['{"rate_limit": 5, "pkce": "never"}'],
        )
    server = FHIRServer.objects.get()
    server.full_clean()
    server.save()
    (copy,) = serializers.deserialize("json", serializers.serialize("json", [server]))
    copy.save()
    quirks = FHIRServer.objects.get().quirks
    assert (quirks.rate_limit, quirks.unknown) == (5, {"pkce": "never"})
