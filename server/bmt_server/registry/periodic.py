"""Periodic work of several servers on one registry: when, and by which of them."""

from __future__ import annotations

import secrets

from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.lua import TAKE_LEASE


def about(seconds: float) -> float:
    """Within 10 %, so that servers started together do not all ask at once."""
    return seconds * (0.9 + 0.2 * secrets.randbelow(1000) / 1000)


async def take_lease(connection: RegistryConnection, lease: str, for_s: float) -> bool:
    """True for the one process that has `lease` during the next `for_s` seconds."""
    milliseconds = max(1, int(for_s * 1000))
    return bool(
        await connection.call(lambda: connection.quick.eval(TAKE_LEASE, 1, lease, milliseconds))
    )
