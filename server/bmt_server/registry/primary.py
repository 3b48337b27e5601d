"""The node of a registry that takes writes, and connections that follow it.

All keys of the registry share one hash slot, so on a cluster one node serves them, as one primary
does behind sentinels. Each new connection asks for its address; after a failover the connections
are dropped and the address is asked for again.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio as redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bmt_server.ipc.blob import PREFIX
from bmt_server.ipc.registry_address import Node, RegistryAddress

CONNECT_S = 0.5
_TAG = PREFIX.encode()


class Primary:
    """Address of the node that takes writes; remembered until `forget`."""

    def __init__(self, address: RegistryAddress) -> None:
        self.address = address
        self._slot = key_slot(address.tag.encode())
        # A server turns out to be the node of a cluster by its first MOVED.
        self._cluster = address.kind == "cluster"
        self._known: Node | None = None
        self._nodes = list(address.nodes)
        self._asking = asyncio.Lock()
        self._sentinel = (
            Sentinel(  # type: ignore[no-untyped-call]
                address.nodes,
                sentinel_kwargs={
                    "socket_timeout": CONNECT_S,
                    "socket_connect_timeout": CONNECT_S,
                    "retry": Retry(ExponentialWithJitterBackoff(), 0),
                    **address.tls_options(),
                    **address.sentinel_options,
                },
            )
            if address.kind == "sentinel"
            else None
        )

    async def find(self) -> Node:
        """Address of the primary. Raises redis-py's ConnectionError."""
        async with self._asking:
            if self._known is None:
                self._known = await self._ask()
            return self._known

    def forget(self) -> None:
        """Ask again for the next connection."""
        self._known = None

    def moved(self, host: str, port: int) -> None:
        """The node that serves the registry's slot, as a node of the cluster says."""
        self._cluster = True
        self._known = (host, port) if host else None

    async def close(self) -> None:
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()

    async def _ask(self) -> Node:
        if self._sentinel is not None:
            host, port = await self._sentinel.discover_master(self.address.service)
            return str(host), int(port)
        if self._cluster:
            return await self._owner()
        return self.address.nodes[0]

    async def _owner(self) -> Node:
        """Owner of the registry's slot, as the first node that answers says."""
        cause: Exception | None = None
        for node in list(self._nodes):
            # Another node is asked first the next time, because this one may know less.
            self._nodes.remove(node)
            self._nodes.append(node)
            try:
                owner, others = await self._slots(node)
            except (RedisError, OSError, TimeoutError) as error:
                cause = error
                continue
            self._nodes = list(dict.fromkeys([*others, *self.address.nodes]))
            if owner is not None:
                return owner
        raise RedisConnectionError(f"no node of the cluster serves the registry ({cause})")

    async def _slots(self, node: Node) -> tuple[Node | None, list[Node]]:
        """The slot's owner and all nodes, as `node` knows them."""
        client = redis.Redis(
            host=node[0],
            port=node[1],
            ssl=self.address.tls,
            single_connection_client=True,
            **{
                "socket_timeout": CONNECT_S,
                "socket_connect_timeout": CONNECT_S,
                "retry": Retry(ExponentialWithJitterBackoff(), 0),
                **self.address.options,
            },
        )
        try:
            ranges: Any = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()
        owner, nodes = None, [node]
        for first, last, primary, *replicas in ranges:
            known = [(_text(n[0]) or node[0], int(n[1])) for n in (primary, *replicas)]
            nodes += known
            if first <= self._slot <= last:
                owner = known[0]
        return owner, nodes


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


class _Prefixed:
    """Part of a connection that gives the keys of commands the registry's prefix.

    No other argument begins as a key does: names have no braces, and files begin with their magic.
    """

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._tag = primary.address.tag.encode()

    def pack_command(self, *args: Any) -> list[bytes]:
        if self._tag != _TAG:
            args = tuple(map(self._with_prefix, args))
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return packed

    def _with_prefix(self, argument: Any) -> Any:
        if isinstance(argument, str):
            return self._with_prefix(argument.encode()) if argument.startswith(PREFIX) else argument
        if isinstance(argument, bytes) and argument.startswith(_TAG):
            return self._tag + argument[len(_TAG) :]
        return argument


class _Following(_Prefixed):
    """Part of a connection that connects to the primary of that moment."""

    host: str
    port: int

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        if self.is_connected:  # type: ignore[attr-defined]
            return
        self.host, self.port = await self._primary.find()
        try:
            await super().connect_check_health(check_health, retry_socket_connect)  # type: ignore[misc]
        except (RedisConnectionError, RedisTimeoutError):
            self._primary.forget()
            raise


class _PlainConnection(_Following, Connection):
    pass


class _TlsConnection(_Following, SSLConnection):
    pass


class _SocketConnection(_Prefixed, UnixDomainSocketConnection):
    pass


class _Client(redis.Redis):
    """Client whose scans return keys without the registry's prefix."""

    async def scan(self, *args: Any, **options: Any) -> Any:
        found: Any = await super().scan(*args, **options)
        cursor, keys = found
        tag = self.connection_pool.connection_kwargs["primary"].address.tag.encode()
        return cursor, [_TAG + bytes(key).removeprefix(tag) for key in keys]


def client(
    primary: Primary, connections: int, timeout_s: float, wait_s: float, retries: int
) -> Any:
    """redis-py client with at most `connections` connections, which callers wait for.

    timeout_s: longest pause of a reply; wait_s: longest wait for a connection.
    """
    address = primary.address
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_S,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), retries),
        "health_check_interval": 5,
        **address.options,
        "primary": primary,
    }
    kind: type[Any] = _SocketConnection
    if address.nodes:
        kind = _TlsConnection if address.tls else _PlainConnection
    pool = redis.BlockingConnectionPool(
        max_connections=connections, timeout=wait_s, connection_class=kind, **options
    )
    return _Client.from_pool(pool)


async def drop_connections(client: Any) -> None:
    """Close a client's idle connections now, and those in use after their commands."""
    await client.connection_pool.update_active_connections_for_reconnect()
    await client.connection_pool.disconnect(inuse_connections=False)
