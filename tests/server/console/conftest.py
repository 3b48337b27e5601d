"""Browsers of the console without a screen: cookies, forms, and the tokens in them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import Api, replica

CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@dataclass
class Browser:
    """A client with cookies. Its forms carry the token of the page that they stand on."""

    client: httpx2.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.client.get(f"/console{path}", **options)

    async def token(self, path: str) -> str:
        found = CSRF.search((await self.get(path)).text)
        assert found is not None, path
        return found[1]

    async def send(self, page: str, path: str | None = None, **fields: Any) -> httpx2.Response:
        """Send a form of `page` to `path`, or to the page itself."""
        fields.setdefault("csrf", await self.token(page))
        return await self.client.post(f"/console{page if path is None else path}", data=fields)

    async def upload(self, page: str, filename: str, data: bytes, **fields: str) -> httpx2.Response:
        fields.setdefault("csrf", await self.token(page))
        files = {"file": (filename, data)}
        return await self.client.post(f"/console{page}", data=fields, files=files)

    async def sign_in(self, key: str) -> httpx2.Response:
        return await self.send("/sign-in", key=key)


Visit = Callable[..., Awaitable[Browser]]


@pytest.fixture
async def site(valkey: Any, tmp_path: Any) -> AsyncIterator[Api]:
    """A replica with files and jobs, and a key of each kind."""
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    made = {"": ""}
    for name, scopes, tenant in (
        ("infer", ("infer",), "default"),
        ("metrics", ("metrics",), "default"),
        ("upload", ("upload",), "default"),
        ("promote", ("promote",), "default"),
        ("admin", ("infer", "upload", "admin"), "default"),
        ("operator", ("operator",), "default"),
        ("train", ("train",), "default"),
        ("other", ("infer", "upload", "admin"), "other"),
    ):
        created = await ApiKeyStore(store).create(scopes, tenant=tenant, label=name)
        assert created is not None
        made[name] = created[0]
    await store.close()
    files = (tmp_path / "files").as_uri()
    async with replica(valkey.url, tmp_path / "cache", made, files_url=files) as one:
        yield one


@pytest.fixture
async def visit(site: Api) -> AsyncIterator[Visit]:
    """`await visit("admin")` is a signed-in browser; `await visit("")` one that is not."""
    async with AsyncExitStack() as open_clients:

        async def made(key: str = "admin", scheme: str = "http", api: Api = site) -> Browser:
            transport = httpx2.ASGITransport(app=api.app, raise_app_exceptions=False)
            client = httpx2.AsyncClient(transport=transport, base_url=f"{scheme}://test")
            browser = Browser(await open_clients.enter_async_context(client))
            if key:
                answer = await browser.sign_in(site.keys[key])
                assert answer.status_code == 303, answer.text
            return browser

        yield made
