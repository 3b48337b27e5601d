"""Registry blobs: key, ranges to read, and the checks that turn fetched bytes into a mask.

A blob is a value of Redis at `blob_key`, or an object of an object store. Redis has a record of
each object in the hash `OBJECTS`: file digest, 32 bytes -> "<size>|<mark>". The mark is new for
each write, so an object that was given up is never the one that an upload of the same bytes writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import bmt_core

from bmt_server.ipc.mask_source import MaskSource

# Hash tag of all registry keys, so that a script may use several of them on a Redis cluster.
PREFIX = "{bmt}:"
OBJECTS = PREFIX + "objects"


class BlobError(Exception):
    """A blob cannot be served; the message names the blob, the reason and the fix.

    code: `blob_damaged` if the bytes do not match their digest, `mask_unusable` if they match but
    are not a mask of the served base.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def blob_key(file_digest: str) -> str:
    """Redis key of a file's bytes. file_digest: SHA-256, 64 hex digits."""
    return f"{PREFIX}blob:{file_digest}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object with the bytes of a file. size: in bytes; mark: 16 hex digits."""

    file_digest: str
    size: int
    mark: str

    @classmethod
    def parse(cls, file_digest: str, record: bytes | None) -> StoredObject | None:
        """The object of a record in `OBJECTS`; None if there is none."""
        if record is None:
            return None
        size, _, mark = record.decode().partition("|")
        return cls(file_digest, int(size), mark)

    @property
    def record(self) -> str:
        return f"{self.size}|{self.mark}"

    @property
    def member(self) -> str:
        """Name without folders, as records of objects in no use have it."""
        return f"{self.file_digest}-{self.mark}"

    @property
    def name(self) -> str:
        return object_name(self.member)


def object_name(member: str) -> str:
    """Name of an object in its store. member: <file digest>-<mark>."""
    return f"blobs/{member[:2]}/{member}"


def blob_ranges(data: bytearray, size: int, chunk: int) -> Iterator[tuple[int, int]]:
    """GETRANGE arguments that read a blob in pieces; the caller appends each reply to `data`.

    Ends after `size` bytes, or after an empty reply: the blob is missing or shorter than expected.
    chunk: bytes per piece.
    """
    while (start := len(data)) < size:
        yield start, start + chunk - 1
        if len(data) == start:
            return


def decode_blob(
    data: bytearray, source: MaskSource, fingerprint: str, limits: bmt_core.Limits
) -> bmt_core.Mask:
    """Verify and decode the blob of a mask. Raises BlobError.

    source: the expected digests; fingerprint: of the served base. Releases the GIL for most of its
    time.
    """
    if hashlib.sha256(data).hexdigest() != source.file_digest:
        raise BlobError(
            f"blob {source.file_digest[:12]}… in the registry is damaged; upload the mask again",
            "blob_damaged",
        )
    try:
        mask = bmt_core.decode(memoryview(data), limits=limits, expect_base=fingerprint)
    except bmt_core.BmtError as error:
        raise BlobError(
            f"mask {source.digest[:12]}… in the registry cannot be served here: {error}",
            "mask_unusable",
        ) from None
    if mask.digest != source.digest:
        raise BlobError(
            f"blob {source.file_digest[:12]}… in the registry holds mask {mask.digest[:12]}… and "
            f"not {source.digest[:12]}…; upload the mask again",
            "blob_damaged",
        )
    return mask
