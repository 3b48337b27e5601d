"""Disk cache of laid-out masks: content-addressed, bounded in bytes, LRU.

One file per mask, named by its digest. The time of its last use is its mtime and so survives
restarts. Several processes may share a folder. A process that uses a mask holds a shared lock on
one byte of the folder's lock file, at an offset derived from the digest. The kernel releases the
lock however the process ends, and a process that evicts needs an exclusive lock on the same byte.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import bmt_core

from bmt_server.ipc.mask_layout import SUFFIX, TEMPORARY, write_layout

logger = logging.getLogger("vllm.bmt_server")

_LOCK_FILE = "lock"
# Lock offset, beyond those of all digests, of the process that evicts.
_EVICTOR = 1 << 62
# Added to a digest's lock offset for the lock of the process that creates its file.
_WRITER = 1 << 61
# A trim frees 1 / _HEADROOM of the bound, so that trims, which read the whole folder, are rare.
_HEADROOM = 10
# The folder is measured again after 1 / _MEASURE of the bound was added: others add to it too.
_MEASURE = 16
# Writing a mask takes well under a second, so an older temporary file is left from a crash.
_ABANDONED_S = 60.0
# Resolution of the time of last use. A higher one would cost a disk write per request.
_TOUCH_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskError(Exception):
    """The cache folder cannot store a mask; the message names folder, reason and fix."""


class DiskFull(DiskError):
    """The file system is full, and all files of the cache are in use."""


@dataclass(slots=True)
class _Hold:
    count: int
    touched: float  # time.monotonic()


class DiskCache:
    """Folder of laid-out masks. Safe to use from several threads and processes.

    bound_bytes: limit on the sum of file sizes, uploads that arrive in the folder among them. Files
    in use stay even if they exceed it.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self.folder = folder
        self.bound_bytes = bound_bytes
        self.evictions = 0
        self._held: dict[str, _Hold] = {}
        self._mutex = threading.Lock()
        # In addition to the file lock, which does not exclude threads of the same process.
        self._trimming = threading.Lock()
        # Bytes that may be added before the folder is measured again. Not measured yet: none.
        self._room = -1
        # True if files in use exceed the bound, so that a release calls for another trim.
        self._over = False
        self._releases = 0
        self._added = 0
        # Bytes of this process's uploads in the folder, which have no names there.
        self._uploads = 0
        folder.mkdir(parents=True, exist_ok=True)
        # Opened once: closing any other handle of this file would drop this process's locks.
        self._lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @staticmethod
    def name(digest: str) -> str:
        """The file name of the mask with this digest."""
        return digest + SUFFIX

    def path(self, digest: str) -> Path:
        """Path of the mask with this digest, which may not exist."""
        return self.folder / self.name(digest)

    def hold(self, digest: str) -> bool:
        """Protect a mask's file, existing or not, from eviction. Returns True if it exists.

        Counted: each `hold` needs a `release`.
        """
        with self._mutex:
            hold = self._held.get(digest)
            if hold is None:
                fcntl.lockf(self._lock, fcntl.LOCK_SH, 1, _lock_offset(digest))
                hold = self._held[digest] = _Hold(0, 0.0)
            hold.count += 1
        return self._touch(digest, hold)

    def release(self, digest: str) -> None:
        """End one hold. A file without holds may be evicted, least recently used first."""
        with self._mutex:
            hold = self._held[digest]
            hold.count -= 1
            if hold.count:
                return
            del self._held[digest]
            with suppress(OSError):
                os.utime(self.path(digest))
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, _lock_offset(digest))
            self._releases += 1
            if self._over:
                self._room = -1

    def mark_used(self, digest: str) -> None:
        """Update a held mask's time of last use, with at most one disk write per minute."""
        hold = self._held.get(digest)
        if hold is not None and time.monotonic() - hold.touched > _TOUCH_S:
            self._touch(digest, hold)

    def store(self, mask: bmt_core.Mask) -> Path:
        """Write a mask's laid-out file. Raises DiskError.

        Hold its digest meanwhile, or it may be evicted before it is used. Evicts only if the disk
        is full; call `trim` if `needs_trim`.
        """
        path = self.path(mask.digest)
        try:
            size = self._write(mask, path)
        except OSError as error:
            raise DiskError(
                f"the mask cache {self.folder} cannot be written ({error.strerror}); make it "
                "writable or choose another --data-dir"
            ) from None
        with self._mutex:
            self._added += size
            self._room -= size
        return path

    @contextmanager
    def uploads(self) -> Iterator[Callable[[int], None]]:
        """Files without names in the folder, for as long as the block lasts.

        Call the yielded function with each number of bytes that is added to them: masks make room.
        """
        arrived = 0

        def add(size: int) -> None:
            nonlocal arrived
            with self._mutex:
                arrived += size
                self._uploads += size
                self._room -= size

        try:
            yield add
        finally:
            with self._mutex:
                self._uploads -= arrived
                self._room += arrived

    @property
    def needs_trim(self) -> bool:
        """True if enough was added that the folder may exceed its bound."""
        return self._room < 0

    def delete(self, digest: str) -> None:
        """Delete a mask's file even if it is in use: existing mappings stay valid."""
        with suppress(OSError):
            self.path(digest).unlink(missing_ok=True)

    def trim(self, free_bytes: int = 0) -> None:
        """Measure the folder, evict files beyond the bound, delete files left by dead writers.

        free_bytes: evict at least this much regardless of the bound. Returns at once if another
        thread or process is trimming.
        """
        if not self._trimming.acquire(blocking=False):
            return
        try:
            with self._try_lock(_EVICTOR) as locked:
                if locked:
                    self._trim(free_bytes)
        finally:
            self._trimming.release()

    def _trim(self, free_bytes: int) -> None:
        releases, added, uploads = self._releases, self._added, self._uploads
        files = self._files()
        total = sum(size for _, size, _ in files) + uploads
        target = self.bound_bytes
        if total > target:
            target -= target // _HEADROOM
        target = min(target, total - free_bytes)
        for _, size, digest in sorted(files):
            if total <= target:
                break
            if self._evict(digest):
                total -= size
        share, left = self.bound_bytes // _MEASURE, self.bound_bytes - total
        with self._mutex:
            # If all remaining files are in use, measuring again at once is useless.
            self._over = left < 0
            # Files added meanwhile may not have been measured.
            came = self._added - added + self._uploads - uploads
            self._room = (share if self._over else min(left, share)) - came
            if self._over and releases != self._releases:
                self._room = -1

    @contextmanager
    def write_lock(self, digest: str, timeout_s: float) -> Iterator[None]:
        """Exclude other processes from creating this mask's file. Check for the file again inside.

        Enters without the lock after `timeout_s` seconds; two processes that create the same file
        do no harm. Does not exclude threads of the same process.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._try_lock(_WRITER + _lock_offset(digest)) as locked:
                if locked or time.monotonic() > deadline:
                    yield
                    return
            time.sleep(0.005)

    @property
    def nbytes(self) -> int:
        """Bytes of all masks in the folder, measured now."""
        return sum(size for _, size, _ in self._files())

    def close(self) -> None:
        """Release all holds."""
        os.close(self._lock)

    def _touch(self, digest: str, hold: _Hold) -> bool:
        hold.touched = time.monotonic()
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        except OSError:
            return self.path(digest).exists()  # a read-only folder: only recency is lost
        return True

    def _write(self, mask: bmt_core.Mask, path: Path) -> int:
        try:
            return write_layout(mask, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
        # Others use this disk too: free some of the cache's share.
        self.trim(free_bytes=max(self.bound_bytes // _HEADROOM, 16 * mask.zeros))
        try:
            return write_layout(mask, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFull(
                f"no room on the disk of {self.folder} for mask {mask.digest[:12]}…, and all masks "
                "there are in use; free some space, or move --data-dir to a larger disk"
            ) from None

    def _files(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, digest) of all masks in the folder. Deletes files of dead writers."""
        files = []
        now = time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith(SUFFIX):
                        digest = entry.name.removesuffix(SUFFIX)
                        files.append((status.st_mtime, status.st_size, digest))
                    elif entry.name.startswith(TEMPORARY) and now - status.st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)
        return files

    def _evict(self, digest: str) -> bool:
        # Under the mutex, because locks of one process do not conflict with each other.
        with self._mutex:
            if digest in self._held:
                return False
            with self._try_lock(_lock_offset(digest)) as locked:
                if not locked:
                    return False
                try:
                    self.path(digest).unlink(missing_ok=True)
                except OSError as error:
                    logger.warning("Mask cache: %s cannot be deleted: %s", digest[:12], error)
                    return False
        self.evictions += 1
        return True

    @contextmanager
    def _try_lock(self, offset: int) -> Iterator[bool]:
        """Lock one byte of the lock file exclusively. Yields False if another process has it."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, offset)


def _lock_offset(digest: str) -> int:
    """Byte of a digest in the lock file: its first 60 bits, so that collisions are negligible."""
    return int(digest[:15], 16)
