"""
Keep URLs of a server from leading into this site's network.

The address of the connection is checked before anything is sent, so DNS rebinding does
not help a server.  Its base URL is no exception: it may have been honest when it was
registered, and the server's owner decides to which address its name leads.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from ..conf import conf
from ..exceptions import TransportError

__all__ = ["check_peer"]

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


def check_peer(url: str, address: str) -> None:
    """
    Refuse *address*, to which *url* leads, unless it is public or its host is listed.

    Listed are hosts in ``SMART_PRIVATE_HOSTS``, and this machine in
    ``SMART_INSECURE_HTTP_HOSTS``.

    Raises:
        TransportError: the message has the line to add to the settings.
    """
    host, kind = urlsplit(url).hostname or "", _classify(address)
    if (
        kind
        and host not in conf.SMART_PRIVATE_HOSTS
        and not (host in conf.SMART_INSECURE_HTTP_HOSTS and _is_this_machine(host))
    ):
        listed = json.dumps(sorted({host, *conf.SMART_PRIVATE_HOSTS}))
        raise TransportError(
            f"Nothing was sent to {host}, which has {kind} address: if the host is "
            f"part of the EHR, set SMART_PRIVATE_HOSTS = {listed}.",
            code="address_refused",
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _classify(text: str) -> str:
    """Return the kind of address; empty for a public one."""
    address = _find_target(ip_address(text.partition("%")[0]))
    if address.is_link_local or address in _METADATA:
        return "a link-local or metadata"
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
