"""Fingerprint of a base checkpoint, computed from its bytes on disk.

Loaded tensors would not do: a server may load another dtype or a shard, which would change the
digest of the same base. The module parses only safetensors headers, so it needs neither torch nor
the safetensors package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bmt_core.checkpoint_files import weight_files
from bmt_core.errors import CheckpointError

_DOMAIN = b"bmt base fingerprint v1\0"
_MAX_HEADER = 100_000_000
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def _error(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}", field="checkpoint", value=str(path))


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) != len(items):
        raise ValueError("a name occurs twice")
    return result


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError(f"{str(values)[:80]} is not a list of sizes")
    return tuple(values)


def _header(path: Path) -> list[_Entry]:
    entries = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise _error(
                path, f"header of {length} bytes in a file of {size}; it is truncated or damaged"
            )
        try:
            header: dict[str, Any] = json.loads(
                file.read(length).decode(), object_pairs_hook=_unique_keys
            )
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                name.encode()
                start, stop = _sizes(entry["data_offsets"])
                if not start <= stop <= size - 8 - length:
                    raise _error(path, f"{name} lies outside the file; it is truncated or damaged")
                if not isinstance(entry["dtype"], str):
                    raise ValueError(f"the dtype of {name} is not a string")
                entry["dtype"].encode()
                entries.append(
                    _Entry(
                        name,
                        entry["dtype"],
                        _sizes(entry["shape"]),
                        path,
                        8 + length + start,
                        8 + length + stop,
                    )
                )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _error(path, f"not a safetensors file ({error})") from None
    return entries


def _entries(folder: str | os.PathLike[str]) -> list[_Entry]:
    root = Path(folder)
    files = weight_files(root)
    if not files:
        raise CheckpointError(
            f"{root} has no *.safetensors; a base is the folder of a Hugging Face checkpoint in "
            "safetensors form",
            field="checkpoint",
            value=str(root),
        )
    try:
        entries = sorted((e for f in files for e in _header(f)), key=lambda e: e.name)
    except OSError as error:
        raise _error(root, f"cannot be read ({error})") from None
    for a, b in pairwise(entries):
        if a.name == b.name:
            raise _error(b.file, f"{b.name} is also in {a.file.name}; remove the leftover file")
    return entries


def _tensor_digest(entry: _Entry) -> bytes:
    sha = hashlib.sha256()
    if entry.stop > entry.start:
        with (
            entry.file.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            for at in range(entry.start, entry.stop, _CHUNK):
                sha.update(view[at : min(at + _CHUNK, entry.stop)])
    return sha.digest()


def fingerprint(
    checkpoint: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> str:
    """Return the SHA-256 over every tensor's name, dtype, shape and bytes; 64 hex digits.

    Independent of how tensors are spread over files, and of a second copy of the weights
    (`checkpoint_files.py`); `docs/reference/format.md` specifies it. With `cache_dir`, the result
    is cached by the files' paths, sizes and modification times, because hashing 16 GB takes
    seconds. Raises CheckpointError.
    """
    entries = _entries(checkpoint)
    cache = _cache_file(entries, cache_dir)
    if cache is not None:
        with contextlib.suppress(OSError):
            cached = cache.read_text(errors="replace").strip()
            if re.fullmatch(r"[0-9a-f]{64}", cached):
                return cached
    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(_tensor_digest, entries))
    except (OSError, ValueError) as error:
        raise _error(Path(checkpoint), f"cannot be read ({error})") from None
    sha = hashlib.sha256(_DOMAIN)
    for entry, digest in zip(entries, digests, strict=True):
        for part in (entry.name, entry.dtype, ",".join(map(str, entry.shape))):
            data = part.encode()
            sha.update(len(data).to_bytes(4, "little") + data)
        sha.update(digest)
    result = sha.hexdigest()
    if cache is not None:
        # Without a writable cache the next call hashes again.
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(f".{secrets.token_hex(8)}.tmp")
            temporary.write_text(result)
            os.replace(temporary, cache)
    return result


def _cache_file(entries: list[_Entry], cache_dir: str | os.PathLike[str] | None) -> Path | None:
    if cache_dir is None:
        return None
    files = sorted({e.file for e in entries})
    stats = [(os.path.realpath(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return Path(cache_dir) / hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def checkpoint_types(
    checkpoint: str | os.PathLike[str],
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of each tensor of a checkpoint, types as safetensors name them.

    Raises CheckpointError.
    """
    return {entry.name: (entry.dtype, entry.shape) for entry in _entries(checkpoint)}
