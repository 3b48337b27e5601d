"""Publishing, versions, aliases, tenants and refused uploads, on a real registry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time

import bmt_core
import pytest
from bmt_server.api.metrics.counters import Metrics
from bmt_server.ipc.worker_channel import WorkerError
from prometheus_client import CollectorRegistry

from tests.support.replica import BASE, make_mask, replica


async def test_revisions_grow_and_aliases_move(api):
    a, b = make_mask(0), make_mask(1)
    first = await api.put("m", a, params={"alias": "prod"})
    assert first.status_code == 201
    one = first.json()
    assert (one["rev"], one["aliases"], one["digest"]) == (1, ["latest", "prod"], a.digest)
    again = await api.put("m", a)
    assert (again.status_code, again.json()["outcome"], again.json()["rev"]) == (
        200,
        "unchanged",
        1,
    )
    other_form = await api.put("m", bmt_core.encode(a, "packbits"))
    assert other_form.json()["outcome"] == "unchanged"
    two = (await api.put("m", b)).json()
    assert (two["rev"], two["parent"]) == (2, a.digest)
    assert two["id"] != one["id"]
    async with api.client() as client:
        assert (await client.get("/v1/masks/m")).json()["digest"] == b.digest
        assert (await client.get("/v1/masks/m:prod")).json()["digest"] == a.digest
        assert (await client.get(f"/v1/masks/m@{a.digest[:12]}")).json()["rev"] == 1
        listed = (await client.get("/v1/masks/m/versions")).json()["data"]
        assert [v["rev"] for v in listed] == [2, 1]
        back = await client.put("/v1/masks/m/aliases/latest", json={"rev": 1})
        assert back.json()["digest"] == a.digest
        busy = await client.delete(f"/v1/masks/m/versions/{a.digest}")
        assert busy.status_code == 412
        assert (await client.delete(f"/v1/masks/m/versions/{b.digest}")).status_code == 204
        assert (await client.get(f"/v1/masks/m@{b.digest[:12]}")).status_code == 404
        assert (await client.delete("/v1/masks/m/aliases/prod")).status_code == 204
        assert (await client.get("/v1/masks/m:prod")).status_code == 404
        rev = (await client.get("/v1/masks/m")).json()["rev"]
        assert (await client.delete("/v1/masks/m")).status_code == 204
        assert (await client.get("/v1/masks/m")).status_code == 404
    new = (await api.put("m", a)).json()
    assert new["rev"] > max(rev, 2), "rev grows across a delete"
    assert new["id"] not in (one["id"], two["id"])


async def test_preconditions_decide_races(api):
    a, b = make_mask(0), make_mask(1)
    assert (await api.put("m", a, headers={"If-None-Match": "*"})).status_code == 201
    assert (await api.put("m", b, headers={"If-None-Match": "*"})).status_code == 412
    assert (await api.put("m", b, headers={"If-Match": f'"{b.digest}"'})).status_code == 412
    racers = [make_mask(10 + i) for i in range(16)]
    answers = await asyncio.gather(
        *(api.put("m", r, headers={"If-Match": f'"{a.digest}"'}) for r in racers)
    )
    assert sorted(x.status_code for x in answers) == [201] + [412] * 15
    async with api.client() as client:
        assert (await client.get("/v1/masks/m")).json()["rev"] == 2


async def nothing_stored(api):
    assert await api.state.registry.names() == []
    assert await api.state.connection.quick.keys("{bmt}:blob:*") == []


async def test_bad_files_are_refused_and_nothing_is_stored(api):
    good = bmt_core.encode(make_mask())
    flipped = bytearray(good)
    flipped[-3] ^= 8
    wrong_shape = bmt_core.Mask(BASE, (bmt_core.TensorMask(next(iter({"x": 1})), (2, 2), [1]),))
    too_many = make_mask(zeros=1000)
    for body, code in (
        (b"", "bad_magic"),
        (b"GIF89a", "bad_magic"),
        (good[:100], "truncated"),
        (bytes(flipped), "bad_checksum"),
        (good + b"x", "trailing_bytes"),
        (bmt_core.encode(make_mask(base=bmt_core.Base("o", "12" * 32))), "base_mismatch"),
        (bmt_core.encode(wrong_shape), "base_mismatch"),
        (bmt_core.encode(too_many), "too_many_zeros"),
    ):
        answer = await api.put("m", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert (await api.put("m", bytes(api.state.max_upload_bytes + 1))).status_code == 413

    async def endless():
        for _ in range(100):
            yield bytes(api.state.max_upload_bytes // 10)

    async with api.client() as client:
        url = "/v1/masks/m"
        assert (await client.put(url, content=endless())).status_code == 411
        lied = {"Content-Length": "10"}
        assert (await client.put(url, content=endless(), headers=lied)).status_code == 413
        encoded = {"Content-Encoding": "gzip"}
        assert (await client.put(url, content=good, headers=encoded)).status_code == 415
        assert (await client.put(url, content=good, params={"digest": "0" * 64})).status_code == 400
        assert (await client.put(url, content=good, params={"digest": "../x"})).status_code == 400
        sha = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        header = {"Content-Digest": f"sha-256=:{sha}:"}
        answer = await client.put(url, content=good, headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_mismatch")
        for name in ("A", "..", "a%20b", "a%0d%0ab", "%F0%9F%98%80", "a" * 200, "a%00", "tiny"):
            answer = await client.put(f"/v1/masks/{name}", content=good)
            assert answer.status_code in (400, 404), name
    await nothing_stored(api)


async def test_blobs_are_returned_only_to_their_tenant(api):
    data = bmt_core.encode(make_mask())
    stored = (await api.put("m", data)).json()
    url = f"/v1/blobs/{stored['file_digest']}"
    async with api.client("infer") as client:
        answer = await client.get(url)
        assert answer.content == data
        assert answer.headers["content-type"] == "application/octet-stream"
        assert (await client.head(url)).headers["content-length"] == str(len(data))
        assert (await client.get("/v1/blobs/" + "0" * 64)).status_code == 404
        assert (await client.get("/v1/blobs/sha256:x")).status_code == 400
    async with api.client("other") as client:
        assert (await client.get(url)).status_code == 404


async def test_tenants_do_not_see_each_other(api):
    mine = (await api.put("m", make_mask(0))).json()
    async with api.client("other") as client:
        for method, path in (
            ("GET", "/v1/masks/m"),
            ("GET", "/v1/masks/m/versions"),
            ("DELETE", "/v1/masks/m"),
            ("PUT", "/v1/masks/m/pin"),
        ):
            foreign = await client.request(method, path)
            absent = await client.request(
                method, path.replace("/m", "/q", 2).replace("qasks", "masks")
            )
            assert foreign.status_code == absent.status_code == 404
            assert foreign.json()["error"]["code"] == absent.json()["error"]["code"]
        assert (await client.get("/v1/masks")).json()["data"] == []
        assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["tiny"]
    assert (await api.ask("m", "other")).status_code == 404
    theirs = (await api.put("m", make_mask(0), "other")).json()
    assert theirs["id"] != mine["id"]
    assert (await api.ask("m", "other")).json()["model"] == f"other/{theirs['model']}"
    assert (await api.ask("m")).json()["model"] == mine["model"]
    sources = {str(source) for _, _, source in api.engine.seen}
    assert len(sources) == 2, "KV blocks are keyed by path: one for each tenant"
    assert api.engine.published == {}, "only what runs can be named in vLLM"


async def test_requests_reach_their_version(api):
    a, b = make_mask(0), make_mask(1)
    one = (await api.put("m", a, params={"alias": "prod"})).json()
    two = (await api.put("m", b)).json()
    for name, expected in (
        ("tiny", "tiny"),
        ("m", two["model"]),
        ("m:prod", one["model"]),
        (f"m@{a.digest}", one["model"]),
        (one["model"], one["model"]),
    ):
        assert (await api.ask(name)).json()["model"] == expected
    for name in ("x", "m:x", "m@" + "0" * 12, "M", "m@1", "../m", ""):
        answer = await api.ask(name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    async with api.client() as client:
        ids = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
        assert ids == ["tiny", "m", "m:prod"]
        for bad in ({"model": 5}, [1], "text"):
            answer = await client.post("/v1/chat/completions", json=bad)
            assert answer.status_code == 400
        answer = await client.post("/v1/chat/completions", content="{}")
        assert answer.status_code == 415


async def test_fifty_cold_requests_are_one_load(api):
    await api.put("m", make_mask())
    next(api.state.cache.disk.folder.glob("*.lay")).unlink()
    answers = await asyncio.gather(*(api.ask("m") for _ in range(50)))
    assert {a.status_code for a in answers} == {200}
    assert len(api.engine.loads) == 1


async def test_a_failed_load_fails_its_request_and_is_retried(api):
    await api.put("m", make_mask())
    api.engine.fail = WorkerError("no room", "unusable")
    answer = await api.ask("m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "mask_unusable")
    assert "retry-after" in answer.headers
    api.engine.fail = None
    assert (await api.ask("m")).status_code == 200


async def test_a_running_stream_keeps_its_version_until_it_ends(api):
    old = (await api.put("m", make_mask(0))).json()

    async def stream():
        async with api.client() as client:
            body = {"model": "m", "stream": True}
            return (await client.post("/v1/chat/completions", json=body)).json()["model"]

    running = asyncio.create_task(stream())
    while not api.state.lifecycle.in_flight():
        await asyncio.sleep(0.01)
    async with api.client() as client:
        assert (await client.delete("/v1/masks/m")).status_code == 204
    new = (await api.put("m", make_mask(1))).json()
    assert (await api.ask("m")).json()["model"] == new["model"]
    await asyncio.sleep(0.2)
    assert old["id"] not in api.engine.dropped, "in use"
    api.hold.set()
    assert await running == old["model"]
    for _ in range(100):
        if old["id"] in api.engine.dropped:
            break
        await asyncio.sleep(0.02)
    assert api.engine.dropped == [old["id"]]
    assert (await api.ask(old["model"])).status_code == 404


async def test_replicas_converge(api, valkey, tmp_path):
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        stored = (await api.put("m", make_mask(0))).json()
        deadline = time.monotonic() + 1
        while second.state.replica.get("default", "m") is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert (await second.ask("m")).json()["model"] == stored["model"]
        # A replica that misses events detects it by the counter of changes.
        await second.state.replica.close()
        newer = (await api.put("m", make_mask(1))).json()
        assert (await second.ask("m")).json()["model"] == stored["model"]
        await second.state.replica.sync()
        assert (await second.ask("m")).json()["model"] == newer["model"]


async def test_a_damaged_blob_is_never_served(api):
    stored = (await api.put("m", make_mask())).json()
    key = "{bmt}:blob:" + stored["file_digest"]
    await api.state.connection.quick.setrange(key, 150, b"\x00\x01\x02")
    next(api.state.cache.disk.folder.glob("*.lay")).unlink()
    answer = await api.ask("m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blob_damaged")


def test_metric_labels_are_bounded():
    metrics = Metrics(3, CollectorRegistry())
    for i in range(10):
        metrics.request_finished(
            f"m{i}@abc", outcome="ok", prompt_tokens=1, completion_tokens=2, ttft_s=0.1
        )
    seen = {s.labels["mask"] for f in metrics.requests.collect() for s in f.samples}
    assert seen == {"m0", "m1", "m2", "other"}


@pytest.mark.parametrize("how", ["kill", "hang"])
async def test_registry_away_and_back(valkey, tmp_path, api, how):
    import signal

    stored = (await api.put("m", make_mask())).json()
    assert (await api.ask("m")).status_code == 200
    if how == "kill":
        valkey.kill()
    else:
        valkey.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            start = time.monotonic()
            assert (await api.ask("m")).json()["model"] == stored["model"]
            assert time.monotonic() - start < 1.5
        start = time.monotonic()
        unknown = await api.ask("unknown")
        assert unknown.status_code == 503
        assert "retry-after" in unknown.headers
        assert time.monotonic() - start < 1.5
        async with api.client() as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
    finally:
        if how == "kill":
            valkey.start()
        else:
            valkey.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 5
    while (await api.ask("unknown")).status_code != 404:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert (await api.put("late", make_mask(2))).status_code == 201
