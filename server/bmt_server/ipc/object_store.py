"""Object store that keeps the bytes of masks outside of Redis: S3, GCS, Azure, or a folder.

::

    s3://bucket[/prefix]    gs://bucket[/prefix]    az://container[/prefix]    file:///folder

Credentials, region and endpoint come from the environment, as the libraries of each cloud read it:
`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_…`, or the
identity of the machine. The URL has none of them, so it may be recorded and shown.

API processes use the asynchronous methods and workers `get_blocking`. Each call has a bound in
time. After three failures in a row, calls are refused at once, but for one at a time that tries.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url

from bmt_server.errors import BlobsDown, RegistryFull

T = TypeVar("T")

FORMS = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder"
_SCHEMES = {"s3": "s3", "gs": "gs", "az": "az", "file": "file"}
# Until the first byte of an answer, for a whole read, and for a write: masks are megabytes.
ANSWER_S, TRANSFER_S, WRITE_S = 5.0, 30.0, 15.0
_CONNECT_S = 1.0
_FAILURES_TO_OPEN = 3
_OPEN_S = 1.0
_LIST_PAGE = 1000
_PIECE_BYTES = 1 << 20
_SECRET = re.compile(r"(AWS|AZURE|GOOGLE|GCP).*(KEY|SECRET|TOKEN|SAS|CREDENTIAL|ACCOUNT)", re.I)


class SizeDiffers(Exception):
    """Object of another size than recorded; it is damaged, and not read."""


def parse_place(url: str) -> str:
    """The URL of a place for blobs in its one spelling. Raises ValueError.

    The message does not repeat the URL, which may hold a password by mistake.
    """
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ValueError(f"the place of blobs must have the form {FORMS}") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the place of blobs must have the form {FORMS}")
    if re.search("[@:]", parts.netloc) or parts.query or parts.fragment:
        raise ValueError(
            "the place of blobs is a bucket and a prefix alone; credentials, region and endpoint "
            "come from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
        )
    path = re.sub(r"/+", "/", parts.path).rstrip("/")
    if any(part in (".", "..") for part in unquote(path).split("/")):
        raise ValueError("the place of blobs has '.' or '..' in its path")
    if parts.scheme == "file":
        if parts.netloc or not path:
            raise ValueError("a folder for blobs has the form file:///folder, from the root")
    elif not parts.netloc:
        raise ValueError(f"the place of blobs names no bucket; it must have the form {FORMS}")
    return f"{parts.scheme}://{parts.netloc}{path}"


class ObjectStore:
    """Objects below a URL. Raises ValueError for a URL that is no place of blobs.

    transfer_s: bound on one transfer, in seconds. holds: what the objects are, in messages. Methods
    raise BlobsDown, and RegistryFull if there is no room. Safe to use from threads.
    """

    def __init__(self, url: str, transfer_s: float = TRANSFER_S, holds: str = "masks") -> None:
        self.url = parse_place(url)
        self._holds = holds
        self._transfer_s = transfer_s
        self._folder = Path(unquote(urlsplit(self.url).path)) if self.url[:5] == "file:" else None
        self._made: Any = None
        self._failures = 0
        self._failed_at = 0.0
        self._trying = False

    # Asynchronous, for API processes and commands.

    async def get(self, name: str, size: int | None = None) -> bytearray | None:
        """An object's bytes; None if it does not exist. Raises SizeDiffers, too.

        size: as recorded; None for a small object of any size.
        """

        async def read() -> bytearray | None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    found = await obstore.get_async(self._store(), name)
            except FileNotFoundError as error:
                _check_bucket(error)
                return None
            _check_size(name, found.meta["size"], size)
            return bytearray(await found.bytes_async())

        return await self._call(read)

    async def put(self, name: str, data: bytes) -> None:
        """Write an object in one step; it is on the store's disk when this returns."""

        await self._call(lambda: self._put(name, data), WRITE_S)

    async def put_file(self, name: str, file: BinaryIO) -> None:
        """As `put`, of an open file, in pieces: its bytes are never in memory at once."""

        async def write() -> None:
            await obstore.put_async(self._store(), name, file, chunk_size=_PIECE_BYTES)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder, name)

        await self._call(write)

    async def stream(self, name: str, size: int) -> AsyncIterator[bytes]:
        """An object's bytes in pieces; size: as recorded. Raises SizeDiffers, FileNotFoundError."""

        async def open_stream() -> Any:
            try:
                found = await obstore.get_async(self._store(), name)
            except FileNotFoundError as error:
                _check_bucket(error)
                return None
            _check_size(name, found.meta["size"], size)
            return found.stream(min_chunk_size=_PIECE_BYTES).__aiter__()

        pieces = await self._call(open_stream, ANSWER_S)
        if pieces is None:
            raise FileNotFoundError(name)
        while (piece := await self._call(lambda: _next(pieces))) is not None:
            yield bytes(piece)

    async def swap(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Write a small object if its bytes are `expected`; None: if it does not exist.

        False if it is another one. A store without conditional writes writes in any case, so read
        it afterwards.
        """

        async def write() -> bool:
            condition: Any = "create"
            if expected is not None:
                found = await obstore.get_async(self._store(), name)
                if bytes(await found.bytes_async()) != expected:
                    return False
                marks = {key: found.meta[key] for key in ("e_tag", "version")}
                condition = {key: mark for key, mark in marks.items() if mark is not None}
                if self._folder is not None:
                    condition = "overwrite"  # under the lock
            try:
                await self._put(name, data, condition)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
            except (NotSupportedError, NotImplementedError):
                await self._put(name, data)
            return True

        async def write_in_turn(folder: Path) -> bool:
            async with _locked(folder / f"{name}.lock"):
                return await write()

        folder = self._folder
        if folder is None or expected is None:
            return await self._call(write, WRITE_S)
        return await self._call(lambda: write_in_turn(folder), WRITE_S)

    async def _put(self, name: str, data: bytes, mode: Any = "overwrite") -> None:
        await obstore.put_async(self._store(), name, data, mode=mode, use_multipart=False)
        if self._folder is not None:
            await asyncio.to_thread(_sync, self._folder, name)

    async def size(self, name: str) -> int:
        """Size of an object in bytes; 0 if it does not exist."""

        async def look() -> int:
            try:
                found = await obstore.head_async(self._store(), name)
                return int(found["size"])
            except FileNotFoundError as error:
                _check_bucket(error)
                return 0

        return await self._call(look, ANSWER_S)

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""

        async def remove() -> None:
            try:
                await obstore.delete_async(self._store(), list(names))
            except FileNotFoundError:  # of a folder alone, which stops at the first
                for name in names:
                    try:
                        await obstore.delete_async(self._store(), name)
                    except FileNotFoundError:
                        continue

        await self._call(remove)

    async def pages(self, below: str | None = None) -> AsyncIterator[list[str]]:
        """Names of all objects, in pages; below: of a folder alone."""
        listed = await self._call(lambda: self._listing(below))
        while True:
            page = await self._call(lambda: _next(listed))
            if page is None:
                return
            yield [str(entry["path"]) for entry in page]

    async def _listing(self, below: str | None) -> Any:
        return obstore.list(self._store(), below, chunk_size=_LIST_PAGE).__aiter__()

    # Blocking, for workers' threads.

    def get_blocking(self, name: str, size: int) -> bytearray | None:
        """As `get`."""
        with self._counted():
            try:
                found = obstore.get(self._store(), name)
            except FileNotFoundError as error:
                _check_bucket(error)
                return None
            _check_size(name, found.meta["size"], size)
            return bytearray(found.bytes())

    async def _call(self, work: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        with self._counted():
            async with asyncio.timeout(within_s or self._transfer_s):
                return await work()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count failures of one call, and refuse it while the store is known not to answer."""
        trying = self._failures >= _FAILURES_TO_OPEN
        if trying:
            if self._trying or time.monotonic() < self._failed_at + _OPEN_S:
                raise BlobsDown(
                    f"the object store of {self._holds} does not answer; try again shortly"
                )
            self._trying = True
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            self._failed()
            raise BlobsDown(
                f"the object store of {self._holds} refuses this server's credentials",
                code="blobs_refused",
                detail=f"{self.url}: {cause(error)}",
            ) from None
        except (BaseError, TimeoutError, OSError) as error:
            if "No space left" in str(error) or "QuotaExceeded" in str(error):
                raise RegistryFull(
                    f"the object store of {self._holds} is full; delete some or add space"
                ) from None
            self._failed()
            raise BlobsDown(
                f"the object store of {self._holds} does not answer; try again shortly",
                detail=f"{self.url}: {cause(error)}",
            ) from None
        else:
            self._failures = 0
        finally:
            if trying:
                self._trying = False

    def _failed(self) -> None:
        self._failures += 1
        self._failed_at = time.monotonic()

    def _store(self) -> Any:
        if self._made is None:
            if self._folder is not None:
                self._made = LocalStore(self._folder, mkdir=True)
            else:
                self._made = open_store(self.url, self._transfer_s)
        return self._made


def open_store(url: str, transfer_s: float) -> Any:
    """A bucket with the credentials of the environment. transfer_s: bound on a transfer, s."""
    return from_url(
        url,
        client_options={
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "timeout": timedelta(seconds=transfer_s),
            # Of an endpoint that the environment names as http://; the clouds' are not.
            "allow_http": True,
        },
        retry_config={
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=ANSWER_S),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    )


async def _next(listed: Any) -> Any:
    try:
        return await listed.__anext__()
    except StopAsyncIteration:
        return None


def _check_bucket(error: FileNotFoundError) -> None:
    """Raise if the bucket is missing, and not an object of it."""
    if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
        raise OSError("the bucket does not exist") from None


def _check_size(name: str, found: int, recorded: int | None) -> None:
    if found != (recorded if recorded is not None else min(found, 1 << 16)):
        raise SizeDiffers(f"object {name} has {found} bytes and not {recorded}")


def _sync(folder: Path, name: str) -> None:
    """Flush a file and its entries in folders to the disk.

    A collection may have removed it already, and then its publication fails.
    """
    path = folder / name
    with suppress(FileNotFoundError):
        for part in (path, *path.parents[: len(path.relative_to(folder).parts)]):
            handle = os.open(part, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold a lock among all processes of a shared folder, on a file that stays."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.02)
        yield
    finally:
        os.close(handle)


def cause(error: Exception) -> str:
    """The first line of an error, without markup and without values of secret variables."""
    lines = str(error).splitlines() or [""]
    text = re.sub(r"<([A-Za-z]*Key[A-Za-z]*|StringToSign.*?|Signature.*?)>.*?</\1>", "", lines[0])
    for name, value in os.environ.items():
        if _SECRET.match(name) and len(value) >= 4:
            text = text.replace(value, "…")
    return text[:300] or type(error).__name__
