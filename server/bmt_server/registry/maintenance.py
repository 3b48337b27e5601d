"""Registry maintenance: consistency check and orphan collection.

`check_consistency` only reads. `collect_orphans` removes blobs that no version names, in two runs:
the first one records the time at which it saw an orphan, and a later one removes the blob if it is
still an orphan. An upload, which stores its blob before it moves a name to it, therefore has
`min_age_s` to finish. On a full registry orphans are removed at once and nothing is recorded: an
upload that loses its blob stores it again, or learns that the registry is full.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import bmt_core

from bmt_server.errors import NotFound, RegistryFull, Unavailable
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.connection import BULK_S
from bmt_server.registry.lua import ALLOW_OOM
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.registry import GENERATION, WRITTEN, Registry
from bmt_server.registry.schemas import Version

ORPHANS = PREFIX + "orphans"  # hash: file digest -> time first seen, seconds since 1970
_ATTEMPTS = 20
# Names per read, so that other calls of the registry wait milliseconds for each.
_BATCH = 200

# KEYS: generation, blob, orphans. ARGV: generation at which the blob was an orphan, file digest.
# Removes nothing if the registry changed since: a new version may name the blob.
_REMOVE = (
    ALLOW_OOM
    + """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[3], ARGV[2])
return 1 + redis.call('UNLINK', KEYS[2])
"""
)


@dataclass(frozen=True, slots=True)
class Problem:
    """An inconsistency. what: the object and its defect; fix: the action that repairs it."""

    code: str
    what: str
    fix: str


@dataclass(slots=True)
class ConsistencyReport:
    """Result of `check_consistency`: counts, bytes of all blobs, and problems."""

    names: int = 0
    versions: int = 0
    blobs: int = 0
    bytes: int = 0
    orphans: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OrphanReport:
    """Result of `collect_orphans`: orphans found, orphans removed, and bytes freed.

    In a dry run, `bytes` are those that a run would free.
    """

    orphans: int
    removed: int
    bytes: int


async def check_consistency(registry: Registry, *, deep: bool = True) -> ConsistencyReport:
    """Check that all aliases point at versions, and that all versions' blobs exist and are intact.

    deep: read and hash every blob, not only compare sizes. Raises RegistryDown.
    """
    report = ConsistencyReport()
    names = await registry.names()
    by_id: dict[int, str] = {}
    wanted: set[str] = set()
    states = [
        state
        for at in range(0, len(names), _BATCH)
        for state in await registry.states(names[at : at + _BATCH])
    ]
    for state in states:
        report.names += 1
        report.problems += _dangling(state)
        for version in state.versions.values():
            report.versions += 1
            if (other := by_id.setdefault(version.id, version.model)) != version.model:
                report.problems.append(
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
            report.blobs += bool(size)
            report.bytes += size
            if not size:
                report.problems.append(_blob_problem(version.model, "blob_missing", "has no blob"))
            elif size != version.bytes:
                report.problems.append(
                    _blob_problem(
                        version.model, "blob_damaged", f"has {size} of {version.bytes} bytes"
                    )
                )
            elif deep and (why := await _damage(registry, version)):
                report.problems.append(_blob_problem(version.model, "blob_damaged", why))
    async for _, size in _orphans(registry, wanted):
        report.orphans += 1
        report.bytes += size
    return report


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


def _blob_problem(model: str, code: str, why: str) -> Problem:
    return Problem(code, f"{model} {why}", "upload the mask again")


async def _damage(registry: Registry, version: Version) -> str:
    """Defect of a version's blob, as the predicate of a sentence; empty if it is intact."""
    try:
        data = await registry.blob(version.file_digest, version.bytes)
    except NotFound:
        return "has no blob"
    if hashlib.sha256(data).hexdigest() != version.file_digest:
        return "has a blob with other content"
    try:
        mask = bmt_core.decode(memoryview(data))
    except bmt_core.BmtError as error:
        return f"has a blob that is not a mask ({error})"
    return "" if mask.digest == version.digest else f"has the blob of mask {mask.digest[:12]}"


async def _orphans(registry: Registry, wanted: set[str]) -> AsyncIterator[tuple[str, int]]:
    """Yield (file digest, bytes) of each blob that is not in `wanted`."""
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
    """Remove blobs that have been orphans for `min_age_s` seconds; record new orphans.

    Raises RegistryDown, and Unavailable if the registry changes too often for a safe removal.
    """
    quick = registry.connection.quick
    removed = freed = 0
    for _ in range(_ATTEMPTS):
        generation = await registry.generation()
        wanted = await _wanted(registry)
        full = not dry_run and await _is_full(registry)
        seen = {
            k.decode(): float(v)
            for k, v in (await registry.connection.call(lambda: quick.hgetall(ORPHANS))).items()
        }
        orphans = {digest: size async for digest, size in _orphans(registry, wanted)}
        if not dry_run and not full:
            await _record_orphans(registry, seen, orphans)
        now = time.time()
        due = [d for d in orphans if full or now - seen.get(d, now) >= min_age_s]
        if dry_run:
            return OrphanReport(len(orphans), 0, sum(orphans[d] for d in due))
        script = quick.register_script(_REMOVE)
        for digest in due:
            keys = [GENERATION, blob_key(digest), ORPHANS]
            remove = partial(script, keys=keys, args=[generation, digest])
            if not await registry.connection.call(remove):
                break  # the registry changed: find the orphans again
            removed, freed = removed + 1, freed + orphans[digest]
        else:
            return OrphanReport(len(orphans), removed, freed)
    raise Unavailable(
        f"the registry changed during each of {_ATTEMPTS} attempts; try again when fewer masks are "
        "published",
        code="registry_busy",
    )


async def _wanted(registry: Registry) -> set[str]:
    """File digests that versions name. A change meanwhile changes the generation."""
    names: list[tuple[str, str]] = await registry.names()
    wanted: set[str] = set()
    for at in range(0, len(names), _BATCH):
        for state in await registry.states(names[at : at + _BATCH]):
            wanted |= {v.file_digest for v in state.versions.values()}
    return wanted


async def _is_full(registry: Registry) -> bool:
    """True if the registry refuses a write for lack of memory."""
    quick = registry.connection.quick
    try:
        await registry.connection.call(lambda: quick.hset(WRITTEN, "path", ""))
    except RegistryFull:
        return True
    return False


async def _record_orphans(
    registry: Registry, seen: dict[str, float], orphans: dict[str, int]
) -> None:
    """Record the first-seen time of new orphans; remove the records of blobs in use again."""
    quick, now = registry.connection.quick, time.time()
    if fresh := {digest: now for digest in orphans if digest not in seen}:
        await registry.connection.call(lambda: quick.hset(ORPHANS, mapping=fresh))
    if gone := [digest for digest in seen if digest not in orphans]:
        await registry.connection.call(lambda: quick.hdel(ORPHANS, *gone))
