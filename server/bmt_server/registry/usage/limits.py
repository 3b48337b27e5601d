"""Limits of single keys and tenants, kept in the registry; flags of the server are their defaults.

One hash, apart from the records of keys, which former builds read with the fields that they know::

    {bmt}:limits    hash: "key:<key id>" or "tenant:<tenant>" -> JSON of `Limits`

A change is an event of keys, so all servers read the hash again within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import RedisError

from bmt_server.errors import ApiError, BadRequest, NotFound
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection, end_task
from bmt_server.registry.lua import ALLOW_OOM
from bmt_server.registry.registry import EVENTS
from bmt_server.settings import Settings

logger = logging.getLogger("vllm.bmt_server")

Kind = Literal["key", "tenant"]
KINDS: tuple[Kind, ...] = ("key", "tenant")
LIMITS = PREFIX + "limits"
MAX_STORED = 10_000
_MOST = 2**62
_EVERY_S = 10.0
#: Fields of limits on requests; the others bound what a tenant stores.
BUDGETS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month")
STORAGE = ("storage_bytes", "versions")

# KEYS: hash, events. ARGV: field, JSON or '' to remove, most fields.
_SET = (
    ALLOW_OOM
    + """
if ARGV[2] == '' then
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 'unknown' end
else
  if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0
     and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 'full' end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*',
           'where', '', 'kind', 'keys', 'generation', 0)
return 'ok'
"""
)


class Limits(BaseModel):
    """Limits of a key or a tenant. None: as the server's flag says; 0: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    requests_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    tokens_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    tokens_per_day: int | None = Field(default=None, ge=0, le=_MOST)
    tokens_per_month: int | None = Field(default=None, ge=0, le=_MOST)
    storage_bytes: int | None = Field(default=None, ge=0, le=_MOST)
    versions: int | None = Field(default=None, ge=0, le=_MOST)

    def over(self, defaults: Limits) -> Limits:
        """These limits, with the defaults for those that are None."""
        return defaults.model_copy(update=self.model_dump(exclude_none=True))

    def to_dict(self) -> dict[str, int]:
        """The limits that are set."""
        return self.model_dump(exclude_none=True)


def default_limits(settings: Settings) -> dict[Kind, Limits]:
    """Limits of every key and every tenant, by the server's flags."""
    of_keys = {field: getattr(settings, f"key_{field}") for field in BUDGETS}
    of_tenants = {field: getattr(settings, f"tenant_{field}") for field in (*BUDGETS, *STORAGE)}
    return {"key": Limits(**of_keys), "tenant": Limits(**of_tenants)}


class LimitStore:
    """Limits in the registry, with a copy in memory that `start` keeps current until `close`.

    on_change: called after the copy has changed. Until it is read for the first time, the defaults
    count.
    """

    def __init__(
        self,
        connection: RegistryConnection,
        defaults: dict[Kind, Limits] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._defaults = defaults or dict.fromkeys(KINDS, Limits())
        self.on_change = on_change
        self._stored: dict[tuple[Kind, str], Limits] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="bmt-limits")

    async def close(self) -> None:
        task, self._task = self._task, None
        await end_task(task)

    def of(self, kind: Kind, name: str) -> Limits:
        """The limits that apply to a key, by its id, or to a tenant."""
        stored = self._stored.get((kind, name))
        return self._defaults[kind] if stored is None else stored.over(self._defaults[kind])

    def invalidate(self) -> None:
        """Read the stored limits again soon."""
        self._wake.set()

    async def stored(self) -> dict[tuple[Kind, str], Limits]:
        """Stored limits by kind and name, those that are unreadable left out. Raises ApiError."""
        quick = self._connection.quick
        found: dict[tuple[Kind, str], Limits] = {}
        for field, value in (await self._connection.call(lambda: quick.hgetall(LIMITS))).items():
            kind, _, name = field.decode().partition(":")
            with contextlib.suppress(StopIteration):
                known: Kind = next(k for k in KINDS if k == kind)
                if (limits := _read(field.decode(), value)) is not None:
                    found[known, name] = limits
        return found

    async def refresh(self) -> None:
        """Read the stored limits now. Raises ApiError."""
        stored = await self.stored()
        if stored != self._stored:
            self._stored = stored
            self.on_change()

    async def set(self, kind: Kind, name: str, limits: Limits) -> None:
        """Store the limits of a key or a tenant, in place of those before. Raises ApiError."""
        if kind == "key" and any(getattr(limits, field) is not None for field in STORAGE):
            raise BadRequest(f"{', '.join(STORAGE)} are limits of tenants, not of keys")
        text = json.dumps(limits.to_dict())
        if await self._change(kind, name, text) == "full":
            raise BadRequest(f"{MAX_STORED} limits are stored, which is the limit; remove some")
        await self.refresh()

    async def clear(self, kind: Kind, name: str) -> None:
        """Remove stored limits, so that the server's flags count. Raises NotFound, ApiError."""
        if await self._change(kind, name, "") == "unknown":
            raise NotFound(f"no limits of {kind} {name[:128]}", code="limits_unknown")
        await self.refresh()

    async def _change(self, kind: Kind, name: str, text: str) -> str:
        quick = self._connection.quick
        words = (LIMITS, EVENTS, f"{kind}:{name}", text, MAX_STORED)
        outcome = await self._connection.call(lambda: quick.eval(_SET, 2, *words))
        return str(outcome.decode())

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _EVERY_S)
            self._wake.clear()
            with contextlib.suppress(ApiError, RedisError):
                await self.refresh()


def _read(field: str, value: bytes) -> Limits | None:
    """Limits as stored; fields that this build does not know are left out."""
    try:
        raw = json.loads(value)
        return Limits(**{k: v for k, v in raw.items() if k in Limits.model_fields})
    except (ValueError, AttributeError, TypeError, ValidationError) as error:
        logger.error("Limits of %s in the registry are unreadable: %s.", field[:128], error)
        return None
