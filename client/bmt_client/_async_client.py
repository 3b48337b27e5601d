"""`AsyncBmtClient`, the asyncio client; the logic of its methods is in `_flows`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bmt_core import Mask

from . import _flows as flows
from ._base import BaseClient
from ._keys import AsyncKeys
from ._models import Alias, KeyInfo, MaskInfo, ModelInfo, Page, Retention, Upload, Version
from ._retry import DEFAULT_MAX_RETRIES
from ._transport import (
    Call,
    Effect,
    Flow,
    Progress,
    Receiver,
    Request,
    Response,
    Send,
    chunks,
    step,
)
from ._tuning.clients import AsyncTuningClient
from ._usage import counts
from ._usage import limits as limit_flows
from ._usage.counts import Usage
from ._usage.limits import Limits, LimitTable

if TYPE_CHECKING:
    import httpx2
    import openai

T = TypeVar("T")


class AsyncBmtClient(AsyncTuningClient, BaseClient):
    """Asyncio client: arguments, methods and errors of `BmtClient`; `list()` is an async iterator.

    Disk access and decoding run in threads, so they do not block the event loop.

        async with AsyncBmtClient() as client:
            version = await client.upload("math.bmt")
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx2.AsyncClient | None = None,
        ca_file: str | None = None,
        allow_insecure: bool = False,
    ) -> None:
        super().__init__(
            base_url,
            api_key,
            timeout=timeout,
            max_retries=max_retries,
            ca_file=ca_file,
            allow_insecure=allow_insecure,
        )
        import httpx2

        self._owned = http_client is None
        self._http = self._pool(httpx2.AsyncClient, http_client)

    async def __aenter__(self) -> AsyncBmtClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless `http_client` was given."""
        if self._owned:
            await self._http.aclose()

    async def upload(
        self,
        source: str | PathLike[str] | bytes | Mask,
        name: str | None = None,
        *,
        alias: Sequence[str] = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        expires: str | None = None,
        progress: Progress | None = None,
    ) -> Upload:
        """Store a mask as the latest version of `name`; see `BmtClient.upload`."""
        return await self._run(
            flows.upload(
                self._policy, source, name, alias, if_match, if_none_match, expires, progress
            )
        )

    async def import_mask(
        self,
        source: str,
        name: str,
        *,
        alias: Sequence[str] = (),
        digest: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
        expires: str | None = None,
    ) -> Upload:
        """Have the server read a mask from a source; see `BmtClient.import_mask`."""
        return await self._run(
            flows.import_mask(
                self._policy, source, name, alias, digest, if_match, if_none_match, expires
            )
        )

    async def push(
        self,
        name: str,
        old: Mask,
        new: Mask,
        *,
        if_match: str | None = None,
        resident: bool = True,
        expires: str | None = None,
    ) -> Upload:
        """Store `new` as the latest version of `name` by sending its difference from `old`.

        `old` must be a version of `name` on the server, else `Conflict`. A training step changes a
        few hundred positions of a mask, about a kilobyte.

        Parameters
        ----------
        if_match : mask digest that must be the latest, else `Conflict`
        resident : load the mask into the workers' memory at once, in the background
        """
        return await self._run(
            flows.push(self._policy, name, old, new, if_match, resident, expires)
        )

    async def list(self, *, page_size: int = 100) -> AsyncIterator[MaskInfo]:
        """Iterate over all masks by name; pages are fetched on demand."""
        after: str | None = None
        while True:
            page: Page = await self._run(flows.page(self._policy, page_size, after))
            for mask in page.data:
                yield mask
            if page.next is None:
                return
            after = page.next

    async def get(self, ref: str) -> Version:
        """Return the version that `ref` names now."""
        return await self._run(flows.get(self._policy, ref))

    async def versions(self, name: str) -> tuple[Version, ...]:
        """Return all versions of a mask, newest first."""
        return await self._run(flows.versions(self._policy, name))

    async def alias(self, name: str, alias: str) -> Alias:
        """Return the version of `name:alias`, with its canary and its shadow."""
        return await self._run(flows.alias(self._policy, name, alias))

    async def set_alias(
        self,
        name: str,
        alias: str,
        to: str | int | Version | None = None,
        *,
        canary: str | int | Version | None = None,
        percent: float | None = None,
        shadow: str | int | Version | None = None,
        shadow_percent: float | None = None,
        if_match: str | None = None,
    ) -> Alias:
        """Point `name:alias` at a version, given as digest, rev, or ref of the same name."""
        shares = (canary, percent, shadow, shadow_percent)
        return await self._run(flows.split(self._policy, name, alias, to, *shares, if_match))

    async def promote(
        self, name: str, alias: str, canary: str | None = None, *, if_match: str | None = None
    ) -> Alias:
        """Make the canary of `name:alias` its version, and end canary and shadow, in one step.

        Raises `Conflict` if it has no canary, or another one than `canary` (a mask digest).
        """
        return await self._run(flows.promote(self._policy, name, alias, canary, if_match))

    async def rollback_alias(self, name: str, alias: str, *, if_match: str | None = None) -> Alias:
        """End canary and shadow of `name:alias` in one step: all requests get its version.

        Raises `Conflict` if it has neither.
        """
        return await self._run(flows.rollback_alias(self._policy, name, alias, if_match))

    async def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Remove `name:alias`; its version stays."""
        return await self._run(flows.delete_alias(self._policy, name, alias, if_match))

    async def rollback(self, name: str, to: str | int | Version | None = None) -> Version:
        """Make an older version the latest again, by default the one before the latest."""
        return await self._run(flows.rollback(self._policy, name, to))

    async def delete(self, name: str) -> None:
        """Remove a mask with all its versions and aliases."""
        return await self._run(flows.delete(self._policy, name))

    async def delete_version(self, name: str, digest: str) -> None:
        """Remove one version (12 to 64 hex digits of its mask digest)."""
        return await self._run(flows.delete_version(self._policy, name, digest))

    async def prune(
        self,
        name: str,
        *,
        keep_last: int | None = None,
        older_than: str | None = None,
        dry_run: bool = False,
    ) -> tuple[str, ...]:
        """Remove old versions of a mask; return their mask digests; see `BmtClient.prune`."""
        return await self._run(flows.prune(self._policy, name, keep_last, older_than, dry_run))

    async def retention(self, name: str) -> Retention:
        """Return the rule by which the server removes old versions of a mask."""
        return await self._run(flows.retention(self._policy, name, None))

    async def set_retention(
        self, name: str, *, keep_last: int | None = None, older_than: str | None = None
    ) -> Retention:
        """Have the server remove old versions by itself; see `BmtClient.set_retention`."""
        rule = {"keep_last": keep_last, "older_than": older_than}
        return await self._run(flows.retention(self._policy, name, rule))

    async def delete_retention(self, name: str) -> Retention:
        """Let the server's default rule apply to a mask again; return that rule."""
        return await self._run(flows.retention(self._policy, name, None, True))

    async def read(self, ref: str, *, progress: Progress | None = None) -> bytes:
        """Return the `.bmt` file of `ref`, verified against its digest."""
        return await self._run(flows.read(self._policy, ref, progress))

    async def download(
        self,
        ref: str,
        path: str | PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Path:
        """Write the `.bmt` file of `ref` to `path`: a file or a folder, default `<name>.bmt`."""
        return await self._run(flows.download(self._policy, ref, path, progress))

    async def pin(self, name: str) -> None:
        """Keep the mask's latest version resident in the workers."""
        return await self._run(flows.pin(self._policy, name, True))

    async def unpin(self, name: str) -> None:
        """Allow the workers to evict the mask again."""
        return await self._run(flows.pin(self._policy, name, False))

    async def me(self) -> KeyInfo:
        """Return the key's scopes and limits; `NotFound` from a server of an earlier build."""
        return await self._run(flows.me(self._policy))

    @property
    def keys(self) -> AsyncKeys:
        """API keys of the server, for administrators."""
        return AsyncKeys(self._run, self._policy)

    async def usage(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        group_by: Sequence[str] = ("key", "mask"),
        tenant: str | None = None,
    ) -> Usage:
        """Return requests and tokens of the key's tenant; see `BmtClient.usage`."""
        return await self._run(counts.show(self._policy, start, end, group_by, tenant))

    async def limits(self) -> LimitTable:
        """Return the limits of single keys and tenants, and those of all others."""
        return await self._run(limit_flows.show(self._policy))

    async def set_limits(
        self, limits: Limits, *, key: str | None = None, tenant: str | None = None
    ) -> Limits:
        """Set all limits of a key, by its id, or of a tenant; see `BmtClient.set_limits`."""
        return await self._run(limit_flows.put(self._policy, limits, key, tenant))

    async def delete_limits(self, *, key: str | None = None, tenant: str | None = None) -> None:
        """Remove the limits of a key or a tenant, so that the server's defaults apply."""
        return await self._run(limit_flows.delete(self._policy, key, tenant))

    async def models(self) -> tuple[ModelInfo, ...]:
        """List the names that a request may give as `model`: base, masks and aliases."""
        return await self._run(flows.models(self._policy))

    async def ready(self) -> bool:
        """Return True if the server accepts requests now; False if it cannot be reached."""
        return await self._run(flows.ready(self._policy))

    async def complete(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion request; see `BmtClient.complete`."""
        return await self._run(flows.complete(self._policy, fields))

    def openai(self, **arguments: Any) -> openai.AsyncOpenAI:
        """Return an `openai.AsyncOpenAI` client; `arguments` go to its constructor."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        if "http_client" not in arguments:
            arguments["http_client"] = self._openai_pool(DefaultAsyncHttpxClient)
        return AsyncOpenAI(**self._openai_arguments(arguments))

    async def _run(self, flow: Flow[T]) -> T:
        result: Any = None
        error: Exception | None = None
        while True:
            try:
                effect = step(flow, result, error)
            except StopIteration as end:
                value: T = end.value
                return value
            result = error = None
            try:
                result = await self._perform(effect)
            except Exception as raised:
                # The flow decides if this reaches the caller.
                error = raised

    async def _perform(self, effect: Effect) -> Any:
        # A quarter of this package's import time, which blocking users need not pay.
        import asyncio

        if isinstance(effect, Send):
            return await self._send(effect.request)
        if isinstance(effect, Call):
            return await asyncio.to_thread(effect.function)
        return await asyncio.sleep(effect.seconds)

    async def _send(self, request: Request) -> Response:
        import httpx2

        content = None if request.body is None else _async_chunks(request.body, request.sent)
        try:
            async with self._http.stream(
                **self._request_arguments(request), content=content
            ) as response:
                receiver = Receiver(request, response.status_code, response.headers)
                async for chunk in response.aiter_bytes():
                    receiver.take(chunk)
        except httpx2.RequestError as error:
            raise self._no_answer(error) from error
        return self._response(response.status_code, response.headers, receiver.body())


async def _async_chunks(body: bytes, progress: Progress | None) -> AsyncIterator[bytes]:
    for chunk in chunks(body, progress):
        yield chunk
