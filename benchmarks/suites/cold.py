"""Cold masks: what the first token of one costs, and what a hundred of them do to the others.

    python -m benchmarks.suites.cold MODEL [--rounds 5]       prints a list of figures as JSON

A mask is cold when only the registry has it: this script publishes into the registry next to the
server, as another replica would, so that neither the server's disk nor its memory knows it. It
needs `bmt_server` and `bmt_core` alone; a benchmark that has a server already calls
`first_token` and `arrivals` with an `Endpoint`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np

SPARSITY = 0.002  # the paper's learned sparsity
PROMPT_WORDS = 8
START_S = 420
_WORDS = ("river", "stone", "letter", "cloud", "garden", "window", "paper", "engine", "mirror")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server: port on loopback, key (empty without authentication), base model's name,
    the base checkpoint's folder and the registry's URL."""

    port: int
    key: str
    base: str
    model: Path
    registry: str
    cheapest: str = "/livez"  # the route that costs the server least


@dataclass(slots=True)
class Sample:
    """One streamed request. Seconds: ttft to its first token, gaps between later ones."""

    ttft: float
    gaps: list[float] = field(default_factory=list)


# Masks.


def random_masks(model: Path, count: int, seed: int) -> Iterator[bytes]:
    """Files of `count` masks of uniform random positions, each another."""
    rng = np.random.default_rng(seed)
    base = bmt_core.Base("bench", bmt_core.fingerprint(model))
    shapes = bmt_core.geometry(model)
    for _ in range(count):
        tensors = []
        for name, (rows, cols) in shapes.items():
            drawn = rng.integers(0, rows * cols, int(rows * cols * SPARSITY), dtype=np.uint32)
            tensors.append(bmt_core.TensorMask(name, (rows, cols), np.unique(drawn)))
        yield bmt_core.encode(bmt_core.Mask(base, tuple(tensors), {}))


async def publish(endpoint: Endpoint, prefix: str, count: int, seed: int) -> list[str]:
    """Put `count` new masks into the registry; returns their names. The server has none of them."""
    from bmt_server.registry.connection import RegistryConnection
    from bmt_server.registry.registry import Registry
    from bmt_server.registry.schemas import BaseRef, Version

    store = RegistryConnection(endpoint.registry)
    registry, names = await Registry.recorded(store), []
    try:
        for number, data in enumerate(random_masks(endpoint.model, count, seed)):
            header = bmt_core.inspect(data)
            zeros = sum(t.zeros for t in header.tensors)
            name = f"{prefix}-{number}"
            version = Version(
                name=name,
                digest=header.digest,
                file_digest=hashlib.sha256(data).hexdigest(),
                created=datetime.now(UTC).isoformat(timespec="milliseconds"),
                bytes=len(data),
                zeros=zeros,
                sparsity=SPARSITY,
                base=BaseRef(model_id="bench", fingerprint=header.base.fingerprint),
            )
            await registry.publish(version, data)
            names.append(name)
    finally:
        await store.close()
    return names


# Requests. A client of its own: an HTTP library would take a good part of one of two cores.


def _prompt(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) + str(rng.randrange(100)) for _ in range(PROMPT_WORDS))


async def _exchange(endpoint: Endpoint, head: str, body: bytes = b"") -> AsyncIterator[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    try:
        lines = [head, "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}"]
        lines += ["Content-Type: application/json"] if body else []
        lines += [f"Authorization: Bearer {endpoint.key}"] if endpoint.key else []
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{head} {body[:80]!r}: {status!r} {(await reader.read())[-500:]!r}")
        while line := await reader.readline():
            yield line
    finally:
        writer.close()


async def ask(endpoint: Endpoint, model: str, rng: random.Random, tokens: int) -> Sample:
    """Stream one completion of a new prompt."""
    body = {
        "model": model,
        "prompt": _prompt(rng),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    start = time.perf_counter()
    times = []
    async for line in _exchange(
        endpoint, "POST /v1/completions HTTP/1.1", json.dumps(body).encode()
    ):
        if line.startswith(b"data: {"):
            if b'"error"' in line[:20]:
                raise RuntimeError(f"{model}: {line[:300]!r}")
            times.append(time.perf_counter())
    if not times:
        raise RuntimeError(f"{model}: no token came")
    return Sample(times[0] - start, [b - a for a, b in pairwise(times)])


async def _loop_delay(endpoint: Endpoint, found: list[float]) -> None:
    """Round trips of the cheapest route: what the API's event loop makes anybody wait."""
    while True:
        start = time.perf_counter()
        async for _ in _exchange(endpoint, f"GET {endpoint.cheapest} HTTP/1.1"):
            pass
        found.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)


# Figures.


async def first_token(endpoint: Endpoint, count: int = 40, busy: int = 0) -> dict[str, Any]:
    """Time to first token of `count` cold masks and of the same ones warm, in turns; seconds.

    busy: how many streams of the base model run meanwhile.
    """
    rng = random.Random(count + busy)
    names = await publish(endpoint, f"first-{busy}-{os.getpid()}", count, seed=1 + busy)
    await asyncio.sleep(0.5)  # the server hears of them by the stream of changes
    stop = asyncio.Event()

    async def stream() -> None:
        while not stop.is_set():
            await ask(endpoint, endpoint.base, rng, 64)

    streams = [asyncio.create_task(stream()) for _ in range(busy)]
    await ask(endpoint, endpoint.base, rng, 8)
    cold, warm = [], []
    for name in names:
        cold.append((await ask(endpoint, name, rng, 1)).ttft)
        warm.append((await ask(endpoint, name, rng, 1)).ttft)
        # Out of step with the engine's steps, which a fixed order of events would fall into.
        await asyncio.sleep(rng.uniform(0, 0.06))
    stop.set()
    await asyncio.gather(*streams)
    return {"cold": cold, "warm": warm}


async def capacity(endpoint: Endpoint, at_once: int = 32, tokens: int = 32) -> float:
    """Tokens a second of the base model with `at_once` streams, the second time they run."""
    rng = random.Random(at_once)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        await asyncio.gather(*(ask(endpoint, endpoint.base, rng, tokens) for _ in range(at_once)))
        seconds = time.perf_counter() - start
    return at_once * tokens / seconds


@dataclass(slots=True)
class Arm:
    """Latencies of running masks under one condition, in seconds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    guests: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        shown = (("ttft", self.ttft), ("gap", self.gaps), ("loop", self.loop))
        found = {
            f"{name}_{label}_ms": round(1e3 * quantile(values, q), 2)
            for name, values in (*shown, ("guest_ttft", self.guests))
            if values
            for label, q in (("p50", 0.5), ("p99", 0.99))
        }
        return {**found, "samples": len(self.ttft)}


async def arrivals(
    endpoint: Endpoint,
    *,
    rounds: int = 5,
    cold: int = 100,
    seconds: float = 10.0,
    rate: float = 4.0,
    tokens: int = 32,
    warm: int = 16,
) -> dict[str, Arm]:
    """Running masks' times with and without cold ones arriving, in interleaved rounds.

    `warm` masks are asked at `rate` requests a second, Poisson, `tokens` each. In arm `cold`,
    `cold` masks that only the registry has are asked for one token each, evenly over `seconds`;
    in arm `warm` as many requests come for masks that are known; in arm `none` nothing does. All
    arms of a round have the same schedule.
    """
    pid = os.getpid()
    running = await publish(endpoint, f"running-{pid}", warm, seed=2)
    guests = await publish(endpoint, f"guest-{pid}", cold, seed=3)
    colds = [await publish(endpoint, f"cold-{pid}-{r}", cold, seed=10 + r) for r in range(rounds)]
    await asyncio.sleep(0.5)
    rng = random.Random(0)
    for name in guests:
        await ask(endpoint, name, rng, 1)
    plan = [{"none": [], "warm": guests, "cold": colds[r]} for r in range(rounds)]
    return await in_turns(endpoint, running, plan, seconds=seconds, rate=rate, tokens=tokens)


async def in_turns(
    endpoint: Endpoint,
    running: Sequence[str],
    plan: Sequence[Mapping[str, Sequence[str]]],
    *,
    seconds: float,
    rate: float,
    tokens: int,
) -> dict[str, Arm]:
    """Latencies of `running` in each arm; plan[r]: who arrives in round r, by arm.

    The order of the arms moves on by one from round to round.
    """
    rng = random.Random(0)
    for name in running:
        await ask(endpoint, name, rng, 1)
    arms = {name: Arm() for name in plan[0]}
    for number, arriving in enumerate(plan):
        order = list(arms)
        first = number % len(order)
        for name in order[first:] + order[:first]:
            schedule = random.Random(number)
            await _round(
                *(endpoint, arms[name], running, arriving[name], schedule, seconds, rate, tokens)
            )
    return arms


async def _round(
    endpoint: Endpoint,
    arm: Arm,
    running: Sequence[str],
    guests: Sequence[str],
    plan: random.Random,
    seconds: float,
    rate: float,
    tokens: int,
) -> None:
    prompts = random.Random(plan.random())
    at, starts = 0.0, []
    while (at := at + plan.expovariate(rate)) < seconds:
        starts.append((at, plan.choice(running)))
    probe = asyncio.create_task(_loop_delay(endpoint, arm.loop))
    begun = time.perf_counter()

    async def one(delay: float, name: str, count: int) -> Sample:
        await asyncio.sleep(begun + delay - time.perf_counter())
        return await ask(endpoint, name, prompts, count)

    own = [one(at, name, tokens) for at, name in starts]
    theirs = [one(seconds * i / len(guests), g, 1) for i, g in enumerate(guests)]
    done = await asyncio.gather(*own, *theirs)
    probe.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await probe
    for sample in done[: len(own)]:
        arm.ttft.append(sample.ttft)
        arm.gaps += sample.gaps
    arm.guests += [s.ttft for s in done[len(own) :]]


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(values), q))


def figures(
    idle: dict[str, Any], busy: dict[str, Any], arms: dict[str, Arm], command: str
) -> list[dict[str, Any]]:
    """The results as `{"id", "value", "unit", "baseline", "command"}`, with what explains them."""
    found = []
    for key, result in (
        ("cold_first_token_extra_ms", idle),
        ("cold_first_token_extra_busy_ms", busy),
    ):
        cold, warm = (1e3 * statistics.median(result[k]) for k in ("cold", "warm"))
        found.append(
            {
                "id": key,
                "value": round(cold - warm, 2),
                "unit": "ms",
                "baseline": f"the same masks warm: {warm:.2f} ms, median of {len(result['warm'])}",
                "command": command,
                "detail": {
                    f"{k}_{name}_ms": round(1e3 * quantile(result[k], q), 2)
                    for k in ("cold", "warm")
                    for name, q in (("p50", 0.5), ("p99", 0.99))
                },
            }
        )
    cold = quantile(arms["cold"].ttft, 0.99)
    for key, arm, text in (
        ("cold_p99_ttft_ratio", "none", "no other requests"),
        ("cold_p99_ttft_ratio_same_load", "warm", "as many requests for masks that are known"),
    ):
        baseline = quantile(arms[arm].ttft, 0.99)
        found.append(
            {
                "id": key,
                "value": round(cold / baseline, 3),
                "unit": "ratio",
                "baseline": f"{text}: p99 {1e3 * baseline:.1f} ms",
                "command": command,
                "detail": {name: a.row() for name, a in arms.items()},
            }
        )
    return found


# A server of our own.


@contextlib.contextmanager
def served(model: Path, folder: Path, flags: Sequence[str] = ()) -> Iterator[Endpoint]:
    """`bmt-server serve` with its embedded registry, on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "-m", "bmt_server", "serve", str(model), "--no-auth"]
    command += ["--data-dir", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "base", "--max-model-len", "512", *flags]
    environment = {k: v for k, v in os.environ.items() if k != "BMT_SERVER_SETTINGS"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    try:
        registry = _ready(process, port, log)
        yield Endpoint(port, "", "base", model, registry)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> str:
    """Wait for the server; returns the URL of its registry, read from its log."""
    deadline = time.monotonic() + START_S
    endpoint = Endpoint(port, "", "", Path(), "")

    async def answers() -> bool:
        try:
            async for _ in _exchange(endpoint, "GET /readyz HTTP/1.1"):
                pass
        except (OSError, RuntimeError):
            return False
        return True

    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()[-3000:]}")
        if asyncio.run(answers()):
            marker = "embedded registry at "
            text = log.read_text()
            return text[text.index(marker) + len(marker) :].split()[0]
        time.sleep(0.25)
    raise RuntimeError(f"the server was not ready in {START_S} s:\n{log.read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the base checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=8, help="streams of the base in the busy case")
    parser.add_argument("--flag", action="append", default=[], help="a flag of the server's")
    args = parser.parse_args()
    command = "python -m benchmarks.suites.cold MODEL " + " ".join(sys.argv[2:])
    flags = ["--max-num-seqs", "64", *args.flag]
    # As Ctrl-C, so that the server ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    async def measure(endpoint: Endpoint) -> list[dict[str, Any]]:
        idle = await first_token(endpoint)
        busy = await first_token(endpoint, busy=args.busy)
        return figures(idle, busy, await arrivals(endpoint, rounds=args.rounds), command)

    with (
        tempfile.TemporaryDirectory(prefix="bmt-cold-") as folder,
        served(args.model, Path(folder), flags) as endpoint,
    ):
        print(json.dumps(asyncio.run(measure(endpoint)), indent=2))


if __name__ == "__main__":
    main()
