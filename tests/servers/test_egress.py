"""URLs that a server names do not lead into the site's own network."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from django.utils import timezone

from django_smart.clients import build_fhir_client
from django_smart.contrib.brands import import_brands
from django_smart.contrib.style import get_style
from django_smart.exceptions import AddressRefusedError
from django_smart.grants.refresh import refresh_grant
from django_smart.models import BrandBundle, FHIRServer
from django_smart.protocol.messages import HTTPRequest
from django_smart.servers.discovery import fetch_jwks
from django_smart.servers.egress import build_peer_check
from django_smart.servers.http import send
from tests.factories import make_grant, make_registration, make_server
from tests.transport.conftest import _fresh_pool
from tests.transport.servers import Server, answer

__all__ = ["_fresh_pool"]

PUBLIC = "93.184.216.34"


@pytest.fixture(autouse=True)
def _plain_http(settings):
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1", "127.0.0.2", "evil.example"]


@pytest.fixture
def names(monkeypatch) -> dict[str, list[str]]:
    """Addresses by name; each look-up takes the first, and leaves the last."""
    known: dict[str, list[str]] = {}
    look_up = socket.getaddrinfo

    def look_up_here(host, *args, **kwargs):
        if (addresses := known.get(host)) is None:
            return look_up(host, *args, **kwargs)
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        if not address:
            raise socket.gaierror
        port = args[0] if args else 0
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(kind, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    return known


@pytest.fixture
def evil() -> FHIRServer:
    """A registered server; nothing is saved."""
    return FHIRServer(slug="evil", base_url="https://evil.example/fhir")


def get(url: str, server: FHIRServer | None) -> int:
    return send(HTTPRequest(method="GET", url=url), server=server).status_code


def test_discovered_host_on_loopback_is_not_asked(evil, names):
    names["evil.example"] = [PUBLIC]
    with Server(answer()) as inner:
        with pytest.raises(AddressRefusedError) as caught:
            get(inner.url, evil)
        assert inner.requests == []
        assert get(inner.url, None) == 200
    assert caught.value.code == "address_refused"
    assert "SMART_PRIVATE_HOSTS" in str(caught.value)


def test_issuer_that_is_no_url_stops_no_other_request(evil, names):
    names["evil.example"] = [PUBLIC]
    evil.id_token_issuer = "https://[evil.example"
    with Server(answer()) as inner, pytest.raises(AddressRefusedError):
        get(inner.url, evil)


def test_base_url_on_loopback_may_name_others_there(evil):
    with Server(answer()) as inner:
        evil.base_url = "http://localhost/fhir"
        assert get(inner.url, evil) == 200
        evil.base_url = "http://127.0.0.2/fhir"
        assert get(inner.url, evil) == 200


def test_host_that_the_operator_entered_is_asked(evil, names, settings):
    names["evil.example"] = [PUBLIC]
    with Server(answer()) as inner:
        evil.overrides = {"token_endpoint": f"http://127.0.0.1:{inner.port}/token"}
        assert get(inner.url, evil) == 200
        evil.overrides = {"scopes_supported": ["http://127.0.0.1/"]}
        with pytest.raises(AddressRefusedError):
            get(inner.url, evil)
        settings.SMART_PRIVATE_HOSTS = ["127.0.0.1"]
        assert get(inner.url, evil) == 200
        evil.base_url = f"http://127.0.0.1:{inner.port}/fhir"
        settings.SMART_PRIVATE_HOSTS = []
        assert get(inner.url, evil) == 200


def test_name_that_is_rebound_does_not_help(evil, names, settings):
    settings.SMART_INSECURE_HTTP_HOSTS = ["login.evil.example"]
    names["evil.example"] = [PUBLIC]
    with Server(answer()) as inner:
        # Looked up by anybody else, it is a host of the internet.
        names["login.evil.example"] = [PUBLIC, "127.0.0.1"]
        assert socket.getaddrinfo("login.evil.example", 80)[0][4][0] == PUBLIC
        with pytest.raises(AddressRefusedError):
            get(f"http://login.evil.example:{inner.port}/keys", evil)
        assert inner.requests == []


def test_connection_of_another_server_is_not_borrowed(evil, names):
    names["evil.example"] = [PUBLIC]
    with Server(answer()) as inner:
        honest = FHIRServer(base_url=f"http://127.0.0.1:{inner.port}/fhir")
        assert get(inner.url, honest) == 200
        with pytest.raises(AddressRefusedError):
            get(inner.url, evil)
        assert get(inner.url, honest) == 200
        assert len(inner.requests) == 2


def test_nothing_is_sent_over_tls_either(evil, names):
    names["evil.example"] = [PUBLIC]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(AddressRefusedError):
            get(f"https://127.0.0.1:{listener.getsockname()[1]}/", evil)
        connection = listener.accept()[0]
        with connection:
            connection.settimeout(5)
            assert connection.recv(100) == b""


def test_proxy_decides_where_it_goes(evil, names, monkeypatch):
    names["evil.example"] = [PUBLIC]
    with Server(answer(b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert get("http://127.0.0.2/keys", evil) == 200
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("address", "base", "is_refused"),
    [
        (PUBLIC, PUBLIC, False),
        ("2606:2800:220:1::1", PUBLIC, False),
        ("127.0.0.1", PUBLIC, True),
        ("::1", PUBLIC, True),
        ("::ffff:127.0.0.1", PUBLIC, True),
        ("0.0.0.0", PUBLIC, True),
        ("::", PUBLIC, True),
        # By NAT64, 6to4 and other ways to write an IPv4 address.
        ("64:ff9b::a9fe:a9fe", PUBLIC, True),
        ("64:ff9b::a9fe:a9fe", "169.254.1.1", True),
        ("64:ff9b::a01:203", PUBLIC, True),
        ("64:ff9b::a01:203", "10.9.9.9", False),
        ("64:ff9b::5db8:d822", PUBLIC, False),
        ("64:ff9b:1::a01:203", PUBLIC, True),
        ("2002:7f00:1::", PUBLIC, True),
        ("2002:5db8:d822::", PUBLIC, False),
        ("::127.0.0.1", PUBLIC, True),
        ("::ffff:0:7f00:1", PUBLIC, True),
        ("fec0::1", PUBLIC, True),
        ("169.254.169.254", PUBLIC, True),
        ("fe80::1%eth0", PUBLIC, True),
        ("fd00:ec2::254", PUBLIC, True),
        ("10.1.2.3", PUBLIC, True),
        ("172.16.0.1", PUBLIC, True),
        ("192.168.0.1", PUBLIC, True),
        ("100.64.0.1", PUBLIC, True),
        ("fd12::1", PUBLIC, True),
        # The base URL itself is there.
        ("10.1.2.3", "10.9.9.9", False),
        ("fd12::1", "10.9.9.9", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "10.9.9.9", True),
        ("10.1.2.3", "127.0.0.1", True),
        ("169.254.169.254", "169.254.1.1", True),
        ("fd00:ec2::254", "10.9.9.9", True),
        ("10.1.2.3", "", True),
    ],
)
def test_kinds_of_addresses(evil, names, address, base, is_refused):
    names["evil.example"] = [base]
    check = build_peer_check("https://login.evil.example/", evil)
    assert check is not None
    if is_refused:
        with pytest.raises(AddressRefusedError):
            check(address)
    else:
        check(address)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "what", ["keys", "token", "style", "bulk", "brands", "fhir elsewhere"]
)
def test_each_kind_of_named_url_is_checked(names, what, settings):
    names["evil.example"] = [PUBLIC]
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    registration = make_registration(
        make_server(base_url="https://evil.example/fhir", slug="evil")
    )
    server = registration.server
    grant = make_grant(registration)
    with Server(answer(headers=("Content-Type: application/json",))) as inner:
        uses: dict[str, Any] = {
            "keys": lambda: fetch_jwks(server),
            "token": lambda: refresh_grant(grant),
            "style": lambda: get_style(inner.url, server=server, launch_id=1),
            "bulk": lambda: open_anonymously(build_fhir_client(grant), inner.url),
            "brands": lambda: import_brands(inner.url, server=server),
            "fhir elsewhere": lambda: build_fhir_client(
                grant, base_url=f"http://127.0.0.1:{inner.port}/fhir", patient_id="1"
            ).read("Patient", "1"),
        }
        server.jwks_uri = inner.url
        server.configuration_fetched_at = timezone.now()
        server.configuration = {
            "authorization_endpoint": "https://evil.example/authorize",
            "token_endpoint": f"http://127.0.0.1:{inner.port}/token",
            "capabilities": ["launch-ehr"],
            "grant_types_supported": ["authorization_code"],
            "code_challenge_methods_supported": ["S256"],
        }
        server.save()
        if what == "style":
            # Never waited for, and no reason to fail.
            assert uses[what]() is None
        else:
            with pytest.raises(AddressRefusedError):
                uses[what]()
        assert inner.requests == []


@pytest.mark.django_db
def test_redirect_of_a_brand_bundle_is_checked(names, settings):
    names["evil.example"] = [PUBLIC]
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1", "localhost"]
    settings.SMART_PRIVATE_HOSTS = ["127.0.0.1"]
    server = make_server(base_url="https://evil.example/fhir", slug="evil")
    with Server(answer()) as inner:
        target = inner.url.replace("127.0.0.1", "localhost")
        away = answer(status="302 Found", headers=(f"Location: {target}",))
        with Server(away) as outer, pytest.raises(AddressRefusedError):
            import_brands(outer.url, server=server)
        assert inner.requests == []


@pytest.mark.django_db
@pytest.mark.parametrize("still_names", [False, True])
def test_brand_bundle_of_a_server_is_checked_again(names, still_names):
    names["evil.example"] = [PUBLIC]
    server = make_server(base_url="https://evil.example/fhir", slug="evil")
    with Server(answer()) as inner:
        if still_names:
            server.configuration = {"user_access_brand_bundle": inner.url}
            server.save()
        BrandBundle.objects.create(location=inner.url, server=server)
        with pytest.raises(AddressRefusedError):
            import_brands(inner.url)
        assert inner.requests == []


def open_anonymously(client, url):
    with client.stream_anonymous(url):
        pass
