"""
Keep URLs that a server names from leading into this site's network.

The address of the connection is checked before anything is sent, so DNS rebinding does
not help a server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from ..conf import conf
from ..exceptions import AddressRefusedError
from ..models import FHIRServer

__all__ = ["build_peer_check"]

_LINK_LOCAL = "a link-local or metadata"
# Metadata addresses of clouds besides 169.254.169.254 (AWS, Alibaba, Oracle).
_METADATA = frozenset(
    map(ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
)
# Networks whose last 32 bits are an IPv4 address: compatible, mapped and translated
# ones, and NAT64 (RFC 4291, 2765 and 6052).
_EMBEDDING = tuple(
    map(ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
)
# Not public, whatever the version of Python says (RFC 8215 and 3879).
_LOCAL = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10")))


def build_peer_check(url: str, server: FHIRServer) -> Callable[[str], None] | None:
    """
    Build the check for the address to which *url* of *server* leads.

    Returns:
        A function of the address, which raises ``AddressRefusedError``; or ``None`` if
        the operator entered the host: in a field of *server* or in
        ``SMART_PRIVATE_HOSTS``.
    """
    host, base_host = _get_host(url), _get_host(server.base_url)
    if host == base_host or host in conf.SMART_PRIVATE_HOSTS:
        return None
    entered = [*(server.overrides or {}).values(), server.id_token_issuer]
    if host in [_get_host(each) for each in entered if isinstance(each, str)]:
        return None
    return partial(_check_peer, host, base_host)


def _check_peer(host: str, base_host: str, address: str) -> None:
    kind = _classify(address)
    if not kind or (kind != _LINK_LOCAL and kind in _get_kinds(base_host)):
        return
    raise AddressRefusedError(
        f"{host}, which the server named, has {kind} address. Nothing was "
        "sent. If the host belongs to this server, add it to "
        "SMART_PRIVATE_HOSTS."
    )


def _classify(text: str) -> str:
    """Return the kind of address; empty for a public one."""
    address = _find_target(ip_address(text.partition("%")[0]))
    if address.is_link_local or address in _METADATA:
        return _LINK_LOCAL
    if address.is_loopback or address.is_unspecified:
        return "a loopback"
    is_local = not address.is_global or any(address in each for each in _LOCAL)
    return "a private" if is_local else ""


def _find_target(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address embeds, if any."""
    if isinstance(address, IPv4Address) or address.is_loopback:
        return address
    if any(address in each for each in _EMBEDDING):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or address


def _get_kinds(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {_classify(str(item[4][0])) for item in found}


def _get_host(url: str) -> str:
    """Return the host of *url*; empty if it has none that could be contacted."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
