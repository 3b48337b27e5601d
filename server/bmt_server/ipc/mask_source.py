"""What an adapter's `path` says to a worker: which mask, and where its bytes are to be had.

vLLM hashes name and path of an adapter into its KV-cache keys, so the path holds the tenant and
the whole mask digest: neither two versions nor two tenants ever share KV blocks. It names no
place on a disk, for a worker may run on a node that does not see the API process's; each worker
looks in its own cache folder and else asks the registry for the file digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCHEME = "bmt:"
_FORM = re.compile(_SCHEME + r"([^/]+)/([0-9a-f]{64})/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class MaskSource:
    """digest: the mask's; file_digest: of the registry's blob that holds it. 64 hex digits each."""

    tenant: str
    digest: str
    file_digest: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.tenant}/{self.digest}/{self.file_digest}"

    @classmethod
    def parse(cls, text: str) -> MaskSource | None:
        """What `str` wrote. None where `text` is a plain file path, as in offline use."""
        found = _FORM.fullmatch(text)
        return cls(*found.groups()) if found else None
