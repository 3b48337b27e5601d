"""Tokens added to windows of budgets, each charge once.

A charge whose reply was lost is sent again under the same number, and the script adds each number
once: the command may have reached a registry that stalls, on each connection that it was sent on.

    {bmt}:budget:from:<process>   number of the last charge of a process, for a day
"""

from __future__ import annotations

import secrets

from limits import RateLimitItem

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.lua import ALLOW_OOM

#: Beginning of the keys of all windows, for the `limits` library.
BUDGET_KEYS = f"{PREFIX}budget"

# The library's fixed window (limits 5.8, `incr_expire.lua`), after the check of the number.
# KEYS: number of the process, window. ARGV: number, tokens, seconds of the window.
_CHARGE = (
    ALLOW_OOM
    + """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', 86400)
if redis.call('INCRBY', KEYS[2], ARGV[2]) == tonumber(ARGV[2]) then
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
"""
)


class Charges:
    """Charges of one process, one at a time: each is repeated until the registry confirms it."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection
        self._from = f"{BUDGET_KEYS}:from:{secrets.token_hex(8)}"
        self._number = 0

    def begin(self) -> None:
        """Begin another charge, once the one before is confirmed."""
        self._number += 1

    async def send(
        self, item: RateLimitItem, names: tuple[str, ...], tokens: int, within_s: float
    ) -> None:
        """Add tokens to a fixed window, if the present charge has not been added before.

        item and names: as for the library's limiter. A repetition has the same arguments. Raises
        ApiError.
        """
        window = f"{BUDGET_KEYS}:{item.key_for(*names)}"
        words = (self._from, window, self._number, tokens, item.get_expiry())
        quick = self._connection.quick
        await self._connection.call(lambda: quick.eval(_CHARGE, 2, *words), within_s)
