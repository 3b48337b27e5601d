"""One training run from its settings to its mask, as far as all methods go the same way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import bmt_core
import torch
from bmt_core import Base, Mask
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bmt_trainer import models
from bmt_trainer.data import sources
from bmt_trainer.data.encoding import batches, render
from bmt_trainer.data.examples import Split
from bmt_trainer.distributed import barrier, is_first, processes
from bmt_trainer.evaluation.graders import WORDS, Grader
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.evaluation.kl import Texts, forward_kl
from bmt_trainer.evaluation.score import best_guess
from bmt_trainer.masking import live_gates
from bmt_trainer.masking.attach import Attached, attach
from bmt_trainer.masking.export import export, library_versions
from bmt_trainer.masking.initialization import init_gates, input_norms
from bmt_trainer.methods.rollouts.local import ends, sample
from bmt_trainer.methods.run_folder import Run, Scores, settings_of

if TYPE_CHECKING:
    from bmt_trainer.console import Display
    from bmt_trainer.methods.config import RunConfig


# Held-out prompts whose answers by the base a mask's divergence is measured on.
_KL_PROMPTS = 64

#: A trainer's logs of its steps.
Logs = list[dict[str, float]]

#: Which count of a score decides: of the strict reading, or of the lenient one.
Reading = Literal["exact", "lenient"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A session that is ready to train, by whatever is trained in its model.

    fit: trains, with further callbacks, and returns the steps' logs; told: what a mask's metadata
    says of it. What is trained starts in between: `Session.start`, or a baseline.
    """

    session: Session
    fit: Callable[[Sequence[TrainerCallback]], Logs]
    told: Mapping[str, Any]


@dataclass(kw_only=True)
class Session:
    """What a run works with; `attached` is there after `start`."""

    config: RunConfig
    display: Display
    folder: Path  # of the base's checkpoint
    base: Base
    split: Split
    run: Run
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    score: Scores
    grader: Grader
    reading: Reading  # by which masks are chosen
    attached: Attached

    @classmethod
    def open(
        cls,
        config: RunConfig,
        display: Display,
        *,
        train_examples: int,
        grader: Grader = WORDS,
        reading: Reading = "exact",
        heldout_from: str | None = None,
        scored: bool = True,
    ) -> Session:
        """Load data, tokenizer and model, and take up the run's folder.

        heldout_from: another data set to hold out from; scored: without it, held-out examples stay
        held out, and the run leaves it to others to score by them. Raises TrainerError.
        """
        folder = models.checkpoint_folder(config.model)
        base = models.base_of(config.model, folder)
        split = sources.load(
            config.dataset,
            heldout=0 if heldout_from else config.heldout,
            train=train_examples,
            seed=config.seed,
            system=config.system,
            share=None if heldout_from else config.heldout_share,
        )
        if heldout_from:
            other = sources.load(
                heldout_from,
                heldout=config.heldout,
                train=0,
                seed=config.seed,
                system=config.system,
            )
            split = Split(split.train, other.heldout)
        settings = {**settings_of(config), "base": base.fingerprint}
        run = Run(config.output, settings, resume=config.resume)
        tokenizer = models.load_tokenizer(folder)
        model = models.load_model(folder, models.pick_device(config.device))
        score = Scores(
            model,
            tokenizer,
            split.heldout if scored else [],
            run,
            display,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.eval_batch_size,
            grader=grader,
        )
        return cls(
            config=config,
            display=display,
            folder=folder,
            base=base,
            split=split,
            run=run,
            tokenizer=tokenizer,
            model=model,
            score=score,
            grader=grader,
            reading=reading,
            attached=None,  # type: ignore[arg-type]
        )

    def start(self, *, live_at: float | None = None) -> None:
        """Score the base, mask its layers, start the gates (Eq. 9) and score that mask.

        live_at: the sharpness at which only gates that can flip are to be trained (`live`).
        """
        self.score("base")
        self.attached = attach(self.model, self.config.targets)
        places = self.run.folder / "live.safetensors"
        if self.run.last_checkpoint() is None:
            self.start_gates(self.norms())
            with self.attached.state.use("hard"):
                self.score("init")
            self.run.note("init_sparsity", self.attached.sparsity)
            self.write(self.export(), self._start)
            if live_at is not None and is_first():
                live_gates.save(live_gates.live_sets(self.attached, live_at), places)
            barrier()
        self.attached.state.keep_hard = processes() == 1
        if live_at is not None:
            live_gates.keep_live(self.attached, live_gates.load(places))
        self.display.say(self._memory())

    def _memory(self) -> str:
        """What training holds beside activations and rollouts, in one line."""
        gates = self.attached.gates()
        trained = sum(g.numel() for g in gates)
        # The gate, its gradient and AdamW's two moments, each in fp32; a live gate's place too.
        each = 16 + (8 if trained < self.attached.numel else 0)
        base = sum(p.numel() * p.element_size() for p in self.model.parameters())
        base -= sum(g.numel() * g.element_size() for g in gates)
        return (
            f"memory: {base / 1e9:.2f} GB of base weights, {trained * each / 1e9:.2f} GB for "
            f"{trained:,} of {self.attached.numel:,} gates; activations come on top"
        )

    @property
    def _start(self) -> Path:
        return self.run.folder / "start.bmt"

    def start_mask(self) -> Mask:
        """The mask that training started from."""
        return bmt_core.load(self._start)

    def norms(self) -> dict[str, torch.Tensor]:
        """‖X_j‖ of each masked layer's inputs over training prompts: half of Wanda's scores."""
        config, tokenizer = self.config, self.tokenizer
        chosen = self.split.train[: config.calibration_prompts]
        prompts = [render(tokenizer, e.prompt) for e in chosen]
        cut = [prompt[: config.max_length] for prompt in prompts]
        with self.display.stage("calibrate", len(cut)) as advance:

            def counted() -> Iterator[dict[str, Any]]:
                size, pad = config.eval_batch_size, tokenizer.pad_token_id
                for batch in batches(cut, size, pad, self.model.device):
                    yield batch
                    advance(len(batch["input_ids"]))

            return input_norms(self.model, self.attached, counted())

    def start_gates(self, norms: Mapping[str, torch.Tensor]) -> None:
        """The gates' start (Eq. 9)."""
        config = self.config
        init_gates(
            self.attached,
            norms,
            eta=config.eta,
            mean=config.init_mean,
            std=config.init_std,
            tail=config.init == "paper",
            seed=config.seed,
        )

    def export(self, metadata: dict[str, Any] | None = None) -> Mask:
        """The mask as it now is."""
        return export(self.attached, self.base, geometry=self._geometry, metadata=metadata)

    @cached_property
    def _geometry(self) -> dict[str, tuple[int, int]]:
        # Read once: rollouts on a server export a mask every step.
        return dict(bmt_core.geometry(self.folder, ""))

    def told(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """What every method tells of its run, and `metadata`."""
        notes = self.run.notes
        names = ("base", "teacher", "init", "mask", "full", "lean")
        scores: dict[str, Any] = {n: notes[n] for n in names if n in notes}
        if scores:
            guess = best_guess(self.split.train, self.split.heldout, self.grader)
            scores["guess"] = guess.to_json()
        libraries = ["torch", "transformers", "trl"]
        if self.config.dataset.startswith("reasoning-gym:"):
            libraries.append("reasoning-gym")
        settings = settings_of(self.config)
        return {
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.config.steps,
            "config": {k: v for k, v in settings.items() if k not in ("model", "device")},
            "init_sparsity": notes["init_sparsity"],
            "scores": scores,
            "versions": library_versions(*libraries),
            **metadata,
        }

    def write_history(self, history: dict[str, Any]) -> None:
        """Write what the steps saw beside the output, as JSON."""
        path = self.config.output.with_name(self.config.output.name + ".history.json")
        if is_first():
            written = {"reading": self.reading, **history}
            path.write_text(json.dumps(written, indent=1) + "\n")

    def write(self, mask: Mask, path: Path) -> None:
        """Save from the first process; return when it is there for all."""
        if is_first():
            bmt_core.save(mask, path)
        barrier()

    def finish(self, metadata: dict[str, Any]) -> Mask:
        """Score the trained mask, write it to the output, and remove the run's folder.

        With `lean: auto`, the deletions that were learnt are scored alone beside all of them, and
        written if they answer no fewer examples, but for what chance allows.
        """
        full, choice = self.export(), self.config.lean
        if choice == "off":
            mask = self._scored("mask", full)
        else:
            less = bmt_core.difference(full, self.start_mask())
            mask = self._scored("lean", less)
            told: dict[str, Any] = {}
            if choice == "auto" and self.split.heldout:
                self._scored("full", full)
                lean, whole = (self.run.notes[name] for name in ("lean", "full"))
                low, _ = wilson(whole[self.reading], whole["total"])
                if lean[self.reading] < low * lean["total"]:
                    mask = full
                told["forward_kl"] = self._divergences({"full": full, "lean": less})
            if self.split.heldout:
                self.run.note("mask", self.run.notes["lean" if mask is less else "full"])
            told |= {"lean": mask is less, "zeros_full": full.zeros, "zeros_lean": less.zeros}
            metadata = {**metadata, **told}
        mask = dataclasses.replace(mask, metadata=self.told(metadata))
        self.write(mask, self.config.output)
        self.run.finish()
        return mask

    def _divergences(self, masks: Mapping[str, Mask]) -> dict[str, Any]:
        """Of each mask from the base, on what the base answers to held-out prompts."""
        with self.attached.state.use("off"):
            texts = self.base_texts()
        found = {}
        for name, mask in masks.items():
            self.attached.hold(mask)
            divergence = forward_kl(self.model, self.attached, texts, self.tokenizer.pad_token_id)
            self.display.say(f"{name:<5}forward KL {divergence.per_token:.4f} nats a token")
            found[name] = divergence.to_json()
        return found

    def base_texts(self) -> Texts:
        """Held-out prompts and what the model, which is to be the base now, answers to them."""
        chosen = self.split.heldout[:_KL_PROMPTS]
        prompts = [render(self.tokenizer, e.prompt) for e in chosen]
        padding = self.tokenizer.pad_token_id
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            completions = sample(
                self.model,
                prompts,
                max_new_tokens=self.config.max_new_tokens,
                temperature=1.0,
                eos=ends(self.model, self.tokenizer),
                padding=padding,
            )
        return list(zip(prompts, completions, strict=True))

    def _scored(self, name: str, mask: Mask) -> Mask:
        self.attached.hold(mask)
        with self.attached.state.use("hard"):
            self.score(name)
        return mask
