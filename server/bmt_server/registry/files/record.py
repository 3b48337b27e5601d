"""Records of clients' files in the registry; the bytes are in an object store or a folder."""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

#: Forms of rows, by the method of OpenAI's fine-tuning that reads them.
RowForm = Literal["supervised", "dpo", "reinforcement"]
#: pending: the bytes are on their way. deleting: they are being removed. Clients see `ready` alone.
FileState = Literal["pending", "ready", "deleting"]
Purpose = Literal["fine-tune", "fine-tune-results", "batch", "batch_output"]
#: Of clients' files, and of those that jobs write: each step's metrics, as CSV.
PURPOSE: Purpose = "fine-tune"
RESULTS: Purpose = "fine-tune-results"
#: Of clients' files with the requests of a batch, and of those with its answers.
BATCH: Purpose = "batch"
BATCH_OUTPUT: Purpose = "batch_output"
MAX_NAME_CHARACTERS = 255
#: Ids are random, and no part of a path comes from a client.
FILE_ID = re.compile(r"file-[0-9a-f]{24}")


class FileRecord(BaseModel):
    """One file of a tenant. created_at: seconds since 1970; sha256: of the bytes, 64 hex digits.

    form: of its rows, if they are for fine-tuning.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    filename: str
    bytes: int
    created_at: int
    sha256: str
    rows: int
    form: RowForm | None
    purpose: Purpose = PURPOSE
    state: FileState = "pending"

    @property
    def object_name(self) -> str:
        """Path of the bytes below the files' place."""
        return f"{self.tenant}/{self.id}"

    def shown(self) -> dict[str, Any]:
        """OpenAI's file object, with the form and the number of rows."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            # Of clients before OpenAI deprecated it; files are checked before they are kept.
            "status": "processed",
            "status_details": None,
            "rows": self.rows,
            "form": self.form,
        }


def new_file_id() -> str:
    """A random id."""
    return f"file-{secrets.token_hex(12)}"


def read_record(data: bytes | None) -> FileRecord | None:
    """Parse a record; None for one that is missing or that no server of this version wrote."""
    if data is None:
        return None
    try:
        record = FileRecord.model_validate_json(data)
    except ValidationError:
        return None
    return record if FILE_ID.fullmatch(record.id) else None
