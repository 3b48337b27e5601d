"""Retention rules: by HTTP and by the server's default, applied by the servers themselves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.names.catalog import Catalog
from bmt_server.registry.names.reader import NameRead, versions_key
from bmt_server.registry.names.versions import Entry
from bmt_server.registry.periodic import take_lease
from bmt_server.registry.registry import EVENTS
from bmt_server.registry.retention import rules
from bmt_server.registry.retention.retention import HOLDS, LEASE, Retention
from bmt_server.registry.retention.rules import Rule

from tests.support.replica import make_mask, replica
from tests.support.scenarios.full_registry import fill

pytestmark = pytest.mark.found


@pytest.fixture
def raw(valkey):
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        yield client


@pytest.fixture
async def name(api, raw):
    """A name of ten versions of the year 2026, whose rules apply at once."""
    made = fill(raw, 1, 10)[0]
    await api.state.replica.refresh("default", made)
    await quick(api)
    return made


async def quick(api) -> None:
    """Apply rules right after a publish."""
    state = api.state
    await state.retention.close()
    retention = Retention(
        state.registry,
        state.replica,
        default=state.retention.default,
        removed=state.housekeeper.removed,
        in_use=state.lifecycle.in_use,
        after_publish_s=0,
    )
    retention.start()
    api.replace(retention=retention)


async def rule(api, name: str, key: str = "admin", **body):
    async with api.client(key) as client:
        return await client.put(f"/v1/masks/{name}/retention", json=body)


async def revs(api, name: str) -> list[int]:
    async with api.client() as client:
        data = (await client.get(f"/v1/masks/{name}/versions")).json()["data"]
    return [version["rev"] for version in data]


async def until_revs(api, name: str, expected: list[int]) -> None:
    for _ in range(500):
        if await revs(api, name) == expected:
            return
        await asyncio.sleep(0.01)
    assert await revs(api, name) == expected


async def test_the_newest_the_latest_and_aliases_stay(api, name):
    async with api.client() as client:
        for alias, rev in (("latest", 5), ("prod", 4)):
            await client.put(f"/v1/masks/{name}/aliases/{alias}", json={"rev": rev})
        await client.put(f"/v1/masks/{name}/pin")
        answer = await rule(api, name, keep_last=2)
        assert answer.json() == {
            "object": "retention",
            "name": name,
            "keep_last": 2,
            "older_than": None,
            "source": "name",
            "due": 6,
        }
        await until_revs(api, name, [10, 9, 5, 4])
        shown = (await client.get(f"/v1/masks/{name}")).json()
        assert shown["retention"] == {"keep_last": 2, "older_than": None}
        # It applies to later versions by itself.
        await api.put(name, make_mask(100))
        await until_revs(api, name, [12, 10, 4])
        assert (await client.delete(f"/v1/masks/{name}/retention")).status_code == 204
        left = (await client.get(f"/v1/masks/{name}/retention")).json()
        assert (left["source"], left["keep_last"], left["due"]) == ("server", None, 0)
        await api.put(name, make_mask(101))
        await asyncio.sleep(0.05)
        assert len(await revs(api, name)) == 4


async def test_by_age(api, name):
    """Both bounds together: only what neither keeps goes."""
    await api.put(name, make_mask(100))
    await api.put(name, make_mask(101))
    assert (await rule(api, name, keep_last=5, older_than="1h")).json()["due"] == 7
    await until_revs(api, name, [12, 11, 10, 9, 8])
    await rule(api, name, older_than="1h")
    await until_revs(api, name, [12, 11])


async def test_refusals(api, name):
    for body in (
        *({}, {"keep_last": 0}, {"keep_last": -1}, {"keep_last": "20"}, {"keep_last": True}),
        *({"keep_last": 2.5}, {"keep_last": 10**7}, {"older_than": "soon"}, {"max": 1}),
        *({"older_than": "1y"}, {"older_than": "-1d"}, {"older_than": 30}, {"keep_last": 10**400}),
    ):
        assert (await rule(api, name, **body)).status_code == 400, body
    assert (await rule(api, "none", keep_last=1)).status_code == 404
    assert (await rule(api, name, "upload", keep_last=1)).status_code == 403
    assert (await rule(api, name, "other", keep_last=1)).status_code == 404
    async with api.client("infer") as client:
        assert (await client.get(f"/v1/masks/{name}/retention")).status_code == 200
        assert (await client.delete(f"/v1/masks/{name}/retention")).status_code == 403
    assert len(await revs(api, name)) == 10


async def test_files_go_with_their_last_version(api, raw):
    await quick(api)
    api.state.housekeeper._removal_delay_s = 0.05
    await api.put("m", make_mask(0))
    await rule(api, "m", keep_last=1)
    files = [(await api.put("m", make_mask(seed))).json()["file_digest"] for seed in (1, 2)]
    async with asyncio.timeout(5):
        while raw.exists(blob_key(files[0])):
            await asyncio.sleep(0.02)
    assert raw.exists(blob_key(files[1]))


async def test_the_servers_default_and_a_name_that_keeps_all(valkey, api, tmp_path, raw):
    kept, pruned = fill(raw, 2, 10)
    assert (await rule(api, kept, keep_last=None)).status_code == 200
    changes = {"retention_keep_last": 3, "retention_older_than": "30d"}
    async with replica(valkey.url, tmp_path / "second", api.keys, **changes) as second:
        async with second.client() as client:
            shown = (await client.get(f"/v1/masks/{pruned}/retention")).json()
            assert (shown["source"], shown["keep_last"], shown["due"]) == ("server", 3, 0)
        second.state.retention.default = Rule(3)
        assert await second.state.retention.apply_all() == 7
        assert (await revs(second, pruned), len(await revs(second, kept))) == ([10, 9, 8], 10)
        assert await second.state.retention.apply_all() == 0


def test_pages_of_a_catalog_have_all_names_while_it_changes():
    catalog = Catalog()

    def put(tenant: str, name: str) -> None:
        read = NameRead(tenant, name, 1, whole=True)
        read.entries["a"] = Entry("a", "", 1, 1, 0, b"file", "")
        catalog.apply(read)

    for tenant in ("default", "other"):
        for number in range(7):
            put(tenant, f"n{number}")
    pages = catalog.pages(3)
    first = next(pages)
    put("default", "n25")
    put("default", "n0a")  # behind, as an upload that the next pass sees
    catalog.apply(NameRead("default", "n3", 2, whole=True))
    seen = [(s.tenant, s.name) for page in (first, *pages) for s in page]
    expected = ["n0", "n1", "n2", "n25", "n4", "n5", "n6"]
    assert seen == [("default", name) for name in expected] + [
        ("other", f"n{number}") for number in range(7)
    ]


async def test_versions_that_requests_run_on_stay(api, name, valkey, tmp_path, raw):
    """Those of this server, and those of another one, which notes them."""
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        async with api.client() as client:
            shown = (await client.get(f"/v1/masks/{name}/versions")).json()["data"]
        models = [version["model"] for version in shown]
        running = []
        for one, model in ((api, models[8]), (second, models[9])):

            async def stream(one=one, model=model):
                async with one.client() as client:
                    body = {"model": model, "stream": True}
                    return await client.post("/v1/chat/completions", json=body)

            running.append(asyncio.create_task(stream()))
            async with asyncio.timeout(5):
                while not one.state.lifecycle.in_use():
                    await asyncio.sleep(0.01)
        await second.state.retention.hold()
        await rule(api, name, keep_last=2)
        await until_revs(api, name, [10, 9, 2, 1])
        for one in (api, second):
            one.hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        await until_free(second)
        assert await api.state.retention.apply("default", name) == 1
        raw.hset(HOLDS, raw.hkeys(HOLDS)[0], 1)  # three minutes later
        assert await api.state.retention.apply("default", name) == 1
        assert await revs(api, name) == [10, 9]
        await second.state.retention.hold()
        assert raw.hlen(HOLDS) == 0


async def until_free(api) -> None:
    async with asyncio.timeout(5):
        while api.state.lifecycle.in_use():
            await asyncio.sleep(0.01)


async def test_a_replica_that_lags_behind_removes_nothing(api, name, valkey, tmp_path, raw):
    """It knows versions as the newest that are gone, and a rule that is another one by now."""
    await rule(api, name, keep_last=8)
    await until_revs(api, name, [10, 9, 8, 7, 6, 5, 4, 3])
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        await second.state.replica.close()
        raw.hdel(f"{PREFIX}name:default/{name}", "alias:x")
        newest = api.state.replica.get("default", name).versions.page(3)
        raw.hdel(versions_key(f"default/{name}"), newest[1].digest)
        raw.hset(f"{PREFIX}name:default/{name}", "retention", "6|")
        state = second.state.replica.get("default", name)
        retention = second.state.retention
        assert await retention._remove(state, [newest[2].digest]) is None
        raw.hset(f"{PREFIX}name:default/{name}", "retention", state.retention)
        assert await retention._remove(state, [newest[2].digest]) is None
        assert raw.hlen(versions_key(f"default/{name}")) == 7


async def test_two_servers_at_once(api, name, valkey, tmp_path):
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        raw_rule = str(Rule(4))
        quick_client = api.state.connection.quick
        await quick_client.hset(f"{PREFIX}name:default/{name}", "retention", raw_rule)
        for one in (api, second):
            await one.state.replica.refresh("default", name)
        removed = await asyncio.gather(
            *(one.state.retention.apply("default", name) for one in (api, second))
        )
        assert sum(removed) == 6
        await until_revs(second, name, [10, 9, 8, 7])
        assert await take_lease(api.state.registry.connection, LEASE, 60)
        assert not await take_lease(second.state.registry.connection, LEASE, 60)


async def test_rules_of_later_builds_remove_nothing(api, name, raw, caplog):
    rules._read.cache_clear()
    for text in ("3|30d|x", "x|", "|1y", "", "{}"):
        raw.hset(f"{PREFIX}name:default/{name}", "retention", text)
        await api.state.replica.refresh("default", name)
        assert await api.state.retention.apply("default", name) == 0
        assert await api.state.retention.apply_all() == 0
    # Once for each, and not at each look at the name.
    assert caplog.text.count("is unknown to this build") == 5
    assert len(await revs(api, name)) == 10


async def test_a_rule_goes_with_its_name(api, name, raw):
    await rule(api, name, keep_last=20)
    async with api.client() as client:
        await client.delete(f"/v1/masks/{name}")
    await api.put(name, make_mask(0))
    async with api.client() as client:
        assert (await client.get(f"/v1/masks/{name}/retention")).json()["source"] == "server"
    # Former builds read events of the kind that they know.
    kinds = {fields[b"kind"] for _, fields in raw.xrange(EVENTS)}
    assert kinds <= {b"publish", b"delete", b"pin", b"alias", b"keys"}


async def test_many_versions_go_in_parts(api, raw):
    (many,) = fill(raw, 1, 450)
    await api.state.replica.refresh("default", many)
    raw.hset(f"{PREFIX}name:default/{many}", "retention", "1|")
    await api.state.replica.refresh("default", many)
    assert await api.state.retention.apply("default", many) == 449
    changed = [f[b"changed"] for _, f in raw.xrange(EVENTS) if f[b"kind"] == b"delete"]
    assert [len(digests.split()) for digests in changed] == [200, 200, 49]
