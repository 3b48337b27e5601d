"""Open WebUI's requests on the real engine: answers, streams and what a page may read."""

from __future__ import annotations

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient

from tests.support.masks import random_mask_of
from tests.support.requests.open_webui import replay

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def version(server, smol) -> str:
    mask = random_mask_of(smol, 77, sparsity=0.02)
    with BmtClient(base_url=server.url, api_key=server.key) as client:
        return client.upload(bmt_core.encode(mask), name="webui", alias=["prod"]).model


def test_every_call_is_answered(server, version):
    for model, answered in (("smol", "smol"), ("webui:prod", version), ("smol:webui", version)):
        # No origin is allowed unless the operator names it.
        replay(server.url, server.key, model, answered, "")


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
