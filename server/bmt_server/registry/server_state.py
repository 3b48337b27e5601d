"""Properties of the registry's server that decide if masks are safe on it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from bmt_server.errors import RegistryDown, Unavailable
from bmt_server.registry.connection import RegistryConnection

logger = logging.getLogger("vllm.bmt_server")

# Scripts with flags (`lua.py`).
OLDEST = (7, 0)
# WAITAOF, which confirms a write on disk.
CONFIRMS_DISK = (7, 2)


@dataclass(frozen=True, slots=True)
class ServerState:
    """Properties of one Redis or Valkey; None for those that the user may not read.

    version: of Redis; Valkey states the version of Redis that it is compatible with.
    appends: an append-only file is kept. primary: the node takes writes.
    """

    version: tuple[int, int] | None = None
    policy: str | None = None
    appends: bool | None = None
    primary: bool | None = None

    @property
    def may_evict(self) -> bool:
        """True if the server may drop masks, which have no time to live, for memory."""
        return (
            self.policy is not None
            and self.policy != "noeviction"
            and not self.policy.startswith("volatile-")
        )

    def check(self) -> None:
        """Raise RegistryDown for a replica, Unavailable for a server that cannot keep masks."""
        if self.primary is False:
            raise RegistryDown(
                "the mask registry has moved to another node; try again shortly",
                detail="the node at the registry's address is a replica",
            )
        if self.may_evict:
            raise Unavailable(
                f"the registry's maxmemory-policy is {self.policy}, which may drop masks; set it "
                "to noeviction",
                code="registry_may_evict",
            )
        if self.version is not None and self.version < OLDEST:
            raise Unavailable(
                f"the registry is version {self.version[0]}.{self.version[1]}; masks need Redis "
                f"{OLDEST[0]}.{OLDEST[1]} or later, or Valkey",
                code="registry_too_old",
            )

    def warnings(self) -> list[str]:
        """Sentences about masks that may be lost, or about rights that hide it."""
        found = []
        if self.policy is None:
            found.append(
                "the user may not read the registry's maxmemory-policy, so eviction of masks "
                "cannot be excluded; grant +info"
            )
        if self.appends is False:
            found.append(
                "the registry keeps no append-only file: its crash loses acknowledged uploads; "
                "set appendonly yes"
            )
        elif self.version is not None and self.version < CONFIRMS_DISK:
            found.append(
                f"the registry is version {self.version[0]}.{self.version[1]}, which lacks "
                "WAITAOF: uploads are acknowledged before they are on its disk"
            )
        return found


async def read_state(connection: RegistryConnection) -> ServerState:
    """Read the state by INFO, or by CONFIG GET for a user without INFO. Raises RegistryDown."""
    quick = connection.quick
    sections = ("server", "memory", "persistence", "replication")
    try:
        info: dict[str, Any] = await _may(connection, lambda: quick.info(*sections))
        return ServerState(
            version=_version(str(info.get("redis_version", ""))),
            policy=info.get("maxmemory_policy"),
            appends=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
            primary=info["role"] == "master" if "role" in info else None,
        )
    except (NoPermissionError, ResponseError):
        pass
    try:
        config = await _may(connection, lambda: quick.config_get("maxmemory-policy", "appendonly"))
    except (NoPermissionError, ResponseError):
        return ServerState()
    config = {_text(k): _text(v) for k, v in config.items()}
    appends = config.get("appendonly")
    return ServerState(
        policy=config.get("maxmemory-policy"), appends=appends == "yes" if appends else None
    )


async def _may(connection: RegistryConnection, command: Any) -> Any:
    """Reply of a command that the user may lack the right to. Raises NoPermissionError then."""
    refused: list[NoPermissionError] = []

    async def run() -> Any:
        try:
            return await command()
        except NoPermissionError as error:
            refused.append(error)
            return None

    reply = await connection.call(run)
    if refused:
        raise refused[0]
    return reply


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
