"""The change stream at a size: what replicas, names and publishes cost, and what breaks first.

    python -m benchmarks.suites.change_stream [--replicas 100] [--masks 1000000] [--rate 10]

Measures on a Valkey of its own, at two sizes, with the servers' own code: `RegistryReplica` follows
the stream in a second process, and `Registry.publish` writes. Memory per name and the time to read
one follow from the difference of the two sizes; traffic and CPU time per publish and replica, from
the counters of Valkey. Prints the costs, and by multiplication those of the size asked for.

One network and one clock: the time until all replicas know of a publish is that of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bmt_server.ipc.blob import OBJECTS, PREFIX, StoredObject, blob_key
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.embedded import EmbeddedValkey
from bmt_server.registry.registry import Registry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import BaseRef, Version

TENANT = "default"
PUBLISHED = 300
_BASE = BaseRef(model_id="meta-llama/Llama-3.1-8B", fingerprint="ab" * 32)
# As long as what a training run writes.
_METADATA = {
    "method": "grpo",
    "data": "gsm8k:main/train",
    "steps": 400,
    "learning_rate": 3e-4,
    "eval": {"accuracy": 0.945, "of": 512, "suite": "gsm8k"},
    "note": "one of many",
}


def version(name: str, number: int, **metadata: Any) -> Version:
    digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
    return Version(
        name=name,
        digest=digest,
        file_digest=hashlib.sha256(digest.encode()).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        bytes=5_000_000,
        zeros=3_700_000,
        sparsity=0.002,
        base=_BASE,
        metadata={**_METADATA, **metadata},
    )


async def fill(connection: RegistryConnection, first: int, count: int) -> None:
    """Names of one version each, with records of their objects, as the servers' scripts write."""
    for at in range(first, first + count, 500):
        async with connection.bulk.pipeline(transaction=False) as pipe:
            for number in range(at, min(at + 500, first + count)):
                made = version(f"m{number:07}", 0)
                path = f"{TENANT}/{made.name}"
                entry = {made.digest: f"1|{number + 1}||{made.to_entry()}"}
                pipe.hset(f"{PREFIX}versions:{path}", mapping=entry)
                head = {"rev": 1, "latest": made.digest}
                pipe.hset(f"{PREFIX}name:{path}", mapping=head)
                pipe.sadd(f"{PREFIX}names", path)
                record = StoredObject(made.file_digest, made.bytes, f"{number:016x}").record
                pipe.hset(OBJECTS, bytes.fromhex(made.file_digest), record)
            await pipe.execute()


@dataclass(frozen=True, slots=True)
class Counters:
    """Of Valkey: memory in bytes, CPU seconds, bytes sent, commands."""

    memory: int
    cpu_s: float
    sent: int
    commands: int


async def counters(connection: RegistryConnection) -> Counters:
    info = await connection.quick.info("memory", "cpu", "stats")
    return Counters(
        info["used_memory"],
        info["used_cpu_user"] + info["used_cpu_sys"],
        info["total_net_output_bytes"],
        info["total_commands_processed"],
    )


# The replicas' process.


async def follow(url: str, count: int) -> None:
    """Run replicas; print what they cost as one line of JSON, and again after a line of input."""
    lags: list[float] = []
    began = time.time()

    def changed(key: object, state: Any) -> None:
        found = state.versions[state.latest].metadata if state is not None else {}
        if found.get("at", 0) > began:
            lags.append(time.time() - found["at"])

    made = []
    for _ in range(count):
        connection = RegistryConnection(url, connections=4)
        replica = RegistryReplica(
            Registry(connection),
            on_change=changed,
            on_keys_change=lambda: None,
            on_connection=lambda up: None,
        )
        made.append((connection, replica))
    start, memory = time.monotonic(), _resident()
    for _, replica in made:
        replica.start()
    for _, replica in made:
        await replica.synced.wait()
    found = {
        "sync_s": time.monotonic() - start,
        "memory": (_resident() - memory) / count,
        "cpu_s": _cpu(),
    }
    print(json.dumps(found), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps({"cpu_s": _cpu(), "lags": lags}), flush=True)
    for connection, replica in made:
        await replica.close()
        await connection.close()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# The measurements.


@dataclass(frozen=True, slots=True)
class Row:
    """One size. Seconds and bytes per publish are of all replicas together."""

    names: int
    replicas: int
    redis_memory: int
    sync_s: float
    sync_redis_cpu_s: float
    sync_sent: float
    replica_memory: float
    publish_redis_cpu_s: float
    publish_sent: float
    publish_commands: float
    replica_cpu_s: float
    lag_p50_ms: float
    lag_max_ms: float


async def measure(url: str, names: int, replicas: int, rate: float) -> Row:
    connection = RegistryConnection(url)
    registry = Registry(connection)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.suites.change_stream"),
        *("--follow", url, "--replicas", str(replicas)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    before = await counters(connection)
    synced = json.loads(await child.stdout.readline())
    ready = await counters(connection)
    rng, start = random.Random(names), time.monotonic()
    first = 1_000 * replicas  # other versions than those of a former measurement
    for number in range(PUBLISHED):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        made = version(f"m{rng.randrange(names):07}", first + number, at=time.time())
        # Its bytes go to the object store, and are none of the stream's.
        await connection.quick.set(blob_key(made.file_digest), b"x")
        await registry.publish(made, b"x")
    await asyncio.sleep(1)
    after = await counters(connection)
    child.stdin.write(b"\n")
    followed = json.loads(await child.stdout.readline())
    await child.wait()
    await connection.close()
    lags = followed["lags"]
    if len(lags) < PUBLISHED * replicas * 0.99:
        raise RuntimeError(f"{len(lags)} of {PUBLISHED * replicas} changes arrived")
    return Row(
        names,
        replicas,
        before.memory,
        synced["sync_s"],
        ready.cpu_s - before.cpu_s,
        ready.sent - before.sent,
        synced["memory"],
        (after.cpu_s - ready.cpu_s) / PUBLISHED,
        (after.sent - ready.sent) / PUBLISHED,
        (after.commands - ready.commands) / PUBLISHED,
        (followed["cpu_s"] - synced["cpu_s"]) / PUBLISHED / replicas,
        1e3 * statistics.median(lags),
        1e3 * max(lags),
    )


def slope(low: float, high: float, steps: float) -> float:
    return (high - low) / steps


def extrapolated(
    few: Row, many: Row, more: Row, replicas: int, masks: int, rate: float
) -> dict[str, str]:
    """few, many: names; many, more: replicas."""
    names = many.names - few.names
    others = more.replicas - many.replicas
    redis_name = slope(few.redis_memory, many.redis_memory, names)
    replica_name = slope(few.replica_memory, many.replica_memory, names)
    sync_cpu = slope(few.sync_redis_cpu_s, many.sync_redis_cpu_s, names) / many.replicas
    sync_sent = slope(few.sync_sent, many.sync_sent, names) / many.replicas
    cpu = slope(many.publish_redis_cpu_s, more.publish_redis_cpu_s, others)
    sent = slope(many.publish_sent, more.publish_sent, others)
    commands = slope(many.publish_commands, more.publish_commands, others)
    own = max(0.0, many.publish_redis_cpu_s - cpu * many.replicas)
    load = rate * (own + cpu * replicas)
    return {
        "Redis, memory for each mask": f"{redis_name:,.0f} B",
        "API process, memory for each mask": f"{replica_name:,.0f} B",
        "each publish and replica: Redis's CPU": f"{1e6 * cpu:,.0f} µs",
        "each publish and replica: bytes sent": f"{sent:,.0f} B",
        "each publish and replica: commands": f"{commands:,.1f}",
        "each publish: CPU of a replica": f"{1e6 * more.replica_cpu_s:,.0f} µs",
        "each name read at a start: Redis's CPU": f"{1e6 * sync_cpu:,.1f} µs",
        "each name read at a start: bytes sent": f"{sync_sent:,.0f} B",
        f"Redis at {masks:,} masks: memory": f"{redis_name * masks / 2**30:,.2f} GiB",
        f"API process at {masks:,} masks: memory": f"{replica_name * masks / 2**30:,.2f} GiB",
        f"{rate:g} publishes a second, {replicas} replicas: Redis's core": f"{100 * load:,.0f} %",
        f"{rate:g} publishes a second, {replicas} replicas: sent": (
            f"{rate * sent * replicas / 1e6:,.1f} MB/s"
        ),
        f"publishes a second at which Redis's core is full, {replicas} replicas": (
            f"{rate / load:,.0f}"
        ),
        f"one replica's start at {masks:,} masks: Redis's core": f"{sync_cpu * masks:,.0f} s",
        f"one replica's start at {masks:,} masks: sent": f"{sync_sent * masks / 1e9:,.2f} GB",
        f"{replicas} replicas start together: Redis's core": (
            f"{sync_cpu * masks * replicas:,.0f} s"
        ),
    }


async def run(names: int, replicas: int, masks: int, rate: float) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="bmt-stream-") as folder,
        EmbeddedValkey(folder) as valkey,
    ):
        connection = RegistryConnection(valkey.url)
        rows, filled = [], 0
        for count, following in ((names // 10, 4), (names, 4), (names, 16)):
            await fill(connection, filled, count - filled)
            filled = count
            rows.append(await measure(valkey.url, count, following, rate))
            print(rows[-1], flush=True)
        await connection.close()
    few, many, more = rows
    for what, value in extrapolated(few, many, more, replicas, masks, rate).items():
        print(f"| {what} | {value} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=20_000, help="names of the measurement")
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=10.0, help="publishes a second")
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        asyncio.run(follow(options.follow, options.replicas))
    else:
        asyncio.run(run(options.names, options.replicas, options.masks, options.rate))


if __name__ == "__main__":
    main()
