"""Files for fine-tuning, `client.files`: routes, flows and models.

An upload is sent once: if its answer is lost, the file may exist, and is in `list()` then.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._errors import UsageError
from .._models import Model, _require_text
from .._retry import RetryPolicy, exchange
from .._transport import Call, Flow, Progress, Request, parse_json, unexpected
from .pages import pages

_PAGE = 1000
# Bound on a file that is read, bytes.
_MAX_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True)
class FileInfo(Model):
    """A file of rows for fine-tuning, without its content."""

    id: str
    filename: str = ""
    bytes: int = 0
    created_at: int = 0  # seconds since 1970
    purpose: str = ""

    def __post_init__(self) -> None:
        _require_text(self, "id")


def _upload(
    policy: RetryPolicy, path: Path, purpose: str, progress: Progress | None
) -> Flow[FileInfo]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None

    data = yield Call(read)
    name = path.name.replace("\\", "%5C").replace('"', "%22").replace("\r", "").replace("\n", "")
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    request = Request(
        "POST",
        "/v1/files",
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        body=head.encode() + data + f"\r\n--{boundary}--\r\n".encode(),
        sent=progress,
        retry=False,
    )
    response = yield from exchange(request, policy)
    return FileInfo.from_json(parse_json(response))


def _get(policy: RetryPolicy, file_id: str) -> Flow[FileInfo]:
    response = yield from exchange(Request("GET", _path(file_id)), policy)
    return FileInfo.from_json(parse_json(response))


def _delete(policy: RetryPolicy, file_id: str) -> Flow[None]:
    response = yield from exchange(Request("DELETE", _path(file_id), retry=False), policy)
    # Any server may answer something to a deletion: this one names the file.
    answer = parse_json(response)
    gone = answer.get("deleted") is True and answer.get("id") == file_id
    if not gone:
        raise unexpected(response, "the file may be there still; the answer begins with")


def _content(policy: RetryPolicy, file_id: str, progress: Progress | None) -> Flow[bytes]:
    path = f"{_path(file_id)}/content"
    # Any server answers something: of a file's bytes, the length at least is known.
    size = (yield from _get(policy, file_id)).bytes
    request = Request("GET", path, max_bytes=_MAX_BYTES, received=progress)
    response = yield from exchange(request, policy)
    if len(response.body) != size:
        raise unexpected(response, f"the file has {size} bytes, and the answer begins with")
    return response.body


def _path(file_id: str) -> str:
    if not file_id:
        raise UsageError("the id of the file is empty")
    return f"/v1/files/{quote(file_id, safe='')}"


class Files:
    """Files for fine-tuning of the key's tenant."""

    def __init__(self, run: Callable[[Flow[Any]], Any], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    def upload(
        self,
        path: str | PathLike[str],
        *,
        purpose: str = "fine-tune",
        progress: Progress | None = None,
    ) -> FileInfo:
        """Upload a JSONL file of rows. `Invalid` names the first row that is not valid."""
        made: FileInfo = self._run(_upload(self._policy, Path(path), purpose, progress))
        return made

    def list(self, *, limit: int | None = None) -> tuple[FileInfo, ...]:
        """Return the files, newest first; all, or `limit` of them."""
        found: tuple[FileInfo, ...] = self._run(
            pages(self._policy, "/v1/files", FileInfo, limit, _PAGE)
        )
        return found

    def get(self, file_id: str) -> FileInfo:
        """Return one file, without its content."""
        found: FileInfo = self._run(_get(self._policy, file_id))
        return found

    def content(self, file_id: str, *, progress: Progress | None = None) -> bytes:
        """Return a file's bytes."""
        found: bytes = self._run(_content(self._policy, file_id, progress))
        return found

    def delete(self, file_id: str) -> None:
        """Remove a file; a job that has not read it yet fails."""
        self._run(_delete(self._policy, file_id))


class AsyncFiles:
    """Asyncio twin of `Files`."""

    def __init__(self, run: Callable[[Flow[Any]], Awaitable[Any]], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    async def upload(
        self,
        path: str | PathLike[str],
        *,
        purpose: str = "fine-tune",
        progress: Progress | None = None,
    ) -> FileInfo:
        """Upload a file; see `Files.upload`."""
        made: FileInfo = await self._run(_upload(self._policy, Path(path), purpose, progress))
        return made

    async def list(self, *, limit: int | None = None) -> tuple[FileInfo, ...]:
        """Return the files; see `Files.list`."""
        found: tuple[FileInfo, ...] = await self._run(
            pages(self._policy, "/v1/files", FileInfo, limit, _PAGE)
        )
        return found

    async def get(self, file_id: str) -> FileInfo:
        """Return one file; see `Files.get`."""
        found: FileInfo = await self._run(_get(self._policy, file_id))
        return found

    async def content(self, file_id: str, *, progress: Progress | None = None) -> bytes:
        """Return a file's bytes; see `Files.content`."""
        found: bytes = await self._run(_content(self._policy, file_id, progress))
        return found

    async def delete(self, file_id: str) -> None:
        """Remove a file; see `Files.delete`."""
        await self._run(_delete(self._policy, file_id))
