"""The rows of a job on this disk: its file as it arrives, and the data set that is made of it.

Neither is ever whole in memory: what is held is a piece, and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bmt_trainer.jobs.connection import Connection, Refused, TooLarge
from bmt_trainer.jobs.job import TrainingJob, rows_of

# Servers take rows of 1 MiB.
_MAX_ROW_BYTES = 4 << 20


def fetch(
    api: Connection,
    job: TrainingJob,
    target: Path,
    most: int,
    stopped: Callable[[], bool],
    which: str = "training",
) -> None:
    """Write the rows of one of a job's files to `target`, whole or not at all. most: its bytes.

    stopped: true once they are not wanted any more. Raises Refused for rows that cannot be read,
    Unreachable, LeaseLost, TooLarge and OSError.
    """
    arrived, made = (target.with_name(f".{target.name}.{end}") for end in ("part", "tmp"))
    try:
        with arrived.open("wb") as file:
            size = 0
            for piece in api.training_file(job, which):
                size += len(piece)
                if size > most:
                    raise TooLarge(
                        f"the {which} file has more than {most} bytes, the most that this worker "
                        "takes (--max-file-mib)"
                    )
                if stopped():
                    return
                file.write(piece)
        with arrived.open("rb") as source, made.open("w", encoding="utf-8") as rows:
            _convert(job, source, rows.write, stopped, which)
        if not stopped():
            made.replace(target)
    finally:
        arrived.unlink(missing_ok=True)
        made.unlink(missing_ok=True)


def _convert(
    job: TrainingJob,
    source: BinaryIO,
    write: Callable[[str], object],
    stopped: Callable[[], bool],
    which: str,
) -> None:
    try:
        for row in rows_of(job.method, _lines(source)):
            if stopped():
                return
            write(row)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # The job's fault: an error that ends this worker would end all of them in turn.
        raise Refused(
            f"the {which} file has a row that cannot be read ({type(error).__name__}: "
            f"{str(error)[:120]}); upload it again"
        ) from None


def _lines(source: BinaryIO) -> Iterator[bytes]:
    while line := source.readline(_MAX_ROW_BYTES + 1):
        if len(line) > _MAX_ROW_BYTES:
            raise ValueError(f"longer than {_MAX_ROW_BYTES} bytes")
        yield line
