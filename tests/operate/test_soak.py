"""An hour of Zipf traffic over 500 masks, uploads and restarts of the registry: nothing grows.

$BMT_OPERATE_SOAK_S is the length of each of the two runs, with masks and without, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import bmt_core
import httpx
import numpy as np
import pytest

from tests.server.engine.engines import random_mask
from tests.server.served import Served, Valkey

from .figures import KEPT, SCALE, Figures, scaled
from .load import Answer
from .processes import Sample, sample
from .servers import server, target

pytestmark = [pytest.mark.operate, pytest.mark.timeout(6 * 3600)]

LENGTH_S = float(os.environ.get("BMT_OPERATE_SOAK_S", 3600 * SCALE))
MASKS = scaled(500, 20)
AT_ONCE = 4
RESTART_EVERY_S = LENGTH_S / 6
AWAY_S = 3.0
SETTLED = 1 / 3  # of the length: from here on nothing may grow
SAMPLES = KEPT.parent / "operate" / "soak.json"
PLOT = Path(__file__).resolve().parents[2] / "docs" / "soak.png"


@dataclass
class Run:
    """What one run saw."""

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

    def in_fault(self, answer: Answer) -> bool:
        return any(a <= answer.began + answer.total_s and answer.began <= b for a, b in self.faults)


def masks(model: Path) -> Iterator[bytes]:
    seed = 0
    while True:
        yield bmt_core.encode(random_mask(model, seed, 0.0005))
        seed += 1


def test_soak(smol, valkey, admin_key, tmp_path):
    figures = Figures("soak")
    runs = {}
    for kind in ("masks", "base"):
        # Room for a few dozen masks, so that memory is full soon and they push each other out.
        flags = ("--mask-memory", "16", "--mask-cache-gib", "0.1")
        with server(smol, tmp_path / kind, valkey.url, admin_key, *flags) as served:
            runs[kind] = asyncio.run(traffic(served, valkey, smol, kind == "masks"))
    told(figures, runs["masks"], runs["base"])
    if LENGTH_S >= 3600 or not PLOT.exists():
        keep(runs)
    figures.end()


async def traffic(served: Served, valkey: Valkey, model: Path, with_masks: bool) -> Run:
    run, to, data = Run(), target(served), masks(model)
    names = [f"m{i}" for i in range(MASKS)] if with_masks else ["smol"]
    client = httpx.AsyncClient(base_url=served.url, headers=served.headers, timeout=60)
    if with_masks:
        for name in names:
            (await client.put(f"/v1/masks/{name}", content=next(data))).raise_for_status()
    chance = np.random.default_rng(5)
    share = 1 / np.arange(1, len(names) + 1)
    share /= share.sum()
    start = time.monotonic()

    def over() -> bool:
        return time.monotonic() - start > LENGTH_S

    async def ask() -> None:
        while not over():
            name = names[chance.choice(len(names), p=share)]
            run.answers.append(await to.ask(name, prompt=f"Now {len(run.answers)}", tokens=8))

    async def publish() -> None:
        """New versions, each in the place of the one before, which is deleted."""
        while not over():
            await asyncio.sleep(1)
            name = names[chance.choice(len(names), p=share)]
            try:
                answer = await client.put(f"/v1/masks/{name}", content=next(data))
                if answer.status_code == 201:
                    run.uploads += 1
                    await client.delete(f"/v1/masks/{name}/versions/{answer.json()['parent']}")
            except httpx.HTTPError:
                continue

    async def restart() -> None:
        while True:
            await asyncio.sleep(RESTART_EVERY_S)
            if over():
                return
            began = time.monotonic()
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(AWAY_S)
            await asyncio.to_thread(valkey.start)
            run.faults.append((began, time.monotonic() + 5))

    async def watch() -> None:
        while not over():
            run.samples.append(sample(served.process.pid, time.monotonic() - start))
            await asyncio.sleep(max(0.5, LENGTH_S / 720))

    work = [ask() for _ in range(AT_ONCE)] + [restart(), watch()]
    await asyncio.gather(*work, *([publish()] if with_masks else []))
    await client.aclose()
    return run


def told(figures: Figures, run: Run, base: Run) -> None:
    size = (
        f"{LENGTH_S / 60:.0f} minutes, {MASKS} masks, {len(run.answers)} requests, "
        f"{run.uploads} uploads, {len(run.faults)} restarts of the registry"
    )
    failed = [a for a in run.answers if not a.ok and not run.in_fault(a)]
    print(*failed[:5], sep="\n")
    figures.tell("failed_outside_faults", len(failed), "requests", "== 0", size=size)
    growth, of_base = run.growth("rss_mib"), base.growth("rss_mib")
    note = f"without masks {of_base:.1f} MiB"
    figures.tell("rss_growth", growth, "MiB", "<= 20", size=size, note=note)
    more = growth - max(of_base, 0)
    figures.tell("rss_growth_over_base", more, "MiB", "<= 5", size=size, note=note)
    for what in ("descriptors", "threads"):
        figures.tell(f"{what}_growth", run.growth(what), what, "<= 3", size=size)


def keep(runs: dict[str, Run]) -> None:
    """The samples, and the plot of them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    SAMPLES.parent.mkdir(exist_ok=True)
    kept = {kind: [asdict(s) for s in run.samples] for kind, run in runs.items()}
    SAMPLES.write_text(json.dumps(kept) + "\n")
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True)
    for axis, what in zip(axes, ("rss_mib", "descriptors", "threads"), strict=True):
        for kind, run in runs.items():
            minutes = [s.at_s / 60 for s in run.samples]
            axis.plot(minutes, [getattr(s, what) for s in run.samples], label=kind)
        axis.set_ylabel({"rss_mib": "resident, MiB"}.get(what, what))
        axis.set_ylim(bottom=0)
    for began, _ in runs["masks"].faults:
        first = runs["masks"].answers[0].began
        axes[0].axvline((began - first) / 60, color="grey", linewidth=0.5)
    axes[0].legend()
    axes[-1].set_xlabel("minutes; grey: the registry was killed and started again")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=100)
    plt.close(figure)
