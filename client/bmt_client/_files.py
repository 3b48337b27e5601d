"""Local files: read and validate uploads, write downloads atomically."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import bmt_core

from ._errors import Invalid, TooLarge, UsageError
from ._names import mask_name, name_from_path


@dataclass(frozen=True, slots=True)
class Prepared:
    """Validated file, ready for upload."""

    name: str
    data: bytes
    sha256: bytes  # of data, 32 bytes
    digest: str  # mask digest, 64 hex digits
    mask: bmt_core.Mask


def prepare(source: str | PathLike[str] | bytes | bmt_core.Mask, name: str | None) -> Prepared:
    """Read, validate and hash an upload.

    Raises Invalid if the server's parser would refuse it, UsageError if it has no name.
    """
    path: Path | None = None
    if isinstance(source, bmt_core.Mask):
        data = bmt_core.encode(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        path = Path(source)
        data = read_file(path)
    mask = source if isinstance(source, bmt_core.Mask) else decode(data)
    return Prepared(
        name=mask_name(name) if name is not None else _default_name(path, mask),
        data=data,
        sha256=hashlib.sha256(data).digest(),
        digest=mask.digest,
        mask=mask,
    )


def decode(data: bytes) -> bmt_core.Mask:
    """`bmt_core.decode`, with errors of this package."""
    try:
        return bmt_core.decode(data)
    except bmt_core.BmtError as error:
        kind = TooLarge if isinstance(error, bmt_core.TooLarge) else Invalid
        raise kind(str(error), code=error.code, param=error.field) from error


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def hex_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def destination(path: str | PathLike[str] | None, name: str) -> Path:
    """Path of a download: `path`, or `<name>.bmt` in it if it is a folder."""
    target = Path(path) if path is not None else Path()
    return target / f"{name}.bmt" if target.is_dir() else target


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file, sync and rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _default_name(path: Path | None, mask: bmt_core.Mask) -> str:
    if path is not None:
        return name_from_path(path)
    name = mask.metadata.get("name")
    if isinstance(name, str):
        return mask_name(name)
    raise UsageError("the mask has no name in its metadata; give one", param="name")
