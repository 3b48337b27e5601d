"""SIGTERM on a real server: it says so at once, ends what runs, and exits with 0."""

from __future__ import annotations

import json
import signal
import time

import httpx
import pytest

from .served import Served

pytestmark = pytest.mark.engine

TOKENS = 200


def test_a_stream_ends_whole_and_nothing_new_begins(smol, valkey, tmp_path):
    server = Served(smol, tmp_path, "--enforce-eager", registry=valkey.url)
    told, pieces, used = 0.0, 0, 0
    try:
        body = {"model": "smol", "prompt": "The sun", "max_tokens": TOKENS, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0}
        streamed = {**body, "stream_options": {"include_usage": True}}
        with (
            httpx.Client(base_url=server.url, headers=server.headers, timeout=60) as client,
            client.stream("POST", "/v1/completions", json=streamed) as stream,
        ):
            for line in stream.iter_lines():
                if not line.startswith("data: {"):
                    continue
                pieces += 1
                used = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", used)
                if pieces == 5:
                    told = time.monotonic()
                    server.process.send_signal(signal.SIGTERM)
                    while httpx.get(f"{server.url}/readyz").status_code == 200:
                        assert time.monotonic() - told < 2
                        time.sleep(0.01)
                    seen = time.monotonic() - told
                    refused = httpx.post(
                        f"{server.url}/v1/completions",
                        json={**body, "stream": False},
                        headers=server.headers,
                        timeout=10,
                    )
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert int(refused.headers["retry-after"]) >= 1
        assert seen < 0.5
        assert used == TOKENS, "the stream was cut off"
        assert server.process.wait(60) == 0
    finally:
        server.stop()
