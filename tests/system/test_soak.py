"""An hour of Zipf traffic over 500 masks, uploads, restarts of the registry, attacks: no growth.

Two servers run side by side, one that is asked for masks and attacked, and one that is asked for
its base model alone, so that both see the same hour of this machine. $BMT_OPERATE_SOAK_S is its
length in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import bmt_core
import httpx2
import numpy as np
import pytest

from tests.support.masks import random_mask_of
from tests.support.requests.hostile import hostile_requests
from tests.support.requests.hostile_traffic import HostileTraffic
from tests.support.scenarios.figures import KEPT, SCALE, Figures, scaled
from tests.support.scenarios.load import Answer
from tests.support.scenarios.processes import Sample, sample
from tests.support.scenarios.servers import several, target
from tests.support.served import Served, Valkey

pytestmark = [pytest.mark.operate, pytest.mark.timeout(6 * 3600)]

LENGTH_S = float(os.environ.get("BMT_OPERATE_SOAK_S", 3600 * SCALE))
MASKS = scaled(500, 20)
AT_ONCE = 4  # of each server
# Room for a few dozen masks, so that memory is full soon and they push each other out.
CONTEXT = 2048
FLAGS = ("--mask-memory-mib", "16", "--mask-cache-gib", "0.1", "--max-model-len", str(CONTEXT))
ATTACKS_PAUSE_S = 0.5
RESTARTS = 5  # every ten minutes of the hour
AWAY_S = 3.0
SETTLED = 1 / 3  # of the length: from here on nothing may grow
SAMPLES = KEPT.parent / "operate" / "soak.json"
PLOT = Path(__file__).resolve().parents[2] / "docs/operating/soak.png"


@dataclass
class Run:
    """Measurements of one run."""

    samples: list[Sample] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    faults: list[tuple[float, float]] = field(default_factory=list)
    uploads: int = 0

    def growth(self, what: str) -> float:
        """Of a straight line through the settled part, from its first sample to its last."""
        settled = [s for s in self.samples if s.at_s >= LENGTH_S * SETTLED]
        x = np.array([s.at_s for s in settled])
        slope, _ = np.polyfit(x, [getattr(s, what) for s in settled], 1)
        return float(slope * (x[-1] - x[0]))

    def in_fault(self, began: float, ended: float) -> bool:
        return any(a <= ended and began <= b for a, b in self.faults)


def masks(model: Path) -> Iterator[bytes]:
    seed = 0
    while True:
        yield bmt_core.encode(random_mask_of(model, seed, 0.0005))
        seed += 1


def test_soak(smol, valkey, admin_key, tmp_path):
    figures = Figures("soak")
    kinds = {"masks": [f"m{i}" for i in range(MASKS)], "base": ["smol"]}
    with several(smol, tmp_path, [valkey.url] * len(kinds), admin_key, *FLAGS) as made:
        servers = dict(zip(kinds, made, strict=True))
        attacks = HostileTraffic(
            target(servers["masks"]),
            hostile_requests(CONTEXT, "smol", 4000),
            next(masks(smol)),
            kinds["masks"][0],
        )
        runs = asyncio.run(side_by_side(servers, valkey, smol, kinds, attacks))
    summarize(figures, runs["masks"], runs["base"], attacks)
    if LENGTH_S >= 3600 or not PLOT.exists():
        keep(runs)
    figures.end()


async def side_by_side(
    servers: Mapping[str, Served],
    valkey: Valkey,
    model: Path,
    kinds: Mapping[str, list[str]],
    attacks: HostileTraffic,
) -> dict[str, Run]:
    data = masks(model)
    at = servers["masks"]
    async with httpx2.AsyncClient(base_url=at.url, headers=at.headers, timeout=60) as client:
        for name in kinds["masks"]:
            (await client.put(f"/v1/masks/{name}", content=next(data))).raise_for_status()
        # What is kept of each name, its metrics above all, is there from the start.
        for name in kinds["masks"]:
            assert (await target(at).ask(name, tokens=1)).ok
        # An allocator keeps what the largest bodies took once.
        await attacks.send_each()
        faults: list[tuple[float, float]] = []
        runs = {kind: Run(faults=faults) for kind in kinds}
        start = time.monotonic()
        await asyncio.gather(
            restarts(valkey, faults),
            attacks.run(lambda: time.monotonic() - start > LENGTH_S, ATTACKS_PAUSE_S),
            publish(client, kinds["masks"], data, runs["masks"]),
            *(traffic(servers[kind], kinds[kind], runs[kind]) for kind in kinds),
        )
    return runs


async def restarts(valkey: Valkey, faults: list[tuple[float, float]]) -> None:
    """The registry is killed, is away for a while, and comes back with what it had."""
    for _ in range(RESTARTS):
        await asyncio.sleep(LENGTH_S / (RESTARTS + 1))
        began = time.monotonic()
        await asyncio.to_thread(valkey.kill)
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(valkey.start)
        faults.append((began, time.monotonic() + 5))


async def publish(
    client: httpx2.AsyncClient, names: list[str], data: Iterator[bytes], run: Run
) -> None:
    """New versions, each in the place of the one before, which is deleted."""
    chance, share, start = np.random.default_rng(6), zipf(len(names)), time.monotonic()
    while time.monotonic() - start < LENGTH_S:
        await asyncio.sleep(1)
        name = names[chance.choice(len(names), p=share)]
        try:
            answer = await client.put(f"/v1/masks/{name}", content=next(data))
            if answer.status_code == 201:
                run.uploads += 1
                await client.delete(f"/v1/masks/{name}/versions/{answer.json()['parent']}")
        except httpx2.HTTPError:
            continue


def zipf(names: int) -> np.ndarray:
    """The share of each."""
    share = 1 / np.arange(1, names + 1)
    return share / share.sum()


async def traffic(served: Served, names: list[str], run: Run) -> None:
    to = target(served)
    chance = np.random.default_rng(5)
    share = zipf(len(names))
    start = time.monotonic()

    def over() -> bool:
        return time.monotonic() - start > LENGTH_S

    async def ask() -> None:
        while not over():
            name = names[chance.choice(len(names), p=share)]
            run.answers.append(await to.ask(name, prompt=f"Now {len(run.answers)}", tokens=8))

    async def watch() -> None:
        while not over():
            run.samples.append(sample(served.process.pid, time.monotonic() - start))
            await asyncio.sleep(max(0.5, LENGTH_S / 720))

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)), watch())


def summarize(figures: Figures, run: Run, base: Run, attacks: HostileTraffic) -> None:
    size = (
        f"{LENGTH_S / 60:.0f} minutes, {MASKS} masks, {len(run.answers)} requests, "
        f"{run.uploads} uploads, {len(run.faults)} restarts of the registry, "
        f"{attacks.answers.total()} attacks"
    )
    failed = [a for a in run.answers if not a.ok and not run.in_fault(a.began, a.began + a.total_s)]
    print(*failed[:5], sep="\n")
    # While the registry is away, 503 is right.
    wrong = [w for w in attacks.wrong if w.status != 503 or not run.in_fault(w.began, w.ended)]
    print(*sorted(attacks.answers.items()), *wrong[:20], sep="\n")
    statuses = Counter[int]()
    for (_, status), count in attacks.answers.items():
        statuses[status] += count
    note = ", ".join(f"{n} {s or 'closed'}" for s, n in sorted(statuses.items()))
    figures.record("attacks_answered_wrong", len(wrong), "attacks", "== 0", size=size, note=note)
    figures.record("failed_outside_faults", len(failed), "requests", "== 0", size=size)
    growth, of_base = run.growth("memory_mib"), base.growth("memory_mib")
    note = f"without masks {of_base:.2f} MiB"
    figures.record("memory_growth", growth, "MiB", "<= 20", size=size, note=note)
    more = growth - max(of_base, 0)
    figures.record("memory_growth_over_base", more, "MiB", "<= 5", size=size, note=note)
    for what in ("descriptors", "threads"):
        figures.record(f"{what}_growth", run.growth(what), what, "<= 3", size=size)


def keep(runs: dict[str, Run]) -> None:
    """The samples, and the plot of them."""
    SAMPLES.parent.mkdir(exist_ok=True)
    kept = {kind: [asdict(s) for s in run.samples] for kind, run in runs.items()}
    SAMPLES.write_text(json.dumps(kept) + "\n")
    plot()


def plot() -> None:
    """Draw what is kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = {k: [Sample(**s) for s in v] for k, v in json.loads(SAMPLES.read_text()).items()}
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True)
    for kind, samples in kept.items():
        minutes = [s.at_s / 60 for s in samples]
        settled = next(s.memory_mib for s in samples if s.at_s >= samples[-1].at_s * SETTLED)
        axes[0].plot(minutes, [s.memory_mib - settled for s in samples], label=kind)
        for axis, what in zip(axes[1:], ("descriptors", "threads"), strict=True):
            values = [getattr(s, what) for s in samples]
            axis.plot(minutes, values)
            axis.set_ylabel(what)
            axis.set_ylim(0, 1.15 * max(max(values), axis.get_ylim()[1] / 1.15))
    axes[0].set_ylabel("memory, MiB\nmore than after a third")
    for restart in range(1, RESTARTS + 1):
        axes[0].axvline(minutes[-1] * restart / (RESTARTS + 1), color="grey", linewidth=0.5)
    axes[0].legend()
    axes[-1].set_xlabel("minutes; grey: the registry is killed, and started again")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=100)
    plt.close(figure)
