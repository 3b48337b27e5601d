"""Sessions of the console, in the registry, so that each server of it knows all of them.

One hash for each API key, which expires by itself::

    {bmt}:sessions:<key id>    hash: SHA-256 of the token -> JSON of `Session`

Neither tokens nor keys are stored: whoever reads the registry can enter no session. A session knows
its key by the key's hash, and each request of it reads the key again: it ends with the key.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from functools import partial

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.lua import ALLOW_OOM

# KEYS: sessions of a key. ARGV: field, session, seconds. Whoever makes room in a full registry may
# do so in the console.
_ADD = (
    ALLOW_OOM
    + """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

#: A session ends after this time, whatever it does.
LIFETIME_S = 8 * 3600
#: Sessions that one key has at a time; a further one takes the place of the oldest.
MAX_OF_A_KEY = 16
#: Apart, the clocks of two servers of one registry.
MAX_SKEW_S = 300.0
# Look-ups of sessions at a time. Whoever asks can make cookies up, each of them is looked up, and
# API keys are looked up by the same few connections.
_LOOK_UPS = 2
_COOKIE = re.compile(r"([A-Za-z0-9._-]{1,64})~([A-Za-z0-9_-]{43})")


class Session(BaseModel):
    """One session. key_hash: SHA-256 of the API key; until: its end, in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    until: float


class SessionStore:
    """Sessions of all keys. Its methods raise RegistryDown."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection
        self._turns = asyncio.Semaphore(_LOOK_UPS)

    async def open(self, key_id: str, key_hash: str) -> str:
        """Begin a session of a key that was just verified. Returns the value of its cookie."""
        token, name = secrets.token_urlsafe(32), _name(key_id)
        quick, session = self._connection.quick, Session(key_hash=key_hash, until=_end())
        there = await self._connection.call(partial(quick.hgetall, name))
        ends = {field: read.until for field, value in there.items() if (read := _read(value))}
        kept = sorted(ends, key=lambda field: ends[field])[-(MAX_OF_A_KEY - 1) :]
        if gone := [field for field in there if field not in kept]:
            await self._connection.call(partial(quick.hdel, name, *gone))
        value = session.model_dump_json()
        add = partial(quick.eval, _ADD, 1, name, _field(token), value, LIFETIME_S)
        await self._connection.call(add)
        return f"{key_id}~{token}"

    async def find(self, cookie: str) -> Session | None:
        """The session of a cookie, None if there is none or it has ended."""
        if (parts := _COOKIE.fullmatch(cookie)) is None:
            return None
        name, field = _name(parts[1]), _field(parts[2])
        async with self._turns:
            value = await self._connection.call(partial(self._connection.quick.hget, name, field))
        return _read(value)

    async def end(self, cookie: str) -> None:
        """End the session of a cookie."""
        if (parts := _COOKIE.fullmatch(cookie)) is not None:
            name, field = _name(parts[1]), _field(parts[2])
            await self._connection.call(partial(self._connection.quick.hdel, name, field))


def _name(key_id: str) -> str:
    return f"{PREFIX}sessions:{key_id}"


def _field(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _end() -> float:
    return time.time() + LIFETIME_S


def _read(value: bytes | None) -> Session | None:
    """A session that has not ended; None for any other value."""
    if value is None:
        return None
    try:
        session = Session.model_validate_json(value)
    except ValidationError:
        return None
    return session if time.time() < session.until <= _end() + MAX_SKEW_S else None
