"""Exceptions of `bmt_core`, in one tree::

BmtError                    code, field, value, bound
├── FormatError             invalid .bmt file
│   ├── BadMagic            not a .bmt file
│   ├── UnsupportedVersion  later version or unknown flag
│   ├── Truncated           the file ends early
│   ├── TrailingBytes       bytes after the end of the content
│   ├── BadHeader           header field out of bounds
│   ├── BadChecksum         checksum mismatch of header or payload
│   ├── BadMetadata         metadata is not a JSON object within bounds
│   ├── PayloadError        unsafe or damaged zstd payload
│   ├── PositionsError      positions out of order, out of range, or of wrong count
│   └── DigestMismatch      content does not match its digest
├── LimitError              valid, but over a limit of the reader
│   ├── TooLarge            too many bytes
│   └── TooManyZeros        sparsity over its limit
├── BaseMismatch            mask of another base model
├── MaskError               invalid mask, built in memory
├── InvalidName             name, alias or digest outside the grammar
├── RowError                row of training data that is not valid
├── GraderError             invalid grader of a fine-tuning job, or one without a number
└── CheckpointError         unreadable base checkpoint
"""

from __future__ import annotations

from typing import Any


class BmtError(Exception):
    """Base class. `code` is stable and meant for programs; the message is for people.

    field: the invalid field; value: its value; bound: its bound. Each may be None.
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
    """Invalid .bmt file."""

    code = "bad_format"


class BadMagic(FormatError):
    """The file does not start with the magic of a .bmt file."""

    code = "bad_magic"


class UnsupportedVersion(FormatError):
    """Later version, unknown flag or unknown codec."""

    code = "unsupported_version"


class Truncated(FormatError):
    """The file ends before the length that its header states."""

    code = "truncated"


class TrailingBytes(FormatError):
    """Bytes follow the end of the content."""

    code = "trailing_bytes"


class BadHeader(FormatError):
    """Header field out of bounds."""

    code = "bad_header"


class BadChecksum(FormatError):
    """The checksum of the header or payload does not match its bytes."""

    code = "bad_checksum"


class BadMetadata(FormatError):
    """Metadata is not a JSON object within bounds."""

    code = "bad_metadata"


class PayloadError(FormatError):
    """Compressed payload that is damaged or not in the one allowed form."""

    code = "bad_payload"


class PositionsError(FormatError):
    """Positions out of order, out of range, or not as many as the header states."""

    code = "positions"


class DigestMismatch(FormatError):
    """The content does not match its digest."""

    code = "digest_mismatch"


class LimitError(BmtError):
    """Valid, but over a limit of this reader."""

    code = "limit"


class TooLarge(LimitError):
    """More bytes than the limit."""

    code = "too_large"


class TooManyZeros(LimitError):
    """Sparsity above the limit: the mask sets too large a share of the weights to zero."""

    code = "too_many_zeros"


class BaseMismatch(BmtError):
    """Mask of another base model, or of tensors that the base does not have."""

    code = "base_mismatch"


class MaskError(BmtError):
    """Invalid mask: positions out of order or range, duplicate tensors and the like."""

    code = "bad_mask"


class InvalidName(BmtError):
    """Name, alias, reference or digest outside the grammar."""

    code = "name_invalid"


class RowError(BmtError):
    """Row of training data that is not valid; the message names the row and the field."""

    code = "row_invalid"


class GraderError(BmtError):
    """Grader of a fine-tuning job that is not valid, or that gives no number for an answer."""

    code = "grader_invalid"


class CheckpointError(BmtError):
    """Base checkpoint that is missing, damaged or in an unknown form."""

    code = "bad_checkpoint"
