"""The console on the real server: its routes in vLLM's app, real streams, and real metrics."""

from __future__ import annotations

import json
import re

import bmt_core
import httpx2
import pytest

from tests.support.masks import random_mask_of
from tests.support.served import Served

pytestmark = pytest.mark.engine
TOKEN = re.compile(r'name="csrf" value="(\w+)"')


def test_pages_answers_and_figures_of_a_running_server(server: Served, smol):
    """Sign in, upload, ask as a stream, and see the mask in the figures."""
    with httpx2.Client(base_url=server.url, timeout=120) as browser:

        def send(page: str, path: str, **options) -> httpx2.Response:
            token = TOKEN.search(browser.get(f"/console/{page}").text)
            assert token is not None
            data = {"csrf": token[1], **options.pop("data", {})}
            return browser.post(f"/console/{path}", data=data, **options)

        assert send("sign-in", "sign-in", data={"key": server.key}).status_code == 303
        data = bmt_core.encode(random_mask_of(smol, seed=41))
        answer = send(
            "masks", "masks", data={"name": "of-the-console"}, files={"file": ("m.bmt", data)}
        )
        assert answer.status_code == 303, answer.text
        fields = {"model": "of-the-console", "prompt": "Hi", "max_tokens": "4"}
        answer = send("compare", "compare/stream", data=fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line[:7] == "data: {"]
        assert events[0]["model"].startswith("of-the-console@")
        assert any(e["choices"][0]["delta"].get("content") for e in events if e["choices"])
        for page in ("masks", "masks/of-the-console", "compare", "traffic", "usage", "keys"):
            answer = browser.get(f"/console/{page}")
            assert answer.status_code == 200, (page, answer.text)
            assert "of-the-console" in answer.text or page == "keys", page
        traffic = browser.get("/console/traffic").text
        row = traffic[traffic.index(">of-the-console<") :].partition("</tr>")[0]
        assert "resident" in row
        # This server has no place for files.
        for page in ("files", "jobs"):
            answer = browser.get(f"/console/{page}")
            assert answer.status_code == 404
            assert "--files" in answer.text
