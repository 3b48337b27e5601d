"""`scatter` against `auto` under skewed traffic: throughput, and how long a request waits.

Two servers live at once and take turns under the same loads, which name masks in the same order.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.environment import WORK
from benchmarks.harness.section import Context
from benchmarks.harness.stats import estimate, median, zipf
from benchmarks.processes.load import loads
from benchmarks.processes.servers import masks_server, metrics, upload
from benchmarks.report.results import Baseline, Entry, Findings, Table

_MASKS = 16
_SEATS = 128  # vLLM's own default on a CPU
MODES = ("auto", "scatter")


@dataclass(frozen=True, slots=True)
class Traffic:
    """One load: how requests spread over how many masks, and how many there are at once.

    exponent: of Zipf's law; over 16 masks, 1 gives the first 30 % and 2 gives it 63 %.
    """

    id: str
    masks: int
    exponent: float
    at_once: int

    @property
    def what(self) -> str:
        if self.masks == 1:
            return f"one mask, {self.at_once} at once"
        return f"{self.masks} masks, Zipf {self.exponent:g}, {self.at_once} at once"


# A step of `scatter` holds one mask, so what counts is how many requests each has in the mix.
LOADS = (
    Traffic("scatter_over_auto_skewed", _MASKS, 1.0, 128),
    Traffic("scatter_over_auto_4_masks", 4, 1.0, 128),
    Traffic("scatter_over_auto_1_mask", 1, 1.0, 128),
    Traffic("scatter_over_auto_zipf2_32", _MASKS, 2.0, 32),
)


def skewed(context: Context) -> Findings:
    """All loads, in turns."""
    return _findings(context, context.step("skewed", _measure, context))


def _measure(context: Context) -> dict[str, Any]:
    scale = context.scale
    names = [f"m{i}" for i in range(_MASKS)]
    files = inputs.masks(context.model, WORK / "inputs" / "masks", range(_MASKS), inputs.SPARSITY)
    found: dict[str, list[dict[str, Any]]] = {load.id: [] for load in LOADS}
    with ExitStack() as stack:
        generator = stack.enter_context(loads(context.model, context.work))
        servers = {
            mode: stack.enter_context(
                masks_server(
                    context.model,
                    context.work / mode,
                    *("--mask-mode", mode, "--max-num-seqs", str(_SEATS)),
                )
            )
            for mode in MODES
        }
        for server in servers.values():
            upload(server, files, names)
            generator.run(*(server, names), requests=_MASKS, tokens=4, concurrency=_MASKS, seed=0)
        for pair in range(scale.mode_pairs):
            for load in LOADS:
                requests = max(scale.requests, 2 * load.at_once)
                order = [names[k] for k in zipf(load.masks, requests, load.exponent, seed=pair)]
                turn = {}
                for mode in MODES if pair % 2 else reversed(MODES):
                    turn[mode] = generator.run(
                        servers[mode],
                        order,
                        requests=requests,
                        tokens=scale.request_tokens,
                        concurrency=load.at_once,
                        seed=pair,
                    ).raw()
                found[load.id].append(turn)
                speeds = {m: round(turn[m]["output_tokens_per_s"]) for m in MODES}
                context.say(f"{load.what}: tokens/s {speeds}")
        figures = {k: v for k, v in metrics(servers["scatter"]).items() if "bmt_scatter" in k}
    return {"turns": found, "metrics": figures}


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    entries: list[Entry] = []
    rows: list[tuple[str, ...]] = []
    for load in LOADS:
        turns = raw["turns"][load.id]
        speed = {m: [t[m]["output_tokens_per_s"] for t in turns] for m in MODES}
        ratio = estimate([[s / a] for s, a in zip(speed["scatter"], speed["auto"], strict=True)])
        auto = Baseline(
            what="mode auto, same loads", value=round(median(speed["auto"]), 1), unit="tokens/s"
        )
        entries.append(
            Entry.estimated(
                load.id,
                ratio,
                "ratio of output tokens/s",
                auto,
                context.command,
                note=load.what,
            )
        )
        for mode in MODES:
            of = [t[mode] for t in turns]
            first = median([x["ttft_p99_ms"] for x in of])
            gap = max(x["longest_gap_ms"] for x in of)
            share = f"{ratio.value:.2f}" if mode == "scatter" else ""
            rows.append((load.what, mode, f"{median(speed[mode]):.0f}", share, *_ms(first, gap)))
    table = Table(
        title="`scatter` and `auto` under skewed traffic",
        header=(
            *("traffic", "mode", "output tokens/s", "over auto"),
            *("first token p99, ms", "longest time between tokens, ms"),
        ),
        rows=rows,
        note=f"{_SEATS} seats, the servers' default bounds (docs/reference/cli.md). On the CPU "
        "`scatter` keeps the gates unpacked, whose product is slower. " + _waits(raw["metrics"]),
    )
    return Findings(entries=entries, tables=[table], samples=raw)


def _ms(*times: float) -> tuple[str, ...]:
    return tuple(f"{t:.0f}" for t in times)


def _waits(metrics_of: dict[str, float]) -> str:
    """Waits for a turn on the `scatter` server, over all loads, as a sentence."""
    longest = metrics_of.get("bmt_scatter_longest_wait_seconds")
    if longest is None:
        return ""
    over = metrics_of.get("bmt_scatter_waits_over_bound_total", 0.0)
    return (
        f"Longest wait for a turn of a request that could run: {longest * 1000:.0f} ms; "
        f"{over:.0f} waits were longer than the bound."
    )
