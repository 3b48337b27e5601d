"""Mask of a base model: the positions of its tensors that are zero."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from bmt_core.errors import BadMetadata, MaskError
from bmt_core.gates.rows import Rows, overlap

MAX_TENSOR_NAME = 512
MAX_TENSORS = 32_768
MAX_MODEL_ID = 1024
MAX_METADATA = 1 << 16
MAX_METADATA_DEPTH = 16
MAX_DIM = (1 << 31) - 1

_TENSOR_NAME = re.compile(r"[\x21-\x7e]{1,512}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
# Domain separation: no other use of SHA-256 hashes the same bytes.
_DOMAIN = b"bmt mask digest v1\0"


@dataclass(frozen=True, slots=True)
class Base:
    """Base model of a mask, identified by its fingerprint; the id is for people.

    fingerprint: 64 hex digits over the checkpoint's bytes (`bmt_core.fingerprint`).
    """

    model_id: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.fingerprint):
            raise MaskError(
                f"base fingerprint {self.fingerprint[:80]!r} is not 64 lower-case hex digits",
                field="base.fingerprint",
                value=self.fingerprint,
                bound=64,
            )
        try:
            size = len(self.model_id.encode())
        except UnicodeEncodeError:
            raise MaskError(
                f"model id {self.model_id[:80]!r} is not Unicode text", field="base.model_id"
            ) from None
        if size > MAX_MODEL_ID:
            raise MaskError(
                f"model id is {size} bytes; at most {MAX_MODEL_ID} fit",
                field="base.model_id",
                value=size,
                bound=MAX_MODEL_ID,
            )


def position_dtype(numel: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return uint32 if every position fits, else uint64."""
    return np.dtype("<u4") if numel <= 1 << 32 else np.dtype("<u8")


def check_tensor(name: str, shape: tuple[int, ...]) -> None:
    """Raise MaskError if a tensor's name or shape is out of the file's bounds."""
    if not _TENSOR_NAME.fullmatch(name):
        raise MaskError(
            f"tensor name {name[:80]!r} is not 1 to {MAX_TENSOR_NAME} printable ASCII "
            "characters without spaces",
            field="name",
            value=name,
            bound=MAX_TENSOR_NAME,
        )
    if len(shape) != 2 or not all(1 <= n <= MAX_DIM for n in shape):
        raise MaskError(
            f"{name}: shape {shape} is not two sizes from 1 to {MAX_DIM}",
            field="shape",
            value=shape,
            bound=MAX_DIM,
        )
    rows = Rows.parse(name) if name.endswith("]") else None
    if rows is not None and rows.count != shape[0]:
        raise MaskError(
            f"{name}: the name is of {rows.count} rows, and the shape {shape} has {shape[0]}",
            field="name",
            value=name,
            bound=shape[0],
        )


def check_distinct(names: Iterable[str]) -> None:
    """Raise MaskError if two of these names name the same row of one tensor."""
    if (same := overlap(names)) is not None:
        raise MaskError(f"{same[0]} and {same[1]} have rows in common", field="name", value=same)


@dataclass(frozen=True, slots=True, eq=False)
class TensorMask:
    """Zero positions of one tensor, or of some rows of one (`gates/rows.py`).

    name: in the checkpoint. shape: [d_out, d_in]. positions: flat row-major positions of the zeros,
    [zeros], strictly increasing, uint32, or uint64 if d_out * d_in exceeds 2**32. The array is
    read-only; a writable argument is copied. Raises MaskError.
    """

    name: str
    shape: tuple[int, int]
    positions: np.ndarray

    def __post_init__(self) -> None:
        check_tensor(self.name, self.shape)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        given = np.asarray(self.positions)
        if given.ndim != 1:
            raise MaskError(f"{self.name}: positions must be one-dimensional", field="positions")
        if given.size:
            if given.dtype.kind not in "iu":
                raise MaskError(
                    f"{self.name}: positions must be integers, not {given.dtype}",
                    field="positions",
                    value=str(given.dtype),
                )
            if not bool(np.all(given[1:] > given[:-1])):
                raise MaskError(
                    f"{self.name}: positions must be strictly increasing; sort them and remove "
                    "duplicates",
                    field="positions",
                )
            # In the given dtype, because a cast would wrap positions that do not fit.
            for position in (int(given[0]), int(given[-1])):
                if not 0 <= position < self.numel:
                    raise MaskError(
                        f"{self.name}: position {position} lies outside {self.numel} weights",
                        field="positions",
                        value=position,
                        bound=self.numel,
                    )
        positions = np.ascontiguousarray(given, position_dtype(self.numel))
        if positions.flags.writeable and np.may_share_memory(positions, self.positions):
            positions = positions.copy()
        positions.flags.writeable = False
        object.__setattr__(self, "positions", positions)

    @classmethod
    def _from_checked(cls, name: str, shape: tuple[int, int], positions: np.ndarray) -> TensorMask:
        """Build without checks, for a decoder that made them and owns the array."""
        tensor = object.__new__(cls)
        positions.flags.writeable = False
        object.__setattr__(tensor, "name", name)
        object.__setattr__(tensor, "shape", shape)
        object.__setattr__(tensor, "positions", positions)
        return tensor

    @property
    def zeros(self) -> int:
        return int(self.positions.size)

    @property
    def numel(self) -> int:
        return int(self.shape[0]) * int(self.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Fine-tune of a base: the positions set to zero. Masks are equal if their digests are.

    tensors: sorted by name. metadata: any JSON object (method, data, seed, scores), which is not
    part of the mask's identity. Raises MaskError, BadMetadata.
    """

    base: Base
    tensors: tuple[TensorMask, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _digest: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = tuple(sorted(self.tensors, key=lambda t: t.name))
        if len(tensors) > MAX_TENSORS:
            raise MaskError(
                f"{len(tensors)} tensors; at most {MAX_TENSORS} fit",
                field="tensors",
                value=len(tensors),
                bound=MAX_TENSORS,
            )
        for a, b in pairwise(tensors):
            if a.name == b.name:
                raise MaskError(f"tensor {a.name!r} occurs twice", field="tensors", value=a.name)
        check_distinct(t.name for t in tensors)
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "metadata", dict(self.metadata))
        dump_metadata(self.metadata)

    @property
    def digest(self) -> str:
        """Mask digest over base, shapes and positions; independent of metadata and codec."""
        if not self._digest:
            self._digest.append(mask_digest(self.base.fingerprint, self.tensors))
        return self._digest[0]

    @property
    def zeros(self) -> int:
        return sum(t.zeros for t in self.tensors)

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of the named tensors' weights that the mask sets to zero; 0 for an empty mask."""
        return self.zeros / self.numel if self.numel else 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"Mask({self.digest[:12]}, base={self.base.model_id!r}, tensors={len(self.tensors)}, "
            f"zeros={self.zeros})"
        )


def mask_digest(fingerprint: str, tensors: tuple[TensorMask, ...]) -> str:
    """SHA-256 over base fingerprint and tensors, see `docs/reference/format.md`; 64 hex digits."""
    sha = hashlib.sha256(_DOMAIN + bytes.fromhex(fingerprint) + len(tensors).to_bytes(4, "little"))
    for t in tensors:
        name = t.name.encode("ascii")
        sha.update(len(name).to_bytes(2, "little") + name)
        sha.update(t.shape[0].to_bytes(4, "little") + t.shape[1].to_bytes(4, "little"))
        sha.update(t.zeros.to_bytes(8, "little"))
        sha.update(t.positions.data)
    return sha.hexdigest()


def dump_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Encode metadata as canonical JSON: sorted keys, no spaces, UTF-8. Raises BadMetadata."""
    _check_json(metadata, 0)
    try:
        data = json.dumps(
            metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except ValueError as error:  # half a surrogate pair, or an integer of thousands of digits
        raise BadMetadata(f"metadata cannot be written: {error}", field="metadata") from None
    if len(data) > MAX_METADATA:
        raise BadMetadata(
            f"metadata is {len(data)} bytes of JSON; at most {MAX_METADATA} fit. Keep logs outside",
            field="metadata",
            value=len(data),
            bound=MAX_METADATA,
        )
    return data


def _check_json(value: Any, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise BadMetadata(
            f"metadata is nested deeper than {MAX_METADATA_DEPTH}",
            field="metadata",
            bound=MAX_METADATA_DEPTH,
        )
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise BadMetadata("metadata keys must be strings", field="metadata")
        for item in value.values():
            _check_json(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadMetadata(
            "metadata has a number that JSON does not allow (NaN or infinity)", field="metadata"
        )
    elif not (value is None or isinstance(value, str | int | float | bool)):
        raise BadMetadata(
            f"metadata has a {type(value).__name__}, which JSON does not allow", field="metadata"
        )
