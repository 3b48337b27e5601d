"""The publisher of a version, and the lines that changes and refusals leave in the log."""

from __future__ import annotations

import logging

import bmt_core
import httpx
import pytest
from bmt_server.api.permissions import ROUTES

from tests.support.replica import make_mask

AUDIT, REQUESTS = "vllm.bmt_server.audit", "vllm.bmt_server.requests"


@pytest.fixture
def lines(caplog, monkeypatch):
    """Records of a logger; vLLM's does not propagate to pytest's handler."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, AUDIT)
    return lambda name=AUDIT: [r for r in caplog.records if r.name == name]


def client_at(api, address, key):
    """A client whose connection comes from an address, as uvicorn states it."""
    transport = httpx.ASGITransport(app=api.app, client=(address, 5000), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {api.keys.get(key, key)}"} if key else {}
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


async def key_of(api, key):
    async with api.client(key) as client:
        return (await client.get("/v1/me")).json()["key_id"]


@pytest.mark.found
async def test_a_version_keeps_who_published_it_and_from_where(api):
    made = await api.state.keys.create(("upload",), label="trainer 7")
    api.keys["trainer"] = made[0]
    data = bmt_core.encode(make_mask(1))
    async with client_at(api, "192.0.2.7", "trainer") as client:
        answer = await client.put("/v1/masks/m", content=data)
        assert answer.status_code == 201
        assert "published_by" not in answer.json()
        assert "published_by" not in (await client.get("/v1/masks/m")).json()
    expected = {"key_id": made[1].key_id, "key_name": "trainer 7", "address": "192.0.2.7"}
    async with api.client() as client:
        assert (await client.get("/v1/masks/m")).json()["published_by"] == expected
        # The same mask again is still the first one's.
        await client.put("/v1/masks/m", content=data)
        assert (await client.get("/v1/masks/m")).json()["published_by"] == expected
        digest = make_mask(1).digest
        assert (await client.get(f"/v1/masks/m@{digest[:12]}")).json()["published_by"] == expected
    for key in ("infer", "promote"):
        async with api.client(key) as client:
            for path in ("/v1/masks/m", "/v1/masks", "/v1/masks/m/versions"):
                assert "192.0.2.7" not in (await client.get(path)).text
    async with api.client("other") as client:
        assert made[1].key_id not in (await client.get("/v1/masks/m")).text


async def test_flips_have_a_publisher_too(api):
    old, new = make_mask(1), make_mask(2)
    await api.put("m", old)
    flips = bmt_core.encode(bmt_core.symmetric_difference(old, new))
    async with client_at(api, "192.0.2.8", "upload") as client:
        params = {"parent": old.digest, "digest": new.digest}
        answer = await client.patch("/v1/masks/m", params=params, content=flips)
        assert answer.status_code == 201, answer.text
    async with api.client() as client:
        found = (await client.get("/v1/masks/m")).json()["published_by"]
    assert found["key_id"] == await key_of(api, "upload")
    assert found["address"] == "192.0.2.8"


@pytest.mark.found
async def test_each_change_leaves_one_line(api, lines):
    """Every route that changes something, by the table of routes."""
    one, two = make_mask(1), make_mask(2)
    flips = bmt_core.encode(bmt_core.symmetric_difference(two, make_mask(3)))
    changed = {"parent": two.digest, "digest": make_mask(3).digest}
    split = {"rev": 1, "canary": {"rev": 2, "percent": 5}}
    loaded = {"lora_name": "p", "lora_path": f"n@{one.digest}"}
    async with client_at(api, "192.0.2.9", "admin") as client:
        made = (await client.post("/v1/keys", json={"scopes": ["infer"], "label": "ci"})).json()
        steps = [
            ("PUT", "/v1/masks/m", {"content": bmt_core.encode(one)}, "publish"),
            ("PUT", "/v1/masks/m?alias=prod", {"content": bmt_core.encode(two)}, "publish"),
            ("PATCH", "/v1/masks/m", {"content": flips, "params": changed}, "publish"),
            ("PUT", "/v1/masks/m/aliases/a", {"json": {"rev": 1}}, "alias"),
            ("PUT", "/v1/masks/m/aliases/a", {"json": split}, "alias"),
            ("POST", "/v1/masks/m/aliases/a/rollback", {}, "rollback"),
            ("PUT", "/v1/masks/m/aliases/a", {"json": split}, "alias"),
            ("POST", "/v1/masks/m/aliases/a/promote", {}, "promote"),
            ("PUT", "/v1/masks/m/aliases/latest", {"json": {"rev": 2}}, "alias"),
            ("DELETE", "/v1/masks/m/aliases/a", {}, "alias_delete"),
            ("PUT", "/v1/masks/m/pin", {}, "pin"),
            ("DELETE", "/v1/masks/m/pin", {}, "unpin"),
            ("DELETE", f"/v1/masks/m/versions/{one.digest}", {}, "version_delete"),
            ("PUT", "/v1/masks/m", {"content": bmt_core.encode(make_mask(4))}, "publish"),
            ("POST", "/v1/masks/m/prune?keep_last=1", {}, "prune"),
            ("PUT", "/v1/masks/m/retention", {"json": {"keep_last": 5}}, "retention"),
            ("DELETE", "/v1/masks/m/retention", {}, "retention"),
            ("PUT", "/v1/limits/tenants/acme", {"json": {}}, "limits"),
            ("DELETE", "/v1/limits/tenants/acme", {}, "limits"),
            ("DELETE", "/v1/models/m:prod", {}, "alias_delete"),
            ("DELETE", "/v1/masks/m", {}, "delete"),
            ("PUT", "/v1/masks/n", {"content": bmt_core.encode(one)}, "publish"),
            ("DELETE", "/v1/models/n", {}, "delete"),
            ("PUT", "/v1/masks/n", {"content": bmt_core.encode(one)}, "publish"),
            ("POST", "/v1/masks/o/import", {"json": {"source": f"n@{one.digest}"}}, "import"),
            ("POST", "/v1/load_lora_adapter", {"json": loaded}, "import"),
            ("POST", "/v1/unload_lora_adapter", {"json": {"lora_name": "p"}}, "delete"),
            ("PUT", "/v1/masks/rollout-m", {"content": bmt_core.encode(one)}, "publish"),
            ("DELETE", f"/v1/masks/rollout-m/versions/{one.digest}", {}, None),
            ("DELETE", "/v1/masks/rollout-m", {}, "delete"),
            ("POST", "/v1/keys", {"json": {"scopes": ["infer"]}}, "key_create"),
            ("POST", f"/v1/keys/{made['key_id']}/rotate", {"json": {}}, "key_rotate"),
            ("DELETE", f"/v1/keys/{made['key_id']}", {}, "key_revoke"),
        ]
        for number, (method, path, options, action) in enumerate(steps):
            before = len(lines())
            headers = {"X-Request-Id": f"step-{number}"}
            answer = await client.request(method, path, headers=headers, **options)
            written = lines()[before:]
            if action is None:  # the latest version cannot be removed
                assert (answer.status_code, written) == (412, [])
                continue
            assert answer.is_success, (path, answer.text)
            (line,) = written
            assert (line.action, line.peer) == (action, "192.0.2.9")
            assert line.request_id == f"step-{number}"
            assert line.key_id == await key_of(api, "admin")
            assert line.tenant == "default"
            for part in (action, line.object, line.key_id, line.peer, line.request_id):
                assert part in line.getMessage()
            assert made["key"] not in str(vars(line))
    tried = [(method, path.partition("?")[0]) for method, path, _, action in steps if action]
    for route in ROUTES:
        changes = route.methods & {"PUT", "PATCH", "DELETE", "POST"}
        # Files and jobs: tests/server/api/files/test_audit.py.
        elsewhere = ("rollout", "/v1/files", "/v1/fine_tuning", "/v1/workers", "/v1/batches")
        # What a page of the console changes is a request to another route of this table.
        if route.scope == "session" or route.names_model:
            continue
        if any(part in route.path.pattern for part in elsewhere):
            continue
        for method in changes:
            paths = [path for tried_method, path in tried if tried_method == method]
            assert any(map(route.path.fullmatch, paths)), (method, route.path.pattern)


@pytest.mark.found
async def test_what_is_refused_leaves_no_line_of_a_change(api, lines):
    await api.put("m", make_mask(1))
    before = len(lines())
    async with api.client("upload") as client:
        await client.delete("/v1/masks/m")
        await client.put("/v1/masks/m/aliases/prod", json={"rev": 1})
        await client.put("/v1/masks/m", content=b"nonsense")
        await client.post("/v1/keys", json={"scopes": ["infer"]})
    async with api.client() as client:
        await client.put("/v1/masks/m/aliases/prod", json={"rev": 9})
        await client.post("/v1/keys", json={"scopes": ["infer"], "expires": "tomorrow"})
        await client.delete("/v1/keys/0")
    assert len(lines()) == before


@pytest.mark.found
async def test_a_refused_key_is_logged_with_the_address(api, lines):
    async with client_at(api, "2001:db8::5", "bmt_adm_" + "x" * 38) as client:
        assert (await client.get("/v1/masks")).status_code == 401
    async with client_at(api, "192.0.2.6", "") as client:
        assert (await client.get("/v1/masks")).status_code == 401
    found = lines(REQUESTS)
    assert [(r.status, r.peer) for r in found] == [(401, "2001:db8::5"), (401, "192.0.2.6")]
    assert "2001:db8::5" in found[0].getMessage()


async def test_an_odd_address_stays_one_word(api, lines):
    async with client_at(api, "1.2.3.4\n audit delete m", "admin") as client:
        await client.put("/v1/masks/m", content=bmt_core.encode(make_mask(1)))
    (line,) = lines()
    assert "\n" not in line.getMessage()
    assert "\n" not in lines(REQUESTS)[-1].getMessage()
