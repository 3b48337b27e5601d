"""Errors of `bmt_core`, one tree::

BmtError                    code, field, value, bound
├── FormatError             the bytes are not a valid .bmt file
│   ├── BadMagic            not a .bmt file at all
│   ├── UnsupportedVersion  a version or flag of the future
│   ├── Truncated           the file ends too early
│   ├── TrailingBytes       the file goes on after its end
│   ├── BadHeader           a field of the header is out of its bounds
│   ├── BadChecksum         the header's checksum does not match
│   ├── BadMetadata         the metadata is not a JSON object within bounds
│   ├── PayloadError        the zstd payload is unsafe or damaged
│   ├── PositionsError      positions out of order or range, or of another count
│   └── DigestMismatch      the content is not what its digest says
├── LimitError              valid, but more than the reader allows
│   ├── TooLarge            bytes
│   └── TooManyZeros        share of deleted weights
├── BaseMismatch            made for another base model
├── MaskError               a mask that cannot exist (building one in memory)
├── InvalidName             a name, alias or digest outside the grammar
└── CheckpointError         a base checkpoint that cannot be read
"""

from __future__ import annotations

from typing import Any


class BmtError(Exception):
    """Base of all errors here. `code` is stable and meant for programs; the text is for people.

    field: what was wrong; value: what it was; bound: what it may be. Each may be None.
    """

    code = "bmt_error"

    def __init__(
        self, message: str, *, field: str | None = None, value: Any = None, bound: Any = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.bound = bound


class FormatError(BmtError):
    """The bytes are not a valid .bmt file."""

    code = "bad_format"


class BadMagic(FormatError):
    """The first bytes are not those of a .bmt file."""

    code = "bad_magic"


class UnsupportedVersion(FormatError):
    """Written by a later version, or with flags that this reader does not know."""

    code = "unsupported_version"


class Truncated(FormatError):
    """The file ends before something that its header announced."""

    code = "truncated"


class TrailingBytes(FormatError):
    """Bytes follow the end of the file's content."""

    code = "trailing_bytes"


class BadHeader(FormatError):
    """A field of the header is out of its bounds."""

    code = "bad_header"


class BadChecksum(FormatError):
    """The header's checksum does not match its bytes."""

    code = "bad_checksum"


class BadMetadata(FormatError):
    """The metadata is not a JSON object within bounds."""

    code = "bad_metadata"


class PayloadError(FormatError):
    """The compressed payload is damaged, or not of the one safe form that is allowed."""

    code = "bad_payload"


class PositionsError(FormatError):
    """Positions out of order, out of range, or not as many as announced."""

    code = "positions"


class DigestMismatch(FormatError):
    """The content does not have the digest that it should."""

    code = "digest_mismatch"


class LimitError(BmtError):
    """Valid, but more than this reader allows."""

    code = "limit"


class TooLarge(LimitError):
    """More bytes than allowed."""

    code = "too_large"


class TooManyZeros(LimitError):
    """A larger share of weights deleted than allowed."""

    code = "too_many_zeros"


class BaseMismatch(BmtError):
    """The mask was made for another base model, or for tensors that it does not have."""

    code = "base_mismatch"


class MaskError(BmtError):
    """A mask that cannot exist: positions out of order or range, doubled tensors and the like."""

    code = "bad_mask"


class InvalidName(BmtError):
    """A name, alias, reference or digest outside the grammar."""

    code = "name_invalid"


class CheckpointError(BmtError):
    """A base checkpoint that is missing, damaged or of an unknown kind."""

    code = "bad_checkpoint"
