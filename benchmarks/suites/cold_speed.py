"""Cold masks on a server of their own: what the first token of one costs, and what a hundred do
to running requests, with vLLM's LoRA as the baseline. The measurements are in `cold`."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.environment import WORK
from benchmarks.harness.section import Context
from benchmarks.harness.stats import median, quantile_ratio
from benchmarks.processes.servers import NAME, Server, lora_flags, masks_server, vllm_server
from benchmarks.report.results import Baseline, Entry, Findings, Table
from benchmarks.suites import cold

_RANK = 1
_WARM = 16
# What is asked for, of what the machine can answer: a load beyond that measures its own queue. The
# arrivals come as often as requests for the running ones do.
_SHARE = 0.23
_TOKENS = 32
# A round that is longer than this, in seconds, is run half as often.
_LONG_S = 40
ARMS = {
    "none": "no other requests",
    "warm": "as many requests for known ones",
    "cold": "cold ones arriving",
}


def arriving(context: Context) -> Findings:
    """Both figures, ours and LoRA's."""
    masks = context.step("masks", _masks, context)
    raw = {"masks": masks, "lora": context.step("lora", _lora, context, masks["load"])}
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
            load = _load(context, await cold.capacity(endpoint))
            context.say(
                f"{scale.cold_masks} cold masks arriving over {load['seconds']:.0f} s, "
                f"{load['rounds']} rounds"
            )
            arms = await cold.arrivals(
                endpoint,
                rounds=load["rounds"],
                cold=scale.cold_masks,
                seconds=load["seconds"],
                rate=load["rate"],
                tokens=_TOKENS,
                warm=_WARM,
            )
            return {"first": first, "load": load, "arms": {k: asdict(v) for k, v in arms.items()}}

        return asyncio.run(measure())


def _load(context: Context, capacity: float) -> dict[str, Any]:
    """Requests a second, and how long and how many the rounds are. capacity: tokens a second."""
    rate = _SHARE * capacity / _TOKENS
    seconds = context.scale.cold_masks / rate
    rounds = context.scale.cold_rounds
    if seconds > _LONG_S:
        rounds = math.ceil(rounds / 2)
    return {"capacity": capacity, "rate": rate, "seconds": seconds, "rounds": rounds}


def _lora(context: Context, load: dict[str, Any]) -> dict[str, Any]:
    """The same rounds on vLLM, whose CPU memory holds those that run and one round's arrivals."""
    scale = context.scale
    count, held = _WARM + 2 * scale.cold_masks, _WARM + scale.cold_masks
    adapters = inputs.lora_adapters(context.model, WORK / "inputs" / "lora", count, _RANK)
    flags = lora_flags(adapters, _RANK, slots=32, held=held)
    names = [f"a{i}" for i in range(count)]
    context.say(f"vLLM with {count} LoRA adapters of rank {_RANK}, {held} held in memory")
    with vllm_server(context.model, context.work / "lora", *flags) as server:
        running, rest = names[:_WARM], names[_WARM:]
        # Two sets that push each other out: each is read from disk again in its round.
        sets = rest[: scale.cold_masks], rest[scale.cold_masks :]
        plan = [{"none": [], "cold": sets[r % 2]} for r in range(load["rounds"])]
        endpoint = replace(_endpoint(server, context.model), cheapest="/version")
        arms = asyncio.run(
            cold.in_turns(
                *(endpoint, running, plan),
                seconds=load["seconds"],
                rate=load["rate"],
                tokens=_TOKENS,
            )
        )
        return {"arms": {k: asdict(v) for k, v in arms.items()}}


def _endpoint(server: Server, model: Path) -> cold.Endpoint:
    return cold.Endpoint(server.port, server.key, NAME, model, server.registry)


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    first, entries = raw["masks"]["first"], []
    for entry_id, state in (
        ("cold_first_token_extra_ms", "idle"),
        ("cold_first_token_extra_busy_ms", "busy"),
    ):
        cold_ms, warm_ms = (1e3 * median(first[state][k]) for k in ("cold", "warm"))
        entries.append(
            Entry(
                id=entry_id,
                value=round(cold_ms - warm_ms, 2),
                unit="ms",
                baseline=Baseline(
                    what="first token of the same masks, warm", value=round(warm_ms, 2), unit="ms"
                ),
                command=context.command,
                note=f"median of {len(first[state]['cold'])}, server {state}",
            )
        )
    for entry_id, key, than in (
        ("cold_p99_ttft_ratio", "masks", "none"),
        ("cold_p99_ttft_ratio_same_load", "masks", "warm"),
        ("lora_cold_p99_ttft_ratio", "lora", "none"),
    ):
        arms = raw[key]["arms"]
        ratio = quantile_ratio(arms["cold"]["ttft"], arms[than]["ttft"], 0.99)
        baseline_ms = 1e3 * cold.quantile(arms[than]["ttft"], 0.99)
        entries.append(
            Entry.estimated(
                entry_id,
                ratio,
                "ratio of p99 times to first token",
                Baseline(what=ARMS[than], value=round(baseline_ms, 1), unit="ms"),
                context.command,
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
    load = raw["masks"]["load"]
    table = Table(
        title="Requests that run while others arrive",
        header=(
            *("server", "what arrives", "first token p50, ms", "p99, ms"),
            *("between tokens p99, ms", "first token of the arriving, p50, ms"),
        ),
        rows=rows,
        note=f"{_WARM} known ones asked {load['rate']:.1f} times a second, {_TOKENS} tokens each, "
        f"{100 * _SHARE:.0f} % of what the server can answer ({load['capacity']:.0f} tokens/s); "
        f"{context.scale.cold_masks} arrivals over {load['seconds']:.0f} s, one token each; "
        f"{load['rounds']} rounds of the three in turns, same schedule. A cold mask is in the "
        "registry alone; a cold adapter on local disk.",
    )
    return Findings(entries=entries, tables=[table], samples=raw)
