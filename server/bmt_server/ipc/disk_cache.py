"""Laid-out masks on local disk: content-addressed, bounded in bytes, least recently used first out.

One file a mask, named by its digest; the time of its last use is its mtime, so it survives
restarts. Several processes may share a folder. What one of them is using is locked: a shared lock
on one byte of the folder's lock file, at a place that the digest gives. The kernel lets go of it
however that process ends, and a process that evicts asks for the same byte alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import bmt_core

from bmt_server.ipc.mask_layout import SUFFIX, TEMPORARY, write_layout

logger = logging.getLogger("vllm.bmt_server")

_LOCK_FILE = "lock"
# Beyond every digest's place: held by the one process that evicts.
_EVICTOR = 1 << 62
# Where the locks of those lie who make a file, beside the locks of those who use it.
_MAKER = 1 << 61
# A round of eviction frees this share of the bound, so that rounds, which read the whole folder,
# are rare.
_HEADROOM = 10
# After this share of the bound was added the folder is measured anew: others add to it too.
_MEASURE = 16
# Writing a mask takes well under a second; what is older was left by a process that died.
_ABANDONED_S = 60.0
# How exact the time of last use is. Exact times would be a write to the disk a request.
_TOUCH_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskError(Exception):
    """The cache folder cannot take a mask; the message names folder, reason and fix."""


class DiskFull(DiskError):
    """There is no room on the file system, and nothing more that the cache may delete."""


@dataclass(slots=True)
class _Hold:
    count: int
    touched: float  # time.monotonic()


class DiskCache:
    """A folder of laid-out masks. Safe to use from several threads and processes.

    bound_bytes: what the files may take together. Files in use stay, even past it.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self.folder = folder
        self.bound_bytes = bound_bytes
        self.evictions = 0
        self._held: dict[str, _Hold] = {}
        self._mutex = threading.Lock()
        # Beside the file's lock, which does not part the threads of one process.
        self._tidying = threading.Lock()
        # What may be added before the folder is measured again. Never measured: nothing.
        self._room = -1
        # Where what is in use takes more than the bound, releases make room that is wanted.
        self._over = False
        self._releases = 0
        self._added = 0
        folder.mkdir(parents=True, exist_ok=True)
        # Opened once: closing any other handle of this file would drop this process's locks.
        self._lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @staticmethod
    def name(digest: str) -> str:
        """The file name of the mask with this digest."""
        return digest + SUFFIX

    def path(self, digest: str) -> Path:
        """Where the mask with this digest lies, or would."""
        return self.folder / self.name(digest)

    def hold(self, digest: str) -> bool:
        """Keep a mask's file, there or yet to come, from eviction. True where it is there.

        Counted: each `hold` needs its `release`.
        """
        with self._mutex:
            hold = self._held.get(digest)
            if hold is None:
                fcntl.lockf(self._lock, fcntl.LOCK_SH, 1, _lock_offset(digest))
                hold = self._held[digest] = _Hold(0, 0.0)
            hold.count += 1
        return self._touch(digest, hold)

    def release(self, digest: str) -> None:
        """End one hold; what nobody holds may be evicted, the least recently used first."""
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
        """Note that a held mask was used now; at most one write a minute and mask."""
        hold = self._held.get(digest)
        if hold is not None and time.monotonic() - hold.touched > _TOUCH_S:
            self._touch(digest, hold)

    def store(self, mask: bmt_core.Mask) -> Path:
        """Lay a mask out in the folder. Raises DiskError.

        Hold its digest meanwhile, or it may be evicted before it is used. Only a full disk is
        made room on at once; call `trim` when `needs_trim`.
        """
        path = self.path(mask.digest)
        try:
            size = self._write(mask, path)
        except OSError as error:
            raise DiskError(
                f"the mask cache {self.folder} cannot be written ({error.strerror}); mend it or "
                "choose another --data-dir"
            ) from None
        with self._mutex:
            self._added += size
            self._room -= size
        return path

    @property
    def needs_trim(self) -> bool:
        """True where so much was added that the folder may be beyond its bound."""
        return self._room < 0

    def delete(self, digest: str) -> None:
        """Delete a mask's file, in use or not: who mapped it keeps the mapping."""
        with suppress(OSError):
            self.path(digest).unlink(missing_ok=True)

    def trim(self, free_bytes: int = 0) -> None:
        """Measure the folder, evict what is beyond the bound, delete what dead writers left.

        free_bytes: evict at least so much, whatever the bound. One process at a time; where
        another is at it, returns at once.
        """
        if not self._tidying.acquire(blocking=False):
            return
        try:
            with self._try_lock(_EVICTOR) as mine:
                if mine:
                    self._trim(free_bytes)
        finally:
            self._tidying.release()

    def _trim(self, free_bytes: int) -> None:
        releases, added = self._releases, self._added
        files = self._files()
        total = sum(size for _, size, _ in files)
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
            # Where all that is left is in use, there is no sense in looking again at once.
            self._over = left < 0
            # What was added meanwhile may not have been seen.
            self._room = (share if self._over else min(left, share)) - (self._added - added)
            if self._over and releases != self._releases:
                self._room = -1

    @contextmanager
    def write_lock(self, digest: str, patience_s: float) -> Iterator[None]:
        """Within, no other process makes this mask's file: wait for one that does, and look again.

        After patience_s seconds returns all the same; two that make one file do no harm.
        """
        deadline = time.monotonic() + patience_s
        while True:
            with self._try_lock(_MAKER + _lock_offset(digest)) as mine:
                if mine or time.monotonic() > deadline:
                    yield
                    return
            time.sleep(0.005)

    @property
    def nbytes(self) -> int:
        """Bytes of all masks in the folder, as on disk now."""
        return sum(size for _, size, _ in self._files())

    def close(self) -> None:
        """Let go of everything held."""
        os.close(self._lock)

    def _touch(self, digest: str, hold: _Hold) -> bool:
        hold.touched = time.monotonic()
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        except OSError:
            return self.path(digest).exists()  # a read-only folder: recency is lost, masks are not
        return True

    def _write(self, mask: bmt_core.Mask, path: Path) -> int:
        try:
            return write_layout(mask, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
        # Others fill this disk too: give back some of what is ours.
        self.trim(free_bytes=max(self.bound_bytes // _HEADROOM, 16 * mask.zeros))
        try:
            return write_layout(mask, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFull(
                f"no room on the disk of {self.folder} for mask {mask.digest[:12]}…, and no mask "
                "there that is not in use; free some, or move --data-dir to a larger disk"
            ) from None

    def _files(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, digest) of every mask in the folder; what dead writers left goes."""
        found = []
        now = time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith(SUFFIX):
                        digest = entry.name.removesuffix(SUFFIX)
                        found.append((status.st_mtime, status.st_size, digest))
                    elif entry.name.startswith(TEMPORARY) and now - status.st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)
        return found

    def _evict(self, digest: str) -> bool:
        # Under the mutex, for locks of one process do not conflict with each other.
        with self._mutex:
            if digest in self._held:
                return False
            with self._try_lock(_lock_offset(digest)) as mine:
                if not mine:
                    return False
                try:
                    self.path(digest).unlink(missing_ok=True)
                except OSError as error:
                    logger.warning("Mask cache: %s cannot be deleted: %s", digest[:12], error)
                    return False
        self.evictions += 1
        return True

    @contextmanager
    def _try_lock(self, place: int) -> Iterator[bool]:
        """True within where no other process has a lock on this byte of the lock file."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)


def _lock_offset(digest: str) -> int:
    """This digest's byte in the lock file: 60 bits of it, so no two masks meet."""
    return int(digest[:15], 16)
