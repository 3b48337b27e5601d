"""Tokens a second and first tokens over HTTP, against how many masks or adapters there are.

First bare vLLM and ours without a mask, in turns; then one server at a time, loads one after
another: ours, and vLLM with LoRA at rank 1 and 8. All loads come from vLLM's own generator. The
order in which a load names its masks is drawn beforehand, so that equal loads of two servers name
them in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.environment import WORK
from benchmarks.harness.section import Context
from benchmarks.harness.stats import Estimate, estimate, median, zipf
from benchmarks.processes.load import Loads, loads
from benchmarks.processes.servers import Server, lora_flags, masks_server, upload, vllm_server
from benchmarks.report.results import Baseline, Entry, Findings, Plot, Series, Table

TRAFFIC = {"uniform": 0.0, "Zipf": 1.0}  # exponent of the popularity of the k-th mask
_MASK_MEMORY_MIB = 4096
_SLOTS = 32

Point = dict[str, Any]  # {"count", "traffic", and the fields of `load.Measured`}


def growth(context: Context) -> Findings:
    """The plot over the number of masks, and a thousand masks against one."""
    with loads(context.model, context.work) as generator:
        raw: dict[str, Any] = {
            "bare": context.step("bare", _bare, context, generator),
            "masks": context.step("masks", _masks, context, generator),
        }
        for rank, counts in context.scale.growth_lora.items():
            key = f"lora-r{rank}"
            raw[key] = context.step(key, _lora, context, generator, rank, counts)
    return _findings(context, raw)


def _bare(context: Context, generator: Loads) -> dict[str, Any]:
    """vLLM as it comes, with what bmt-server sets for the CPU, and bmt-server, in turns."""
    context.say("bare vLLM, with bmt-server's environment and without, and bmt-server")
    with (
        vllm_server(context.model, context.work / "plain", plain=True) as plain,
        vllm_server(context.model, context.work / "bare") as tuned,
        masks_server(context.model, context.work / "idle") as idle,
    ):
        servers = {"plain": plain, "tuned": tuned, "idle": idle}
        for server in servers.values():
            _load(context, generator, server, None, seed=0)
        found: dict[str, Any] = {name: [] for name in servers}
        for pair in range(context.scale.http_pairs):
            for name in servers if pair % 2 else reversed(servers):
                found[name].append(_load(context, generator, servers[name], None, seed=pair))
    return found


def _masks(context: Context, generator: Loads) -> dict[str, Any]:
    scale = context.scale
    most = max(scale.growth)
    context.say(f"{most} masks (made at the first run)")
    files = inputs.masks(context.model, WORK / "inputs" / "masks", range(most), inputs.SPARSITY)
    names = [f"m{i}" for i in range(most)]
    points: list[Point] = []
    flags = ("--mask-memory-mib", str(_MASK_MEMORY_MIB))
    with masks_server(context.model, context.work / "masks", *flags) as server:
        known, spent = 0, {}
        for target in sorted({scale.uniform, most}):
            new = names[known:target]
            context.say(f"uploading {len(new)} masks, then one token of each")
            spent[str(target)] = {"upload_s": upload(server, files[known:target], new)}
            warm = generator.run(
                *(server, new), requests=len(new), tokens=1, concurrency=_SLOTS, seed=0
            )
            spent[str(target)]["first_tokens_s"] = warm.duration_s
            for count in scale.growth:
                if known < count <= target:
                    points += _points(context, generator, server, names[:count])
            if target == scale.uniform:
                pairs = _pairs(context, generator, server, names[:target])
            known = target
    return {"points": points, "pairs": pairs, "spent": spent}


def _lora(context: Context, generator: Loads, rank: int, counts: Sequence[int]) -> dict[str, Any]:
    most = max(counts)
    context.say(f"vLLM with {most} LoRA adapters of rank {rank}")
    adapters = inputs.lora_adapters(context.model, WORK / "inputs" / "lora", most, rank)
    flags = lora_flags(adapters, rank, _SLOTS)
    names = [f"a{i}" for i in range(most)]
    points: list[Point] = []
    with vllm_server(context.model, context.work / f"lora-r{rank}", *flags) as server:
        _load(context, generator, server, names[:_SLOTS], seed=0)
        for count in counts:
            points += _points(context, generator, server, names[:count])
    return {"points": points}


def _points(
    context: Context, generator: Loads, server: Server, names: Sequence[str]
) -> list[Point]:
    found = []
    for traffic, exponent in TRAFFIC.items():
        if len(names) == 1 and exponent:
            continue  # one mask is one mask however it is drawn
        order = _order(context, names, exponent, seed=len(names))
        measured = _load(context, generator, server, order, seed=len(names))
        found.append({"count": len(names), "traffic": traffic, **measured})
        context.say(
            f"{len(names)} {traffic}: {measured['output_tokens_per_s']:.0f} tokens/s, "
            f"p99 first token {measured['ttft_p99_ms']:.0f} ms"
        )
    return found


def _pairs(
    context: Context, generator: Loads, server: Server, names: Sequence[str]
) -> list[dict[str, list[float]]]:
    """One mask, all masks, one mask: tokens/s of each; the outer two are also each other's."""
    found = []
    for pair in range(context.scale.http_pairs):
        order = _order(context, names, 0.0, seed=100 + pair)
        speeds = [
            _load(context, generator, server, which, seed=100 + pair)["output_tokens_per_s"]
            for which in (names[:1], order, names[:1])
        ]
        found.append({"single": [speeds[0], speeds[2]], "uniform": [speeds[1]]})
        context.say(f"pair {pair + 1}: " + ", ".join(f"{s:.0f}" for s in speeds) + " tokens/s")
    return found


def _order(context: Context, names: Sequence[str], exponent: float, seed: int) -> list[str]:
    return [names[k] for k in zipf(len(names), context.scale.requests, exponent, seed)]


def _load(
    context: Context, generator: Loads, server: Server, names: Sequence[str] | None, seed: int
) -> dict[str, float]:
    scale = context.scale
    return generator.run(
        server,
        names,
        requests=scale.requests,
        tokens=scale.request_tokens,
        concurrency=scale.concurrency,
        seed=seed,
    ).raw()


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    pairs = raw["masks"]["pairs"]
    single = median([s for p in pairs for s in p["single"]])
    ratio = estimate([[p["uniform"][0] * 2 / sum(p["single"])] for p in pairs])
    itself = estimate([[p["single"][1] / p["single"][0]] for p in pairs])
    one = Baseline(what="one mask, same server", value=round(single, 1), unit="tokens/s")
    count = context.scale.uniform
    entries = [
        _entry(
            *(context, "uniform1000_over_single", ratio, one),
            f"{count} masks, uniform, all warm",
        ),
        _entry(*(context, "single_over_single_http", itself, one), "one mask, the load repeated"),
        _beside(
            *(context, raw["bare"], "cpu_environment_over_plain", "tuned", "plain"),
            what="bare vLLM as it comes",
            note="bare vLLM with what bmt-server sets for the CPU",
        ),
    ]
    return Findings(entries=entries, tables=[_table(context, raw)], plots=_plots(raw), samples=raw)


def _beside(
    context: Context,
    bare: dict[str, Any],
    name: str,
    ours: str,
    theirs: str,
    *,
    what: str,
    note: str,
) -> Entry:
    """One server's speed over another's, of loads in turns."""
    speeds = {k: [run["output_tokens_per_s"] for run in bare[k]] for k in (ours, theirs)}
    ratio = estimate([[a / b] for a, b in zip(speeds[ours], speeds[theirs], strict=True)])
    baseline = Baseline(what=what, value=round(median(speeds[theirs]), 1), unit="tokens/s")
    return _entry(context, name, ratio, baseline, note)


def _entry(context: Context, name: str, ratio: Estimate, baseline: Baseline, note: str) -> Entry:
    unit = "ratio of output tokens/s"
    return Entry.estimated(name, ratio, unit, baseline, context.command, note=note)


LABELS = {"masks": "masks", "lora-r1": "vLLM LoRA r=1", "lora-r8": "vLLM LoRA r=8"}


def _table(context: Context, raw: dict[str, Any]) -> Table:
    bare = median([r["output_tokens_per_s"] for r in raw["bare"]["tuned"]])
    rows: list[tuple[str, ...]] = []

    def row(what: str, count: str, traffic: str, run: dict[str, float]) -> None:
        speed = run["output_tokens_per_s"]
        times = (f"{run['ttft_p50_ms']:.0f}", f"{run['ttft_p99_ms']:.0f}")
        rows.append((what, count, traffic, f"{speed:.0f}", f"{speed / bare:.2f}", *times))

    for run in raw["bare"]["tuned"]:
        row("bare vLLM", "", "", run)
    for run in raw["bare"]["plain"]:
        row("bare vLLM, nothing set", "", "", run)
    for run in raw["bare"]["idle"]:
        row("masks, base requests", "", "", run)
    for key, label in LABELS.items():
        for point in raw.get(key, {}).get("points", []):
            row(label, f"{point['count']:,}", point["traffic"], point)
    scale = context.scale
    return Table(
        title="Over HTTP",
        header=(
            *("server", "masks or adapters", "traffic", "output tokens/s", "over bare"),
            *("first token p50, ms", "p99, ms"),
        ),
        rows=rows,
        note=f"{scale.requests} requests of 16 tokens in and {scale.request_tokens} out (half to "
        f"one and a half times that), "
        f"{scale.concurrency} at once, by `vllm.benchmarks.serve`; vLLM's default mode, "
        f"{_SLOTS} LoRA slots. Those without a mask took turns; the others ran one after another, "
        "so ratios between them carry the machine's drift.",
    )


def _plots(raw: dict[str, Any]) -> list[Plot]:
    largest = max(p["count"] for p in raw["masks"]["points"])
    plots = []
    for file, title, key, y_label, log in (
        (
            *("growth-tokens.png", "Throughput against the number of fine-tunes"),
            *("output_tokens_per_s", "output tokens/s", "x"),
        ),
        (
            *("growth-ttft.png", "Time to first token against the number of fine-tunes"),
            *("ttft_p99_ms", "p99 time to first token, ms", "xy"),
        ),
    ):
        bare = median([r[key] for r in raw["bare"]["tuned"]])
        series = [Series(label="bare vLLM, no fine-tune", x=[1, largest], y=[bare, bare])]
        for name, label in LABELS.items():
            points = raw.get(name, {}).get("points", [])
            for traffic in TRAFFIC:
                # One fine-tune alone belongs to either traffic.
                of = [p for p in points if p["traffic"] == traffic or p["count"] == 1]
                if of:
                    series.append(
                        Series(
                            label=f"{label}, {traffic}",
                            x=[float(p["count"]) for p in of],
                            y=[float(p[key]) for p in of],
                        )
                    )
        plots.append(
            Plot(
                file=file,
                title=title,
                x_label="masks or adapters in the traffic",
                y_label=y_label,
                series=series,
                log=log,
            )
        )
    return plots
