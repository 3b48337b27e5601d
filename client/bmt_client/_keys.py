"""API keys of a server, for administrators: `client.keys`. Routes, flows and models of keys.

A request that makes a key is sent once: if its answer is lost, the key may exist, and its secret is
gone. It is in `list()` then, and can be revoked.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ._errors import ProtocolError
from ._models import Model, Page, _require_text
from ._retry import RetryPolicy, exchange, remove
from ._transport import Flow, Request, parse_json

_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class ApiKey(Model):
    """An API key without its secret."""

    key_id: str
    tenant: str = ""
    scopes: tuple[str, ...] = ()
    label: str = ""
    created: str = ""  # ISO 8601, UTC
    expires: str | None = None  # ISO 8601, UTC; None: never
    status: str = ""  # active, expired, or unreadable: refused for its `fault`
    fault: str = ""

    def __post_init__(self) -> None:
        _require_text(self, "key_id")
        object.__setattr__(self, "scopes", tuple(self.scopes))


@dataclass(frozen=True, kw_only=True)
class NewApiKey(ApiKey):
    """An API key that was made now. The server does not show its secret again."""

    key: str = field(repr=False)  # the secret
    replaces: ApiKey | None = None  # the key that a rotation ends

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not by its value, which must not be in a message.
        if not isinstance(self.key, str) or not self.key:
            raise ValueError("the secret is missing")
        if self.replaces is not None and not isinstance(self.replaces, ApiKey):
            object.__setattr__(self, "replaces", ApiKey.from_json(self.replaces))


def _pages(policy: RetryPolicy, tenant: str | None) -> Flow[tuple[ApiKey, ...]]:
    found: list[ApiKey] = []
    after: str | None = None
    while True:
        params = [("limit", str(_PAGE))]
        params += [] if after is None else [("after", after)]
        params += [] if tenant is None else [("tenant", tenant)]
        response = yield from exchange(Request("GET", "/v1/keys", params=tuple(params)), policy)
        page = Page.from_json(parse_json(response), ApiKey, "key_id", _PAGE)
        found += page.data
        if page.next is None:
            return tuple(sorted(found, key=lambda key: (key.created, key.key_id)))
        if page.next == after:
            raise ProtocolError(f"the server answers the page after {after!r} with itself")
        after = page.next


def _create(policy: RetryPolicy, body: dict[str, Any]) -> Flow[NewApiKey]:
    return (yield from _made(policy, "/v1/keys", body))


def _rotate(policy: RetryPolicy, key_id: str, body: dict[str, Any]) -> Flow[NewApiKey]:
    return (yield from _made(policy, f"{_path(key_id)}/rotate", body))


def _made(policy: RetryPolicy, path: str, body: dict[str, Any]) -> Flow[NewApiKey]:
    sent = json.dumps({name: value for name, value in body.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    request = Request("POST", path, headers=headers, body=sent.encode(), retry=False)
    response = yield from exchange(request, policy)
    raw = parse_json(response)
    if not isinstance(raw.get("key"), str):
        raise ProtocolError("the answer has no `key`; list the keys, and revoke the new one")
    return NewApiKey.from_json(raw)


def _revoke(policy: RetryPolicy, key_id: str) -> Flow[None]:
    yield from remove(Request("DELETE", _path(key_id)), policy)


def _path(key_id: str) -> str:
    return f"/v1/keys/{quote(key_id, safe='')}"


def _new(
    scopes: Sequence[str], tenant: str | None, label: str, expires: str | None
) -> dict[str, Any]:
    wanted = [scopes] if isinstance(scopes, str) else list(scopes)
    return {"scopes": wanted, "tenant": tenant, "label": label, "expires": expires}


class Keys:
    """API keys that the client's key manages: those of its tenant, or all with scope `operator`."""

    def __init__(self, run: Callable[[Flow[Any]], Any], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    def list(self, *, tenant: str | None = None) -> tuple[ApiKey, ...]:
        """Return the keys, oldest first. tenant: of one tenant alone."""
        found: tuple[ApiKey, ...] = self._run(_pages(self._policy, tenant))
        return found

    def create(
        self,
        scopes: Sequence[str],
        *,
        tenant: str | None = None,
        label: str = "",
        expires: str | None = None,
    ) -> NewApiKey:
        """Make a key; its secret is `key`.

        Parameters
        ----------
        scopes : of infer, priority, upload, promote, metrics, admin and operator; a key gives none
            that it does not have
        tenant : default that of the client's key
        expires : a duration (`30d`) or an ISO 8601 time with a zone; default never
        """
        made: NewApiKey = self._run(_create(self._policy, _new(scopes, tenant, label, expires)))
        return made

    def rotate(
        self, key_id: str, *, overlap: str | None = None, expires: str | None = None
    ) -> NewApiKey:
        """Make a key with the tenant, scopes and label of another one, which ends.

        Parameters
        ----------
        overlap : duration for which the old key still works; default an hour, `0m` for none
        expires : of the new key; default the old one's
        """
        body = {"overlap": overlap, "expires": expires}
        made: NewApiKey = self._run(_rotate(self._policy, key_id, body))
        return made

    def revoke(self, key_id: str) -> None:
        """End a key; every server refuses it within seconds."""
        self._run(_revoke(self._policy, key_id))


class AsyncKeys:
    """Asyncio twin of `Keys`."""

    def __init__(self, run: Callable[[Flow[Any]], Awaitable[Any]], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    async def list(self, *, tenant: str | None = None) -> tuple[ApiKey, ...]:
        """Return the keys, oldest first; see `Keys.list`."""
        found: tuple[ApiKey, ...] = await self._run(_pages(self._policy, tenant))
        return found

    async def create(
        self,
        scopes: Sequence[str],
        *,
        tenant: str | None = None,
        label: str = "",
        expires: str | None = None,
    ) -> NewApiKey:
        """Make a key; see `Keys.create`."""
        body = _new(scopes, tenant, label, expires)
        made: NewApiKey = await self._run(_create(self._policy, body))
        return made

    async def rotate(
        self, key_id: str, *, overlap: str | None = None, expires: str | None = None
    ) -> NewApiKey:
        """Replace a key; see `Keys.rotate`."""
        body = {"overlap": overlap, "expires": expires}
        made: NewApiKey = await self._run(_rotate(self._policy, key_id, body))
        return made

    async def revoke(self, key_id: str) -> None:
        """End a key; see `Keys.revoke`."""
        await self._run(_revoke(self._policy, key_id))
