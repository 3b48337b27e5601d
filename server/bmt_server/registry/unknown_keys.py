"""Bound on look-ups of unknown API keys by one peer.

Anybody can make well-formed keys, and each costs a read of the registry. A peer has a bucket of
look-ups that refills steadily; a look-up of a key that exists is given back. The peer is the
address of the connection, or the one that a trusted proxy states: uvicorn replaces it for proxies
in FORWARDED_ALLOW_IPS alone.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict

from bmt_server.errors import RateLimited

LOOK_UPS = 50
PER_S = 5.0
_MAX_PEERS = 4096


class UnknownKeyLimit:
    """Buckets by peer; the least recently seen peer is forgotten first."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    def take(self, peer: str) -> None:
        """Count a look-up. Raises RateLimited."""
        peer = _network(peer)
        left, at = self._buckets.pop(peer, (LOOK_UPS, time.monotonic()))
        now = time.monotonic()
        left = min(LOOK_UPS, left + (now - at) * PER_S)
        refused = left < 1
        self._buckets[peer] = (left if refused else left - 1, now)
        if len(self._buckets) > _MAX_PEERS:
            self._buckets.popitem(last=False)
        if refused:
            raise RateLimited(
                "too many unknown API keys from this address; check the key and try again shortly",
                code="unknown_keys",
            )

    def give_back(self, peer: str) -> None:
        """Take back a look-up of a key that exists."""
        peer = _network(peer)
        if (bucket := self._buckets.get(peer)) is not None:
            self._buckets[peer] = (min(LOOK_UPS, bucket[0] + 1), bucket[1])


def _network(peer: str) -> str:
    """The address, or the /64 of an IPv6 address, which one host has whole."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return peer
    return str(ipaddress.ip_network((address, 64), strict=False))
