"""Every way to run a registry, on real servers: keys, uploads, events, maintenance.

The table of docs/operating/operate.md has a row for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bmt_core
import pytest
from bmt_server.errors import ApiError
from bmt_server.ipc.blob import blob_key
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from bmt_server.registry.server_state import read_state
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher
from redis.exceptions import RedisError

from tests.support.replica import make_mask, replica, settings_of
from tests.support.scenarios.nodes import REDIS, RIGHTS, Node, cluster, node, sentinels
from tests.support.scenarios.registry import new_key

needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server on this host")


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[str]:
    with node(folder) as one:
        yield one.url.replace("redis://", "valkey://") + "/2"


@contextlib.contextmanager
def password(folder: Path) -> Iterator[str]:
    with node(folder) as one:
        one.client().config_set("requirepass", "p/:@%")
        yield one.url.replace("://", "://:p%2F%3A%40%25@")


@contextlib.contextmanager
def user(folder: Path) -> Iterator[str]:
    """A user with the documented rights alone."""
    with node(folder) as one:
        one.add_user("masks", RIGHTS)
        yield one.url.replace("://", "://masks:p@")


@contextlib.contextmanager
def unix_socket(folder: Path) -> Iterator[str]:
    # Not in the test's folder: the path of a socket has at most 107 bytes.
    path = f"{tempfile.gettempdir()}/bmt-{os.getpid()}.sock"
    with node(folder, "--unixsocket", path) as one:
        one.add_user("masks", RIGHTS)
        yield f"unix://masks:p@{path}"


@contextlib.contextmanager
def redis_7_0(folder: Path) -> Iterator[str]:
    with node(folder, binary=REDIS) as one:
        yield one.url


@contextlib.contextmanager
def tls(folder: Path) -> Iterator[str]:
    """TLS with a certificate of a private authority, and a user with the documented rights."""
    with _with_tls(folder) as (one, authority):
        yield f"rediss://masks:p@localhost:{one.port}?ssl_ca_certs={authority}"


@contextlib.contextmanager
def _with_tls(folder: Path) -> Iterator[tuple[Node, Path]]:
    trustme = pytest.importorskip("trustme")
    authority, folder = trustme.CA(), folder / "tls"
    folder.mkdir(parents=True)
    made = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    files = ("--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem"))
    files += ("--tls-ca-cert-file", str(folder / "ca.pem"), "--tls-auth-clients", "no")
    rights = RIGHTS.replace(" +waitaof", "")  # Redis 7.0 does not know it
    with node(folder / "data", *files, binary=REDIS or "", tls=True) as one:
        one.add_user("masks", rights)
        yield one, folder / "ca.pem"


@contextlib.contextmanager
def behind_sentinels(folder: Path) -> Iterator[str]:
    with sentinels(folder, replicas=1) as available:
        yield available.url


@contextlib.contextmanager
def sentinels_with_user(folder: Path) -> Iterator[str]:
    with sentinels(folder, replicas=1) as available:
        for one in available.nodes:
            one.add_user("masks", RIGHTS)
        yield available.url.replace("://", "://masks:p@")


@contextlib.contextmanager
def of_a_cluster(folder: Path) -> Iterator[str]:
    with cluster(folder) as available:
        yield available.url


@contextlib.contextmanager
def cluster_with_user(folder: Path) -> Iterator[str]:
    with cluster(folder) as available:
        for one in available.nodes:
            one.add_user("masks", RIGHTS)
        yield available.url.replace("://", "://masks:p@")


@contextlib.contextmanager
def another_node_of_a_cluster(folder: Path) -> Iterator[str]:
    """A redis:// URL of a node that does not own the registry's slot."""
    with cluster(folder) as available:
        owner = available.primary.port
        yield next(n for n in available.nodes[:3] if n.port != owner).url


EVERY = [
    valkey,
    password,
    user,
    unix_socket,
    behind_sentinels,
    sentinels_with_user,
    of_a_cluster,
    cluster_with_user,
    pytest.param(another_node_of_a_cluster, marks=pytest.mark.found),
    pytest.param(redis_7_0, marks=needs_redis),
    pytest.param(tls, marks=needs_redis),
]


@pytest.mark.found
@pytest.mark.parametrize("deployment", EVERY)
async def test_all_that_a_server_does(tmp_path, deployment):
    with deployment(tmp_path / "r") as url:
        keys = {"admin": await new_key(url)}
        async with replica(url, tmp_path / "0", keys) as api, replica(url, tmp_path / "1") as other:
            assert await api.state.ready()
            assert (await api.put("m", make_mask(0))).status_code == 201
            assert (await api.put("m", make_mask(1))).status_code == 201
            async with asyncio.timeout(5):
                while other.state.replica.get("default", "m") is None:
                    await asyncio.sleep(0.02)
            assert (await api.ask("m")).status_code == 200
            async with api.client() as client:
                assert (await client.get("/v1/masks")).json()["data"][0]["name"] == "m"
                old = make_mask(0).digest
                assert (await client.delete(f"/v1/masks/m/versions/{old}")).status_code == 204
            registry = api.state.registry
            state = await read_state(registry.connection)
            assert (state.policy, state.appends, state.primary) == ("noeviction", True, True)
            assert not (await check_consistency(registry)).problems
            assert (await collect_orphans(registry, min_age_s=0)).removed == 1
            (record,) = [r for r in await api.state.keys.records() if r.label == ""]
            await api.state.keys.revoke(record.key_id)
        await by_a_worker(url, tmp_path)


async def by_a_worker(url: str, folder: Path) -> None:
    """A worker on another host fetches a mask, with a client that blocks its thread."""
    mask, connection = make_mask(5), RegistryConnection(url)
    data = bmt_core.encode(mask)
    digest = hashlib.sha256(data).hexdigest()
    await connection.call(lambda: connection.bulk.set(blob_key(digest), data))
    await connection.close()
    fetcher = MaskFetcher(settings_of(url, folder / "worker"))
    source = MaskSource("default", mask.digest, digest)
    layout = await asyncio.to_thread(fetcher.open, str(source))
    assert layout.digest == mask.digest
    assert fetcher.fetches == 1


@needs_redis
async def test_a_server_whose_certificate_is_not_trusted(tmp_path):
    with _with_tls(tmp_path / "r") as (one, _):
        connection = RegistryConnection(f"rediss://masks:p@localhost:{one.port}")
        with pytest.raises(ApiError) as found:
            await connection.call(lambda: connection.quick.ping())
        assert "certificate" in found.value.detail.lower()
        assert str(one.port) not in str(found.value)
        await connection.close()


@needs_redis
async def test_redis_7_0_lacks_waitaof_and_says_so(tmp_path, caplog):
    with node(tmp_path / "r", binary=REDIS) as one:
        keys = {"admin": await new_key(one.url)}
        caplog.clear()
        async with replica(one.url, tmp_path / "cache", keys) as api:
            assert (await api.put("m", make_mask(0))).status_code == 201
        assert any("lacks WAITAOF" in r.message for r in caplog.records)


@pytest.mark.parametrize("right", ["-info", "-waitaof", "-xread", "-eval"])
async def test_a_missing_right_is_named(tmp_path, caplog, right):
    """In the log, never in an answer; what does not need it works."""
    with node(tmp_path / "r") as one:
        keys = {"admin": await new_key(one.url)}
        one.add_user("few", f"{RIGHTS} {right}")
        url = one.url.replace("://", "://few:p@")
        async with replica(url, tmp_path / "cache", keys) as api:
            await asyncio.sleep(0.2)
            answer = await api.put("m", make_mask(0))
        assert answer.status_code == (503 if right == "-eval" else 201), answer.text
        assert "few" not in answer.text
        if right != "-eval":
            assert any(right[1:] in r.message for r in caplog.records), caplog.text


def test_a_client_of_a_worker_names_no_secret():
    client = RegistryAddress.parse("redis://u:hunter2@127.0.0.1:1").blocking_client()
    with pytest.raises(RedisError) as found:
        client.ping()
    assert "hunter2" not in str(found.value)
