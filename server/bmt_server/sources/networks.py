"""Addresses that an import may connect to: public ones, and networks that the operator names.

The special-purpose blocks are those of the IANA registries (iana-ipv4-special-registry,
iana-ipv6-special-registry, as of RFC 6890 and its successors). They stand here besides Python's
`ipaddress`, whose `is_global` differs between patch releases of 3.11 and 3.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from bmt_server.settings import SettingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# They hand out a machine's credentials. Refused in named networks too: an operator who names
# 100.64.0.0/10 does not mean them. 168.63.129.16 is Azure's, in a public block.
_METADATA = frozenset(
    map(
        ip_address,
        (
            *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200"),
            *("168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
        ),
    )
)
_SPECIAL_V4 = [
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8")),
    *map(IPv4Network, ("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24")),
    *map(IPv4Network, ("192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16")),
    *map(IPv4Network, ("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24")),
    *map(IPv4Network, ("224.0.0.0/4", "240.0.0.0/4")),
]
_UNICAST_V6 = IPv6Network("2000::/3")
# Within 2000::/3: protocol assignments (Teredo too), documentation, 6to4, AS112.
_SPECIAL_V6 = [
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48")),
    IPv6Network("3fff::/20"),
]
# Clusters with IPv6 alone reach public IPv4 hosts through it (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


class Networks:
    """The networks of `--import-networks`, and the rule for all other addresses.

    text: networks with commas. Raises SettingsError.
    """

    def __init__(self, text: str = "") -> None:
        self._named: list[Network] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                self._named.append(ip_network(part))
            except ValueError as error:
                raise SettingsError(
                    f"import_networks (--import-networks) has {part!r}: {error}; write networks "
                    "as in 10.1.0.0/16,fd12:3456::/32"
                ) from None

    def allow(self, text: str) -> bool:
        """True if an import may connect to an address. text: as a resolver writes it."""
        try:
            address = plain(ip_address(text))
        except ValueError:
            return False
        if address in _METADATA:
            return False
        return is_public(address) or any(address in network for network in self._named)

    def refused(self, addresses: Sequence[str]) -> list[str]:
        """The addresses that an import may not connect to."""
        return [address for address in addresses if not self.allow(address)]


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to (mapped, or by NAT64); else the address itself.

    Without a zone (`fd00::1%eth0`), with which an address is equal to none without.
    """
    if isinstance(address, IPv6Address):
        address = IPv6Address(int(address))
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """True for a unicast address that belongs to no special-purpose block."""
    address = plain(address)
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return address in _UNICAST_V6 and not any(address in network for network in _SPECIAL_V6)
