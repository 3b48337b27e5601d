"""Registries that refuse writes, fail over or are full of work: 503, and well again by itself.

Each test is one replica without an engine on a real server.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from bmt_server.cli.doctor import _registry
from bmt_server.errors import ApiError, RegistryDown
from bmt_server.registry import connection
from bmt_server.registry.api_keys import make_key
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import make_mask, replica
from tests.support.scenarios.nodes import RIGHTS, Node, node, replicated, until
from tests.support.scenarios.registry import new_key


async def refused(api, answer, code: str = "registry_unavailable") -> None:
    """503 with Retry-After, and no address of the registry in it."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code), answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in answer.text
    assert str(api.state.connection.address.nodes[0][1]) not in answer.text


async def well_again(api, name: str, within_s: float = 10.0) -> float:
    """Seconds until an upload succeeds; until then each is a 503."""
    start = time.monotonic()
    while (answer := await api.put(name, make_mask(7))).status_code not in (200, 201):
        assert answer.status_code == 503, answer.text
        assert time.monotonic() - start < within_s, answer.text
        await asyncio.sleep(0.05)
    return time.monotonic() - start


@pytest.mark.found
async def test_a_primary_that_became_a_replica_and_back(tmp_path):
    with replicated(tmp_path / "r", 1) as (first, second):
        keys = {"admin": await new_key(first.url)}
        async with replica(first.url, tmp_path / "cache", keys) as api:
            assert (await api.put("a", make_mask(0))).status_code == 201
            second.client().replicaof("NO", "ONE")
            first.client().replicaof("127.0.0.1", str(second.port))
            until(lambda: first.client().info("replication")["master_link_status"] == "up")
            for _ in range(8):
                await refused(api, await api.put("b", make_mask(1)))
            # Served from memory all the while.
            assert (await api.ask("a")).status_code == 200
            first.client().replicaof("NO", "ONE")
            assert await well_again(api, "b") < 5


@pytest.mark.found
async def test_a_disk_that_cannot_be_written(tmp_path):
    """MISCONF: a failed snapshot, with the default `stop-writes-on-bgsave-error`."""
    with node(tmp_path / "r", "--appendonly", "no") as one:
        keys = {"admin": await new_key(one.url)}
        async with replica(one.url, tmp_path / "cache", keys) as api:
            assert (await api.put("a", make_mask(0))).status_code == 201
            client = one.client()
            client.config_set("save", "3600 1")
            # A snapshot cannot replace a folder, as it cannot be written to a full disk.
            blocked = one.folder / "dump.rdb"
            blocked.mkdir()
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            await refused(api, await api.put("b", make_mask(1)))
            assert (await api.ask("a")).status_code == 200
            blocked.rmdir()
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")
            assert await well_again(api, "b") < 5


async def test_too_few_replicas_for_a_write(tmp_path):
    with node(tmp_path / "r") as one:
        keys = {"admin": await new_key(one.url)}
        async with replica(one.url, tmp_path / "cache", keys) as api:
            one.client().config_set("min-replicas-to-write", 1)
            await refused(api, await api.put("a", make_mask(0)), "not_durable")
            one.client().config_set("min-replicas-to-write", 0)
            assert await well_again(api, "a") < 5


@pytest.mark.parametrize(
    "error",
    [
        "ASK 13934 127.0.0.1:1",
        "TRYAGAIN multiple keys",
        "CLUSTERDOWN the cluster is down",
        "MASTERDOWN link with MASTER is down",
        "LOADING is loading the dataset in memory",
        "BUSY is busy running a script",
        "UNBLOCKED force unblock from blocking operation",
        "READONLY You can't write against a read only replica.",
    ],
)
async def test_errors_that_pass_by_themselves_are_503(tmp_path, error):
    """Each as a server states it: raised by a script that stands for the command."""
    with node(tmp_path / "r") as one:
        connection = RegistryConnection(one.url)
        script = f'return redis.error_reply("{error}")'
        with pytest.raises(ApiError) as found:
            await connection.call(lambda: connection.quick.eval(script, 0))
        assert (found.value.status, found.value.code) == (503, "registry_unavailable")
        assert found.value.retry_after
        assert "127.0.0.1" not in str(found.value)
        assert await connection.call(lambda: connection.quick.ping())
        await connection.close()


async def test_a_wrong_password_is_named_to_the_operator_alone(tmp_path):
    with node(tmp_path / "r") as one:
        one.client().config_set("requirepass", "right")
        connection = RegistryConnection(one.url.replace("://", "://:wrong@"))
        with pytest.raises(RegistryDown) as found:
            await connection.call(lambda: connection.quick.ping())
        assert found.value.code == "registry_refused"
        assert "WRONGPASS" in found.value.detail or "invalid" in found.value.detail
        assert "wrong" not in str(found.value).lower().replace("wrongpass", "")
        await connection.close()


@pytest.mark.found
async def test_more_calls_than_connections_wait(valkey):
    connection = RegistryConnection(valkey.url, connections=8)
    await connection.quick.flushall()
    replies = await asyncio.gather(
        *(connection.call(lambda i=i: connection.quick.incrby("n", 1)) for i in range(800))
    )
    assert sorted(replies) == list(range(1, 801))
    assert connection.up
    assert len(await connection.quick.client_list()) <= 8 + 1
    await connection.close()


@pytest.mark.found
async def test_a_pause_of_the_registry_fails_no_call(valkey):
    """As a fork for the rewrite of an append-only file makes it."""
    connection = RegistryConnection(valkey.url)
    await connection.call(lambda: connection.quick.ping())
    await connection.quick.execute_command("CLIENT", "PAUSE", 300, "ALL")
    replies = await asyncio.gather(
        *(connection.call(lambda: connection.quick.get("n")) for _ in range(400)),
        return_exceptions=True,
    )
    assert not [r for r in replies if isinstance(r, Exception)]
    await connection.close()


@pytest.fixture
def patient(monkeypatch):
    """Calls of the registry may take long, for tests that keep all CPUs busy by themselves."""
    monkeypatch.setattr(connection, "_TIMEOUT_S", 5.0)
    monkeypatch.setattr(connection, "QUICK_S", 10.0)


@pytest.mark.found
async def test_names_that_do_not_exist_are_404(patient, api):
    answers = await asyncio.gather(*(api.ask(f"unknown-{i}", "infer") for i in range(800)))
    assert {a.status_code for a in answers} == {404}


async def test_made_up_keys_delay_no_mask(api):
    """Keys have connections of their own; a breaker of theirs opens for keys alone."""
    made_up = [make_key(("infer",)) for _ in range(400)]

    async def stranger(key: str) -> int:
        async with api.client("") as client:
            headers = {"Authorization": f"Bearer {key}"}
            return (await client.get("/v1/models", headers=headers)).status_code

    strangers = [asyncio.create_task(stranger(key)) for key in made_up]
    answers = [await api.put(f"m{i}", make_mask(i)) for i in range(40)]
    assert [a.status_code for a in answers] == [201] * 40
    assert set(await asyncio.gather(*strangers)) == {401}
    assert api.state.connection.up
    assert api.state.key_connection.up


@pytest.mark.found
async def test_a_registry_that_comes_up_evicting_is_not_ready(tmp_path):
    one = Node(tmp_path / "r", ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"))
    async with replica(one.url, tmp_path / "cache") as api:
        assert not await api.state.ready()
        one.start()
        try:
            await asyncio.sleep(3)
            assert not await api.state.ready()
            one.client().config_set("maxmemory-policy", "noeviction")
            async with asyncio.timeout(10):
                while not await api.state.ready():
                    await asyncio.sleep(0.1)
        finally:
            one.kill()


@pytest.mark.found
@pytest.mark.parametrize("rights", ["+info", "+config|get"])
async def test_an_evicting_registry_is_refused_with_few_rights(tmp_path, rights):
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with node(tmp_path / "r", *options) as one:
        one.add_user("few", f"~{{bmt}}:* +@read +@write +@scripting +@connection {rights}")
        with pytest.raises(ApiError, match="allkeys-lru") as found:
            async with replica(one.url.replace("://", "://few:p@"), tmp_path / "cache"):
                pass
        assert found.value.code == "registry_may_evict"


@pytest.mark.found
async def test_the_doctor_has_no_fault_with_the_documented_rights(tmp_path):
    with node(tmp_path / "r") as one:
        one.add_user("few", RIGHTS)
        found = await asyncio.to_thread(_registry, one.url.replace("://", "://few:p@"))
        assert (found.verdict, "noeviction" in found.value) == ("ok", True), found


@pytest.mark.found
async def test_a_registry_without_an_append_only_file_is_named(tmp_path, caplog):
    """Its crash loses what was acknowledged: at the start, by the doctor, and after an outage."""
    with node(tmp_path / "r", "--appendonly", "no") as one:
        found = await asyncio.to_thread(_registry, one.url)
        assert (found.verdict, "appendonly yes" in found.fix) == ("warn", True), found
        keys = {"admin": await new_key(one.url)}
        async with replica(one.url, tmp_path / "cache", keys) as api:
            assert (await api.put("m", make_mask(0))).status_code == 201
        assert any("appendonly yes" in record.message for record in caplog.records)
