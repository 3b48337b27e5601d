"""Fixtures: a fake server on a real socket, and both clients with one blocking interface."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bmt_client import AsyncBmtClient, BmtClient
from bmt_client._keys import AsyncKeys
from bmt_client._retry import RetryPolicy
from bmt_client._tuning.files import AsyncFiles
from bmt_client._tuning.jobs import AsyncJobs
from bmt_client.cli import app
from typer.testing import CliRunner

from tests.support.http.fake_server import KEY, FakeServer, serving


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Hide the user's settings from tests, and shorten the waits of retries."""
    for name in (
        *("BMT_URL", "BMT_API_KEY", "BMT_TO_API_KEY", "BMT_TIMEOUT", "BMT_CA_FILE"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "FORCE_COLOR", "NO_COLOR"),
        *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO")),
        *(f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BMT_CONFIG", str(tmp_path / "config" / "client.json"))
    shorter = RetryPolicy.wait_s
    monkeypatch.setattr(
        RetryPolicy,
        "wait_s",
        lambda *args: None if (wait := shorter(*args)) is None else min(wait, 0.01),
    )


@pytest.fixture
def program() -> Callable[..., Any]:
    """Run a command line and check its exit code, unless None is expected; returns the result."""

    def call(*words: object, stdin: str | None = None, exit_code: int | None = 0) -> Any:
        found = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        assert isinstance(found.exception, SystemExit | None), found.exception
        assert exit_code in (None, found.exit_code), (words[-4:], found.exit_code, found.output)
        assert KEY not in found.output
        return found

    return call


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as fake:
        fake.shows_key = True
        yield fake


class Blocking:
    """`AsyncBmtClient` with the interface of `BmtClient`, so that each test runs on both."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.client, self.loop = client, loop

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)
        if inspect.isasyncgenfunction(member):
            return lambda **kwargs: iter(self.loop.run_until_complete(_all(member(**kwargs))))
        if inspect.iscoroutinefunction(member):
            return lambda *args, **kwargs: self.loop.run_until_complete(member(*args, **kwargs))
        if isinstance(member, AsyncKeys | AsyncFiles | AsyncJobs):
            return Blocking(member, self.loop)
        return member


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["sync", "async"])
def connect(request) -> Iterator[Callable[..., Any]]:
    """Constructor of a client of either kind; its clients are closed at the end."""
    made: list[Any] = []
    loop = asyncio.new_event_loop()

    def make(*args: Any, **kwargs: Any) -> Any:
        kind = BmtClient if request.param == "sync" else AsyncBmtClient
        client: Any = kind(*args, **kwargs)
        made.append(client if request.param == "sync" else Blocking(client, loop))
        return made[-1]

    yield make
    for client in made:
        client.close()
    loop.close()


@pytest.fixture
def client(connect, server) -> Any:
    return connect(server.url, KEY)
