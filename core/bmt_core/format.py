"""Reader and writer of `.bmt` files, as specified in `docs/reference/format.md`.

The reader trusts no field: it checks each length against the available bytes and `Limits` before
it allocates that much, and the whole content against its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path

from bmt_core import codecs
from bmt_core.errors import BaseMismatch, DigestMismatch
from bmt_core.header import as_bytes, inspect, pack_header
from bmt_core.limits import Limits
from bmt_core.mask import Base, Mask, TensorMask


def encode(mask: Mask, codec: str = "gaps") -> bytes:
    """Encode a mask as a file: deterministic for one mask, metadata, codec and libzstd version."""
    number = codecs.codec_id(codec)
    if codec == "gaps":
        frames = [codecs.encode_gaps(mask.tensors)]
        sizes = [0] * len(mask.tensors)
    else:
        frames = codecs.encode_packbits(mask.tensors)
        sizes = [len(f) for f in frames]
    payload = b"".join(frames)
    return pack_header(mask, number, sizes, payload) + payload


def decode(
    data: bytes | memoryview,
    *,
    limits: Limits | None = None,
    expect_base: Base | str | None = None,
) -> Mask:
    """Decode and validate a mask. `expect_base`: the base, or fingerprint, that it must have.

    Raises FormatError for an invalid file, LimitError for a file over `limits`, and BaseMismatch
    for another base.
    """
    limits = limits or Limits()
    view = as_bytes(data)
    header = inspect(view, limits=limits)
    if expect_base is not None:
        expected = expect_base if isinstance(expect_base, str) else expect_base.fingerprint
        if header.base.fingerprint != expected:
            raise BaseMismatch(
                f"the mask was made for {header.base.model_id!r} with fingerprint "
                f"{header.base.fingerprint[:12]}…, and this base has {expected[:12]}…; use the "
                "checkpoint that it was trained on",
                field="base.fingerprint",
                value=header.base.fingerprint,
                bound=expected,
            )
    specs: list[codecs.Spec] = [(t.name, t.shape, t.zeros) for t in header.tensors]
    payload = view[header.payload_offset :]
    if header.codec == "gaps":
        positions = codecs.decode_gaps(payload, specs, limits)
    else:
        frames, at = [], 0
        for t in header.tensors:
            frames.append(payload[at : at + t.payload_bytes])
            at += t.payload_bytes
        positions = codecs.decode_packbits(frames, specs, limits)
    mask = Mask(
        header.base,
        tuple(
            TensorMask._from_checked(n, s, p) for (n, s, _), p in zip(specs, positions, strict=True)
        ),
        header.metadata,
    )
    if mask.digest != header.digest:
        raise DigestMismatch(
            f"the content's digest is {mask.digest[:12]}…, but the header states "
            f"{header.digest[:12]}…; the file is damaged",
            field="digest",
            value=mask.digest,
            bound=header.digest,
        )
    return mask


def file_digest(data: bytes | memoryview) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits: its key in a registry."""
    return hashlib.sha256(data).hexdigest()


def save(mask: Mask, path: str | os.PathLike[str], codec: str = "gaps") -> str:
    """Write a mask to a file atomically. Returns the file digest."""
    data = encode(mask, codec)
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    # `tempfile` would create the file with mode 0600; a mask has the mode of any output file.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return file_digest(data)


def load(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    expect_base: Base | str | None = None,
) -> Mask:
    """Read a mask from a file; see `decode`. The size is checked before the file is read."""
    limits = limits or Limits()
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        limits.check_file(status.st_size)
        # A device or pipe has no size.
        regular = stat.S_ISREG(status.st_mode)
        data = file.read((status.st_size if regular else limits.max_file_bytes) + 1)
    return decode(data, limits=limits, expect_base=expect_base)
