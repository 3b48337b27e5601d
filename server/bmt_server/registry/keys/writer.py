"""Changes of API keys in the registry: create, import, revoke, rotate.

Each is one script that checks first and writes last. All but the creation of a key add an event, so
that the servers look their keys up again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeAlias

import bmt_core

from bmt_server.errors import ApiError, BadRequest, Conflict, NotFound
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.durability import Durability
from bmt_server.registry.keys.expiry import parse_expiry, read_expiry
from bmt_server.registry.keys.reader import KEYS
from bmt_server.registry.keys.record import SCOPES, KeyRecord, read_record
from bmt_server.registry.keys.scripts import CREATE, IMPORT, PROLONG, REVOKE, ROTATE
from bmt_server.registry.keys.secret import hash_key, make_key, well_formed
from bmt_server.registry.registry import EVENTS
from bmt_server.registry.schemas import DEFAULT_TENANT
from bmt_server.registry.usage.limits import LIMITS

#: Hashes of keys that came from BMT_ADMIN_KEY: once revoked, they are not stored again.
ENVIRONMENT_KEYS = PREFIX + "environment-keys"
#: Ids of keys that this version made.
IDS = PREFIX + "key-ids"
#: Label of such a key.
ENVIRONMENT_LABEL = "BMT_ADMIN_KEY"
MAX_LABEL_CHARACTERS = 128
MAX_OVERLAP_S = 90 * 86400.0
# Records of one read of all keys.
_PAGE = 500
_ATTEMPTS = 3

Imported = Literal["stored", "known", "revoked"]
# Field, value and record of a key.
_Stored: TypeAlias = tuple[str, bytes, KeyRecord]


def _allow(record: KeyRecord) -> None:
    """The check of callers that may change every key: those who have the registry's password."""


@dataclass(frozen=True, slots=True)
class RotatedKey:
    """A key that replaces another one. secret: shown once. old: until the end of the overlap."""

    secret: str
    new: KeyRecord
    old: KeyRecord


class KeyWriter:
    """Records of API keys in a registry.

    replicas: number of the registry's replicas that must have a change before it is acknowledged.
    """

    def __init__(self, connection: RegistryConnection, replicas: int = 0) -> None:
        self._connection = connection
        self._durability = Durability(connection, replicas)

    async def create(
        self,
        scopes: tuple[str, ...],
        *,
        tenant: str = DEFAULT_TENANT,
        label: str = "",
        expires: str | None = None,
        only_if_first: bool = False,
        durable: bool = False,
    ) -> tuple[str, KeyRecord] | None:
        """Create a key. Returns (secret, record), or None if `only_if_first` and keys exist.

        expires: an ISO 8601 time with zone, or a duration such as `30d`. durable: return when the
        key cannot be lost. Raises BadRequest for unknown scopes, a label that is long or not
        printable, a tenant that is no name, and a time that is unreadable or past.
        """
        expires = parse_expiry(expires) if expires is not None else None
        try:
            bmt_core.validate_name(tenant)
        except bmt_core.InvalidName as error:
            raise BadRequest(f"tenant: {error}", code=error.code, param="tenant") from None
        check_known(scopes)
        if "operator" in scopes and tenant != DEFAULT_TENANT:
            raise BadRequest(
                f"the scope 'operator' is for the tenant {DEFAULT_TENANT!r}, not for {tenant!r}",
                code="operator_tenant",
                param="tenant",
            )
        _check_label(label)
        key = make_key(scopes)
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        first = "1" if only_if_first else ""
        for _ in range(_ATTEMPTS):
            record = KeyRecord(new_id(), tenant, ordered, label, _now(), expires)
            arguments: list[str | bytes] = [hash_key(key), record.to_json(), first, record.key_id]
            # One script, so that of two servers starting at once only one prints a first key.
            outcome, _detail = await self._write(CREATE, arguments, durable)
            if outcome != "taken":
                return (key, record) if outcome == "ok" else None
        raise _no_id()

    async def import_key(self, key: str, scopes: tuple[str, ...] = SCOPES, label: str = "") -> bool:
        """Store a key that `make_key` created elsewhere; False if it is stored or was revoked.

        Raises BadRequest if the text is not such a key.
        """
        return await self._import(key, scopes, label) == "stored"

    async def import_environment_key(self, key: str) -> Imported:
        """Store the operator's key from BMT_ADMIN_KEY, unless it is stored or was revoked.

        One that a former version stored gets the scopes that were added since. Raises BadRequest
        if the text is not such a key.
        """
        return await self._import(key, SCOPES, ENVIRONMENT_LABEL)

    async def _import(self, key: str, scopes: tuple[str, ...], label: str) -> Imported:
        if not well_formed(key):
            raise BadRequest(
                "not a valid API key, or mistyped; create one with `bmt-server keys generate`"
            )
        field = hash_key(key)
        for _ in range(_ATTEMPTS):
            record = KeyRecord(new_id(), DEFAULT_TENANT, scopes, label, _now())
            arguments: list[str | bytes] = [field, record.to_json(), "", record.key_id]
            outcome, there = await self._write(IMPORT, arguments)
            if outcome != "taken":
                break
        else:
            raise _no_id()
        if outcome != "known":
            return "stored" if outcome == "ok" else "revoked"
        stored = read_record(field, there)
        if stored.revoked:
            return "revoked"
        grown = "admin" in stored.scopes and not set(scopes) <= set(stored.scopes)
        if label == ENVIRONMENT_LABEL == stored.label and grown and not stored.fault:
            grown_record = replace(stored, scopes=scopes).to_json()
            await self._write(IMPORT, [field, grown_record, there, stored.key_id])
        return "known"

    async def records(self) -> list[KeyRecord]:
        """Records of all keys but revoked ones, oldest first."""
        found = [record for _, _, record in await self._stored()]
        return sorted((r for r in found if not r.revoked), key=lambda r: r.created)

    async def get(self, key_id: str) -> KeyRecord:
        """The record of a key. Raises NotFound."""
        return (await self._find(key_id))[2]

    async def revoke(self, key_id: str, check: Callable[[KeyRecord], None] = _allow) -> KeyRecord:
        """Delete a key; all servers refuse it within seconds. Raises NotFound.

        Former versions may have given an id to several keys: then all of them that `check` lets.
        check: raises for a key that the caller may not revoke.
        """
        for _ in range(_ATTEMPTS):
            ended = _allowed(await self._all(key_id), check)
            if all([await self._end(*one) for one in ended]):
                return ended[0][2]
        raise _changed(key_id)

    async def _end(self, field: str, value: bytes, record: KeyRecord) -> bool:
        """Delete a record; False if it is not `value` any more."""
        marked = "1" if record.label == ENVIRONMENT_LABEL else ""
        arguments: list[str | bytes] = [field, value, record.revocation().to_json()]
        arguments += [marked, f"key:{record.key_id}", record.key_id]
        return (await self._write(REVOKE, arguments))[0] == "ok"

    async def rotate(
        self,
        key_id: str,
        *,
        overlap_s: float = 0.0,
        expires: str | None = None,
        check: Callable[[KeyRecord, str | None], None] = lambda record, expires: None,
    ) -> RotatedKey:
        """Replace a key by a new one of the same tenant, scopes and label.

        The old one ends after `overlap_s`, and not later than before. expires: of the new key, as
        in `create`; by default the old one's. check: raises for a key that the caller may not
        rotate, and for the time at which the new one ends. Raises NotFound, BadRequest.
        """
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise BadRequest(
                f"overlap is {overlap_s:.12g} s; at most {MAX_OVERLAP_S / 86400:g}d",
                param="overlap",
            )
        until = parse_expiry(expires) if expires is not None else None
        for _ in range(_ATTEMPTS):
            field, value, record = await self._find(key_id)
            fault = record.fault or ("" if set(record.scopes) & set(SCOPES) else "it has no scope")
            if fault:
                raise BadRequest(
                    f"key {key_id} cannot be used: {fault}; create another one",
                    code="key_unreadable",
                )
            if until is None and record.status == "expired":
                raise BadRequest(
                    f"key {key_id} expired at {record.expires}; state when the new one expires",
                    code="key_expired",
                    param="expires",
                )
            ends = record.expires if until is None else until
            check(record, ends)
            key = make_key(record.scopes)
            new = replace(record, key_id=new_id(), created=_now(), expires=ends)
            old = replace(record, expires=_earlier(record.expires, overlap_s))
            arguments: list[str | bytes] = [field, value, old.to_json()]
            arguments += [hash_key(key), new.to_json(), f"key:{key_id}", f"key:{new.key_id}"]
            arguments.append(new.key_id)
            if (await self._write(ROTATE, arguments))[0] == "ok":
                return RotatedKey(key, new, old)
        raise _changed(key_id)

    async def prolong(self, key_id: str, expires: str) -> None:
        """Let a key hold until `expires`, as in `create`. Raises NotFound, BadRequest."""
        until = parse_expiry(expires)
        for _ in range(_ATTEMPTS):
            field, value, record = await self._find(key_id)
            longer = replace(record, expires=until).to_json()
            if (await self._write(PROLONG, [field, value, longer], False))[0] == "ok":
                return
        raise _changed(key_id)

    async def _stored(self) -> list[_Stored]:
        """Field, value and record of all keys, read and parsed in pages: requests go on."""
        quick, cursor = self._connection.quick, 0
        # By field, because a page may repeat what another one had.
        found: dict[bytes, _Stored] = {}
        while True:
            read = partial(quick.hscan, KEYS, cursor, count=_PAGE)
            cursor, page = await self._connection.call(read)
            for raw, value in page.items():
                field = raw.decode()
                found[raw] = (field, value, read_record(field, value))
            await asyncio.sleep(0)
            if not cursor:
                return list(found.values())

    async def _find(self, key_id: str) -> _Stored:
        """Field, value and record of a key. Raises NotFound; Conflict if several have the id."""
        found = await self._all(key_id)
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} keys have the id {key_id}, as a former version could make them; "
                "revoke it, which ends them all, and create others",
                code="key_id_shared",
            )
        return found[0]

    async def _all(self, key_id: str) -> list[_Stored]:
        """Fields, values and records of all keys of an id. Raises NotFound."""
        stored = await self._stored()
        if found := [one for one in stored if one[2].key_id == key_id and not one[2].revoked]:
            return found
        raise NotFound(f"no key {key_id[:64]}", code="key_unknown")

    async def _write(
        self, script: str, arguments: list[str | bytes], durable: bool = True
    ) -> tuple[str, bytes]:
        """Run a script of `keys/scripts.py`. Returns (outcome, detail).

        durable: once the change cannot be lost. Raises Unavailable (`not_durable`).
        """
        keys = [KEYS, EVENTS, ENVIRONMENT_KEYS, LIMITS, IDS]
        if not durable:
            quick = self._connection.quick
            run = partial(quick.eval, script, len(keys), *keys, *arguments)
            outcome, detail = await self._connection.call(run)
        else:
            (outcome, detail), confirmed = await self._durability.run(script, keys, arguments)
            if outcome == b"ok":
                self._durability.check(confirmed)
        return outcome.decode(), detail


def new_id() -> str:
    """An id of 64 random bits. Of 100,000 keys, two have the same one with a chance of 3e-10.

    The scripts refuse the second one then: by its id a key is revoked, limited and counted.
    """
    return secrets.token_hex(8)


def _allowed(found: list[_Stored], check: Callable[[KeyRecord], None]) -> list[_Stored]:
    """Those that `check` lets. Raises its error if there are none."""
    allowed, refusals = [], []
    for one in found:
        try:
            check(one[2])
            allowed.append(one)
        except ApiError as error:
            refusals.append(error)
    if not allowed:
        raise refusals[0]
    return allowed


def _no_id() -> Conflict:
    return Conflict("the new key's id is that of another key; try again", code="key_id_taken")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _earlier(expires: str | None, overlap_s: float) -> str:
    """The end of an overlap, or the time at which the key ends anyway."""
    end = datetime.now(UTC) + timedelta(seconds=overlap_s)
    before = read_expiry(expires) if expires is not None else None
    return min(end, before or end).isoformat(timespec="seconds")


def check_known(scopes: tuple[str, ...]) -> None:
    """Raise BadRequest for no scope, or for one that is none."""
    if not scopes or not set(scopes) <= set(SCOPES):
        raise BadRequest(
            f"scopes are {[s[:64] for s in scopes[:8]]}; choose from {', '.join(SCOPES)}",
            code="scope_unknown",
            param="scopes",
        )


def _check_label(label: str) -> None:
    if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise BadRequest(
            f"label has {len(label)} characters; allowed are {MAX_LABEL_CHARACTERS}, all printable",
            code="label_invalid",
            param="label",
        )
    if label == ENVIRONMENT_LABEL:
        raise BadRequest(
            f"the label {label!r} marks the key from the environment; choose another one",
            code="label_reserved",
            param="label",
        )


def _changed(key_id: str) -> Conflict:
    return Conflict(f"key {key_id} changes at this moment; try again")
