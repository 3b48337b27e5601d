"""Connections of imports: a host is resolved once, and only a checked address is connected to.

A check that resolves a name and a client that resolves it again may see two addresses (DNS
rebinding). Here the connection goes to the address that was checked, and TLS verifies the name.
Proxies of the environment (`HTTPS_PROXY`) are not used, because a proxy would resolve the name.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore2

from bmt_server.errors import Forbidden, Unavailable
from bmt_server.sources.networks import Networks

logger = logging.getLogger("vllm.bmt_server")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# Addresses of one host that are tried.
_TRIED = 4
CONNECT_S = 5.0


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, by the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Network of one import. address: the last one that was connected to."""

    def __init__(self, networks: Networks, resolver: Resolve = resolve) -> None:
        self._networks = networks
        self._resolve = resolver
        self._inner = httpcore2.AnyIOBackend()
        self.address = ""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to a checked address of `host`. Raises Forbidden, Unavailable."""
        failed: Exception | None = None
        for address in (await self._checked(host, port))[:_TRIED]:
            try:
                stream = await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
                continue
            self.address = address
            return stream
        raise failed or httpcore2.ConnectError("the host has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Refused: no source is on this machine."""
        raise httpcore2.ConnectError("imports use no Unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _checked(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host, if all are allowed: with some refused, it is no public host."""
        try:
            addresses = await self._resolve(host.strip("[]"), port)
        except OSError as error:
            logger.info("Import: %s was not resolved: %s.", host[:300], error)
            raise Unavailable(
                f"the host {host[:300]} has no address now; check the source, or retry later",
                code="source_unavailable",
            ) from None
        if refused := self._networks.refused(addresses):
            # The log alone has the addresses: to a caller they would map the network inside.
            logger.warning(
                "Import refused: %s has the address %s, which is not public; --import-networks "
                "names networks that imports may reach.",
                host[:300],
                ", ".join(refused)[:300],
            )
            raise Forbidden(
                f"the host {host[:300]} has an address that is not public, and imports reach such "
                "addresses only in networks that the operator names with --import-networks",
                code="address_not_public",
                param="source",
            )
        return addresses
