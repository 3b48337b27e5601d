"""Open WebUI's requests on the real engine: answers, streams and what a page may read."""

from __future__ import annotations

import json

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient

from tests.support.masks import random_mask_of
from tests.support.requests.open_webui import calls

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def version(server, smol) -> str:
    mask = random_mask_of(smol, 77, sparsity=0.02)
    with BmtClient(base_url=server.url, api_key=server.key) as client:
        return client.upload(bmt_core.encode(mask), name="webui", alias=["prod"]).model


def test_every_call_is_answered(server, version):
    for model, answered in (("smol", "smol"), ("webui:prod", version), ("smol:webui", version)):
        for call in calls(server.key, model):
            answer = httpx2.request(
                call.method,
                f"{server.url}/v1{call.path}",
                headers=call.headers,
                json=call.body,
                timeout=120,
            )
            assert answer.status_code == 200, (call.what, answer.text)
            if "Origin" in call.headers:
                assert answer.headers.get_list("access-control-allow-origin") == ["*"]
            if call.streams:
                assert answer.headers["content-type"].startswith("text/event-stream")
                events = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
                assert events[-1] == "[DONE]"
                chunks = [json.loads(event) for event in events[:-1]]
                assert {chunk["model"] for chunk in chunks} == {answered}
                assert chunks[-1]["usage"]["completion_tokens"] > 0
            elif call.body is not None:
                assert answer.json()["model"] == answered
                assert answer.json()["choices"][0]["message"]["content"]
            elif call.method == "GET":
                assert {"smol", "webui", "webui:prod"} <= {m["id"] for m in answer.json()["data"]}


@pytest.mark.found
def test_probes_paths_and_methods_of_neighbors(server):
    for path in ("/health", "/ping", "/livez", "/readyz"):
        for method in ("GET", "HEAD"):
            assert httpx2.request(method, server.url + path).status_code == 200
    for path in ("/v1/models/", "//v1/models", "/v1//models"):
        assert httpx2.get(server.url + path).status_code == 401
        assert httpx2.get(server.url + path, headers=server.headers).status_code == 200
    head = httpx2.head(f"{server.url}/v1/models", headers=server.headers)
    assert (head.status_code, head.content) == (200, b"")
    assert httpx2.get(f"{server.url}/metrics/", headers=server.headers).status_code == 200
