"""Cold path of a mask: registry blob -> verified mask -> laid-out file in the disk cache.

API processes and workers share this implementation. Only the fetch differs, and the caller supplies
it: asynchronous in an API process, blocking in a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bmt_core

from bmt_server.ipc.blob import decode_blob
from bmt_server.ipc.disk_cache import DiskCache
from bmt_server.ipc.mask_layout import Layout, LayoutError, LayoutNotFound, map_layout
from bmt_server.ipc.mask_source import MaskSource


def map_cached(folder: Path, source: MaskSource) -> Layout:
    """Map a mask's file in a cache folder. Raises LayoutNotFound, or LayoutError if damaged."""
    path = folder / DiskCache.name(source.digest)
    layout = map_layout(path)
    if layout.digest != source.digest:
        raise LayoutError(f"{path} holds mask {layout.digest[:12]}…; delete it")
    return layout


class ColdPath:
    """Creates the laid-out files of one base model in a disk cache. Safe to use from threads.

    fingerprint, limits: of the served base.
    """

    def __init__(self, disk: DiskCache, fingerprint: str, limits: bmt_core.Limits) -> None:
        self.disk = disk
        self._fingerprint = fingerprint
        self._limits = limits

    def install(self, source: MaskSource, blob: bytearray) -> None:
        """Verify a fetched blob and write its laid-out file.

        Writes nothing unless bytes, format, base and digest are those of `source`. Hold the digest
        meanwhile (`DiskCache.hold`), or map the file at once: it may be evicted. Does not trim the
        cache. Raises BlobError, DiskFull, DiskError.
        """
        self.disk.store(decode_blob(blob, source, self._fingerprint, self._limits))

    def open(
        self, source: MaskSource, fetch: Callable[[MaskSource], bytearray], timeout_s: float
    ) -> Layout:
        """Map a mask's file; fetch and install it first if it is missing or damaged.

        Of several processes that want the same mask, one fetches and the others map its file; after
        `timeout_s` seconds they fetch for themselves. Raises BlobError, DiskFull, DiskError,
        LayoutError, and the errors of `fetch`.
        """
        try:
            return map_cached(self.disk.folder, source)
        except LayoutNotFound:
            pass
        except LayoutError:
            self.disk.delete(source.digest)
        with self.disk.write_lock(source.digest, timeout_s):
            try:
                return map_cached(self.disk.folder, source)
            except LayoutError:
                self.install(source, fetch(source))
            # Before the trim, which may evict the file: a mapping stays valid.
            layout = map_cached(self.disk.folder, source)
            if self.disk.needs_trim:
                self.disk.trim()
            return layout
