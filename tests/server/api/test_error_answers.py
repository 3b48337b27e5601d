"""Every error of every route: one shape, and nothing of the server's inside or of other tenants."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path

import bmt_core
import pytest
from bmt_server.api.permissions import ROUTES
from bmt_server.ipc.disk_cache import DiskCache
from bmt_server.ipc.worker_channel import WorkerError
from redis.exceptions import RedisError

from tests.support.http.raw import head, said, serving
from tests.support.replica import make_mask

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
FIELDS = {"message", "type", "code", "param", "request_id"}
# Of the other tenant, and of Python's and the test's own places.
FOLDER = f"{Path(__file__).resolve().parents[3]}/"
SECRETS = ("theirs", "other-", FOLDER, "/tmp/", "site-packages", "Traceback", "0x7f")
BODIES = (b"", b"{", b"[]", b'{"model": 5}', b'{"model": "theirs"}', b"\x00\xff" * 40)


def paths() -> list[str]:
    """Each allowed path with names that are mine, foreign, unknown and none, and some others."""
    made = {"/", "/x", "/v1", "/v1/", "//v1/models", "/v1/masks/", "/docs", "/pause", "/v1/%00"}
    names = ("mine", "theirs", "none", "mine@000000000000", "..%2f..", "%ff", "a" * 200)
    for route in ROUTES:
        pattern = route.path.pattern.replace("/?", "").replace("/.+", "/[^/]+")
        options = re.search(r"\(([^()]+)\)", pattern)
        for option in options[1].split("|") if options else [""]:
            whole = re.sub(r"\([^()]+\)", option, pattern, count=1)
            for one, name in itertools.product(whole.split("|"), names):
                made.add(one.replace("[^/]+", name))
    return sorted(made)


def check(answer, secrets) -> None:
    """An error has the one shape; no answer has a secret."""
    where = (answer.request.method, answer.request.url, answer.status_code, answer.text[:300])
    for secret in secrets:
        assert secret not in answer.text, where
        assert all(secret not in value for value in answer.headers.values()), where
    if answer.status_code < 400 or answer.request.method == "HEAD":
        return
    if answer.request.url.path in ("/livez", "/readyz"):
        return
    if answer.request.url.path == "/console/sign-in" and answer.request.method == "POST":
        # The one form that is open without a session: a browser shows its error.
        assert 'role="alert"' in answer.text, where
        return
    error = answer.json()["error"]
    assert set(error) == FIELDS, where
    assert error["message"], where
    assert isinstance(error["code"], str), where
    assert error["request_id"] == answer.headers["x-request-id"], where


@pytest.fixture
async def secrets(api, valkey):
    await api.put("mine", make_mask(1))
    await api.put("theirs", make_mask(2), "other")
    inside = (api.state.settings.cache_dir, valkey.url, valkey.socket_dir)
    return (*SECRETS, *inside)


@pytest.mark.parametrize("key", ["", "infer", "admin"])
async def test_every_route_and_method(api, secrets, key):
    """The name of the other tenant's mask is in no answer, but where the request names it."""
    statuses = set()
    async with api.client(key) as client:
        for path, method in itertools.product(paths(), METHODS):
            answer = await client.request(method, path, content=BODIES[len(path) % len(BODIES)])
            asked = [s for s in secrets if s != "theirs" or "theirs" not in path]
            check(answer, asked if b"theirs" not in answer.request.content else asked[1:])
            statuses.add(answer.status_code)
    assert statuses <= {200, 204, 303, 400, 401, 403, 404, 405, 411, 412, 415, 422}
    assert {401} <= statuses if not key else {400, 404} <= statuses


@pytest.mark.parametrize("fault", ["cannot map {}", "w0.sock cannot be reached ({})", "{}: no"])
async def test_faults_of_the_engine(api, secrets, fault, caplog):
    """Their places are in the log, by the request's id."""
    place = f"{api.state.settings.cache_dir}/x.bin"
    api.engine.fail = WorkerError(fault.format(place), "unavailable")
    answer = await api.ask("mine")
    assert answer.status_code == 503
    assert answer.json()["error"]["request_id"] in caplog.text
    assert place in caplog.text
    check(answer, secrets)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "I/O")])
async def test_faults_of_the_disk(api, secrets, error, monkeypatch):
    def write(self, mask, path):
        error.filename = str(path)
        raise error

    api.state.cache.disk.delete(make_mask(1).digest)
    monkeypatch.setattr(DiskCache, "_write", write)
    answer = await api.ask("mine")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] in ("cache_full", "cache_unusable")
    check(answer, secrets)


@pytest.mark.found
async def test_a_registry_that_is_away_is_named_by_no_address(api, secrets, monkeypatch):
    async def refuse(*_, **__):
        raise RedisError(f"Error 111 connecting to 127.0.0.1:7001, {secrets[-2]}")

    monkeypatch.setattr(type(api.state.connection.quick), "execute_command", refuse)
    async with api.client() as client:
        for method, path in (
            *(
                ("GET", p)
                for p in ("/v1/masks", "/v1/masks/mine/versions", "/v1/blobs/" + "0" * 64)
            ),
            *(("DELETE", p) for p in ("/v1/masks/mine", "/v1/masks/mine/pin")),
            ("PUT", "/v1/masks/new"),
        ):
            data = bmt_core.encode(make_mask(9)) if method == "PUT" else None
            answer = await client.request(method, path, content=data)
            check(answer, (*secrets, "127.0.0.1", ":7001"))
            assert answer.status_code < 500 or answer.json()["error"]["code"] != "internal"


async def test_what_is_no_http(api):
    """Answers that come before any request is known have the shape too."""
    long = "a" * 40_000
    async with serving(api.app, head_timeout_s=0.3) as port:
        for raw, expected in (
            (b"GET\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
            (b"GET / HTTP/9.9\r\n\r\n", 400),
            (f"GET /{long} HTTP/1.1\r\nHost: t\r\n\r\n".encode(), 431),
            (f"GET / HTTP/1.1\r\nHost: t\r\nX: {long}\r\n\r\n".encode(), 431),
            (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost", 408),
            (head(api, "GET", "/x" * 5000, Connection="close"), 404),
        ):
            status, body, _ = await asyncio.wait_for(said(port, raw), 5)
            assert status == expected, (raw[:60], status, body)
            assert set(body["error"]) == FIELDS, raw[:60]
