"""Over HTTP next to vLLM's own server: base requests, one mask, 32 masks, in rounds of short loads.

All servers live at once and take turns, as the offline engines do (`engine_speed.py`): a round has
one load of each composition, and the bare server's twice, so that its second load over its first
says what the method leaves open. Then the same at other numbers of requests at once, in fewer
rounds. All loads stream, and come from vLLM's own generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.contention import Contention
from benchmarks.harness.environment import WORK
from benchmarks.harness.section import Context
from benchmarks.harness.stats import estimate, median, rotated
from benchmarks.processes.load import Loads, loads
from benchmarks.processes.servers import Server, lora_flags, masks_server, upload, vllm_server
from benchmarks.report.results import Baseline, Entry, Findings, Table

_SLOTS = 32
BARE, MASKS, LORA = "bare vLLM", "bmt-server", "vLLM LoRA r=1"


@dataclass(frozen=True, slots=True)
class Composition:
    """What a load asks of which server. id: of its ratio over the bare server's first load;
    adapters: 0 is the base."""

    id: str
    server: str
    adapters: int
    what: str
    peer: bool = False


FIRST = Composition("", BARE, 0, "bare vLLM")
COMPOSITIONS = (
    Composition("base_over_base_http", BARE, 0, "bare vLLM again"),
    Composition("idle_over_base_http", MASKS, 0, "base requests"),
    Composition("single_over_base_http", MASKS, 1, "one mask, 0.2 %"),
    Composition("mixed32_over_base_http", MASKS, _SLOTS, "32 masks, 0.2 %"),
    Composition("lora_r1_single_over_base_http", LORA, 1, "LoRA r=1, one adapter", peer=True),
    Composition("lora_r1_mixed32_over_base_http", LORA, _SLOTS, "LoRA r=1, 32 adapters", peer=True),
)
# A peer's loads come in every so many rounds: its ratio is far from one.
_PEER_EVERY = 5

Round = dict[str, dict[str, float]]  # by id: fields of a load, and "api_cpu_s" a request


def compare(context: Context) -> Findings:
    """All compositions, at each number of requests at once."""
    return _findings(context, context.step("turns", _measure, context))


def _measure(context: Context) -> dict[str, Any]:
    scale = context.scale
    names = {MASKS: [f"m{i}" for i in range(_SLOTS)], LORA: [f"a{i}" for i in range(_SLOTS)]}
    folder = WORK / "inputs"
    files = inputs.masks(context.model, folder / "masks", range(_SLOTS), inputs.SPARSITY)
    adapters = inputs.lora_adapters(context.model, folder / "lora", _SLOTS, 1)
    with ExitStack() as stack:
        enter = stack.enter_context
        generator = enter(loads(context.model, context.work))
        servers = {
            BARE: enter(vllm_server(context.model, context.work / "bare")),
            MASKS: enter(masks_server(context.model, context.work / "masks")),
            LORA: enter(
                vllm_server(
                    context.model, context.work / "lora-r1", *lora_flags(adapters, 1, _SLOTS)
                )
            ),
        }
        upload(servers[MASKS], files, names[MASKS])
        turns = _Turns(context, generator, servers, names)
        turns.round(-1, _SLOTS, (FIRST, *COMPOSITIONS))  # warms up
        contention = Contention()
        rounds = [turns.round(i, _SLOTS, _of_round(i)) for i in range(scale.http_rounds)]
        own = (FIRST, *(c for c in COMPOSITIONS if not c.peer))
        others = {
            str(at_once): [turns.round(i, at_once, own) for i in range(scale.http_rounds_at_once)]
            for at_once in scale.http_at_once
        }
        return {"rounds": rounds, "at_once": others, "contention": contention.share()}


def _of_round(number: int) -> tuple[Composition, ...]:
    with_peers = number % _PEER_EVERY == 0
    return (FIRST, *(c for c in COMPOSITIONS if with_peers or not c.peer))


@dataclass(frozen=True, slots=True)
class _Turns:
    context: Context
    generator: Loads
    servers: Mapping[str, Server]
    names: Mapping[str, Sequence[str]]

    def round(self, number: int, at_once: int, compositions: Sequence[Composition]) -> Round:
        """One load of each, in an order that turns from round to round."""
        found: Round = {}
        for composition in rotated(compositions, number):
            found[composition.id] = self._load(composition, at_once, number)
        speeds = [f"{of['output_tokens_per_s']:.0f}" for of in found.values()]
        self.context.say(f"round {number + 1}, {at_once} at once: {' '.join(speeds)} tokens/s")
        return found

    def _load(self, composition: Composition, at_once: int, number: int) -> dict[str, float]:
        scale, server = self.context.scale, self.servers[composition.server]
        names = None
        if composition.adapters:
            names = self.names[composition.server][: composition.adapters]
        requests = max(scale.http_requests * at_once // _SLOTS, 8)
        before = server.main_cpu_seconds()
        measured = self.generator.run(
            server,
            names,
            requests=requests,
            tokens=scale.http_tokens,
            concurrency=at_once,
            # Of one round all have the same prompts and lengths; each server its own prefix cache,
            # so the bare server's two loads must differ.
            seed=2 * number + 2 + (composition.id == "base_over_base_http"),
        ).raw()
        api_cpu = (server.main_cpu_seconds() - before) / requests
        return {**measured, "api_cpu_s": api_cpu}


def _findings(context: Context, raw: dict[str, Any]) -> Findings:
    scale = context.scale
    entries: list[Entry] = []
    rows = [_row(FIRST, raw["rounds"], _SLOTS, "")]
    for composition in COMPOSITIONS:
        ratio = estimate([_ratios(composition, raw["rounds"])])
        bare = median([r[FIRST.id]["output_tokens_per_s"] for r in raw["rounds"]])
        baseline = Baseline(what="bare vLLM's server", value=round(bare, 1), unit="tokens/s")
        unit = "ratio of output tokens/s"
        entries.append(
            Entry.estimated(
                *(composition.id, ratio, unit, baseline, context.command),
                note=composition.what,
            )
        )
        text = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {ratio.turns} rounds"
        rows.append(_row(composition, raw["rounds"], _SLOTS, text))
    for at_once, rounds in raw["at_once"].items():
        for composition in (FIRST, *(c for c in COMPOSITIONS if not c.peer)):
            text = ""
            if composition is not FIRST:
                ratios = _ratios(composition, rounds)
                text = f"{median(ratios):.3f}, {len(ratios)} rounds"
            rows.append(_row(composition, rounds, int(at_once), text))
    table = Table(
        title="Over HTTP, in turns",
        header=(
            *("server and requests", "at once", "output tokens/s", "over bare (95 %)"),
            *("first token p50, ms", "p99, ms", "CPU of the API process, ms a request"),
        ),
        rows=rows,
        note=f"{scale.http_requests} requests at {_SLOTS} at once, in proportion at others, of 16 "
        f"tokens in and {scale.http_tokens} out (half to one and a half times that), streamed, by "
        "`vllm.benchmarks.serve`; all servers lived at once and took turns, in vLLM's default "
        f"mode. Other processes took {raw['contention']:.2f} cores meanwhile.",
    )
    return Findings(entries=entries, tables=[table], samples=raw)


def _ratios(composition: Composition, rounds: Sequence[Round]) -> list[float]:
    return [
        r[composition.id]["output_tokens_per_s"] / r[FIRST.id]["output_tokens_per_s"]
        for r in rounds
        if composition.id in r
    ]


def _row(
    composition: Composition, rounds: Sequence[Round], at_once: int, ratio: str
) -> tuple[str, ...]:
    of = [r[composition.id] for r in rounds if composition.id in r]
    where = "" if composition.server in composition.what else f"{composition.server}, "
    return (
        where + composition.what if not composition.peer else composition.what,
        str(at_once),
        f"{median([x['output_tokens_per_s'] for x in of]):.0f}",
        ratio,
        f"{median([x['ttft_p50_ms'] for x in of]):.0f}",
        f"{median([x['ttft_p99_ms'] for x in of]):.0f}",
        f"{1000 * median([x['api_cpu_s'] for x in of]):.1f}",
    )
