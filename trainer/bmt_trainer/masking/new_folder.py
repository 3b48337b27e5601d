"""A folder that comes into being whole: written next to its place under a lock, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bmt_trainer.errors import OutputError

# Errors of a file system without room: the disk, a quota, the largest file of the process.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_place(target: Path, model: Path) -> Path:
    """The real path of a folder to write, which must not exist or be empty. Raises OutputError.

    It must be apart from `model`, by its name and by every other way that leads there: links,
    `..` and bind mounts. Nothing is made.
    """
    try:
        return _checked(target, model)
    except OSError as error:
        raise OutputError(f"{target} cannot be used ({error.strerror or error})") from None


def _checked(target: Path, model: Path) -> Path:
    place = Path(os.path.realpath(target))
    _check_apart(target, place, model)
    if os.path.lexists(target) and not target.exists():
        raise OutputError(f"{target} is a link to nothing; name a folder")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(f"{target} exists and is not empty; choose another folder or remove it")
    if os.path.ismount(place):
        raise OutputError(_mount(target))
    return place


def _check_apart(target: Path, place: Path, model: Path) -> None:
    # Bind mounts show a folder under another path, and keep its identity.
    inside = {_identity(model), *(_identity(Path(f)) for f, _, _ in os.walk(model))}
    named = Path(os.path.abspath(target))
    ways = [p for p in (place, *place.parents, named, *named.parents) if p.exists()]
    if any(_identity(p) in inside for p in ways):
        raise OutputError(f"{target} is the model's folder {model}, or in it; name one outside")
    above = {_identity(p) for p in Path(os.path.realpath(model)).parents}
    if place.is_dir() and _identity(place) in above:
        raise OutputError(f"{target} holds the model {model}; name a folder next to it")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _mount(target: Path) -> str:
    return f"{target} is a mount point, which a finished folder cannot replace; name one in it"


@contextmanager
def new_folder(target: Path, place: Path, size: int) -> Iterator[Path]:
    """Yield a scratch folder, which becomes `place` when the block ends; an error leaves nothing.

    target: the name of `place` that the user gave; size: bytes that the block writes. One process
    at a time writes a place; the scratch folder of one that was killed is removed by the next.
    Raises OutputError, for an OSError of the block too.
    """
    missing = [p for p in place.parents if not p.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = place.parent / _scratch_name(place)
        with _held(scratch, target):
            free = shutil.disk_usage(scratch).free
            if free < size:
                raise OutputError(
                    f"{target} takes {size:,} bytes, and its disk has {free:,} free; make room, or "
                    "name a folder on another disk"
                )
            work = scratch / "model"
            work.mkdir()
            yield work
            sync(work)
            _rename(work, place, target)
            sync(place.parent)
        missing = []
    except OSError as error:
        fix = "make room, or name a folder on another disk" if error.errno in _FULL else ""
        raise OutputError(
            f"{target} cannot be written ({error.strerror or error}), and nothing is left of it; "
            f"{fix or 'name another folder'}"
        ) from None
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _rename(work: Path, place: Path, target: Path) -> None:
    """Give the finished folder its place: atomic, and onto an empty folder too."""
    try:
        os.rename(work, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{target} was written by another process meanwhile; name another folder"
            ) from None
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise OutputError(_mount(target)) from None
        raise


def _scratch_name(place: Path) -> str:
    # Not the name itself, which may have the longest length of one.
    return f".bmt-apply-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}"


@contextmanager
def _held(scratch: Path, target: Path) -> Iterator[None]:
    """Make the scratch folder, empty, and hold its lock in the block; removed at the end."""
    holder = _lock(scratch, target)
    try:
        for entry in scratch.iterdir():
            shutil.rmtree(entry)
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(holder)


def _lock(scratch: Path, target: Path) -> int:
    """A descriptor of the folder with its lock, which ends with the process."""
    busy = OutputError(f"{target} is being written by another process; wait, or name another")
    while True:
        try:
            scratch.mkdir()
            made = True
        except FileExistsError:
            made = False
        try:
            holder = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its owner has just ended
            continue
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if scratch.exists() and os.path.samestat(scratch.stat(), os.fstat(holder)):
                return holder
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(holder)
            raise busy from None
        except OSError:  # a file system without locks: the first one's folder is the lock
            if made:
                return holder
            os.close(holder)
            raise OutputError(
                f"{scratch} is of another process that writes {target}, or was killed; wait for "
                "it, or remove the folder"
            ) from None
        os.close(holder)


def sync(path: Path) -> None:
    """Make a file, or a folder's entries, durable; some file systems cannot."""
    holder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(holder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(holder)
