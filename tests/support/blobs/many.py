"""Masks of 1 MiB on registries with and without an object store, and loads that read them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import bmt_core
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.object_store import ObjectStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.registry import Registry
from bmt_server.registry.schemas import BaseRef, Version
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher

from tests.support.masks import BASE, gate_names, random_mask
from tests.support.replica import Api, make_mask, settings_of

MIB = 1 << 20
# Seven tensors at the largest sparsity make a file of about 1 MiB.
GATES = gate_names(7, (2048, 2048))
_CREATED = "2026-11-01T10:00:00.000+00:00"
_AT_ONCE = 8


def large_masks(count: int) -> list[bytes]:
    """Files of about 1 MiB each."""
    return [bmt_core.encode(random_mask(GATES, seed, sparsity=0.0499)) for seed in range(count)]


def _version(name: str, data: bytes) -> Version:
    """Of a mask's file, or of bytes that stand for one, which no test decodes."""
    digest = hashlib.sha256(data).hexdigest()
    if data[:3] == b"BMT" or len(data) != MIB:
        digest = bmt_core.inspect(data).digest
    return Version(
        name=name,
        digest=digest,
        file_digest=hashlib.sha256(data).hexdigest(),
        created=_CREATED,
        bytes=len(data),
        zeros=1,
        sparsity=0.05,
        base=BaseRef(model_id=BASE.model_id, fingerprint=BASE.fingerprint),
        metadata={"method": "grpo", "data": "gsm8k:main/train", "note": "one of many"},
    )


async def publish(registry: Registry, masks: Sequence[bytes], fillers: int = 0) -> float:
    """Publish `m0`, `m1`, … of these masks, and `f0`, … of random bytes. Returns seconds."""
    start, numbers = time.monotonic(), iter(range(fillers))

    async def lane() -> None:
        for number in numbers:
            data = os.urandom(MIB)
            await registry.publish(_version(f"f{number}", data), data)

    await asyncio.gather(*(lane() for _ in range(_AT_ONCE)))
    for number, data in enumerate(masks):
        await registry.publish(_version(f"m{number}", data), data)
    return time.monotonic() - start


@asynccontextmanager
async def registry_at(url: str, blobs: str = ""):
    """A registry as a server has it."""
    connection = RegistryConnection(url)
    registry = Registry(connection, store=ObjectStore(blobs) if blobs else None)
    await registry.check_server()
    yield registry
    await connection.close()


async def memory(url: str) -> tuple[float, float]:
    """Memory of a Redis in MiB: of its data, and of its process."""
    connection = RegistryConnection(url)
    info = await connection.quick.info("memory")
    await connection.close()
    return info["used_memory"] / MIB, info["used_memory_rss"] / MIB


def cold_seconds(
    masks: Sequence[bytes], places: Sequence[tuple[str, str]], folder: Path
) -> list[list[float]]:
    """Seconds in which a worker gets each mask, which its node does not have, from each place.

    places: URL of the registry, and of its object store. In turns, mask by mask.
    """
    fetchers, found = [], [[] for _ in places]
    for at, (url, blobs) in enumerate(places):
        own = folder / str(at)
        own.mkdir(parents=True, exist_ok=True)
        fetchers.append(MaskFetcher(settings_of(url, own, blobs_url=blobs, gates=GATES)))
    for number, data in enumerate(masks):
        digest = bmt_core.inspect(data).digest
        source = MaskSource("default", digest, hashlib.sha256(data).hexdigest())
        for at in sorted(range(len(places)), key=lambda at: (at + number) % len(places)):
            start = time.perf_counter()
            layout = fetchers[at].open(str(source))
            found[at].append(time.perf_counter() - start)
            assert layout.digest == digest
    return found


@dataclass
class Load:
    """Results of a load: requests for resident masks, for others, uploads, and the longest stall.

    `wrong` has everything that is neither right nor a 503 with Retry-After.
    """

    resident: int = 0
    resident_failed: int = 0
    cold_served: int = 0
    cold_refused: int = 0
    acknowledged: dict[str, str] = field(default_factory=dict)  # file digest by name
    refused: int = 0
    longest_503_s: float = 0.0
    stall_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Traffic:
    """Requests on two replicas until `end`: one uploads, the other one reads.

    resident: names that the reader has; cold: names that it must fetch at each request.
    """

    def __init__(
        self, writer: Api, reader: Api, resident: Sequence[str], cold: Sequence[str], first: int = 0
    ):
        self._writer, self._reader = writer, reader
        self._resident, self._cold = resident, cold
        self._first = first
        self._ended = False
        self.load = Load()
        self._tasks = [
            asyncio.create_task(work())
            for work in (self._ask_resident, self._ask_cold, self._upload, self._tick)
        ]

    async def end(self) -> Load:
        self._ended = True
        await asyncio.gather(*self._tasks)
        return self.load

    async def _ask_resident(self) -> None:
        number = 0
        while not self._ended:
            answer = await self._reader.ask(self._resident[number % len(self._resident)])
            self.load.resident += 1
            self.load.resident_failed += answer.status_code != 200
            number += 1
            await asyncio.sleep(0.005)

    async def _ask_cold(self) -> None:
        number = 0
        while not self._ended:
            name = self._cold[number % len(self._cold)]
            state = self._reader.state.replica.get("default", name)
            assert state is not None
            version = state.versions[state.latest]
            start = time.monotonic()
            async with self._reader.client() as client:
                answer = await client.get(f"/v1/blobs/{version.file_digest}")
            if answer.status_code == 200:
                self.load.cold_served += 1
                if bmt_core.file_digest(answer.content) != version.file_digest:
                    self.load.wrong.append(f"{name}: other bytes")
            elif answer.status_code == 503 and answer.headers.get("retry-after"):
                self.load.cold_refused += 1
                self.load.longest_503_s = max(self.load.longest_503_s, time.monotonic() - start)
            else:
                self.load.wrong.append(f"{name}: {answer.status_code} {answer.text[:200]}")
            number += 1
            await asyncio.sleep(0.01)

    async def _upload(self) -> None:
        number = self._first
        while not self._ended:
            name = f"up{number}"
            answer = await self._writer.put(name, make_mask(10_000 + number))
            if answer.status_code in (200, 201):
                self.load.acknowledged[name] = answer.json()["file_digest"]
            elif answer.status_code == 503 and answer.headers.get("retry-after"):
                self.load.refused += 1
                async with self._writer.client() as client:
                    if (await client.get(f"/v1/masks/{name}")).status_code != 404:
                        self.load.wrong.append(f"{name}: refused and published")
            else:
                self.load.wrong.append(f"{name}: {answer.status_code} {answer.text[:200]}")
            number += 1
            await asyncio.sleep(0.02)

    async def _tick(self) -> None:
        while not self._ended:
            start = time.monotonic()
            await asyncio.sleep(0.01)
            self.load.stall_s = max(self.load.stall_s, time.monotonic() - start - 0.01)


async def lost(registry: Registry, acknowledged: dict[str, str]) -> int:
    """Number of acknowledged uploads whose bytes cannot be read."""
    gone = 0
    for name, file_digest in acknowledged.items():
        (state,) = await registry.states([("default", name)])
        sizes = {v.file_digest: v.bytes for v in state.versions.values()}
        if file_digest not in sizes:
            gone += 1
            continue
        data = await registry.blob(file_digest, sizes[file_digest])
        gone += bmt_core.file_digest(bytes(data)) != file_digest
    return gone
