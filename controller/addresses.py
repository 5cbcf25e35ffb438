"""Which addresses a worker may register. No name is resolved here, and nothing is dialed."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import urlsplit

from protocol.errors import TriremeError, quoted
from trireme.service.settings import is_loopback

_BASE_URL: Final = re.compile(r"https?://[A-Za-z0-9._:%\[\]-]+\Z", re.ASCII)
"""Nothing but ASCII: other digits and dots would become these ones when the name is looked up."""
_NUMERIC_HOST: Final = re.compile(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+)){0,3}\Z")


_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        (
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ),
    )
)
"""Where clouds tell their machines' secrets, beside the link-local 169.254.169.254."""
_METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)
_V4_WITHIN: Final = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
"""IPv6 addresses whose last 32 bits are an IPv4 address: compatible ones, translated ones (RFC
2765), and NAT64's (RFC 6052 and 8215)."""


_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


def check_address(address: str, param: str) -> None:
    """Refuse a worker's address that is no plain base URL, or that no worker can have.

    Raises:
        TriremeError: `invalid_value`, naming the reason.
    """
    if not _BASE_URL.match(address):
        raise _invalid(address, param, "is not http(s)://host:port without path or user")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise _invalid(address, param, "has no valid host or port")
    host = host.rstrip(".")
    ip = _ip(host)
    if host in _METADATA_NAMES or ip in _METADATA:
        raise _invalid(address, param, "is a cloud's metadata service")
    if ip is None:
        return
    if ip.is_link_local:
        raise _invalid(address, param, "is link-local")
    if ip.is_multicast or ip.is_unspecified or ip == _BROADCAST:
        raise _invalid(address, param, "is no address that a gateway can reach; give another one")


def is_loopback_url(address: str) -> bool:
    """Whether a base URL names this machine only."""
    return is_loopback(urlsplit(address).hostname or "")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` spells in any way a resolver takes (also 2852039166 or 0xa9.1)."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if not _NUMERIC_HOST.match(host):
            return None
        try:
            ip = ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if int(ip) > 1 and any(ip in network for network in _V4_WITHIN):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _invalid(address: str, param: str, reason: str) -> TriremeError:
    return TriremeError(
        "invalid_value", f"The worker address {quoted(address)} {reason}.", param=param
    )
