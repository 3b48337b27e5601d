"""Records of batches and of the parts of their answers, as JSON of closed models."""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

from pydantic import Field, ValidationError

from bmt_server.registry.leased.record import Closed, WorkRecord

#: validating -> failed, in_progress -> finalizing -> completed, expired, failed;
#: in_progress -> cancelling -> cancelled.
Ending = Literal["completed", "failed", "expired", "cancelled"]
BatchState = Literal["validating", "in_progress", "finalizing", "cancelling"] | Ending
ENDED: tuple[BatchState, ...] = ("completed", "failed", "expired", "cancelled")
BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
#: Errors of a batch that are kept; the others of its file are left out.
MAX_ERRORS = 100
_FILE = r"^file-[0-9a-f]{24}$"


class BatchError(Closed):
    """An error of a batch. line: of the input file, from 1."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=1024)
    param: str | None = Field(default=None, max_length=64)
    line: int | None = None


class Part(Closed):
    """Answers that are kept together, in one object. name: random. failed: of the `lines`."""

    name: str = Field(pattern=r"^[0-9a-f]{24}$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    lines: int = Field(ge=0)
    failed: int = Field(ge=0)


class Batch(WorkRecord):
    """One batch of a tenant. Times are seconds since 1970.

    key_hash: SHA-256 of the key that its lines are sent with, empty on a server without keys.
    total, completed, failed: lines. parts: their number; last_part: the newest one's name;
    part_bytes: of all. ending: its state once its files are written; nothing is answered any more
    then. output_file, error_file: their ids, chosen before they are written; stale_files: those of
    servers that were lost meanwhile, which are removed. losses: leases that ran out, and
    engines that failed.
    """

    id: str = Field(pattern=r"^batch_[0-9a-f]{24}$")
    key_id: str = Field(max_length=64)
    key_hash: str = Field(pattern=r"^([0-9a-f]{64})?$")
    endpoint: str = Field(max_length=64)
    input_file: str = Field(pattern=_FILE)
    completion_window: str = Field(max_length=16)
    expires_at: int
    metadata: dict[str, str] | None = None
    state: BatchState = "validating"
    ending: Ending | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    ended_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    parts: int = 0
    last_part: str | None = Field(default=None, max_length=64)
    part_bytes: int = 0
    losses: int = 0
    errors: tuple[BatchError, ...] = ()
    output_file: str | None = Field(default=None, pattern=_FILE)
    error_file: str | None = Field(default=None, pattern=_FILE)
    stale_files: tuple[str, ...] = ()

    @property
    def waits(self) -> bool:
        return self.lease is None and not self.ended

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def extended(self, items: int) -> Batch:
        return self.model_copy(update={"parts": self.parts + items})

    def shown(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        errors = [error.model_dump() for error in self.errors]
        at = {f"{state}_at": self.ended_at if state == self.state else None for state in ENDED}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file,
            "completion_window": self.completion_window,
            "status": self.state,
            "output_file_id": self.output_file if self.ended else None,
            "error_file_id": self.error_file if self.ended else None,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "cancelling_at": self.cancelling_at,
            **at,
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }


def new_batch_id() -> str:
    """A random id."""
    return f"batch_{secrets.token_hex(12)}"


def read_batch(data: bytes | None) -> Batch | None:
    """Parse a record; None for one that is missing, forged or of another version."""
    if data is None:
        return None
    try:
        return Batch.model_validate_json(data)
    except ValidationError:
        return None


def read_part(data: bytes) -> Part | None:
    """Parse a part; None for one that cannot be read."""
    try:
        return Part.model_validate_json(data)
    except ValidationError:
        return None
