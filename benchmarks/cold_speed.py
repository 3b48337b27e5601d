"""Cold masks on a server of their own: what the first token of one costs, and what a hundred do
to running requests, with vLLM's LoRA beside it. The measurements are in `cold`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import cold, inputs
from benchmarks.context import Context
from benchmarks.environment import WORK
from benchmarks.results import Baseline, Entry, Findings, Table
from benchmarks.servers import NAME, Server, lora_flags, masks_server, vllm_server
from benchmarks.stats import Estimate, median, quantile_ratio

_RANK = 1
_WARM = 16
ARMS = {
    "none": "no other requests",
    "warm": "as many requests for known ones",
    "cold": "cold ones arriving",
}


def arriving(context: Context) -> Findings:
    """Both figures, ours and LoRA's."""
    raw = {
        "masks": context.step("masks", _masks, context),
        "lora": context.step("lora", _lora, context),
    }
    return _findings(context, raw)


def _masks(context: Context) -> dict[str, Any]:
    scale = context.scale
    with masks_server(context.model, context.work / "masks") as server:
        endpoint = _endpoint(server, context.model)

        async def measure() -> dict[str, Any]:
            context.say("first tokens of cold and warm masks")
            first = {
                "idle": await cold.first_token(endpoint, count=scale.cold_firsts),
                "busy": await cold.first_token(endpoint, count=scale.cold_firsts, busy=8),
            }
            context.say(f"{scale.cold_masks} cold masks arriving, {scale.cold_rounds} rounds")
            arms = await cold.arrivals(
                endpoint,
                rounds=scale.cold_rounds,
                cold=scale.cold_masks,
                seconds=scale.cold_seconds,
                warm=_WARM,
            )
            return {"first": first, "arms": {k: asdict(v) for k, v in arms.items()}}

        return asyncio.run(measure())


def _lora(context: Context) -> dict[str, Any]:
    """The same rounds on vLLM, whose CPU memory holds those that run and one round's arrivals."""
    scale = context.scale
    count, held = _WARM + 2 * scale.cold_masks, _WARM + scale.cold_masks
    adapters = inputs.lora_adapters(context.model, WORK / "inputs" / "lora", count, _RANK)
    flags = lora_flags(adapters, _RANK, slots=32, held=held)
    names = [f"a{i}" for i in range(count)]
    context.say(f"vLLM with {count} LoRA adapters of rank {_RANK}, {held} held in memory")
    with vllm_server(context.model, context.work / "lora", *flags) as server:
        running, rest = names[:_WARM], names[_WARM:]
        # Two sets that push each other out: each is read from disk anew in its round.
        sets = rest[: scale.cold_masks], rest[scale.cold_masks :]
        plan = [{"none": [], "cold": sets[r % 2]} for r in range(scale.cold_rounds)]
        endpoint = replace(_endpoint(server, context.model), cheapest="/version")
        arms = asyncio.run(cold.in_turns(endpoint, running, plan, seconds=scale.cold_seconds))
        return {"arms": {k: asdict(v) for k, v in arms.items()}}


def _endpoint(server: Server, model: Path) -> cold.Endpoint:
    return cold.Endpoint(server.port, server.key, NAME, model, server.registry)


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    first, entries = raw["masks"]["first"], []
    for entry_id, load in (
        ("cold_first_token_extra_ms", "idle"),
        ("cold_first_token_extra_busy_ms", "busy"),
    ):
        cold_ms, warm_ms = (1e3 * median(first[load][k]) for k in ("cold", "warm"))
        entries.append(
            Entry(
                id=entry_id,
                value=round(cold_ms - warm_ms, 2),
                unit="ms",
                baseline=Baseline(
                    what="first token of the same masks, warm", value=round(warm_ms, 2), unit="ms"
                ),
                command=context.command,
                note=f"median of {len(first[load]['cold'])}, server {load}",
            )
        )
    ours, lora = _ratio(raw["masks"]["arms"]), _ratio(raw["lora"]["arms"])
    for entry_id, ratio, key in (
        ("cold_p99_ttft_ratio", ours, "masks"),
        ("lora_cold_p99_ttft_ratio", lora, "lora"),
    ):
        alone = 1e3 * cold.quantile(raw[key]["arms"]["none"]["ttft"], 0.99)
        entries.append(
            Entry(
                id=entry_id,
                value=round(ratio.value, 4),
                unit="ratio of p99 times to first token",
                baseline=Baseline(what=ARMS["none"], value=round(alone, 1), unit="ms"),
                command=context.command,
                interval=(round(ratio.low, 4), round(ratio.high, 4)),
                note=f"{ratio.turns} requests of running ones",
            )
        )
    rows = [
        (
            {"masks": "masks", "lora": f"vLLM LoRA r={_RANK}"}[key],
            what,
            *(f"{1e3 * cold.quantile(arms[arm]['ttft'], q):.0f}" for q in (0.5, 0.99)),
            f"{1e3 * cold.quantile(arms[arm]['gaps'], 0.99):.0f}",
            f"{1e3 * cold.quantile(arms[arm]['guests'], 0.5):.0f}" if arms[arm]["guests"] else "",
        )
        for key, arms in ((k, r["arms"]) for k, r in raw.items())
        for arm, what in ARMS.items()
        if arm in arms
    ]
    scale = context.scale
    table = Table(
        title="Requests that run while others arrive",
        header=(
            *("server", "what arrives", "first token p50, ms", "p99, ms"),
            *("between tokens p99, ms", "first token of the arriving, p50, ms"),
        ),
        rows=rows,
        note=f"{_WARM} known ones asked 4 times a second, 32 tokens each; {scale.cold_masks} "
        f"arrivals over {scale.cold_seconds:g} s, one token each; {scale.cold_rounds} rounds of "
        "the three in turns, same schedule. A cold mask is in the registry alone; a cold adapter "
        "on local disk.",
    )
    return Findings(entries=entries, tables=[table], samples=raw)


def _ratio(arms: dict[str, Any]) -> Estimate:
    return quantile_ratio(arms["cold"]["ttft"], arms["none"]["ttft"], 0.99)
