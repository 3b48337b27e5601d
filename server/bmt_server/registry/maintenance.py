"""Registry maintenance: consistency check and orphan collection.

`check_consistency` only reads. `collect_orphans` removes blobs that no version names, in two runs:
the first one records the time at which it saw an orphan, and a later one removes the blob if it is
still an orphan. An upload, which stores its blob before it moves a name to it, therefore has
`min_age_s` to finish. On a full registry orphans are removed at once and nothing is recorded: an
upload that loses its blob stores it again, or learns that the registry is full.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import bmt_core

from bmt_server.errors import NotFound, RegistryFull, Unavailable
from bmt_server.registry.blobs.in_redis import ORPHANS, raw
from bmt_server.registry.blobs.protocol import Removed
from bmt_server.registry.names.changes import Changes
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.reader import versions_key
from bmt_server.registry.names.versions import Entry
from bmt_server.registry.registry import WRITTEN, Registry
from bmt_server.registry.schemas import DIGEST_SHOWN, Version

_ATTEMPTS = 20
_REMOVALS = 20
# Names per read, so that other calls of the registry wait milliseconds for each.
_BATCH = 100
_DIGEST = re.compile("[0-9a-f]{64}")


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
    by_id: dict[int, str] = {}
    wanted: set[bytes] = set()
    async for states in _states(registry):
        fresh: dict[str, tuple[NameState, Entry]] = {}
        for state in states:
            report.names += 1
            report.problems += _unreadable(state) + _dangling(state)
            wanted |= _files_named(state.unreadable)
            for entry in state.versions.entries():
                report.versions += 1
                model = f"{state.name}@{entry.digest[:DIGEST_SHOWN]}"
                if (other := by_id.setdefault(entry.id, model)) != model:
                    report.problems.append(
                        Problem(
                            "id_twice",
                            f"{model} and {other} have adapter id {entry.id}",
                            "delete one of the two versions and upload it again",
                        )
                    )
                if entry.file_digest not in wanted:
                    wanted.add(entry.file_digest)
                    fresh[entry.file_digest.hex()] = state, entry
        sizes = await registry.blobs.stored_sizes(list(fresh))
        for (_, entry), size in zip(fresh.values(), sizes, strict=True):
            report.blobs += bool(size)
            report.bytes += size
            if problem := await _check_blob(registry, entry.version(), size, deep):
                report.problems.append(problem)
    async for orphans in _orphans(registry, wanted):
        report.orphans += len(orphans)
        report.bytes += sum(orphans.values())
    loose = await registry.blobs.loose()
    report.orphans += loose.blobs
    report.bytes += loose.bytes
    return report


async def _states(registry: Registry) -> AsyncIterator[list[NameState]]:
    """States of all names, a batch at a time, each name once."""
    seen: set[tuple[str, str]] = set()
    async for page in registry.reader.pages():
        names = [name for name in dict.fromkeys(page) if name not in seen]
        seen.update(names)
        for at in range(0, len(names), _BATCH):
            yield await registry.states(names[at : at + _BATCH])


async def _check_blob(
    registry: Registry, version: Version, size: int, deep: bool
) -> Problem | None:
    if not size:
        # Places are asked one after the other, and a blob may have moved meanwhile.
        (size,) = await registry.blobs.stored_sizes([version.file_digest])
    if not size:
        return _blob_problem(version.model, "blob_missing", "has no blob")
    if size != version.bytes:
        return _blob_problem(version.model, "blob_damaged", f"has {size} of {version.bytes} bytes")
    why = await _damage(registry, version) if deep else ""
    return _blob_problem(version.model, "blob_damaged", why) if why else None


def _unreadable(state: NameState) -> list[Problem]:
    key = versions_key(f"{state.tenant}/{state.name}")
    return [
        Problem(
            "version_unreadable",
            f"{state.name}@{digest[:DIGEST_SHOWN]} cannot be read by this build",
            f"if a newer build wrote it, upgrade to that one; else delete the field {digest} of "
            f"{key} in Redis, and upload the mask again",
        )
        for digest in state.unreadable
    ]


def _files_named(texts: Mapping[str, str]) -> set[bytes]:
    """Digests in texts of versions that this build cannot read: their files must stay, too."""
    return {raw(digest) for text in texts.values() for digest in _DIGEST.findall(text)}


def _dangling(state: NameState) -> list[Problem]:
    pointers = {f":{alias}": digest for alias, digest in state.aliases.items()}
    if state.latest:
        pointers[""] = state.latest
    for alias, split in state.splits.items():
        for part, target in (("canary", split.canary), ("shadow", split.shadow)):
            if target is not None:
                pointers[f":{alias} ({part})"] = target.digest
    return [
        Problem(
            "dangling",
            f"{state.tenant}/{state.name}{alias} points at {digest[:12]}, which is not there",
            "upload the mask again, or move the alias; `bmt-client rollback` ends a canary",
        )
        for alias, digest in pointers.items()
        if digest not in state.versions and digest not in state.unreadable
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


async def _orphans(registry: Registry, wanted: set[bytes]) -> AsyncIterator[dict[str, int]]:
    """Yield pages of blobs that are not in `wanted`: file digest -> bytes."""
    async for digests in registry.blobs.pages():
        orphans = [digest for digest in digests if raw(digest) not in wanted]
        if orphans:
            yield dict(zip(orphans, await registry.blob_sizes(orphans), strict=True))


async def collect_orphans(
    registry: Registry,
    *,
    min_age_s: float = 3600.0,
    dry_run: bool = False,
    strays: bool = False,
    urgent: bool = False,
) -> OrphanReport:
    """Remove blobs that have been orphans for `min_age_s` seconds; record new orphans.

    strays: look for objects that Redis does not know, too, which lists the whole object store.
    urgent: a store is full, so objects that are in no use go at once.
    Raises RegistryDown, BlobsDown, and Unavailable if the registry changes too often for a safe
    removal.
    """
    quick = registry.connection.quick
    removed = freed = 0
    changes = Changes(registry)
    await changes.start()
    if strays and not dry_run:
        await registry.blobs.find_strays()
    for _ in range(_ATTEMPTS):
        wanted = await _wanted(registry)
        full = not dry_run and await _is_full(registry)
        seen = {
            k.decode(): float(v)
            for k, v in (await registry.connection.call(lambda: quick.hgetall(ORPHANS))).items()
        }
        orphans = {d: size async for page in _orphans(registry, wanted) for d, size in page.items()}
        if not dry_run and not full:
            await _record_orphans(registry, seen, orphans)
        now = time.time()
        due = [d for d in orphans if full or now - seen.get(d, now) >= min_age_s]
        loose = await registry.blobs.loose()
        if dry_run:
            return OrphanReport(
                len(orphans) + loose.blobs, 0, sum(orphans[d] for d in due) + loose.bytes
            )
        for digest in due:
            gone = await remove_orphan(registry, changes, digest, seen.get(digest))
            if gone is None:
                break  # changes are not known any more: find the orphans again
            removed, freed = removed + gone.blobs, freed + gone.bytes
        else:
            gone = await registry.blobs.remove_loose(0 if urgent else min_age_s)
            return OrphanReport(
                len(orphans) + loose.blobs, removed + gone.blobs, freed + gone.bytes
            )
        await changes.start()
    raise Unavailable(
        f"the registry changed during each of {_ATTEMPTS} attempts; try again when fewer masks are "
        "published",
        code="registry_busy",
    )


async def remove_orphan(
    registry: Registry, changes: Changes, digest: str, since: float | None = None
) -> Removed | None:
    """Remove a blob of which no version is known; nothing if one of the changes since names it.

    since: time from which it was without a version, seconds since 1970; None: now. None if changes
    cannot be followed. A change between the look at them and the removal makes the script do
    nothing, and they are looked at again.
    """
    for _ in range(_REMOVALS):
        files = await changes.files()
        if files is None:
            return None
        if raw(digest) in files:
            return Removed()
        if gone := await registry.blobs.remove(digest, changes.generation, since):
            return gone
    return None


async def _wanted(registry: Registry) -> set[bytes]:
    """File digests that versions name. `Changes` has those of a change meanwhile."""
    wanted: set[bytes] = set()
    async for states in _states(registry):
        for state in states:
            wanted.update(entry.file_digest for entry in state.versions.entries())
            wanted |= _files_named(state.unreadable)
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
