"""Looking after a registry: is everything there that its versions name, and what is in the way?

`check_consistency` only reads. `collect_orphans` removes blobs that no version names, in two
visits: the first notes when
a blob was found orphaned, a later one removes it if it still is. So an upload, which stores its
blob before it points a name at it, has `min_age_s` to end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import bmt_core

from bmt_server.errors import NotFound, Unavailable
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.connection import BULK_S
from bmt_server.registry.registry import GENERATION, Registry
from bmt_server.registry.schemas import NameState, Version

ORPHANS = PREFIX + "orphans"  # hash: file digest -> when it was first found, seconds since 1970
_TRIES = 20

# KEYS: generation, blob, orphans. ARGV: the generation that the blob was an orphan at, its digest.
# A version that came since may name the blob, so nothing is removed then.
_REMOVE = """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[3], ARGV[2])
return 1 + redis.call('UNLINK', KEYS[2])
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be. what: where it is; fix: what to do."""

    code: str
    what: str
    fix: str


@dataclass(slots=True)
class ConsistencyReport:
    """What `check_consistency` saw."""

    names: int = 0
    versions: int = 0
    blobs: int = 0
    bytes: int = 0
    orphans: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OrphanReport:
    """What `collect_orphans` did: orphans there were, removed now, and the bytes of those."""

    orphans: int
    removed: int
    bytes: int


async def check_consistency(registry: Registry, *, deep: bool = True) -> ConsistencyReport:
    """Every alias points at a version, every version's blob is there and is what it says.

    deep: read and hash every blob; else only their sizes. Raises RegistryDown.
    """
    found = ConsistencyReport()
    names = await registry.names()
    by_id: dict[int, str] = {}
    wanted: set[str] = set()
    for state in await registry.states(names):
        found.names += 1
        found.problems += _dangling(state)
        for version in state.versions.values():
            found.versions += 1
            if (other := by_id.setdefault(version.id, version.model)) != version.model:
                found.problems.append(
                    Problem(
                        "id_twice",
                        f"{version.model} and {other} have adapter id {version.id}",
                        "delete one of the two versions and upload it again",
                    )
                )
            if version.file_digest in wanted:
                continue
            wanted.add(version.file_digest)
            size = await registry.blob_size(version.file_digest)
            found.blobs += bool(size)
            found.bytes += size
            if not size:
                found.problems.append(_lost(version.model, "blob_missing", "has no blob"))
            elif size != version.bytes:
                found.problems.append(
                    _lost(version.model, "blob_damaged", f"has {size} of {version.bytes} bytes")
                )
            elif deep and (why := await _damage(registry, version)):
                found.problems.append(_lost(version.model, "blob_damaged", why))
    async for _, size in _orphans(registry, wanted):
        found.orphans += 1
        found.bytes += size
    return found


def _dangling(state: NameState) -> list[Problem]:
    pointers = {f":{alias}": digest for alias, digest in state.aliases.items()}
    if state.latest:
        pointers[""] = state.latest
    return [
        Problem(
            "dangling",
            f"{state.tenant}/{state.name}{alias} points at {digest[:12]}, which is not there",
            "upload the mask again, or move the alias",
        )
        for alias, digest in pointers.items()
        if digest not in state.versions
    ]


def _lost(model: str, code: str, why: str) -> Problem:
    return Problem(code, f"{model} {why}", "upload the mask again")


async def _damage(registry: Registry, version: Version) -> str:
    """What is wrong with a version's blob; empty where nothing is."""
    try:
        data = await registry.blob(version.file_digest, version.bytes)
    except NotFound:
        return "has no blob"
    if hashlib.sha256(data).hexdigest() != version.file_digest:
        return "has a blob of another content"
    try:
        mask = bmt_core.decode(memoryview(data))
    except bmt_core.BmtError as error:
        return f"has a blob that is no mask ({error})"
    return "" if mask.digest == version.digest else f"has the blob of mask {mask.digest[:12]}"


async def _orphans(registry: Registry, wanted: set[str]) -> AsyncIterator[tuple[str, int]]:
    """(file digest, bytes) of each blob that is not `wanted`."""
    prefix = blob_key("").encode()
    cursor = 0
    bulk = registry.connection.bulk
    while True:
        page = partial(bulk.scan, cursor, match=f"{blob_key('')}*", count=500)
        cursor, keys = await registry.connection.call(page, BULK_S)
        for key in keys:
            digest = key.removeprefix(prefix).decode()
            if digest not in wanted:
                yield digest, await registry.blob_size(digest)
        if not cursor:
            return


async def collect_orphans(
    registry: Registry, *, min_age_s: float = 3600.0, dry_run: bool = False
) -> OrphanReport:
    """Remove blobs that have been orphans for `min_age_s`; note those that are new ones.

    Raises RegistryDown, and Unavailable where the registry changes so often that none could be
    removed safely.
    """
    quick = registry.connection.quick
    removed = freed = 0
    for _ in range(_TRIES):
        generation = await registry.generation()
        states = await registry.states(await registry.names())
        wanted = {v.file_digest for state in states for v in state.versions.values()}
        seen = {
            k.decode(): float(v)
            for k, v in (await registry.connection.call(lambda: quick.hgetall(ORPHANS))).items()
        }
        orphans = {digest: size async for digest, size in _orphans(registry, wanted)}
        if not dry_run:
            await _note(registry, seen, orphans)
        due = [d for d in orphans if time.time() - seen.get(d, time.time()) >= min_age_s]
        if dry_run:
            return OrphanReport(len(orphans), 0, sum(orphans[d] for d in due))
        script = quick.register_script(_REMOVE)
        for digest in due:
            keys = [GENERATION, blob_key(digest), ORPHANS]
            remove = partial(script, keys=keys, args=[generation, digest])
            if not await registry.connection.call(remove):
                break  # something was published: what is an orphan must be asked again
            removed, freed = removed + 1, freed + orphans[digest]
        else:
            return OrphanReport(len(orphans), removed, freed)
    raise Unavailable(
        "the registry changed during each of the looks at it; try again when it is quieter",
        code="registry_busy",
    )


async def _note(registry: Registry, seen: dict[str, float], orphans: dict[str, int]) -> None:
    """Remember since when each orphan is one, and forget those that are wanted again."""
    quick, now = registry.connection.quick, time.time()
    if fresh := {digest: now for digest in orphans if digest not in seen}:
        await registry.connection.call(lambda: quick.hset(ORPHANS, mapping=fresh))
    if gone := [digest for digest in seen if digest not in orphans]:
        await registry.connection.call(lambda: quick.hdel(ORPHANS, *gone))
