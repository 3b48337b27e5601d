"""`BmtClient`, the blocking client; the logic of its methods is in `_flows`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bmt_core import Mask

from . import _flows as flows
from ._base import BaseClient
from ._keys import Keys
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
from ._tuning.clients import TuningClient
from ._usage import counts
from ._usage import limits as limit_flows
from ._usage.counts import Usage
from ._usage.limits import Limits, LimitTable

if TYPE_CHECKING:
    import httpx2
    import openai

T = TypeVar("T")


class BmtClient(TuningClient, BaseClient):
    """Blocking client of a bmt-server and its mask registry.

    Parameters
    ----------
    base_url : server address; default `BMT_URL`, then the config file, then http://127.0.0.1:8000
    api_key : default `BMT_API_KEY`, then the config file's key for that address
    timeout : seconds for one attempt; default `BMT_TIMEOUT` or 60
    max_retries : attempts after the first on 408, 429, 500, 502-504 and broken connections
    http_client : `httpx2.Client` to use instead of a new one; the client does not close it
    ca_file : certificates to trust in place of the system's: a file or folder; default
        `BMT_CA_FILE`
    allow_insecure : allow sending the key over http:// to another machine

    Every method raises subclasses of `bmt_client.BmtClientError`. A `ref` is `math` (the latest
    version), `math:prod` (an alias) or `math@3f9c…` (12 to 64 hex digits of the mask digest).
    Instances may be shared between threads.

        with BmtClient() as client:
            version = client.upload("math.bmt", alias=["prod"])
            client.openai().chat.completions.create(model=version.model, messages=[...])
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx2.Client | None = None,
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
        self._http = self._pool(httpx2.Client, http_client)

    def __enter__(self) -> BmtClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless `http_client` was given."""
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
        expires: str | None = None,
        progress: Progress | None = None,
    ) -> Upload:
        """Store a mask as the latest version of `name`.

        The file is validated first with the server's own parser, so an invalid one raises
        `Invalid` before anything is sent. Idempotent: the same mask again changes nothing.

        Parameters
        ----------
        source : path of a `.bmt` file, its bytes, or a mask
        name : default the file's stem in the form of a name, or `metadata["name"]`
        alias : aliases to point at the new version
        if_match : mask digest that must be the latest, else `Conflict`
        if_none_match : the name must not exist yet, else `Conflict`
        expires : a duration (`24h`) or an ISO 8601 time after which the server removes the name,
            for names that begin with `rollout-`; without it an earlier one is void
        progress : called with (bytes sent, bytes in total)
        """
        return self._run(
            flows.upload(
                self._policy, source, name, alias, if_match, if_none_match, expires, progress
            )
        )

    def import_mask(
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
        """Have the server read a mask from `source` and store it as the latest version of `name`.

        Only from places that the server's operator names (`--import-from`), else
        `PermissionDenied`. `bmt_client` reads nothing from there.

        Parameters
        ----------
        source : `hf://org/name/file.bmt`, `s3://bucket/key`, `https://host/path`, or a file or
            version of the server: `sha256:…`, `name@digest`, `name:alias`
        alias : aliases to point at the new version
        digest : SHA-256 that the file must have, 64 hex digits
        if_match, if_none_match, expires : as in `upload`
        """
        return self._run(
            flows.import_mask(
                self._policy, source, name, alias, digest, if_match, if_none_match, expires
            )
        )

    def push(
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
        expires : as in `upload`
        """
        return self._run(flows.push(self._policy, name, old, new, if_match, resident, expires))

    def list(self, *, page_size: int = 100) -> Iterator[MaskInfo]:
        """Iterate over all masks by name; pages are fetched on demand."""
        after: str | None = None
        while True:
            page: Page = self._run(flows.page(self._policy, page_size, after))
            yield from page.data
            if page.next is None:
                return
            after = page.next

    def get(self, ref: str) -> Version:
        """Return the version that `ref` names now."""
        return self._run(flows.get(self._policy, ref))

    def versions(self, name: str) -> tuple[Version, ...]:
        """Return all versions of a mask, newest first."""
        return self._run(flows.versions(self._policy, name))

    def alias(self, name: str, alias: str) -> Alias:
        """Return the version of `name:alias`, with its canary and its shadow."""
        return self._run(flows.alias(self._policy, name, alias))

    def set_alias(
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
        """Point `name:alias` at a version, given as digest, rev, or ref of the same name.

        With a canary, that version answers `percent` of the requests, the same users and sessions
        each time; with a shadow, that version gets copies of `shadow_percent` of them, and its
        answers are dropped. All of it changes in one step.

        Parameters
        ----------
        to : the version; without it that of the alias stays, and so do a canary and a shadow, or
            their shares, if they are not given. With it, those that are not given end
        canary, shadow : versions
        percent, shadow_percent : 0 to 100, with two decimals at most
        if_match : mask digest that the alias must have, else `Conflict`
        """
        shares = (canary, percent, shadow, shadow_percent)
        return self._run(flows.split(self._policy, name, alias, to, *shares, if_match))

    def promote(
        self, name: str, alias: str, canary: str | None = None, *, if_match: str | None = None
    ) -> Alias:
        """Make the canary of `name:alias` its version, and end canary and shadow, in one step.

        Raises `Conflict` if it has no canary, or another one than `canary` (a mask digest).
        """
        return self._run(flows.promote(self._policy, name, alias, canary, if_match))

    def rollback_alias(self, name: str, alias: str, *, if_match: str | None = None) -> Alias:
        """End canary and shadow of `name:alias` in one step: all requests get its version.

        Raises `Conflict` if it has neither.
        """
        return self._run(flows.rollback_alias(self._policy, name, alias, if_match))

    def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Remove `name:alias`; its version stays."""
        return self._run(flows.delete_alias(self._policy, name, alias, if_match))

    def rollback(self, name: str, to: str | int | Version | None = None) -> Version:
        """Make an older version the latest again, by default the one before the latest.

        Raises `Conflict` if another client changed the name in the meantime.
        """
        return self._run(flows.rollback(self._policy, name, to))

    def delete(self, name: str) -> None:
        """Remove a mask with all its versions and aliases."""
        return self._run(flows.delete(self._policy, name))

    def delete_version(self, name: str, digest: str) -> None:
        """Remove one version (12 to 64 hex digits of its mask digest)."""
        return self._run(flows.delete_version(self._policy, name, digest))

    def prune(
        self,
        name: str,
        *,
        keep_last: int | None = None,
        older_than: str | None = None,
        dry_run: bool = False,
    ) -> tuple[str, ...]:
        """Remove old versions of a mask; return their mask digests.

        The latest version and those of aliases stay, also without `keep_last`.

        Parameters
        ----------
        keep_last : number of newest versions that stay
        older_than : remove only versions of this age, such as `30d` (units m, h, d, w)
        dry_run : remove nothing, only return what would be removed
        """
        return self._run(flows.prune(self._policy, name, keep_last, older_than, dry_run))

    def retention(self, name: str) -> Retention:
        """Return the rule by which the server removes old versions of a mask."""
        return self._run(flows.retention(self._policy, name, None))

    def set_retention(
        self, name: str, *, keep_last: int | None = None, older_than: str | None = None
    ) -> Retention:
        """Have the server remove old versions of a mask by itself, now and after each upload.

        Versions beyond the newest `keep_last` go, and of those only what is `older_than` (`30d`).
        The latest version, those of aliases and those that requests run on stay. Without bounds
        all versions stay, whatever the server's default.
        """
        rule = {"keep_last": keep_last, "older_than": older_than}
        return self._run(flows.retention(self._policy, name, rule))

    def delete_retention(self, name: str) -> Retention:
        """Let the server's default rule apply to a mask again; return that rule."""
        return self._run(flows.retention(self._policy, name, None, True))

    def read(self, ref: str, *, progress: Progress | None = None) -> bytes:
        """Return the `.bmt` file of `ref`, verified against its digest."""
        return self._run(flows.read(self._policy, ref, progress))

    def download(
        self,
        ref: str,
        path: str | PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Path:
        """Write the `.bmt` file of `ref` to `path`: a file or a folder, default `<name>.bmt`.

        The file is verified against its digest and then written atomically.
        """
        return self._run(flows.download(self._policy, ref, path, progress))

    def pin(self, name: str) -> None:
        """Keep the mask's latest version resident in the workers."""
        return self._run(flows.pin(self._policy, name, True))

    def unpin(self, name: str) -> None:
        """Allow the workers to evict the mask again."""
        return self._run(flows.pin(self._policy, name, False))

    def me(self) -> KeyInfo:
        """Return the key's scopes and limits; `NotFound` from a server of an earlier build."""
        return self._run(flows.me(self._policy))

    @property
    def keys(self) -> Keys:
        """API keys of the server, for administrators."""
        return Keys(self._run, self._policy)

    def usage(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        group_by: Sequence[str] = ("key", "mask"),
        tenant: str | None = None,
    ) -> Usage:
        """Return requests and tokens of the key's tenant, by day in UTC.

        Parameters
        ----------
        start, end : first and last day, such as `2026-01-31`; default the last 30 days
        group_by : of tenant, key, mask and day; empty for one total
        tenant : another tenant, or `*` for all, for an administrator of the tenant `default`
        """
        return self._run(counts.show(self._policy, start, end, group_by, tenant))

    def limits(self) -> LimitTable:
        """Return the limits of single keys and tenants, and those of all others."""
        return self._run(limit_flows.show(self._policy))

    def set_limits(
        self, limits: Limits, *, key: str | None = None, tenant: str | None = None
    ) -> Limits:
        """Set all limits of a key, by its id, or of a tenant; needs an operator's key.

        Those that are None are the server's defaults; 0: no limit. Every server has them within
        seconds.
        """
        return self._run(limit_flows.put(self._policy, limits, key, tenant))

    def delete_limits(self, *, key: str | None = None, tenant: str | None = None) -> None:
        """Remove the limits of a key or a tenant, so that the server's defaults apply."""
        return self._run(limit_flows.delete(self._policy, key, tenant))

    def models(self) -> tuple[ModelInfo, ...]:
        """List the names that a request may give as `model`: base, masks and aliases."""
        return self._run(flows.models(self._policy))

    def ready(self) -> bool:
        """Return True if the server accepts requests now; False if it cannot be reached."""
        return self._run(flows.ready(self._policy))

    def complete(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the server's answer to a completion request (`POST /v1/completions`) as JSON.

        For jobs that want this client's errors and retries: a request with a seed is repeatable,
        and so is sent again as the others are. For everything else there is `openai`.

        Parameters
        ----------
        fields : of OpenAI's request and of vLLM's, such as `return_token_ids`
        """
        return self._run(flows.complete(self._policy, fields))

    def openai(self, **arguments: Any) -> openai.OpenAI:
        """Return an `openai.OpenAI` client; `arguments` go to its constructor."""
        from openai import DefaultHttpxClient, OpenAI

        if "http_client" not in arguments:
            arguments["http_client"] = self._openai_pool(DefaultHttpxClient)
        return OpenAI(**self._openai_arguments(arguments))

    def _run(self, flow: Flow[T], send: Callable[[Request], Response] | None = None) -> T:
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
                result = self._perform(effect, send or self._send)
            except Exception as raised:
                # The flow decides if this reaches the caller.
                error = raised

    @staticmethod
    def _perform(effect: Effect, send: Callable[[Request], Response]) -> Any:
        if isinstance(effect, Send):
            return send(effect.request)
        if isinstance(effect, Call):
            return effect.function()
        return time.sleep(effect.seconds)

    def _send(self, request: Request) -> Response:
        import httpx2

        content = None if request.body is None else chunks(request.body, request.sent)
        try:
            with self._http.stream(**self._request_arguments(request), content=content) as response:
                receiver = Receiver(request, response.status_code, response.headers)
                for chunk in response.iter_bytes():
                    receiver.take(chunk)
        except httpx2.RequestError as error:
            raise self._no_answer(error) from error
        return self._response(response.status_code, response.headers, receiver.body())
