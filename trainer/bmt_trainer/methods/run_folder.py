"""The folder of an unfinished run: its settings, notes and checkpoints, for every method."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.console import Display
from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import barrier
from bmt_trainer.errors import OutputError, ResumeError
from bmt_trainer.evaluation.graders import Grader
from bmt_trainer.evaluation.score import Score, evaluate
from bmt_trainer.process import is_main_process

_FILE = "run.json"
# Settings that do not change what a run computes.
_NEUTRAL = ("output", "resume", "checkpoint_every")


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that decide a run's result, as JSON."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NEUTRAL}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


class RunFolder:
    """`<output>.run`, kept until the mask is written.

    Raises ResumeError if the folder belongs to a run with other settings, and OutputError if it
    holds a checkpoint and `resume` is not set.
    """

    def __init__(self, output: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = output.with_name(output.name + ".run")
        self._settings = settings
        self.notes: dict[str, Any] = {}
        if output.is_dir():
            raise OutputError(f"output {output} is a folder; name a file")
        if not is_main_process():
            return  # the first process makes and checks the folder
        if self.folder.exists():
            before = self._read()
            if resume:
                self._restore(before)
            elif self.last_checkpoint() is not None:
                raise OutputError(
                    f"{self.folder} holds an unfinished run; go on with --resume, or remove it"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made ({error.strerror})") from None
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / _FILE).read_text())
            return {"settings": dict(kept["settings"]), "notes": dict(kept["notes"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{self.folder} is no run of ours ({error}); remove it") from None

    def _restore(self, kept: dict[str, Any]) -> None:
        before, now = kept["settings"], json.loads(json.dumps(self._settings))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ResumeError(
                    f"{self.folder} was started with {key} = {before.get(key)!r}, not "
                    f"{now.get(key)!r}; use its settings, or remove it"
                )
        self.notes = kept["notes"]
        if "init_density" in self.notes:  # written by a build before 0.1.0
            self.notes["init_sparsity"] = self.notes.pop("init_density")

    def note(self, key: str, value: Any) -> None:
        """Keep an intermediate result of this run across interruptions."""
        self.notes[key] = value
        self._write()

    def _write(self) -> None:
        if not is_main_process():
            return
        scratch = self.folder / f"{_FILE}.tmp"
        scratch.write_text(json.dumps({"settings": self._settings, "notes": self.notes}, indent=1))
        os.replace(scratch, self.folder / _FILE)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is complete."""
        return max(self._checkpoints(), key=_steps, default=None)

    def steps_done(self) -> int:
        """Optimizer steps of the newest complete checkpoint; 0 without one."""
        return max(map(_steps, self._checkpoints()), default=0)

    def _checkpoints(self) -> list[Path]:
        # The trainer's state is the last file that it writes.
        return [p.parent for p in self.folder.glob("checkpoint-*/trainer_state.json")]

    def finish(self) -> None:
        """Remove the folder; the mask is written."""
        barrier()
        if is_main_process():
            shutil.rmtree(self.folder)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _no_progress(count: int) -> None:
    """Progress that is not shown."""


class HeldoutScores:
    """Scores of the model as it is when called, each name once in a run, resumed or not."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heldout: Sequence[Example],
        run: RunFolder,
        display: Display,
        *,
        max_new_tokens: int,
        batch_size: int,
        grader: Grader,
    ) -> None:
        self._grader = grader
        self._model, self._tokenizer, self._heldout = model, tokenizer, heldout
        self._run, self._display = run, display
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size

    def __call__(self, name: str, examples: Sequence[Example] | None = None) -> None:
        """Score, show and note the score under `name`.

        examples: others than the held-out ones.
        """
        chosen = self._heldout if examples is None else examples
        if not chosen or name in self._run.notes:
            return
        with self._display.stage(f"evaluate {name}", len(chosen)) as advance:
            score = self.of(chosen, advance)
        self._run.note(name, score.to_json())
        self._display.say(f"{name:<5}{score}")

    def of(
        self, examples: Sequence[Example], advance: Callable[[int], None] = _no_progress
    ) -> Score:
        """The score on any examples with the run's settings; not noted."""
        return evaluate(
            self._model,
            self._tokenizer,
            examples,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            grader=self._grader,
            advance=advance,
        )
