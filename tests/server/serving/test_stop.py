"""A real server whose engine hangs, and one that gets SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.served import Served, engine_of

pytestmark = pytest.mark.engine

TOKENS = 200
HANG_S = 3


@pytest.fixture(scope="module")
def running(smol, valkey, tmp_path_factory):
    """A function that returns a server that runs: a test that ends one may come first."""
    flags = ("--enforce-eager", "--hang-seconds", str(HANG_S), "--shutdown-timeout", "120")
    started: list[Served] = []

    def server() -> Served:
        if not started or started[-1].process.poll() is not None:
            folder = tmp_path_factory.mktemp("stop")
            made = Served(smol, folder, *flags, registry=valkey.url)
            # Only the first server on a registry prints a key.
            made.key = made.key or started[0].key
            started.append(made)
        return started[-1]

    yield server
    for one in started:
        one.stop()


@pytest.fixture
def server(running):
    return running()


@pytest.fixture
def client(server):
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as made:
        yield made


def body(**more) -> dict:
    base = {"model": "smol", "prompt": "The sun", "max_tokens": TOKENS, "ignore_eos": True}
    return {**base, "stream": True, "stream_options": {"include_usage": True}, **more}


def events(stream: httpx2.Response) -> Iterator[dict]:
    return (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {"))


def test_a_hung_engine_fails_liveness_until_it_goes_on(server, client):
    engine, used = engine_of(server), 0
    with client.stream("POST", "/v1/completions", json=body()) as stream:
        for count, event in enumerate(events(stream)):
            used = (event.get("usage") or {}).get("completion_tokens", used)
            if count != 5:
                continue
            os.kill(engine, signal.SIGSTOP)
            stopped = time.monotonic()
            try:
                assert httpx2.get(f"{server.url}/livez").status_code == 200
                while httpx2.get(f"{server.url}/livez").status_code == 200:
                    assert time.monotonic() - stopped < 2 * HANG_S
                    time.sleep(0.1)
                assert time.monotonic() - stopped > HANG_S / 2
            finally:
                os.kill(engine, signal.SIGCONT)
    assert used == TOKENS
    assert httpx2.get(f"{server.url}/livez").status_code == 200
    # An engine without work need not give a sign of life.
    time.sleep(HANG_S + 0.5)
    assert httpx2.get(f"{server.url}/livez").status_code == 200


@pytest.mark.found
def test_a_stream_ends_whole_and_nothing_new_begins(server, client):
    signaled, seen, used, refused = 0.0, 0.0, 0, None
    # A connection for each question, but one TLS context: making it takes longer than asking.
    fresh = httpx2.Client(base_url=server.url, limits=httpx2.Limits(max_keepalive_connections=0))
    with fresh, client.stream("POST", "/v1/completions", json=body()) as stream:
        for count, event in enumerate(events(stream)):
            used = (event.get("usage") or {}).get("completion_tokens", used)
            if count != 5:
                continue
            signaled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            try:
                while fresh.get("/readyz").status_code == 200:
                    assert time.monotonic() - signaled < 2
                    time.sleep(0.01)
                seen = time.monotonic() - signaled
                refused = fresh.post(
                    "/v1/completions",
                    json={"model": "smol", "prompt": "The moon"},
                    headers=server.headers,
                    timeout=10,
                )
            except httpx2.ConnectError:
                raise AssertionError(f"gone too soon:\n{server.log.read_text()[-4000:]}") from None
    assert seen < 0.5
    assert refused is not None
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "stopping"
    assert int(refused.headers["retry-after"]) >= 1
    assert used == TOKENS, "the stream was cut off"
    code = server.process.wait(60)
    assert code == 0, server.log.read_text()[-8000:]
