"""`scatter` against `auto` under skewed traffic: throughput, and how long a request waits.

Two servers live at once and take turns under the same loads, which name masks in the same order.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks import inputs
from benchmarks.context import Context
from benchmarks.environment import WORK
from benchmarks.load import loads
from benchmarks.results import Baseline, Entry, Findings, Table
from benchmarks.servers import masks_server, metrics, upload
from benchmarks.stats import estimate, median, zipf

_MASKS = 16
# How requests spread over the masks: the exponents of Zipf's law. At 2, one mask has 63 %.
SKEWED = {"Zipf 2": 2.0, "Zipf 1": 1.0}
MODES = ("auto", "scatter")


def skewed(context: Context) -> Findings:
    """Both traffics, in turns."""
    return _findings(context, context.step("skewed", _measure, context))


def _measure(context: Context) -> dict[str, Any]:
    scale = context.scale
    names = [f"m{i}" for i in range(_MASKS)]
    files = inputs.masks(context.model, WORK / "inputs" / "masks", range(_MASKS), inputs.DENSITY)
    found: dict[str, list[dict[str, Any]]] = {traffic: [] for traffic in SKEWED}
    with ExitStack() as stack:
        generator = stack.enter_context(loads(context.model, context.work))
        servers = {
            mode: stack.enter_context(
                masks_server(context.model, context.work / mode, "--mask-mode", mode)
            )
            for mode in MODES
        }
        size = {"requests": scale.requests, "tokens": scale.request_tokens}
        for server in servers.values():
            upload(server, files, names)
            generator.run(*(server, names), requests=_MASKS, tokens=4, concurrency=_MASKS, seed=0)
        for pair in range(scale.mode_pairs):
            for traffic, exponent in SKEWED.items():
                order = [names[k] for k in zipf(_MASKS, scale.requests, exponent, seed=pair)]
                turn = {}
                for mode in MODES if pair % 2 else reversed(MODES):
                    turn[mode] = generator.run(
                        servers[mode], order, concurrency=scale.concurrency, seed=pair, **size
                    ).raw()
                found[traffic].append(turn)
                speeds = {m: round(turn[m]["output_tokens_per_s"]) for m in MODES}
                context.say(f"{traffic}: tokens/s {speeds}")
        told = {k: v for k, v in metrics(servers["scatter"]).items() if "scatter" in k}
    return {"turns": found, "metrics": told}


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    entries, rows = [], []
    for traffic, turns in raw["turns"].items():
        speed = {m: [t[m]["output_tokens_per_s"] for t in turns] for m in MODES}
        ratio = estimate([[s / a] for s, a in zip(speed["scatter"], speed["auto"], strict=True)])
        entries.append(
            Entry(
                id="scatter_over_auto_" + ("skewed" if traffic == "Zipf 2" else "zipf1"),
                value=round(ratio.value, 4),
                unit="ratio of output tokens/s",
                baseline=Baseline(
                    what="mode auto, same loads",
                    value=round(median(speed["auto"]), 1),
                    unit="tokens/s",
                ),
                command=context.command,
                interval=(round(ratio.low, 4), round(ratio.high, 4)),
                note=f"{_MASKS} masks, {traffic}",
            )
        )
        for mode in MODES:
            of = [t[mode] for t in turns]
            rows.append(
                (
                    traffic,
                    mode,
                    f"{median(speed[mode]):.0f}",
                    f"{median([x['ttft_p99_ms'] for x in of]):.0f}",
                    f"{max(x['longest_wait_ms'] for x in of):.0f}",
                )
            )
    table = Table(
        title="`scatter` and `auto` under skewed traffic",
        header=("traffic", "mode", "output tokens/s", "first token p99, ms", "longest wait, ms"),
        rows=rows,
        note=f"{_MASKS} masks, {context.scale.concurrency} requests at once; the longest wait of "
        "any request for its first or its next token, over all loads. The servers' defaults for "
        "`scatter` (docs/cli.md); on the CPU `scatter` keeps the gates unpacked, whose product is "
        "slower than `auto`'s.",
    )
    return Findings(entries=entries, tables=[table], samples=raw)
