"""Blobs of a registry: the bytes of mask files by digest, wherever they are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bmt_server.ipc.blob import StoredObject


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that are stored and await their publication, by PUBLISH of `registry/lua.py`.

    written: the object with them; None if Redis or an object in use has them. replaces: a damaged
    object that `written` takes the place of. place: URL where blobs are written; empty for Redis.
    """

    place: str = ""
    written: StoredObject | None = None
    replaces: StoredObject | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blobs that are gone, and the bytes that this freed."""

    blobs: int = 0
    bytes: int = 0


class Blobs(Protocol):
    """Place of a registry's blobs: in Redis alone, or in an object store too.

    A digest is the SHA-256 of a file, 64 hex digits. All methods raise RegistryDown if Redis does
    not answer, and BlobsDown if the object store does not.
    """

    async def check(self) -> None:
        """Compare this server's place for blobs with the one that the registry records.

        Raises Unavailable (`blobs_elsewhere`) if they differ.
        """

    async def open(self) -> None:
        """Make sure that the place belongs to this registry. Raises Unavailable."""

    async def stage(self, digest: str, data: bytes) -> Staged:
        """Store bytes that a version will name. Raises RegistryFull, Unavailable."""

    async def discard(self, staged: Staged) -> None:
        """Remove bytes that are not published after all, as far as that works now."""

    async def read(self, digest: str, size: int) -> bytearray:
        """Read a file's bytes without hashing them. Raises NotFound.

        size: as stated by the version; a blob of another size is damaged, and its hash differs.
        """

    async def sizes(self, digests: Sequence[str]) -> list[int]:
        """Sizes in bytes as Redis knows them; 0 for blobs that do not exist."""

    async def stored_sizes(self, digests: Sequence[str]) -> list[int]:
        """Sizes in bytes of what is there; 0 for blobs that do not exist."""

    def pages(self) -> AsyncIterator[list[str]]:
        """Digests of all blobs, in pages; a digest may come twice."""

    async def remove(self, digest: str, generation: int, since: float | None) -> Removed | None:
        """Remove a blob that no version names; None if the registry changed since a generation.

        since: time from which it was without a version, seconds since 1970; None: now.
        """

    async def loose(self) -> Removed:
        """Objects that no record names, such as those of uploads that ended half-way."""

    async def remove_loose(self, min_age_s: float) -> Removed:
        """Remove objects that have had no record for some seconds."""

    async def find_strays(self) -> int:
        """Note objects of the place that Redis does not know; `remove_loose` removes them."""
