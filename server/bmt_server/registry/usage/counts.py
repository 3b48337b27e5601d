"""Requests and tokens in the registry, by day (UTC), tenant, key and mask.

Keys, all of one hash slot::

    {bmt}:usage:<day>:<tenant>   hash: "<key id>|<mask>" -> "requests,prompt,cached,completion"
    {bmt}:usage:<day>            set of the tenants of a day
    {bmt}:usage:from:<process>   number of the last batch of a process

API processes add batches. A batch whose reply was lost is sent again under the same number, and the
script adds each number once. All keys expire: counts when they have been kept for the days of the
setting, numbers after a day.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.lua import ALLOW_OOM

DAY_S = 86_400
#: Mask, or key, of counts beyond the number of entries that a tenant has in a day. No name or id
#: has parentheses.
OTHER = "(other)"
MAX_ENTRIES = 2000
MAX_BATCH = 500
_DAYS_AT_ONCE = 31
_FIELDS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")

# KEYS: number of the process, then a hash and a set for each tenant and day.
# ARGV: number, seconds to keep it, seconds to keep counts, most entries of a hash, then for each
# entry: position of its hash in KEYS, tenant, key id, mask, and the four counts.
_ADD = (
    ALLOW_OOM
    + """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
local most = tonumber(ARGV[4])
for i = 5, #ARGV, 8 do
  local at = tonumber(ARGV[i])
  local hash, tenants = KEYS[at], KEYS[at + 1]
  local field = ARGV[i + 2] .. '|' .. ARGV[i + 3]
  local known = redis.call('HGET', hash, field)
  if not known and redis.call('HLEN', hash) >= most then
    field = ARGV[i + 2] .. '|(other)'
    known = redis.call('HGET', hash, field)
    if not known and redis.call('HLEN', hash) >= 2 * most then
      field = '(other)|(other)'
      known = redis.call('HGET', hash, field)
    end
  end
  local sums, n = {}, 0
  for number in string.gmatch(known or '0,0,0,0', '%d+') do
    sums[n + 1] = string.format('%.0f', tonumber(number) + tonumber(ARGV[i + 4 + n]))
    n = n + 1
  end
  redis.call('HSET', hash, field, table.concat(sums, ','))
  redis.call('SADD', tenants, ARGV[i + 1])
  redis.call('EXPIRE', hash, ARGV[3])
  redis.call('EXPIRE', tenants, ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Slot:
    """One line of usage. day: days since 1970, in UTC. mask: empty for the base model."""

    day: int
    tenant: str
    key_id: str
    mask: str


@dataclass(slots=True)
class Counts:
    """Requests and tokens; cached tokens are those of the prompt that the prefix cache had."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Counts) -> None:
        for field in _FIELDS:
            setattr(self, field, getattr(self, field) + getattr(other, field))

    def to_dict(self) -> dict[str, int]:
        return {field: getattr(self, field) for field in _FIELDS}


def today() -> int:
    """Days since 1970, in UTC."""
    return int(time.time() // DAY_S)


class UsageStore:
    """Counts of all servers. keep_days: the days that counts are kept for."""

    def __init__(self, connection: RegistryConnection, keep_days: int) -> None:
        self._connection = connection
        self._keep_s = (keep_days + 1) * DAY_S
        self._from = f"{PREFIX}usage:from:{secrets.token_hex(8)}"

    async def add(self, number: int, batch: Mapping[Slot, Counts]) -> None:
        """Add a batch of at most MAX_BATCH lines, once for each number. Raises ApiError.

        number: 1 and up; a batch is repeated with its number until this returns.
        """
        keys, arguments = [self._from], [number, DAY_S, self._keep_s, MAX_ENTRIES]
        places: dict[str, int] = {}
        words: list[str | int] = list(arguments)
        for slot, counts in batch.items():
            hash_key = _hash_key(slot.day, slot.tenant)
            if hash_key not in places:
                keys += [hash_key, _set_key(slot.day)]
                places[hash_key] = len(keys) - 1
            words += [places[hash_key], slot.tenant, slot.key_id, slot.mask]
            words += counts.to_dict().values()
        quick = self._connection.quick
        await self._connection.call(lambda: quick.eval(_ADD, len(keys), *keys, *words))

    async def read(
        self, tenant: str | None, first: int, last: int
    ) -> AsyncIterator[list[tuple[Slot, Counts]]]:
        """Lines of the days `first` to `last`, of one tenant or of all, a hash at a time.

        Raises ApiError.
        """
        for start in range(first, last + 1, _DAYS_AT_ONCE):
            days = range(start, min(start + _DAYS_AT_ONCE, last + 1))
            for day, name in await self._hashes(tenant, days):
                yield await self._lines(day, name)

    async def _hashes(self, tenant: str | None, days: Sequence[int]) -> list[tuple[int, str]]:
        """(day, tenant) of the counts that there are."""
        quick = self._connection.quick

        async def read() -> list[Iterable[bytes] | int]:
            async with quick.pipeline(transaction=False) as pipe:
                for day in days:
                    if tenant is None:
                        pipe.smembers(_set_key(day))
                    else:
                        pipe.exists(_hash_key(day, tenant))
                replies: list[Iterable[bytes] | int] = await pipe.execute()
                return replies

        replies = await self._connection.call(read)
        found: list[tuple[int, str]] = []
        for day, reply in zip(days, replies, strict=True):
            if not isinstance(reply, int):
                found += [(day, name.decode()) for name in sorted(reply)]
            elif reply and tenant is not None:
                found.append((day, tenant))
        return found

    async def _lines(self, day: int, tenant: str) -> list[tuple[Slot, Counts]]:
        quick = self._connection.quick
        values = await self._connection.call(lambda: quick.hgetall(_hash_key(day, tenant)))
        lines = []
        for field, value in values.items():
            key_id, _, mask = field.decode().partition("|")
            numbers = (int(number) for number in value.split(b","))
            lines.append((Slot(day, tenant, key_id, mask), Counts(*numbers)))
        return lines


def _hash_key(day: int, tenant: str) -> str:
    return f"{PREFIX}usage:{day}:{tenant}"


def _set_key(day: int) -> str:
    return f"{PREFIX}usage:{day}"
