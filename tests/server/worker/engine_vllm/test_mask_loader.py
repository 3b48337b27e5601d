"""Mask loader of a worker and worker sockets of an API process, without an engine.

Sockets, masks and the Valkey that workers fetch from are real; the gates are small.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import bmt_core
import numpy as np
import pytest
import redis
import torch
from bmt_server.api.engine_vllm.worker_rpc import RpcWorkers
from bmt_server.api.engine_vllm.worker_sockets import SocketWorkers
from bmt_server.ipc import worker_channel
from bmt_server.ipc.blob import blob_key
from bmt_server.ipc.disk_cache import DiskCache
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.worker_channel import WorkerError, socket_path
from bmt_server.settings import Settings
from bmt_server.worker.engine_vllm import mask_fetcher
from bmt_server.worker.engine_vllm.mask_fetcher import FetchError, MaskFetcher
from bmt_server.worker.engine_vllm.mask_loader import MaskLoader
from bmt_server.worker.runtime import MaskRuntime

from tests.support.served import Valkey
from tests.support.worker import BASE, COLS, ROWS, dense, gates, name, random_mask

GATES = {name(i): (ROWS, COLS) for i in range(2)}


def source(mask: bmt_core.Mask, tenant: str = "default") -> MaskSource:
    return MaskSource(tenant, mask.digest, hashlib.sha256(bmt_core.encode(mask)).hexdigest())


def settings(folder: Path, url: str = "", **more) -> Settings:
    return Settings(
        model_id="tiny",
        model_path="tiny",
        fingerprint=BASE.fingerprint,
        gates=GATES,
        registry_url=url,
        cache_dir=str(folder / "cache"),
        stats_dir=str(folder),
        **more,
    )


class Worker:
    """The objects that `MaskManager` creates in a worker process, with small gates."""

    def __init__(
        self, folder: Path, rank: int = 0, ranks: int = 1, url: str = "", room: int = 1 << 30
    ):
        self.gates = gates(live=False, rank=rank, ranks=ranks)
        evictions: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.runtime = MaskRuntime(self.gates, "delta", room, on_evict=evictions.put)
        self.files = MaskFetcher(settings(folder, url), rank)
        self.loader = MaskLoader(self.runtime, self.files, evictions)
        self.handle = self.runtime.handles()[0]

    def answer(self, adapter: int, x: torch.Tensor) -> torch.Tensor:
        """The first gate's product, as a step with this mask computes it."""
        self.runtime.begin_step(np.full(x.shape[0], adapter))
        y = x @ self.gates[0].base.t()
        torch.ops.bmt.masked_delta(y, x, self.handle)
        return y


def write_layouts(folder: Path, *masks: bmt_core.Mask) -> None:
    cache = DiskCache(folder / "cache", 1 << 30)
    for mask in masks:
        cache.store(mask)


@pytest.fixture
def masks() -> list[bmt_core.Mask]:
    return [random_mask(seed) for seed in range(8)]


@pytest.fixture
async def two(tmp_path, masks):
    """Two workers that share a disk, and the connections of one API process to them."""
    write_layouts(tmp_path, *masks)
    workers = [Worker(tmp_path, rank, 2) for rank in range(2)]
    for rank, worker in enumerate(workers):
        worker.loader.listen(socket_path(tmp_path, rank))
    links = SocketWorkers(tmp_path, 2)
    yield workers, links
    await links.close()


async def until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def whole(mask: bmt_core.Mask, x: torch.Tensor) -> torch.Tensor:
    return x @ (gates(live=False)[0].base * dense(mask, 0)).t()


async def test_a_loaded_mask_is_in_every_worker(two, masks):
    workers, links = two
    assert not links.resident(1)
    await links.load(1, "m", str(source(masks[0])))
    assert links.resident(1)
    x = torch.randn(3, COLS)
    parts = torch.cat([w.answer(1, x) for w in workers], dim=1)
    torch.testing.assert_close(parts, whole(masks[0], x))


async def test_evictions_are_reported_and_the_mask_can_be_loaded_again(two, masks):
    workers, links = two
    await links.load(1, "m1", str(source(masks[0])))
    for worker in workers:
        worker.runtime.store.capacity_bytes = worker.runtime.store.resident_bytes
    await links.load(2, "m2", str(source(masks[1])))
    await until(lambda: links.evictions.qsize() == 2)
    gone = [links.evictions.get_nowait() for _ in range(2)]
    assert gone == [1, 1], "once by each worker"
    assert not links.resident(1)
    assert links.resident(2)
    # Still held, so a step may use it.
    x = torch.randn(2, COLS)
    parts = torch.cat([w.answer(1, x) for w in workers], dim=1)
    torch.testing.assert_close(parts, whole(masks[0], x))
    await links.load(1, "m1", str(source(masks[0])))
    assert links.resident(1)


async def test_a_mask_without_holders_is_removed(two, masks):
    workers, links = two
    other = SocketWorkers(links._connections[0]._path.parent, 2)
    await links.load(1, "m", str(source(masks[0])))
    await other.load(1, "m", str(source(masks[0])))
    await links.drop(1)
    assert not links.resident(1)
    assert all(w.runtime.store.resident(1) for w in workers), "another process holds it"
    await other.drop(1)
    assert not any(w.runtime.store.knows(1) for w in workers)
    assert all(w.runtime.store.resident_bytes == 0 for w in workers)
    await other.close()


async def test_a_closed_connection_releases_its_masks(two, masks):
    workers, links = two
    await links.load(1, "m", str(source(masks[0])))
    await links.close()
    assert not links.resident(1)
    await until(lambda: not workers[0].loader._holders)
    assert workers[0].runtime.store.resident(1), "warm for the next, until it is evicted"
    workers[0].runtime.store.capacity_bytes = 1
    again = SocketWorkers(links._connections[0]._path.parent, 1)
    await again.load(2, "m2", str(source(masks[1])))
    await until(lambda: not workers[0].runtime.store.knows(1))
    await again.close()


async def test_errors_are_answers_and_the_worker_continues(two, masks, tmp_path):
    workers, links = two
    damaged = DiskCache(tmp_path / "cache", 1 << 30).path(masks[1].digest)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    foreign = random_mask(0, shape=(8, 8), zeros=3)
    write_layouts(tmp_path, foreign)
    for mask, code in ((masks[1], "unavailable"), (foreign, "unusable")):
        with pytest.raises(WorkerError) as caught:
            await links.load(5, "bad", str(source(mask)))
        assert caught.value.code == code
        assert not links.resident(5)
    with pytest.raises(WorkerError, match="no laid-out mask"):
        await links.load(6, "bad", "/not/there.lay")
    with pytest.raises(WorkerError, match="unknown command"):
        await links._run_all({"do": "dance"})
    with pytest.raises(WorkerError) as caught:
        await links.pin(99, True)
    assert caught.value.code == "unavailable"
    await links.load(1, "m", str(source(masks[0])))
    assert links.resident(1)


async def test_pinned_masks_stay_and_may_not_fill_the_memory(two, masks):
    workers, links = two
    await links.load(1, "m1", str(source(masks[0])))
    await links.pin(1, True)
    for worker in workers:
        worker.runtime.store.capacity_bytes = int(1.5 * worker.runtime.store.resident_bytes)
    await links.load(2, "m2", str(source(masks[1])))
    assert links.resident(1)
    with pytest.raises(WorkerError, match="unpin some") as caught:
        await links.pin(2, True)
    assert caught.value.code == "pinned"
    await links.pin(1, False)
    await links.load(3, "m3", str(source(masks[2])))
    await until(lambda: not links.resident(1))


async def test_a_lost_connection_is_opened_again(two, masks):
    workers, links = two
    await links.load(1, "m", str(source(masks[0])))
    for connection in list(workers[1].loader._connections):
        connection.close()
    await until(lambda: not links.resident(1))
    assert links.evictions.qsize() == 1
    assert links.evictions.get_nowait() == 1
    await links.load(1, "m", str(source(masks[0])))
    assert links.resident(1)


async def test_an_unreachable_worker_is_an_error(tmp_path):
    links = SocketWorkers(tmp_path, 1)
    with pytest.raises(WorkerError, match="cannot be reached"):
        await links.load(1, "m", "bmt:x")
    await links.close()


def test_invalid_messages_close_only_their_connection(tmp_path, masks):
    write_layouts(tmp_path, *masks)
    worker = Worker(tmp_path)
    worker.loader.listen(socket_path(tmp_path, 0))
    for text in (b"\x00\xff\n", b"[]\n", b"{" * 100_000, b""):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(socket_path(tmp_path, 0)))
            stranger.settimeout(5)
            # The connection is reset if the worker leaves bytes unread.
            with suppress(ConnectionError):
                stranger.sendall(text)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(100) == b""
    with socket.socket(socket.AF_UNIX) as friend:
        friend.connect(str(socket_path(tmp_path, 0)))
        friend.sendall(worker_channel.encode({"n": 4, "do": "ping"}))
        assert json.loads(friend.recv(100)) == {"n": 4, "done": True}


# Workers on other nodes.


def publish(valkey: Valkey, *masks: bmt_core.Mask) -> None:
    with redis.Redis(unix_socket_path=valkey.socket) as client:
        for mask in masks:
            client.set(blob_key(source(mask).file_digest), bmt_core.encode(mask))


@pytest.fixture
def apart(tmp_path, valkey, monkeypatch):
    """Two ranks, each with an empty cache folder of its own."""
    monkeypatch.setenv(mask_fetcher.FOLDER_ENV, str(tmp_path / "node-{rank}"))
    return [Worker(tmp_path, rank, 2, valkey.url) for rank in range(2)]


def test_workers_without_a_shared_disk_fetch_by_digest(apart, valkey, masks, tmp_path):
    publish(valkey, *masks)
    load = {"do": "load", "id": 1, "name": "m", "source": str(source(masks[0]))}
    for rank, worker in enumerate(apart):
        assert worker.loader.execute("api", load) == {"done": True}
        assert worker.files.folder == tmp_path / f"node-{rank}"
        assert DiskCache(worker.files.folder, 1 << 20).path(masks[0].digest).exists()
    x = torch.randn(3, COLS)
    parts = torch.cat([w.answer(1, x) for w in apart], dim=1)
    torch.testing.assert_close(parts, whole(masks[0], x))
    # Another tenant's equal mask has the same file and needs no second fetch.
    again = {**load, "id": 2, "source": str(source(masks[0], "other"))}
    assert apart[0].loader.execute("api", again) == {"done": True}
    assert apart[0].files.fetches == 1


def test_two_workers_of_one_node_fetch_once(tmp_path, valkey, masks):
    publish(valkey, *masks)
    workers = [Worker(tmp_path, rank, 2, valkey.url) for rank in range(2)]
    load = {"do": "load", "id": 1, "name": "m", "source": str(source(masks[0]))}
    assert [w.loader.execute("api", load) for w in workers] == [{"done": True}] * 2
    assert sum(w.files.fetches for w in workers) == 1


@pytest.mark.parametrize("case", ["flipped", "another", "other_base", "too_large", "missing"])
def test_a_wrong_blob_is_never_used(apart, valkey, masks, case):
    wanted = source(masks[3])
    blob = bytearray(bmt_core.encode(masks[3]))
    if case == "flipped":
        blob[-9] ^= 1
    elif case == "another":
        blob = bytearray(bmt_core.encode(masks[4]))
        wanted = MaskSource("default", masks[3].digest, hashlib.sha256(blob).hexdigest())
    elif case == "other_base":
        other = bmt_core.Mask(bmt_core.Base("x", "12" * 32), masks[3].tensors, {})
        blob = bytearray(bmt_core.encode(other))
        wanted = source(other)
    elif case == "too_large":
        blob += bytes(apart[0].files._limits.max_file_bytes)
        wanted = MaskSource("default", masks[3].digest, hashlib.sha256(blob).hexdigest())
    with redis.Redis(unix_socket_path=valkey.socket) as client:
        client.delete(blob_key(wanted.file_digest))
        if case != "missing":
            client.set(blob_key(wanted.file_digest), bytes(blob))
    load = {"do": "load", "id": 9, "name": "m", "source": str(wanted)}
    answer = apart[0].loader.execute("api", load)
    assert answer["code"] == ("unavailable" if case == "missing" else "unusable")
    assert not apart[0].runtime.store.knows(9)
    assert not list(apart[0].files.folder.glob("*.lay"))
    publish(valkey, masks[0])
    load = {"do": "load", "id": 1, "name": "m", "source": str(source(masks[0]))}
    assert apart[0].loader.execute("api", load) == {"done": True}


def test_a_hung_registry_costs_bounded_time_and_no_worker(tmp_path, masks, monkeypatch):
    monkeypatch.setattr(mask_fetcher, "_ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        worker = Worker(tmp_path, url=f"unix://{tmp_path / 's'}")
        start = time.monotonic()
        with pytest.raises(FetchError, match="does not answer") as caught:
            worker.files.open(str(source(masks[0])))
        assert time.monotonic() - start < 2
        assert caught.value.code == "unavailable"
    away = Worker(tmp_path, url=f"unix://{tmp_path / 'nothing'}")
    load = {"do": "load", "id": 1, "name": "m", "source": str(source(masks[0]))}
    assert away.loader.execute("api", load)["code"] == "unavailable"


def test_a_damaged_file_is_fetched_again(apart, valkey, masks):
    publish(valkey, masks[0])
    load = {"do": "load", "id": 1, "name": "m", "source": str(source(masks[0]))}
    worker = apart[0]
    assert worker.loader.execute("api", load) == {"done": True}
    worker.loader.execute("api", {"do": "drop", "id": 1})
    path = worker.files.folder / DiskCache.name(masks[0].digest)
    path.write_bytes(b"BMTLAY1\n" + bytes(100))
    assert worker.loader.execute("api", load) == {"done": True}
    assert worker.files.fetches == 2


class FakeEngineClient:
    """vLLM's engine client as `RpcWorkers` uses it: every worker, one after the other."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers

    async def collective_rpc(self, method, args):
        assert method == worker_channel.WORKER_METHOD
        (command,) = args
        json.dumps(command)  # must be serializable
        answers = []
        for worker in self._workers:
            if command["do"] == "answer":
                answers.append(worker.loader.result(command["n"]))
            else:
                answers.append(worker.loader.submit(command))
        return answers


async def test_workers_of_other_nodes_are_reached_through_the_engine(apart, valkey, masks):
    publish(valkey, *masks)
    workers = RpcWorkers(FakeEngineClient(apart))
    await workers.load(1, "m", str(source(masks[0])))
    assert workers.resident(1)
    assert all(w.runtime.store.resident(1) for w in apart)
    with pytest.raises(WorkerError) as caught:
        await workers.load(2, "m", str(MaskSource("default", masks[1].digest, "0" * 64)))
    assert caught.value.code == "unavailable"
    await workers.drop(1)
    assert not any(w.runtime.store.knows(1) for w in apart)


def test_loading_does_not_disturb_steps(tmp_path, masks):
    """While two threads load, drop and evict, every step's answer is the right mask's."""
    write_layouts(tmp_path, *masks)
    worker = Worker(tmp_path)
    x = torch.randn(4, COLS)
    want = {i + 1: whole(mask, x) for i, mask in enumerate(masks)}
    for i, mask in enumerate(masks):
        load = {"do": "load", "id": i + 1, "name": "m", "source": str(source(mask))}
        worker.loader.execute("steps", load)
    worker.runtime.store.capacity_bytes = worker.runtime.store.resident_bytes // 4
    stop, errors = threading.Event(), []

    def churn(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            adapter = int(rng.integers(100, 100 + len(masks)))
            mask = masks[adapter - 100]
            do = "load" if rng.random() < 0.7 else "drop"
            answer = worker.loader.execute(
                seed, {"do": do, "id": adapter, "name": "m", "source": str(source(mask))}
            )
            if "error" in answer:
                errors.append(answer)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for step in range(600):
            adapter = step % len(masks) + 1
            torch.testing.assert_close(worker.answer(adapter, x), want[adapter])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert worker.runtime.store.evictions > 100
    held = sum(m.nbytes for m in worker.runtime.store._resident.values())
    assert worker.runtime.store.resident_bytes == held
