"""Tokens a second of one offline engine over another's, in rounds of short slices.

All engine processes of a comparison live at once and take turns: one works while the others wait in
a read. A round has one slice of each workload, those of one engine in succession, seconds apart;
each ratio is of two slices of one round, and the order changes from round to round. The bare engine
has a second process that it is compared with in the same way: what that interval leaves open,
nothing here can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.contention import Contention, rest
from benchmarks.harness.environment import WORK, dtype, has_compiler
from benchmarks.harness.section import Context
from benchmarks.harness.stats import Estimate, estimate, median, rotated
from benchmarks.processes import task
from benchmarks.processes.engine import Engine, EngineSpec, Ran, Work, engines
from benchmarks.report.results import Baseline, Entry, Findings, Table
from benchmarks.suites.limits import table as limits
from benchmarks.suites.limits.step import Rates
from benchmarks.suites.matchups import (
    AGAIN,
    CHECKPOINT,
    DECODE,
    MASKS,
    PREFILL,
    SEQUENCES,
    Contest,
    contests,
    lora_ranks,
    peer_contests,
)

# Seconds of one contest in one set of processes: of the clock ("bare", "other") and of the CPU
# ("bare_cpu", "other_cpu"), one value a round.
Samples = dict[str, list[float]]


def compiled(context: Context) -> Findings:
    """vLLM's default mode. Raises RuntimeError where torch cannot compile here."""
    if not has_compiler():
        raise RuntimeError("compiled mode needs a C++ compiler (g++ or clang++); none is installed")
    return measure(context, eager=False)


def eager(context: Context) -> Findings:
    """The same with --enforce-eager."""
    return measure(context, eager=True)


def measure(context: Context, *, eager: bool) -> Findings:
    """All sets of processes of one mode."""
    scale = context.scale
    ours, peers = contests(eager=eager), peer_contests(eager=eager)
    found: dict[str, list[Samples]] = {c.id: [] for c in ours + peers}
    contention: list[float] = []
    kernels: set[str] = set()
    rates = [context.step("rates-first", _rates, context)]
    peer_pairs = scale.peer_pairs_eager if eager else scale.peer_pairs
    pairs = scale.pairs_eager if eager else scale.pairs
    for pair in range(pairs):
        steps = [("masks", ours)] + ([("peers", peers)] if pair < peer_pairs else [])
        for name, wanted in steps:
            context.say(f"set of processes {pair + 1} of {pairs}: {name}")
            raw = context.step(f"{name}-{pair}", _pair, context, wanted, eager, pair)
            for contest in wanted:
                found[contest.id].append(raw["samples"][contest.id])
            contention.append(raw["contention"])
            kernels |= set(raw["kernels"])
    rates.append(context.step("rates-last", _rates, context))
    findings = _findings(context, ours + peers, found, contention, kernels, eager)
    # What one moment had to give is a limit of the other, too.
    best = Rates(*(max(r[key] for r in rates) for key in ("bytes_per_s", "operations_per_s")))
    findings.tables.append(
        limits.of_slices(context.model, ours + peers, found, _works(context), best)
    )
    findings.samples["rates"] = rates
    return findings


def _rates(context: Context) -> dict[str, Any]:
    return task.run("limits.rates", {"dtype": dtype()}, context.work)


def specs(context: Context, eager: bool) -> dict[str, EngineSpec]:
    """Every engine of a contest by name, all with the same vLLM options."""
    scale, model = context.scale, context.model
    options = {
        "max_num_seqs": SEQUENCES,
        "max_model_len": scale.prefill_tokens + 64,
        # A prompt in one step, however long; vLLM's default for offline use is as large.
        "max_num_batched_tokens": 4096,
        "enforce_eager": eager,
        "dtype": dtype(),
        "seed": 0,
    }
    folder = WORK / "inputs"
    learned = inputs.masks(model, folder / "masks", range(SEQUENCES), inputs.SPARSITY)
    sft = []
    if not eager:
        sft = inputs.masks(model, folder / "masks", range(SEQUENCES), inputs.SPARSITY_SFT)
    import bmt_core

    checkpoint = folder / "checkpoint"
    if not (checkpoint / "done").exists():
        inputs.masked_checkpoint(model, bmt_core.load(learned[0]), checkpoint)
        (checkpoint / "done").touch()
    found = [
        EngineSpec(name="bare", kind="bare", model=model, options=options),
        EngineSpec(name=AGAIN, kind="bare", model=model, options=options),
        EngineSpec(
            name=MASKS, kind="masks", model=model, options=options, adapters=[*learned, *sft]
        ),
        EngineSpec(name=CHECKPOINT, kind="bare", model=checkpoint, options=options),
    ]
    for rank in lora_ranks(eager=eager):
        # As many slots as sequences: fewer would make LoRA requests wait for each other.
        more = {"max_loras": SEQUENCES, "max_lora_rank": rank}
        found.append(
            EngineSpec(
                name=f"lora-r{rank}",
                kind="lora",
                model=model,
                options=options | more,
                adapters=inputs.lora_adapters(model, folder / "lora", SEQUENCES, rank),
            )
        )
    return {spec.name: spec for spec in found}


def _pair(context: Context, wanted: Sequence[Contest], eager: bool, pair: int) -> dict[str, Any]:
    known = specs(context, eager)
    names = ["bare", *dict.fromkeys(c.engine for c in wanted)]
    # Whoever starts last gets other memory than who starts first.
    names = names[pair % len(names) :] + names[: pair % len(names)]
    with engines([known[n] for n in names], context.work) as running:
        works = _works(context)
        for contest in wanted:
            for engine in (running["bare"], running[contest.engine]):
                rest()
                engine.run(_work(works, contest, engine is running["bare"], warm=True), seed=0)
        contention = Contention()
        rounds = context.scale.turns if running.keys() & {MASKS} else context.scale.peer_turns
        samples = _rounds(rounds, wanted, running, works, pair)
        return {
            "samples": samples,
            "contention": contention.share(),
            "kernels": [e.kernel for e in running.values() if e.kernel],
        }


def _rounds(
    rounds: int,
    wanted: Sequence[Contest],
    running: Mapping[str, Engine],
    works: Mapping[str, Work],
    pair: int,
) -> dict[str, Samples]:
    """One slice of each workload a round; the bare engine's is that of all contests of a kind.

    Prefill takes longer and varies less: every third round has it.
    """
    keys = ("bare", "other", "bare_cpu", "other_cpu")
    samples: dict[str, Samples] = {c.id: {key: [] for key in keys} for c in wanted}
    seed = 1000 * pair
    for number in range(rounds):
        own = [c for c in wanted if c.kind == DECODE or number % 3 == 0]
        slices = _slices(own, works)
        ran: dict[tuple[str, str], Ran] = {}
        for engine in rotated(list(slices), pair + number):
            rest()
            for name, work in rotated(slices[engine], number):
                seed += 1
                ran[engine, name] = running[engine].run(work, seed)
        for contest in own:
            found = samples[contest.id]
            pairs = ("bare", ran["bare", contest.kind]), ("other", ran[contest.engine, contest.id])
            for who, one in pairs:
                found[who].append(one.seconds)
                found[f"{who}_cpu"].append(one.cpu_seconds)
    return samples


def _slices(
    wanted: Sequence[Contest], works: Mapping[str, Work]
) -> dict[str, list[tuple[str, Work]]]:
    """Work of each engine in one round by name: a kind's for the bare one, a contest's id."""
    kinds = dict.fromkeys(contest.kind for contest in wanted)
    slices = {"bare": [(kind, works[kind]) for kind in kinds]}
    for contest in wanted:
        work = _work(works, contest, bare=False)
        slices.setdefault(contest.engine, []).append((contest.id, work))
    return slices


def _works(context: Context) -> dict[str, Work]:
    scale = context.scale
    return {
        DECODE: Work(
            sequences=SEQUENCES,
            prompt_tokens=scale.prompt_tokens,
            new_tokens=scale.new_tokens,
        ),
        PREFILL: Work(sequences=1, prompt_tokens=scale.prefill_tokens, new_tokens=1),
    }


def _work(works: Mapping[str, Work], contest: Contest, bare: bool, warm: bool = False) -> Work:
    work = works[contest.kind]
    if warm and contest.kind == DECODE:
        work = replace(work, new_tokens=4)
    return work if bare else replace(work, adapters=contest.adapters)


def _findings(
    context: Context,
    wanted: Sequence[Contest],
    found: Mapping[str, list[Samples]],
    contention: Sequence[float],
    kernels: set[str],
    eager: bool,
) -> Findings:
    works = _works(context)
    mode = "eager" if eager else "compiled"
    kernel = ", ".join(sorted(kernels))
    entries, rows = [], []
    for contest in wanted:
        work, pairs = works[contest.kind], found[contest.id]
        ratio = estimate([_ratios(s, "bare", "other") for s in pairs])
        cpu = estimate([_ratios(s, "bare_cpu", "other_cpu") for s in pairs])
        tokens = work.sequences * (
            work.new_tokens if contest.kind == DECODE else work.prompt_tokens
        )
        bare = tokens / median([t for s in pairs for t in s["bare"]])
        other = tokens / median([t for s in pairs for t in s["other"]])
        entries.append(_entry(context, contest, ratio, bare, f"bare vLLM, {mode}"))
        if contest.engine == AGAIN and contest.kind == DECODE:
            entries.append(_half_width(context, contest, ratio))
        rows.append(
            (
                contest.what,
                f"{other:.0f}",
                f"{bare:.0f}",
                f"{ratio.value:.3f}",
                f"{ratio.low:.3f} to {ratio.high:.3f}",
                f"{cpu.value:.3f}",
                f"{ratio.pairs} x {ratio.turns // ratio.pairs}",
            )
        )
    note = (
        f"{works[DECODE].sequences} sequences, {works[DECODE].prompt_tokens} tokens in, "
        f"{works[DECODE].new_tokens} out; prefill: one sequence of {works[PREFILL].prompt_tokens} "
        f"tokens. Mask kernel: {kernel}. vLLM runs LoRA eagerly on the CPU whatever the mode. "
        f"Other processes took {median(contention):.2f} cores while this was measured (median; "
        f"most {max(contention):.2f}); the ratio by CPU time of the engines' processes is less "
        "sensitive to them, and blind to waiting."
    )
    header = (
        "engine",
        "tokens/s",
        "bare, tokens/s",
        "ratio",
        "95 %",
        "by CPU time",
        "sets x rounds",
    )
    table = Table(title=f"Offline, {mode}", header=header, rows=rows, note=note)
    samples = {"contention": list(contention), **found}
    return Findings(entries=entries, tables=[table], samples=samples)


def _ratios(samples: Samples, some: str, other: str) -> list[float]:
    return [a / b for a, b in zip(samples[some], samples[other], strict=True)]


def _entry(context: Context, contest: Contest, ratio: Estimate, bare: float, what: str) -> Entry:
    return Entry.estimated(
        contest.id,
        ratio,
        "ratio of tokens/s",
        Baseline(what=what, value=round(bare, 1), unit="tokens/s"),
        context.command,
        note=contest.what,
    )


def _half_width(context: Context, contest: Contest, ratio: Estimate) -> Entry:
    """Half of the interval of one engine against itself, which the method leaves open."""
    return Entry(
        id=f"{contest.id}_half_width",
        value=round((ratio.high - ratio.low) / 2, 4),
        unit="ratio of tokens/s",
        baseline=Baseline(what=contest.id, value=round(ratio.value, 4), unit="ratio"),
        command=context.command,
        note="half of the 95 % interval",
    )
