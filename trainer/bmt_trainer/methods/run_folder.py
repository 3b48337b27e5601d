"""The folder of an unfinished run: its settings, its scores so far and its checkpoints.

Nothing here is of one method.
"""

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
from bmt_trainer.distributed import barrier, is_first
from bmt_trainer.errors import OutputError, ResumeError
from bmt_trainer.evaluation.graders import WORDS, Grader
from bmt_trainer.evaluation.score import Score, evaluate

_FILE = "run.json"
# Where a run writes and whether it goes on do not change what it computes.
_PLACES = ("output", "resume", "checkpoint_every")


def settings_of(config: Any) -> dict[str, Any]:
    """All settings that decide the result, as JSON."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in _PLACES}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


class Run:
    """`<output>.run`, kept until the mask is written.

    Raises ResumeError when the folder is of a run with other settings, and OutputError when it
    holds a checkpoint and `resume` is not set.
    """

    def __init__(self, output: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = output.with_name(output.name + ".run")
        self._settings = settings
        self.notes: dict[str, Any] = {}
        if output.is_dir():
            raise OutputError(f"output {output} is a folder; name a file")
        if not is_first():
            return  # the folder is the first one's to make and to judge
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
        """Keep a result of this run over an interruption."""
        self.notes[key] = value
        self._write()

    def _write(self) -> None:
        if not is_first():
            return
        scratch = self.folder / f"{_FILE}.tmp"
        scratch.write_text(json.dumps({"settings": self._settings, "notes": self.notes}, indent=1))
        os.replace(scratch, self.folder / _FILE)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        return max(self._checkpoints(), key=_steps, default=None)

    def steps_done(self) -> int:
        """Optimizer steps of the newest whole checkpoint; 0 without one."""
        return max(map(_steps, self._checkpoints()), default=0)

    def _checkpoints(self) -> list[Path]:
        # The trainer's state is the last file that it writes.
        return [p.parent for p in self.folder.glob("checkpoint-*/trainer_state.json")]

    def finish(self) -> None:
        """The mask is written: remove the folder."""
        barrier()
        if is_first():
            shutil.rmtree(self.folder)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _unseen(count: int) -> None:
    """Progress that nobody watches."""


class Scores:
    """Scores the model as it then is, once a name over all of a run's sittings, and shows it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heldout: Sequence[Example],
        run: Run,
        display: Display,
        *,
        max_new_tokens: int,
        batch_size: int,
        grader: Grader = WORDS,
    ) -> None:
        self._grader = grader
        self._model, self._tokenizer, self._heldout = model, tokenizer, heldout
        self._run, self._display = run, display
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size

    def __call__(self, name: str, examples: Sequence[Example] | None = None) -> None:
        """examples: other than the held-out ones."""
        chosen = self._heldout if examples is None else examples
        if not chosen or name in self._run.notes:
            return
        with self._display.stage(f"evaluate {name}", len(chosen)) as advance:
            score = self.of(chosen, advance)
        self._run.note(name, score.to_json())
        self._display.say(f"{name:<5}{score}")

    def of(self, examples: Sequence[Example], advance: Callable[[int], None] = _unseen) -> Score:
        """The score on any examples, under the run's settings; not kept."""
        return evaluate(
            self._model,
            self._tokenizer,
            examples,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            grader=self._grader,
            advance=advance,
        )
