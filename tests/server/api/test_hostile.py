"""Hostile and faulty input: the cases, the tests that cover each, and those tested only here."""

from __future__ import annotations

import ast
import asyncio
import logging
import time
from pathlib import Path
from urllib.parse import quote

import bmt_core
import pytest
from bmt_server.api.request_limits import check_body
from bmt_server.errors import BadRequest

from tests.support.http.raw import head, said, serving
from tests.support.replica import BASE, GATES, make_mask, replica
from tests.support.served import Valkey

TESTS = Path(__file__).resolve().parents[2]
# Hostile or faulty cases and the tests that cover each: FILE::WORDS of a test's name, "here" for
# this file, which holds what no other file covers.
CASES: list[tuple[str, tuple[str, ...]]] = [
    (
        "empty, short, cut files",
        (
            "core/test_damage::every_truncation",
            "server/api/test_masks::bad_files",
        ),
    ),
    ("magic, version, flags", ("core/test_attacks::attacks_are_refused",)),
    ("lengths and counts that lie", ("core/test_attacks::attacks_are_refused",)),
    ("zstd bombs", ("core/test_attacks::attacks_are_refused",)),
    ("windows, dictionaries, frames", ("core/test_attacks::attacks_are_refused",)),
    ("positions that are none", ("core/test_attacks::attacks_are_refused",)),
    (
        "polyglots",
        (
            "core/test_attacks::attacks_are_refused",
            "here::octets",
        ),
    ),
    (
        "another base",
        (
            "server/api/test_masks::bad_files",
            "here::looks_again_at_the_base",
        ),
    ),
    (
        "digests that differ or are none",
        (
            "server/api/test_masks::bad_files",
            "here::digests",
        ),
    ),
    (
        "masks of no and too many zeros",
        (
            "core/test_limits::most_zeros",
            "here::of_no_and_too_many",
        ),
    ),
    (
        "re-upload during streams",
        (
            "server/serving/test_serve::reupload",
            "system/test_reupload",
        ),
    ),
    ("two publish at once", ("server/api/test_masks::preconditions_decide_races",)),
    (
        "deleted during streams",
        (
            "server/api/test_masks::running_stream",
            "server/serving/test_serve::deleted",
        ),
    ),
    ("killed between blob and alias", ("system/registry/test_publish_killed",)),
    (
        "Redis away, hung, slow, resetting",
        (
            "server/api/test_masks::registry_away",
            "system/registry/test_registry_faults",
            "here::boot_without_a_registry",
        ),
    ),
    ("a failover loses a publish", ("here::failover",)),
    (
        "evicted or flipped blobs",
        (
            "server/api/test_masks::damaged_blob",
            "server/api/masks/test_lifecycle::lost_blob",
        ),
    ),
    (
        "Redis full, disk full",
        (
            "here::full_registry",
            "server/api/masks/test_lifecycle::full_disk",
        ),
    ),
    ("EngineCore killed or stopped", ("system/test_engine_faults",)),
    (
        "slow clients",
        (
            "server/api/test_http_protocol::head",
            "server/api/test_http_protocol::body",
            "server/api/test_http_protocol::reader",
            "system/hostile/test_slow_clients",
        ),
    ),
    (
        "huge heads, deep and huge JSON",
        (
            "server/api/test_http_protocol::heads_are_bounded",
            "server/api/test_request_limits",
            "here::json",
        ),
    ),
    (
        "ways around the key",
        (
            "server/api/test_permissions",
            "server/serving/test_vllm_routes",
            "here::no_way_in",
        ),
    ),
    (
        "names",
        (
            "server/api/test_masks::bad_files",
            "here::names",
        ),
    ),
    (
        "addresses to fetch",
        (
            "server/api/test_request_limits::media_are_refused",
            "here::nothing_is_fetched",
        ),
    ),
    (
        "tenants",
        (
            "server/api/test_masks::tenants",
            "server/api/test_masks::blobs",
            "here::same_answer",
        ),
    ),
]


@pytest.mark.parametrize(("case", "covered"), CASES, ids=[case for case, _ in CASES])
def test_each_hostile_case_has_a_test(case, covered):
    for reference in covered:
        file, _, words = reference.partition("::")
        path = Path(__file__) if file == "here" else TESTS / f"{file}.py"
        tests = [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name.startswith("test_")
        ]
        assert any(words in test for test in tests), (case, reference)


async def test_masks_go_out_as_octets_and_nothing_else(api):
    stored = (await api.put("m", make_mask())).json()
    async with api.client() as client:
        answer = await client.get(f"/v1/blobs/{stored['file_digest']}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/v1/masks", "/v1/nothing"):
            assert (await client.get(path)).headers["x-content-type-options"] == "nosniff"


async def test_a_load_looks_again_at_the_base(api):
    """A registry with other writers may hold a mask of another base under one of our versions."""
    stored = (await api.put("m", make_mask())).json()
    other = bmt_core.encode(make_mask(base=bmt_core.Base("tiny", "12" * 32)))
    await api.state.connection.quick.set("{bmt}:blob:" + stored["file_digest"], other)
    api.state.cache.disk.path(stored["digest"]).unlink()
    answer = await api.ask("m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blob_damaged")
    assert api.engine.loads == []


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../x",
        "0" * 63,
        "0" * 65,
        "A" * 64,
        "sha512:" + "0" * 128,
        "",
        "%00",
        "0" * 10_000,
    ],
)
async def test_digests_are_64_hex_digits(api, digest):
    data = bmt_core.encode(make_mask())
    async with api.client() as client:
        answer = await client.put("/v1/masks/m", params={"digest": digest}, content=data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_invalid")
        for value in (f"sha-256=:{digest}:", f"sha-512=:{digest}:", "sha-256"):
            answer = await client.put(
                "/v1/masks/m", headers={"Content-Digest": value}, content=data
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_invalid")
        if digest:
            assert (await client.get(f"/v1/blobs/{digest}")).status_code in (400, 404)
    assert await api.state.registry.names() == []


async def test_masks_of_no_and_too_many_zeros_are_a_matter_of_policy(api):
    assert (await api.put("none", make_mask(zeros=0))).status_code == 201
    assert (await api.ask("none")).status_code == 200
    name, shape = next(iter(GATES.items()))
    every = bmt_core.TensorMask(name, shape, list(range(shape[0] * shape[1])))
    answer = await api.put("all", bmt_core.Mask(BASE, (every,)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_many_zeros")


async def test_boot_without_a_registry_waits_for_it(tmp_path):
    store = Valkey(tmp_path)
    try:
        async with replica(store.url, tmp_path / "cache") as api, api.client("") as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            store.start()
            start = time.monotonic()
            while (await client.get("/readyz")).status_code != 200:
                assert time.monotonic() - start < 5
                await asyncio.sleep(0.05)
    finally:
        store.close()


@pytest.mark.parametrize("more", [0, 1, 2])
async def test_failover_that_loses_a_publish_is_noticed(api, caplog, more):
    """The registry's state wins, even if as many changes have followed as were lost."""
    quick, registry_replica = api.state.connection.quick, api.state.replica
    old = (await api.put("m", make_mask(0))).json()
    before = {key: await quick.dump(key) for key in await quick.keys("*")}
    new = (await api.put("m", make_mask(1))).json()
    assert (await api.ask("m")).json()["model"] == new["model"]
    await registry_replica.close()
    await quick.flushall()
    for key, value in before.items():
        await quick.restore(key, 0, value)
    api.state.keys.invalidate()
    for other in range(more):
        await api.put(f"other{other}", make_mask(2 + other))
    with caplog.at_level(logging.ERROR, logger="vllm.bmt_server"):
        await registry_replica.sync()
    assert ("lost writes" in caplog.text) == (more == 0)
    assert (await api.ask("m")).json()["model"] == old["model"]
    assert (await api.ask(new["model"])).status_code == 404


async def test_a_full_registry_takes_no_uploads_and_serves_on(api):
    stored = (await api.put("m", make_mask(0))).json()
    quick = api.state.connection.quick
    used = int((await quick.info("memory"))["used_memory"])
    await quick.config_set("maxmemory", used)
    try:
        answer = await api.put("n", make_mask(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "registry_full")
        assert (await api.ask("m")).json()["model"] == stored["model"]
        async with api.client() as client:
            assert (await client.get("/v1/masks/m")).status_code == 200
            assert (await client.get("/v1/masks/n")).status_code == 404
    finally:
        await quick.config_set("maxmemory", 0)
    assert (await api.put("n", make_mask(1))).status_code == 201


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "tiny", "x": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", 413),
        (b'{"model": "tiny", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"a":' * 50_000, 400),
        (b"\xff\xfe{", 400),
        (b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "tiny"' + b" " * (33 << 20), 413),
    ],
    ids=["deep-2-mb", "deep", "deep-objects", "not-utf-8", "huge-integer", "33-mib"],
)
async def test_json_that_is_too_much_is_refused_at_once(api, body, status):
    async with api.client() as client:
        start = time.monotonic()
        answer = await client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status, answer.text
        assert time.monotonic() - start < 1
    assert api.calls == []


async def test_no_way_in_without_a_key(api):
    """As raw bytes on a connection, because client libraries normalize requests."""
    key = {"Connection": "close"}
    bare = {"Authorization": "", **key}
    routes = ("/v1/masks", "/v1%2fmasks", "//v1/masks", "/v1/./masks", "/x/../v1/masks")
    routes += ("http://livez/v1/masks", "/v1/masks?x=/livez", "/v1/masks#/livez", "/%6civez/x")
    routes += ("/livez/../v1/masks", "/livez%2f..%2fv1%2fmasks", "/livez;/v1/masks", "/LIVEZ")
    async with serving(api.app) as port:
        for path in routes:
            for fields in (
                bare,
                {**bare, "Host": "livez/?x="},
                {**bare, "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Prefix": "/livez"},
                {**bare, "X-Original-URL": "/livez", "X-HTTP-Method-Override": "GET"},
                {**key, "Authorization": "Bearer bmt_adm_ä"},
                {**key, "Authorization": "Bearer " + api.keys["admin"] + "\x0b"},
                {**key, "Authorization": "Basic " + api.keys["admin"]},
            ):
                for method in ("GET", "OPTIONS", "HEAD", "TRACE"):
                    raw = head(api, method, path, **fields)
                    status, _, _ = await said(port, raw, parse=method != "HEAD")
                    assert status in (400, 401), (method, path, fields, status)
        upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 16, **bare}
        upgrade |= {"Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        status, _, _ = await said(port, head(api, "GET", "/v1/realtime", **upgrade), parse=False)
        assert status in (0, 400, 401, 403)
        fine = head(api, "GET", "/v1/masks", **key)
        assert (await said(port, fine))[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "..%2f", "%2e%2e", "a%2fb", "a%2fb%2f..%2f..%2fc", ".", "..", "%00", "a%0d%0ab"),
        *("a%E2%80%AEb", "%D0%B0", "%F0%9F%98%80", "a" * 10_000, "a%22b", "a%7B%7D", "A", "-a"),
        *("base%0aINFO ok", 'x"} 1\nbmt_up', "tiny", "a@b", "a:b", "a%20b"),
    ],
)
async def test_names_are_a_few_ascii_letters(api, name, caplog):
    """Other names never become part of a path, a log line or a label."""
    as_sent, data = quote(name, safe="%/"), bmt_core.encode(make_mask())
    async with api.client() as client:
        answer = await client.put(f"/v1/masks/{as_sent}", content=data)
        assert answer.status_code in (400, 404, 405, 307), answer.text
        # The base model's name is a valid alias, and clients resolve dots in a path.
        if name not in ("tiny", ".", "..", "../x", "%2e%2e"):
            answer = await client.put(f"/v1/masks/m/aliases/{as_sent}", content=data)
            assert answer.status_code in (400, 404), answer.text
        answer = await client.post("/v1/chat/completions", json={"model": name + "x"})
        assert answer.status_code == 404
        figures = "".join(
            str(s.labels) for f in api.state.metrics.errors.collect() for s in f.samples
        )
        assert name not in figures or len(name) < 3
    assert await api.state.registry.names() == []
    assert not [r for r in caplog.records if "\n" in r.getMessage()]


@pytest.mark.parametrize(
    "body",
    [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": u}}]}
            ]
        }
        for u in ("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "ftp://x/")
    ]
    + [
        {"input": [{"type": "input_file", "file_url": "http://127.0.0.1/"}]},
        {"input": [{"type": "input_image", "image_url": "http://127.0.0.1/"}]},
        {"media_io_kwargs": {"image": {"url": "file:///"}}},
    ],
)
def test_nothing_is_fetched_for_a_request(body):
    with pytest.raises(BadRequest):
        check_body(body)


async def test_foreign_and_unknown_get_the_same_answer(api):
    """Equal bytes, except for the requested name and the request id."""
    stored = (await api.put("mine", make_mask())).json()
    async with api.client("other") as client:

        async def answers(name: str, digest: str, blob: str) -> list[tuple[int, str]]:
            found = []
            for method, path in (
                ("GET", f"/v1/masks/{name}"),
                ("GET", f"/v1/masks/{name}@{digest[:12]}"),
                ("GET", f"/v1/masks/{name}/versions"),
                ("DELETE", f"/v1/masks/{name}"),
                ("DELETE", f"/v1/masks/{name}/versions/{digest}"),
                ("PUT", f"/v1/masks/{name}/aliases/prod"),
                ("PUT", f"/v1/masks/{name}/pin"),
                ("GET", f"/v1/models/{name}"),
                ("GET", f"/v1/blobs/{blob}"),
            ):
                answer = await client.request(
                    method, path, headers={"X-Request-Id": "same"}, json={"rev": 1}
                )
                text = answer.text.replace(name, "N").replace(digest[:12], "D")
                found.append((answer.status_code, text.replace(blob[:12], "B")))
            answer = await client.head(f"/v1/blobs/{blob}")
            return [*found, (answer.status_code, "")]

        foreign = await answers("mine", stored["digest"], stored["file_digest"])
        unknown = await answers("none", "0" * 64, "1" * 64)
        assert foreign == unknown
        assert {status for status, _ in foreign} == {404}
    # The same bytes are new to another tenant, so that it cannot learn that they exist.
    theirs = await api.put("mine", make_mask(), "other")
    assert (theirs.status_code, theirs.json()["outcome"]) == (201, "created")
