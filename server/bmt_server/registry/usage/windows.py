"""Windows of rates and budgets, kept by the `limits` library in the registry."""

from __future__ import annotations

from limits.aio.storage import RedisStorage

from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.lua import ALLOW_OOM
from bmt_server.registry.usage.charges import BUDGET_KEYS


class WindowStorage(RedisStorage):
    """The library's storage, whose counts go on where the registry's memory is used up.

    Windows are a few counters that expire. Without the flag the library's scripts would fail there,
    and with them all limits.
    """

    def __init__(self, connection: RegistryConnection) -> None:
        super().__init__(
            "async+redis://",
            implementation="redispy",
            key_prefix=BUDGET_KEYS,
            connection_pool=connection.quick.connection_pool,
        )

    def configure_bridge(self) -> None:
        """Flag the scripts (limits 5.8) that a limiter's counts go through; reads write too."""
        super().configure_bridge()
        bridge = self.bridge
        for name in ("SCRIPT_ACQUIRE_SLIDING_WINDOW", "SCRIPT_SLIDING_WINDOW"):
            setattr(bridge, name, ALLOW_OOM.encode() + getattr(bridge, name))
