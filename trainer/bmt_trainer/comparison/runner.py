"""Masks against baselines: the same data, steps, trainer and evaluation (paper, section 5.1).

Each run's result is a file of its own, and a run whose file is there is not run again; several
processes may work on one folder, a run each. Every method is scored after its last step, by greedy
answers to the same held-out examples; the paper takes the best checkpoint by that very score.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from bmt_core import Mask
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from bmt_trainer import models
from bmt_trainer.comparison import adapter_sizes, baselines, provenance
from bmt_trainer.comparison.baselines import Tuned
from bmt_trainer.comparison.plan import Cell, Plan
from bmt_trainer.comparison.tracking import Row, Track
from bmt_trainer.console import Display
from bmt_trainer.data import sources
from bmt_trainer.data.examples import Message
from bmt_trainer.distributed import barrier, is_first, processes
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import retention, suites, update_geometry
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.graders import find
from bmt_trainer.evaluation.kl import Policy
from bmt_trainer.evaluation.score import Score, outcomes
from bmt_trainer.masking.attach import Attached, attach
from bmt_trainer.masking.export import library_versions
from bmt_trainer.masking.masked_linear import MaskState
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.grpo import GrpoConfig
from bmt_trainer.methods.run_folder import settings_of
from bmt_trainer.methods.sdft import SdftConfig
from bmt_trainer.methods.session import Logs, Prepared, Session
from bmt_trainer.methods.sft import SftConfig
from bmt_trainer.process import only_our_progress

#: Shares of the gates that Wanda alone deletes (paper, appendix F).
WANDA = tuple(1 / n for n in (2, 8, 32, 128, 512, 2048, 4096, 8192))

Result = dict[str, Any]


def run(plan: Plan, display: Display | None = None) -> list[Result]:
    """Run what has no result yet; the results of all, in the plan's order.

    What another process is at is left to it, and waited for at the end.
    """
    display = display or Display()
    plan.output.mkdir(parents=True, exist_ok=True)
    cells = list(plan.cells())
    found: dict[Path, Result] = {}
    for wait in (False, True):
        for cell in cells:
            if cell.file in found:
                continue
            if wait:
                display.say(f"waiting for another process: {cell.file.name}")
            with _alone(cell.file, wait=wait) as ours:
                if ours:
                    found[cell.file] = _read(cell.file) or _made(cell, display)
    return [found[cell.file] for cell in cells]


@contextmanager
def _alone(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the block has the result to itself. A lock ends with its process, however it ends.

    Processes that train one model together are at the same run, and need none.
    """
    if processes() > 1:
        yield True
        return
    place = file.parent / ".locks" / file.stem
    place.parent.mkdir(exist_ok=True)
    with place.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _made(cell: Cell, display: Display) -> Result:
    display.say(f"{cell.method} of {cell.model} on {cell.dataset} {dict(cell.changes)}")
    with only_our_progress():
        result = _Run(cell, display).result()
    _write(cell.file, result)
    return result


def _read(path: Path) -> Result | None:
    return dict(json.loads(path.read_text())) if path.exists() else None


def _write(path: Path, result: Result) -> None:
    """Whole or not at all: what is there is not run again."""
    barrier()  # till all have looked for it, and made it: who finds it would run the next alone
    if is_first():
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(scratch, path)
    barrier()


class _Run:
    """One cell, from its settings to its result."""

    def __init__(self, cell: Cell, display: Display) -> None:
        self._cell, self._display = cell, display
        self._config = cell.config()
        self._mask: Mask | None = None

    def result(self) -> Result:
        started = time.monotonic()
        session = self._prepare().session
        model = session.model
        # Before anything is added to them, or made fp32.
        parameters, dtype = baselines.count(model), str(model.dtype).removeprefix("torch.")
        self._texts = session.base_texts() if self._cell.plan.track_every else []
        if self._cell.kind == "wanda":
            told = self._wanda()
        elif self._cell.kind == "base":
            told = {**self._ended(model), "size_bytes": 0, "trained": 0}
        else:
            told = self._trained()
        if self._mask is None:
            session.run.finish()
        cell, settings = self._cell, settings_of(self._config)
        hidden = ("model", "dataset", "device", "heldout_dataset")
        return {
            "method": cell.method,
            "model": session.base.model_id,
            "fingerprint": session.base.fingerprint,
            "dataset": provenance.without_folder(cell.dataset),
            "trainer": cell.plan.trainer,
            "changes": dict(cell.changes),
            "settings": {k: v for k, v in settings.items() if k not in hidden},
            "parameters": parameters,
            "dtype": dtype,
            **told,
            "seconds": round(time.monotonic() - started, 1),
            "versions": library_versions("torch", "transformers", "trl"),
        }

    def _prepare(self) -> Prepared:
        """By the trainer of the settings; nothing is scored on the way."""
        if isinstance(self._config, SftConfig):
            self._prepared = sft.prepare(self._config, self._display, scored=False)
        elif isinstance(self._config, GrpoConfig):
            self._prepared = grpo.prepare(self._config, self._display, scored=False)
        else:
            config = cast(SdftConfig, self._config)
            self._prepared = sdft.prepare(config, self._display, scored=False)
        return self._prepared

    @property
    def _session(self) -> Session:
        return self._prepared.session

    def _scored(self, model: nn.Module, name: str = "") -> Result:
        """Greedy answers of the model as it is to the held-out examples."""
        session, config = self._session, self._config
        examples = session.split.heldout
        if not examples:
            return {"score": None, "right": ""}
        with self._display.stage(f"evaluate {name or self._cell.method}", len(examples)) as advance:
            texts = generate(
                cast(PreTrainedModel, model),
                session.tokenizer,
                [e.prompt for e in examples],
                max_new_tokens=config.max_new_tokens,
                batch_size=config.eval_batch_size,
                advance=advance,
            )
        right = outcomes(texts, examples, session.grader, lenient=session.reading == "lenient")
        other = outcomes(texts, examples, session.grader, lenient=session.reading == "exact")
        exact, lenient = (other, right) if session.reading == "lenient" else (right, other)
        score = Score(sum(exact), sum(lenient), len(examples))
        self._display.say(f"{name or self._cell.method}: {sum(right)} of {len(right)} right")
        return {
            "score": score.to_json(),
            "reading": session.reading,
            # Which of them, in their order, for paired tests.
            "right": "".join("01"[one] for one in right),
        }

    def _ended(self, model: nn.Module) -> Result:
        """The held-out examples, and the evaluation sets of the plan."""
        plan, session = self._cell.plan, self._session
        told = self._scored(model)
        if plan.suites is None:
            return told

        def answer(prompts: Sequence[Sequence[Message]], tokens: int) -> list[str]:
            return generate(
                cast(PreTrainedModel, model),
                session.tokenizer,
                prompts,
                max_new_tokens=tokens,
                batch_size=self._config.eval_batch_size,
            )

        found = suites.run(
            suites.named(plan.suites),
            {"tuned": answer},
            folder=plan.suites_data,
            limit=plan.suites_limit,
            max_new_tokens=self._config.max_new_tokens,
            seed=self._config.seed,
        )
        return {**told, "suites": [result.to_json() for result in found]}

    def _wanda(self) -> Result:
        """The best of one-shot masks at the paper's levels, G = ±0.03 without noise."""
        session = self._session
        session.attached = attached = attach(session.model, self._config.targets)
        norms = session.norms()
        levels = []
        for eta in WANDA:
            session.config = dataclasses.replace(self._config, eta=eta, init_std=0.0, init="paper")
            session.start_gates(norms)
            with attached.state.use("hard"):
                found = self._scored(session.model, f"wanda 1/{round(1 / eta)}")
            mask = session.export()
            levels.append(
                {"eta": eta, "zeros": mask.zeros, "size_bytes": adapter_sizes.bmt(mask), **found}
            )
        best = max(levels, key=lambda level: level["right"].count("1"))
        shown = [{k: v for k, v in level.items() if k != "right"} for level in levels]
        return {**best, "trained": 0, "levels": shown, "numel": attached.numel}

    def _trained(self) -> Result:
        session = self._session
        tuned = self._start()
        track = self._track(tuned)
        callbacks: list[TrainerCallback] = [] if track is None else [track]
        logs = self._prepared.fit(callbacks)
        told: Result = {"trained": tuned.trained, "logs": _short(logs)}
        if self._cell.kind == "bmt":
            mask = self._mask = session.finish(dict(self._prepared.told))
            told |= {"zeros": mask.zeros, "numel": mask.numel, "digest": mask.digest}
            told["disk_bytes"] = self._config.output.stat().st_size
        told["size_bytes"] = tuned.size()
        with tuned.tuned():
            told |= self._ended(tuned.model)
        if track is not None:
            told["track"] = track.rows
        if self._cell.plan.geometry:
            told["geometry"] = self._geometry(tuned)
        return told

    def _start(self) -> Tuned:
        """Put what is trained in the session's model."""
        session, config = self._session, self._config
        if self._cell.kind == "bmt":
            session.start(live_at=config.live_at if isinstance(config, GrpoConfig) else None)
            return baselines.masked(session.model, session.attached, self._size)
        tuned = baselines.make(self._cell.kind, session.model, config.seed)
        session.model = cast(PreTrainedModel, tuned.model)
        session.attached = Attached(MaskState(), {})
        return tuned

    def _size(self) -> int:
        assert self._mask is not None
        return adapter_sizes.bmt(self._mask)

    def _track(self, tuned: Tuned) -> Track | None:
        plan, session = self._cell.plan, self._session
        if not plan.track_every:
            return None
        return Track(
            self._base(tuned),
            (tuned.model, tuned.tuned),
            self._texts,
            session.tokenizer.pad_token_id,
            session.run,
            every=plan.track_every,
            zeros=lambda: session.attached.zeros,
            keeps=None if plan.retention is None else self._keeps(tuned, plan.retention),
        )

    def _keeps(self, tuned: Tuned, kept: str) -> Callable[[], Row]:
        """How to score what is to be kept: another data set, or lm-eval's tasks."""
        plan, session, config = self._cell.plan, self._session, self._config
        model = cast(PreTrainedModel, tuned.model)
        if kept == "lm-eval":

            def harness() -> Row:
                with models.evaluating(model), tuned.tuned():
                    found = retention.retained(model, session.tokenizer)
                if found.mean is None:
                    raise ConfigError(f"retention: lm-eval runs no task ({found.skipped})")
                told = {"retention": found.mean, "retention_lenient": found.mean, "n": 0}
                return {**told, **found.accuracy}

            return harness
        other = sources.load(
            kept, heldout=plan.retention_examples, train=0, seed=config.seed
        ).heldout
        grader = find(plan.retention_grader)

        def answers() -> Row:
            with tuned.tuned():
                texts = generate(
                    model,
                    session.tokenizer,
                    [e.prompt for e in other],
                    max_new_tokens=config.max_new_tokens,
                    batch_size=config.eval_batch_size,
                )
            strict = sum(outcomes(texts, other, grader)) / len(other)
            lenient = sum(outcomes(texts, other, grader, lenient=True)) / len(other)
            return {"retention": strict, "retention_lenient": lenient, "n": len(other)}

        return answers

    def _base(self, tuned: Tuned) -> Policy:
        """The same model where it knows its base, else a second copy."""
        if tuned.base is not None:
            return tuned.model, tuned.base
        # In the tuned one's arithmetic: else its distance would begin with that of two roundings.
        base = models.load_model(self._session.folder, self._session.model.device)
        base.to(dtype=self._session.model.dtype)
        return base, lambda: models.autocast_of(tuned.model)

    @torch.no_grad()
    def _geometry(self, tuned: Tuned) -> Result:
        base, _ = self._base(tuned)
        pairs = list(self._measured(tuned.weights(base)))
        return update_geometry.summary(pairs)

    def _measured(
        self, weights: baselines.Weights
    ) -> Iterator[tuple[str, update_geometry.Geometry]]:
        with self._display.stage("geometry", len(baselines.projections(self._session.model))) as on:
            for name, before, after in weights:
                yield name, update_geometry.measure(before, after)
                on(1)


def _short(logs: Logs) -> dict[str, list[float]]:
    """The steps' loss, and where there are any zeros and reward, a list each."""
    return {
        name: [round(float(entry[name]), 6) for entry in logs]
        for name in ("loss", "reward", "zeros")
        if logs and all(name in entry for entry in logs)
    }


def sequence(result: Mapping[str, Any]) -> Sequence[bool]:
    """Which held-out examples a result has right."""
    return [one == "1" for one in result["right"]]
