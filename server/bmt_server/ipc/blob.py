"""A registry blob becomes a mask: the checks that both the API process and a worker make."""

from __future__ import annotations

import hashlib

import bmt_core

from bmt_server.ipc.mask_source import MaskSource

PREFIX = "{bmt}:"


class BlobError(Exception):
    """A blob cannot be served; the message says what is wrong and what to do.

    code: `blob_damaged` where the bytes are not what their digest says, `mask_unusable` where
    they are, and are no mask for this base.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def blob_key(file_digest: str) -> str:
    """Where the registry keeps a file's bytes."""
    return f"{PREFIX}blob:{file_digest}"


def decode_blob(
    data: bytearray, source: MaskSource, fingerprint: str, limits: bmt_core.Limits
) -> bmt_core.Mask:
    """The mask that `source` names, from the bytes stored for it. Raises BlobError.

    fingerprint: of the base that is served. Releases the GIL for most of its time.
    """
    if hashlib.sha256(data).hexdigest() != source.file_digest:
        raise BlobError(
            f"blob {source.file_digest[:12]}… in the registry is damaged; upload the mask again",
            "blob_damaged",
        )
    try:
        mask = bmt_core.decode(memoryview(data), limits=limits, expect_base=fingerprint)
    except bmt_core.BmtError as error:
        raise BlobError(
            f"mask {source.digest[:12]}… in the registry cannot be served here: {error}",
            "mask_unusable",
        ) from None
    if mask.digest != source.digest:
        raise BlobError(
            f"blob {source.file_digest[:12]}… in the registry holds mask {mask.digest[:12]}… and "
            f"not {source.digest[:12]}…; upload the mask again",
            "blob_damaged",
        )
    return mask
