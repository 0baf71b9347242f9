"""No URL of a server leads into the site's own network."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils import timezone

from django_smart.clients import build_fhir_client
from django_smart.contrib.brands.importing import import_brands
from django_smart.contrib.brands.models import BrandBundle
from django_smart.contrib.style import get_style
from django_smart.grants.refresh import refresh_grant
from django_smart.models import FHIRServer
from django_smart.protocol.messages import HTTPRequest
from django_smart.servers.discovery import fetch_jwks
from django_smart.servers.egress import check_peer
from django_smart.servers.http import send
from tests.errors import raises_code
from tests.factories import make_grant, make_registration, make_server
from tests.transport.conftest import _fresh_pool
from tests.transport.servers import Server, answer

__all__ = ["_fresh_pool"]

PUBLIC = "93.184.216.34"


@pytest.fixture(autouse=True)
def _plain_http(settings):
    # The servers of these tests have no certificates.
    settings.SMART_INSECURE_HTTP_HOSTS = ["evil.example", "vault.example"]


@pytest.fixture(autouse=True)
def names(monkeypatch) -> dict[str, list[str]]:
    """Addresses by name; each look-up takes the first, and leaves the last."""
    known = {"evil.example": [PUBLIC], "vault.example": ["127.0.0.1"]}
    look_up = socket.getaddrinfo

    def look_up_here(host, *args, **kwargs):
        if (addresses := known.get(host)) is None:
            return look_up(host, *args, **kwargs)
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        port = args[0] if args else 0
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    return known


@pytest.fixture
def evil() -> FHIRServer:
    """A registered server; nothing is saved."""
    return FHIRServer(slug="evil", base_url="https://evil.example/fhir")


class Vault(Server):
    """A service in the site's own network."""

    @property
    def url(self) -> str:
        return f"http://vault.example:{self.port}/v1/sys/seal"


@pytest.fixture
def vault() -> Iterator[Vault]:
    inner = Vault(answer(headers=("Content-Type: application/json",)))
    with inner:
        yield inner


def get(url: str, server: FHIRServer | None) -> int:
    return send(HTTPRequest(method="GET", url=url), server=server).status_code


def test_host_with_a_private_address_is_not_asked(evil, vault):
    with raises_code("address_refused") as caught:
        get(vault.url, evil)
    assert vault.requests == []
    assert caught.value.code == "address_refused"
    # An operator entered this URL.
    assert get(vault.url, None) == 200


def test_error_has_the_line_to_add(evil, vault, settings):
    settings.SMART_PRIVATE_HOSTS = ["login.internal"]
    with raises_code("address_refused") as caught:
        get(vault.url, evil)
    _, _, line = str(caught.value).partition("set ")
    name, _, value = line.removesuffix(".").partition(" = ")
    setattr(settings, name, json.loads(value))
    assert settings.SMART_PRIVATE_HOSTS == ["login.internal", "vault.example"]
    assert get(vault.url, evil) == 200


@pytest.mark.parametrize("field", ["base_url", "id_token_issuer", "overrides"])
def test_host_in_a_field_of_the_server_is_checked_as_well(evil, vault, names, field):
    value = vault.url if field != "overrides" else {"token_endpoint": vault.url}
    setattr(evil, field, value)
    # Where its own name leads to, decides the server itself.
    names["evil.example"] = ["127.0.0.1"]
    for url in (vault.url, vault.url.replace("vault", "evil")):
        with raises_code("address_refused"):
            get(url, evil)
    assert vault.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_is_listed_for_plain_http_alone(evil, vault, settings, host):
    settings.SMART_INSECURE_HTTP_HOSTS = [host]
    assert get(f"http://{host}:{vault.port}/", evil) == 200
    with raises_code("address_refused"):
        check_peer("https://127.0.0.3/", "127.0.0.3")


def test_name_that_is_rebound_does_not_help(evil, vault, names):
    # Looked up by anybody else, it is a host of the internet.
    names["vault.example"] = [PUBLIC, "127.0.0.1"]
    assert socket.getaddrinfo("vault.example", 80)[0][4][0] == PUBLIC
    with raises_code("address_refused"):
        get(vault.url, evil)
    assert vault.requests == []


def test_connection_of_the_operator_is_not_borrowed(evil, vault):
    assert get(vault.url, None) == 200
    with raises_code("address_refused"):
        get(vault.url, evil)
    assert get(vault.url, None) == 200
    assert len(vault.requests) == 2


def test_nothing_is_sent_over_tls_either(evil):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with raises_code("address_refused"):
            get(f"https://127.0.0.1:{listener.getsockname()[1]}/", evil)
        connection = listener.accept()[0]
        with connection:
            connection.settimeout(5)
            assert connection.recv(100) == b""


def test_proxy_decides_where_it_goes(evil, monkeypatch):
    with Server(answer(b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert get("http://vault.example/keys", evil) == 200
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "address", [PUBLIC, "2606:2800:220:1::1", "64:ff9b::5db8:d822"]
)
def test_public_address_is_asked(address):
    check_peer("https://login.evil.example/", address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "::127.0.0.1"),
        # By NAT64, 6to4 and other ways to write an IPv4 address.
        *("64:ff9b::a9fe:a9fe", "64:ff9b::a01:203", "64:ff9b:1::a01:203"),
        *("2002:7f00:1::", "::ffff:0:7f00:1"),
        *("fec0::1", "169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "10.1.2.3"),
        *("172.16.0.1", "192.168.0.1", "100.64.0.1", "fd12::1", "100.100.100.200"),
    ],
)
def test_private_address_is_not_asked(address, settings):
    with raises_code("address_refused"):
        check_peer("https://login.evil.example/", address)
    settings.SMART_PRIVATE_HOSTS = ["login.evil.example"]
    check_peer("https://login.evil.example/", address)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "what", ["keys", "token", "style", "bulk", "brands", "app state"]
)
def test_each_kind_of_named_url_is_checked(vault, what):
    registration = make_registration(
        make_server(base_url="https://evil.example/fhir", slug="evil")
    )
    server = registration.server
    grant = make_grant(registration)
    uses: dict[str, Any] = {
        "keys": lambda: fetch_jwks(server),
        "token": lambda: refresh_grant(grant),
        "style": lambda: get_style(vault.url, server=server, launch_id=1),
        "bulk": lambda: open_anonymously(build_fhir_client(grant), vault.url),
        "brands": lambda: import_brands(vault.url, server=server),
        "app state": lambda: build_fhir_client(
            grant, base_url=vault.url, keeps_to_record=False
        ).read("Basic", "1"),
    }
    server.state.jwks_uri = vault.url
    server.state.configuration_fetched_at = timezone.now()
    server.state.configuration = {
        "authorization_endpoint": "https://evil.example/authorize",
        "token_endpoint": vault.url,
        "capabilities": ["launch-ehr"],
        "grant_types_supported": ["authorization_code"],
        "code_challenge_methods_supported": ["S256"],
    }
    server.save()
    if what == "style":
        # Never waited for, and no reason to fail.
        assert uses[what]() is None
    else:
        with raises_code("address_refused"):
            uses[what]()
    assert vault.requests == []


@pytest.mark.django_db
def test_redirect_of_a_brand_bundle_is_checked(vault, settings):
    settings.SMART_INSECURE_HTTP_HOSTS += ["127.0.0.1"]
    server = make_server(base_url="https://evil.example/fhir", slug="evil")
    away = answer(status="302 Found", headers=(f"Location: {vault.url}",))
    with Server(away) as outer, raises_code("address_refused"):
        import_brands(outer.url, server=server)
    assert vault.requests == []


@pytest.mark.django_db
@pytest.mark.parametrize("still_names", [False, True])
def test_brand_bundle_of_a_server_is_checked_again(vault, still_names):
    server = make_server(base_url="https://evil.example/fhir", slug="evil")
    if still_names:
        server.state.configuration = {"user_access_brand_bundle": vault.url}
        server.state.save()
    BrandBundle.objects.create(location=vault.url, server=server)
    with raises_code("address_refused"):
        import_brands(vault.url)
    assert vault.requests == []


def open_anonymously(client, url):
    with client.stream_anonymous(url):
        pass
