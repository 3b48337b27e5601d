"""`BmtClient`: the blocking client. What its methods do is in `_operations`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bmt_core import Mask

from . import _operations as operations
from ._base import BaseClient, Receiver, chunks, step
from ._models import Alias, MaskInfo, ModelInfo, Page, Upload, Version
from ._retry import DEFAULT_MAX_RETRIES
from ._wire import Call, Effect, Flow, Progress, Request, Response, Send

if TYPE_CHECKING:
    import httpx
    import openai

T = TypeVar("T")


class BmtClient(BaseClient):
    """A bmt-server's registry of masks.

    Parameters
    ----------
    base_url : the server, default `BMT_URL`, then the config file, then http://127.0.0.1:8000
    api_key : default `BMT_API_KEY`, then the config file's key for that address
    timeout : seconds for one attempt, default `BMT_TIMEOUT` or 60
    max_retries : attempts after the first on 408, 429, 500, 502-504 and broken connections
    http_client : an `httpx.Client` to use instead of an own one; it is not closed
    allow_insecure : send the key over http:// to another machine all the same

    Every method raises the errors of `bmt_client.BmtClientError`'s tree. A `ref` is `math`
    (its latest version), `math:prod` (an alias) or `math@3f9c…` (12 to 64 hex digits of the mask
    digest). Safe to share between threads.

    >>> with BmtClient() as client:                                    # doctest: +SKIP
    ...     version = client.upload("math.bmt", alias=["prod"])
    ...     client.openai().chat.completions.create(model=version.model, messages=[...])
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx.Client | None = None,
        allow_insecure: bool = False,
    ) -> None:
        super().__init__(
            base_url,
            api_key,
            timeout=timeout,
            max_retries=max_retries,
            allow_insecure=allow_insecure,
        )
        import httpx

        self._owned = http_client is None
        self._http = http_client or httpx.Client(**self._pool_arguments())

    def __enter__(self) -> BmtClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they came with `http_client`."""
        if self._owned:
            self._http.close()

    def upload(
        self,
        source: str | PathLike[str] | bytes | Mask,
        name: str | None = None,
        *,
        alias: Sequence[str] = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        progress: Progress | None = None,
    ) -> Upload:
        """Store a mask as the latest version of `name`.

        The file is checked here first, by the server's own parser, so a bad one raises `Invalid`
        before a byte is sent. Safe to repeat: the same mask again changes nothing.

        Parameters
        ----------
        source : path of a `.bmt` file, its bytes, or a mask
        name : default the file's stem, brought into the grammar of names, or `metadata["name"]`
        alias : names to point at the new version as well
        if_match : mask digest that must be current (`Conflict` where it is not)
        if_none_match : the name must not exist yet (`Conflict` where it does)
        progress : called with (bytes sent, bytes in all)
        """
        return self._run(
            operations.upload(self._policy, source, name, alias, if_match, if_none_match, progress)
        )

    def push(
        self,
        name: str,
        old: Mask,
        new: Mask,
        *,
        if_match: str | None = None,
        resident: bool = True,
    ) -> Upload:
        """Store `new` as the latest version of `name` by sending what changed since `old`.

        `old` is a version of `name` that the server has. A step of training changes a few hundred
        positions of a mask, a kilobyte. Raises `Conflict` where the server's `old` is another.

        Parameters
        ----------
        if_match : mask digest that must be current (`Conflict` where it is not)
        resident : load it into the workers' memory at once, in the background
        """
        return self._run(operations.push(self._policy, name, old, new, if_match, resident))

    def list(self, *, page_size: int = 100) -> Iterator[MaskInfo]:
        """All masks, by name, fetched page by page."""
        after: str | None = None
        while True:
            page: Page = self._run(operations.page(self._policy, page_size, after))
            yield from page.data
            if page.next is None:
                return
            after = page.next

    def get(self, ref: str) -> Version:
        """The version that `ref` names now."""
        return self._run(operations.get(self._policy, ref))

    def versions(self, name: str) -> tuple[Version, ...]:
        """All versions of a mask, newest first."""
        return self._run(operations.versions(self._policy, name))

    def set_alias(
        self, name: str, alias: str, to: str | int | Version, *, if_match: str | None = None
    ) -> Alias:
        """Point `name:alias` at a version: its digest, its rev, or a ref of the same name."""
        return self._run(operations.set_alias(self._policy, name, alias, to, if_match))

    def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Remove `name:alias`. The version it named stays."""
        return self._run(operations.delete_alias(self._policy, name, alias, if_match))

    def rollback(self, name: str, to: str | int | Version | None = None) -> Version:
        """Make an older version the latest again; without `to`, the one before the latest.

        Raises `Conflict` where the name moved meanwhile.
        """
        return self._run(operations.rollback(self._policy, name, to))

    def delete(self, name: str) -> None:
        """Remove a mask with all its versions and aliases."""
        return self._run(operations.delete(self._policy, name))

    def delete_version(self, name: str, digest: str) -> None:
        """Remove one version (12 to 64 hex digits of its mask digest)."""
        return self._run(operations.delete_version(self._policy, name, digest))

    def read(self, ref: str, *, progress: Progress | None = None) -> bytes:
        """The `.bmt` file of `ref`, checked against its digest."""
        return self._run(operations.read(self._policy, ref, progress))

    def download(
        self,
        ref: str,
        path: str | PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Path:
        """Write the `.bmt` file of `ref` to `path` (default `<name>.bmt`, or into a folder).

        Checked against its digest first, then put in place whole: never half a file.
        """
        return self._run(operations.download(self._policy, ref, path, progress))

    def pin(self, name: str) -> None:
        """Keep the mask's latest version resident in the workers."""
        return self._run(operations.pin(self._policy, name, True))

    def unpin(self, name: str) -> None:
        """Let the workers evict it again."""
        return self._run(operations.pin(self._policy, name, False))

    def models(self) -> tuple[ModelInfo, ...]:
        """What a request may name as `model`: the base, masks and aliases."""
        return self._run(operations.models(self._policy))

    def ready(self) -> bool:
        """Whether the server answers and takes requests now. Never raises for its absence."""
        return self._run(operations.ready(self._policy))

    def openai(self, **arguments: Any) -> openai.OpenAI:
        """A stock OpenAI client for this server; `arguments` override its constructor's."""
        from openai import DefaultHttpxClient, OpenAI

        if self._target.loopback:
            arguments = {"http_client": DefaultHttpxClient(trust_env=False), **arguments}
        return OpenAI(**self._openai_arguments(arguments))

    def _run(self, flow: Flow[T]) -> T:
        result: Any = None
        error: Exception | None = None
        while True:
            try:
                effect = step(flow, result, error)
            except StopIteration as end:
                return end.value
            result = error = None
            try:
                result = self._perform(effect)
            except Exception as raised:
                # Handed to the flow, which decides whether it is an error of the caller's.
                error = raised

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            return self._send(effect.request)
        if isinstance(effect, Call):
            return effect.function()
        return time.sleep(effect.seconds)

    def _send(self, request: Request) -> Response:
        import httpx

        content = None if request.body is None else chunks(request.body, request.sent)
        try:
            with self._http.stream(**self._request_arguments(request), content=content) as response:
                receiver = Receiver(request, response.status_code, response.headers)
                for chunk in response.iter_bytes():
                    receiver.take(chunk)
        except httpx.RequestError as error:
            raise self._no_answer(error) from error
        return self._response(response.status_code, response.headers, receiver.body())
