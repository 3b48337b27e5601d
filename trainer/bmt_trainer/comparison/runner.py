"""Runs of a comparison: masks and baselines with the same data, steps, trainer and evaluation
(paper, section 5.1).

Each run's result is a file of its own, and a run whose file exists is not run again; several
processes may work on one folder, a run each. Every method is scored after its last step, by greedy
answers to the same held-out examples; the paper takes the best checkpoint by that very score.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from bmt_trainer.comparison import adapter_sizes, baselines, measures, provenance
from bmt_trainer.comparison.baselines import Tuned
from bmt_trainer.comparison.measures import score_heldout, score_suites
from bmt_trainer.comparison.plan import Cell, Plan
from bmt_trainer.comparison.results import files, kept
from bmt_trainer.comparison.results.files import Result
from bmt_trainer.comparison.tracking import Track
from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.distributed import barrier
from bmt_trainer.evaluation.kl import Texts
from bmt_trainer.evaluation.retention import LM_EVAL
from bmt_trainer.masking.attach import CLOSED_GATES, Attached
from bmt_trainer.masking.calibration import input_norms
from bmt_trainer.masking.export import library_versions
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.masking.masked_linear import MaskState
from bmt_trainer.methods import grpo, pipeline, sdft, sft
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.finish import base_texts, evaluation_of, finish
from bmt_trainer.methods.guards import contents
from bmt_trainer.methods.memory import of_run
from bmt_trainer.methods.memory.estimate import Trained
from bmt_trainer.methods.pipeline import Loaded, Logs, Rows
from bmt_trainer.methods.run_folder import settings_of
from bmt_trainer.process import is_main_process, world_size

#: Shares of the gates that Wanda alone deletes (paper, appendix F).
WANDA = tuple(1 / n for n in (2, 8, 32, 128, 512, 2048, 4096, 8192))


@dataclass(frozen=True)
class Method:
    """A training method's stages before and in training, as `methods.sft` has them."""

    load: Callable[..., tuple[Loaded, Rows]]
    fit: Callable[..., Logs]


METHODS: Mapping[str, Method] = {
    "sft": Method(sft.load, sft.fit),
    "grpo": Method(grpo.load, grpo.fit),
    "sdft": Method(sdft.load, sdft.fit),
}


def run(plan: Plan, display: Display | None = None) -> list[Result]:
    """Run what has no result yet; the results of all, in the plan's order.

    A run that another process works on is left to it, and waited for at the end.
    """
    display = display or Display()
    plan.output.mkdir(parents=True, exist_ok=True)
    cells = list(plan.cells())
    results: dict[Path, Result] = {}
    for cell in cells:
        if (found := kept.result(cell, display.say)) is not None:
            results[cell.file] = found
    for line in kept.lines(list(results.values()), len({cell.file for cell in cells})):
        display.say(line)
    for wait in (False, True):
        for cell in cells:
            if cell.file in results:
                continue
            if wait:
                display.say(f"waiting for another process: {cell.file.name}")
            with locked(cell.file, wait=wait) as ours:
                if ours:
                    # Another process may have finished it since.
                    results[cell.file] = kept.result(cell) or run_and_keep(cell, display)
    return [results[file] for file in dict.fromkeys(cell.file for cell in cells)]


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a result's file for the block; yields False if another process holds the lock.

    The lock ends with its process, however that ends. Processes that train one model together
    work on the same run, and take none.
    """
    if world_size() > 1:
        yield True
        return
    path = file.parent / ".locks" / file.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def run_and_keep(cell: Cell, display: Display) -> Result:
    """Run a cell, or resume it, and write its result's file."""
    display.say(cell.label)
    with hide_library_progress():
        result = run_cell(cell, display)
    # All processes must have looked for the file: one that finds it would run the next cell alone.
    barrier()
    if is_main_process():
        result = files.write(cell.file, {**result, "key": json.loads(cell.key)})
    barrier()
    return result


def run_cell(cell: Cell, display: Display) -> Result:
    """One run of a comparison, from its settings to its result."""
    # Departure: the last step; the paper's best checkpoint by the same score stands next to it.
    started = time.monotonic()
    config = cell.config()
    loaded, rows = METHODS[cell.plan.trainer].load(config, display, scored=False)
    if cell.kind not in ("base", "wanda"):
        for line in of_run.lines_of_run(loaded, trained_by(cell.kind)):
            display.say(line)
    # Before anything is added to them, or made fp32.
    baselines.check_projections(loaded.model)
    parameters, dtype = baselines.count(loaded.model), str(loaded.model.dtype)
    texts = base_texts(loaded) if cell.plan.track_every else []
    if cell.kind == "wanda":
        outcome = _wanda(cell, loaded)
    elif cell.kind == "base":
        outcome = {
            **_final_scores(cell, loaded, loaded.model, cell.method),
            "size_bytes": 0,
            "trained": 0,
        }
    elif cell.kind == "bmt":
        outcome = _train_mask(cell, loaded, rows, texts)
    else:
        outcome = _train_baseline(cell, loaded, rows, texts)
    if cell.kind != "bmt":  # whose run `finish` ends
        loaded.run.finish()
    hidden = ("model", "dataset", "device", *provenance.DATASETS)
    return {
        "method": cell.method,
        "model": loaded.base.model_id,
        "fingerprint": loaded.base.fingerprint,
        "dataset": provenance.without_folder(cell.dataset),
        "trainer": cell.plan.trainer,
        "changes": dict(cell.changes),
        "settings": {k: v for k, v in settings_of(config).items() if k not in hidden},
        "parameters": parameters,
        "dtype": dtype.removeprefix("torch."),
        **outcome,
        "seconds": round(time.monotonic() - started, 1),
        "versions": library_versions(*_libraries(cell)),
        "evaluation": evaluation_of(loaded),
        "contents": contents.of_run(loaded.folder, loaded.tokenizer, loaded.split, loaded.settings),
    }


def trained_by(kind: str) -> Trained:
    """The numbers that a method trains: all weights for MTH too, whose gradients are dense."""
    if kind == "bmt":
        return "gates"
    return "adapter" if kind.startswith(baselines.ADAPTERS) else "weights"


def _libraries(cell: Cell) -> Iterator[str]:
    """Packages that have a part in a result."""
    yield from ("torch", "transformers", "trl")
    settings, suites = cell.plan.settings, cell.plan.suites or ""
    if "math" in (settings.get("reward"), settings.get("grader")) or suites:
        yield "math-verify"
    if cell.plan.retention == LM_EVAL:
        yield LM_EVAL
    if cell.kind.startswith(baselines.ADAPTERS):
        yield "peft"
    if cell.dataset.startswith("reasoning-gym:"):
        yield "reasoning-gym"


def _wanda(cell: Cell, loaded: Loaded) -> Result:
    """The best of one-shot masks at the paper's levels, G = ±0.03 without noise."""
    config = loaded.config
    attached = pipeline.attach(loaded)
    norms = input_norms(loaded.model, attached, pipeline.calibration_batches(loaded))
    levels = []
    for eta in WANDA:
        init_gates(attached, norms, eta=eta, mean=config.init_mean, std=0.0, seed=config.seed)
        with attached.state.use("hard"):
            scores = _final_scores(cell, loaded, loaded.model, f"wanda 1/{round(1 / eta)}")
        mask = pipeline.current_mask(loaded, attached)
        levels.append(
            {"eta": eta, "zeros": mask.zeros, "size_bytes": adapter_sizes.bmt(mask), **scores}
        )
    best = max(levels, key=_quality)
    shown = [{k: v for k, v in level.items() if k != "right"} for level in levels]
    return {**best, "trained": 0, "levels": shown, "numel": attached.numel}


def _quality(level: Result) -> float:
    """Right held-out answers, or the evaluation sets' mean accuracy if nothing is held out."""
    if level["score"] is not None:
        return float(level["right"].count("1"))
    sets = [
        one["scores"]["tuned"]["accuracy"] for one in level.get("suites", ()) if "scores" in one
    ]
    return sum(sets) / len(sets) if sets else 0.0


def _train_mask(cell: Cell, loaded: Loaded, rows: Rows, texts: Texts) -> Result:
    config = loaded.config
    attached = pipeline.attach(loaded)
    live_alpha = config.live_alpha if isinstance(config, GrpoConfig) else None
    pipeline.initialize(loaded, attached, live_alpha=live_alpha)
    tuned = baselines.masked(
        loaded.model,
        attached,
        size=lambda: adapter_sizes.bmt(pipeline.current_mask(loaded, attached)),
    )
    track = _track(cell, loaded, attached, tuned, texts)
    logs = METHODS[cell.plan.trainer].fit(config, loaded, attached, rows, track)
    metadata = {"method": cell.plan.trainer, "train_examples": len(rows)}
    # Before the run ends: if a score fails, the same command resumes the trained run and scores it.
    measured = _measured(cell, loaded, tuned, track)
    mask = finish(loaded, attached, metadata)
    outcome = {
        "trained": tuned.trained,
        "logs": _short(logs),
        "zeros": mask.zeros,
        "numel": mask.numel,
        "digest": mask.digest,
        "disk_bytes": config.output.stat().st_size,
        "size_bytes": tuned.size(),
    }
    return {**outcome, **measured}


def _train_baseline(cell: Cell, loaded: Loaded, rows: Rows, texts: Texts) -> Result:
    tuned = baselines.make(cell.kind, loaded.model, loaded.config.seed)
    loaded = dataclasses.replace(loaded, model=cast(PreTrainedModel, tuned.model))
    attached = Attached(MaskState(), {})
    track = _track(cell, loaded, attached, tuned, texts)
    logs = METHODS[cell.plan.trainer].fit(loaded.config, loaded, attached, rows, track)
    outcome = {"trained": tuned.trained, "logs": _short(logs), "size_bytes": tuned.size()}
    return {**outcome, **_measured(cell, loaded, tuned, track)}


def _track(
    cell: Cell, loaded: Loaded, attached: Attached, tuned: Tuned, texts: Texts
) -> list[Track]:
    """The callback that tracks the run, if the plan has one."""
    plan = cell.plan
    if not plan.track_every:
        return []
    scored = plan.track_heldout and loaded.split.heldout
    track = Track(
        measures.base_policy(loaded, tuned),
        (tuned.model, tuned.tuned),
        texts,
        loaded.tokenizer.pad_token_id,
        loaded.run,
        every=plan.track_every,
        closed=lambda: attached.closed,
        retention=measures.retention_score(plan, loaded, tuned) if plan.retention else None,
        heldout=measures.heldout_score(loaded, tuned) if scored else None,
        say=loaded.display.say,
    )
    return [track]


def _measured(cell: Cell, loaded: Loaded, tuned: Tuned, track: Sequence[Track]) -> Result:
    """All that is measured of a trained model after its last step."""
    with tuned.tuned():
        outcome = _final_scores(cell, loaded, tuned.model, cell.method)
    for callback in track:
        outcome["track"] = callback.rows
        if (best := measures.best_of(callback.rows)) is not None:
            outcome["best"] = best
        if skipped := loaded.run.notes.get(measures.SKIPPED):
            outcome[measures.SKIPPED] = skipped
    if cell.plan.geometry:
        return _with(outcome, "geometry", loaded, lambda: measures.geometry(loaded, tuned))
    return outcome


def _final_scores(cell: Cell, loaded: Loaded, model: Any, label: str) -> Result:
    """Scores on the held-out examples, and on the evaluation sets of the plan."""
    scores = score_heldout(loaded, model, label)
    if cell.plan.suites is None:
        return scores
    return _with(scores, "suites", loaded, lambda: score_suites(cell.plan, loaded, model))


def _with(outcome: Result, name: str, loaded: Loaded, analysis: Callable[[], Any]) -> Result:
    """The outcome with an analysis after training; with its error, if it fails, under `failed`.

    A run of hours is not lost to what comes after it.
    """
    try:
        return {**outcome, name: analysis()}
    except Exception as error:  # whatever a decomposition, a data set or a grader raises
        why = f"{type(error).__name__}: {error}"[:300]
        loaded.display.say(f"{name} failed, and the result is kept without it: {why}")
        return {**outcome, "failed": {**outcome.get("failed", {}), name: why}}


def _short(logs: Logs) -> dict[str, list[float]]:
    """The steps' loss, and their closed gates and reward if they have any, a list each."""
    logs = [files.closed_named(entry) for entry in logs]  # of steps of an earlier build
    return {
        name: [round(float(entry[name]), 6) for entry in logs]
        for name in ("loss", "reward", CLOSED_GATES)
        if logs and all(name in entry for entry in logs)
    }
