"""Adapter `path` in vLLM: the tenant, the mask's digest and its file's digest.

vLLM hashes name and path of an adapter into its KV-cache keys. The path holds the tenant and the
whole mask digest, so that neither two versions nor two tenants ever share KV blocks. It is not a
path on a disk, because a worker may run on a node that does not see the API process's disk. Each
worker looks for the digest in its own cache folder, and otherwise fetches the file digest's blob
from the registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCHEME = "bmt:"
_FORM = re.compile(_SCHEME + r"([^/]+)/([0-9a-f]{64})/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class MaskSource:
    """Identity of a mask and its blob. digest: of the mask; file_digest: of the blob; 64 hex each.

    `str` gives the adapter path, and `parse` reads it.
    """

    tenant: str
    digest: str
    file_digest: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.tenant}/{self.digest}/{self.file_digest}"

    @classmethod
    def parse(cls, text: str) -> MaskSource | None:
        """Parse an adapter path. Returns None for a plain file path, as in offline use."""
        match = _FORM.fullmatch(text)
        return cls(*match.groups()) if match else None
