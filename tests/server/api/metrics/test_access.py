"""Access to `/metrics`: by scope, and by a port of its own."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from bmt_server.api.metrics.port import MetricsPort, check_port
from bmt_server.settings import SettingsError
from prometheus_client import CollectorRegistry, Counter, generate_latest
from starlette.responses import PlainTextResponse

from tests.support.http.ports import free_port
from tests.support.replica import make_mask


@pytest.fixture
async def served(api):
    """A replica whose `/metrics` is that of a server."""
    registry = api.state.metrics._registry
    api.app.get("/metrics")(lambda: PlainTextResponse(generate_latest(registry)))
    for name, scopes, tenant in (
        ("monitor", ("metrics",), "default"),
        ("acme", ("infer", "upload", "admin", "metrics"), "acme"),
    ):
        made = await api.state.keys.create(scopes, tenant=tenant)
        api.keys[name] = made[0]
    return api


async def get(api, path, key, method="GET"):
    async with api.client(key) as client:
        return await client.request(method, path)


@pytest.mark.found
async def test_keys_of_tenants_do_not_read_metrics(served):
    """Any key of any tenant read the names and the traffic of all."""
    served.state.metrics.request_finished(
        "project-x-secret@0123", outcome="ok", prompt_tokens=1, completion_tokens=1, ttft_s=None
    )
    for key, status in (
        *(("monitor", 200), ("admin", 200)),
        *(("infer", 403), ("upload", 403), ("other", 403), ("acme", 403), ("", 401)),
    ):
        answer = await get(served, "/metrics", key)
        assert answer.status_code == status, key
        assert ("project-x-secret" in answer.text) == (status == 200), key
    assert (await get(served, "/metrics", "acme")).json()["error"]["code"] == "operator_only"


async def test_a_key_of_metrics_reads_nothing_else(served):
    """Prometheus's key lies in monitoring systems; it is no key to masks."""
    for method, path in (
        *(("GET", "/v1/masks"), ("GET", "/v1/models"), ("GET", "/v1/blobs/" + "0" * 64)),
        *(("PUT", "/v1/masks/m"), ("DELETE", "/v1/masks/m"), ("POST", "/v1/chat/completions")),
    ):
        assert (await get(served, path, "monitor", method)).status_code == 403, path
    assert (await get(served, "/v1/me", "monitor")).json()["scopes"] == ["metrics"]


@pytest.mark.found
async def test_cards_of_models_show_no_folders(served):
    """`root` was the folder of the mask or the checkpoint on the server."""
    assert (await served.put("m", make_mask())).status_code == 201
    listed = "/v1/models?kind=base,name,version"
    cards = (await get(served, listed, "infer")).json()["data"]
    cards += [(await get(served, f"/v1/models/{c['id']}", "infer")).json() for c in cards]
    assert len(cards) >= 6  # base, mask and version, in the list and alone
    for card in cards:
        assert card["root"].partition("@")[0] == card["id"].partition("@")[0]
        assert not any("/" in str(value) for value in card.values()), card


async def test_a_port_of_its_own_serves_metrics_alone(tmp_path):
    registry, port = CollectorRegistry(), free_port()
    Counter("bmt_x", "x", registry=registry).inc()
    check_port("127.0.0.1", port)
    first = MetricsPort(registry, "127.0.0.1", port, tmp_path)
    # Another API process of the same server.
    second = MetricsPort(registry, "127.0.0.1", port, tmp_path)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url) as client:
            assert "bmt_x_total 1.0" in (await client.get("/metrics")).text
            for path in ("/", "/v1/masks", "/metrics/x", "//metrics", "/livez"):
                answer = await client.get(path)
                assert (answer.status_code, "bmt_x" in answer.text) == (404, False), path
            assert (await client.post("/metrics", content=b"x")).status_code in (200, 405)
    finally:
        second.close()
        await asyncio.to_thread(first.close)
    check_port("127.0.0.1", port)


def test_a_port_that_is_taken_is_an_error_at_the_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--metrics-port\\) is {port}"):
            check_port("127.0.0.1", port)
        with pytest.raises(SettingsError, match="another"):
            MetricsPort(CollectorRegistry(), "127.0.0.1", port, tmp_path)
    MetricsPort(CollectorRegistry(), "127.0.0.1", port, tmp_path).close()
    check_port("", 0)
