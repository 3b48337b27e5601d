"""The objects of a batch: its input, the parts of its answers, and its two files.

A part is a few answers in one object below `<tenant>/parts/`, its lines `<index> <1 or 0> <row>`.
A server that takes a batch over reads the parts, and answers the lines that are in none.
The files are written from the parts, in the order of the input, each line once.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from bmt_server.api.batches.lines import Lines
from bmt_server.errors import NotFound
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.registry.batches.record import Batch, Part
from bmt_server.registry.batches.store import BatchStore
from bmt_server.registry.files.record import BATCH_OUTPUT, FileRecord
from bmt_server.registry.files.store import FileStore

logger = logging.getLogger("vllm.bmt_server")

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file. index: of its line."""

    index: int
    ok: bool
    text: bytes


@dataclass
class Kept:
    """The parts of a batch in one file: where the row of each line is, and if it is an answer.

    lost: rows of parts that cannot be read.
    """

    file: BinaryIO
    lost: int = 0
    rows: dict[int, tuple[int, int, bool]] = field(default_factory=dict)

    def add(self, data: bytes) -> None:
        """Append a part."""
        at = self.file.seek(0, io.SEEK_END)
        self.file.write(data)
        for line in data.splitlines(keepends=True):
            index, ok, _ = line.split(b" ", 2)
            start = len(index) + len(ok) + 2
            # A line counts once, whatever is there.
            self.rows.setdefault(int(index), (at + start, len(line) - start, ok == b"1"))
            at += len(line)

    def row(self, index: int) -> bytes:
        at, size, _ = self.rows[index]
        self.file.seek(at)
        return self.file.read(size)


async def read_input(store: FileStore, batch: Batch, file: BinaryIO) -> None:
    """Write the input to a file. Raises NotFound, and BlobsDown: `file_damaged` if it is."""
    record = await store.get(batch.tenant, batch.input_file)
    async for piece in store.read(record):
        await asyncio.to_thread(file.write, piece)
    await asyncio.to_thread(file.flush)


async def keep(objects: ObjectStore, batch: Batch, rows: Sequence[Row], name: str) -> Part:
    """Write a part."""
    data = b"".join(b"%d %d %b" % (row.index, row.ok, row.text) for row in rows)
    await objects.put(_place(batch, name), data)
    return Part(
        name=name,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        lines=len(rows),
        failed=sum(not row.ok for row in rows),
    )


def new_name() -> str:
    """A random name of a part: who writes without its lease writes over nothing."""
    return secrets.token_hex(12)


async def read_parts(
    objects: ObjectStore, batch: Batch, parts: Sequence[Part], file: BinaryIO
) -> Kept:
    """All parts, without those that are damaged or missing."""
    kept = Kept(file)
    for part in parts:
        try:
            data = await objects.get(_place(batch, part.name), part.bytes)
        except SizeDiffers:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != part.sha256:
            kept.lost += part.lines
            logger.error("The bytes of %s are damaged or missing.", _place(batch, part.name))
            continue
        await asyncio.to_thread(kept.add, bytes(data))
    return kept


async def remove_parts(objects: ObjectStore, store: BatchStore, batch: Batch) -> None:
    """Remove all parts of a batch that has ended, those too that were written and not counted.

    So are those of its tenant's others that have ended: a server that dies in between leaves them.
    """
    ended = {batch.id: True}
    async for page in objects.pages(_folder(batch)):
        gone = []
        for name in page:
            batch_id = name.rpartition("/")[2].partition("-")[0]
            if batch_id not in ended:
                found = await store.find(batch_id)
                # One that cannot be read may be a newer server's.
                ended[batch_id] = found is not None and found.ended
            if ended[batch_id]:
                gone.append(name)
        if gone:
            await objects.delete(gone)


def write_rows(
    kept: Kept,
    lines: Lines | None,
    output: BinaryIO,
    errors: BinaryIO,
    unanswered: Callable[[int, str], bytes],
) -> tuple[int, int]:
    """Write the rows of both files, and return their numbers; for a thread.

    lines: of the input, of which each has one row; None if it is gone. unanswered: the row of a
    line without an answer, by its index and custom_id.
    """
    numbers = [0, 0]
    for index in range(len(lines)) if lines is not None else sorted(kept.rows):
        ok = index in kept.rows and kept.rows[index][2]
        if index in kept.rows:
            text = kept.row(index)
        else:
            assert lines is not None
            text = unanswered(index, lines.custom_id(index))
        (output if ok else errors).write(text)
        numbers[0 if ok else 1] += 1
    for file in (output, errors):
        file.flush()
    return numbers[0], numbers[1]


async def publish(
    store: FileStore, batch: Batch, file_id: str, name: str, file: BinaryIO, rows: int
) -> None:
    """Keep a file of answers as the tenant's, unless it is there. Raises PayloadTooLarge."""
    try:
        await store.get(batch.tenant, file_id)
    except NotFound:
        size, digest = await asyncio.to_thread(_measured, file)
        record = FileRecord(
            id=file_id,
            tenant=batch.tenant,
            filename=f"{batch.id}_{name}.jsonl",
            bytes=size,
            created_at=batch.finalizing_at or batch.created_at,
            sha256=digest,
            rows=rows,
            form=None,
            purpose=BATCH_OUTPUT,
        )
        await store.add(record, file)


def _measured(file: BinaryIO) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    file.seek(0)
    return size, digest.hexdigest()


def _place(batch: Batch, name: str) -> str:
    return f"{_folder(batch)}/{batch.id}-{name}"


def _folder(batch: Batch) -> str:
    return f"{batch.tenant}/parts"
