"""The folder of an unfinished run: its settings, notes and checkpoints, for every method."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.console import Display
from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import barrier, failing_together, of_main_process
from bmt_trainer.errors import NonFinite, OutputError, ResumeError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.graders import Scorer
from bmt_trainer.evaluation.score import Score, evaluate
from bmt_trainer.masking.targets import GATE_PROJECTIONS
from bmt_trainer.methods.guards import changes, outputs
from bmt_trainer.methods.guards.checkpoints import Checkpoints, steps_of
from bmt_trainer.process import is_main_process, rank, world_size

_FILE = "run.json"
_LOCK = ".lock"
# Settings that do not change what a run computes.
_NEUTRAL = (
    *("output", "resume", "accept_changes", "checkpoint_every", "overwrite", "push"),
    *("report_to", "run_name"),
    "masks_every",
    *("server_wait", "server_token_seconds", "vllm_memory"),
)
# Settings that a resumed run may change, and their defaults: the place of rollouts, not their
# distribution.
_MOVABLE = {"server": "none", "rollouts": "transformers"}
# Notes that a folder keeps from a run that was killed before its first checkpoint.
_LASTING = ("rollout_name",)
# Errors of a file that is no run's, however it was damaged.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
)
# The note that the output is being written: a file of this name is then the run's own.
_WRITING = "writing_output"


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that decide a run's result, as JSON."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NEUTRAL}
    if not values.get("hold_zeros"):
        values.pop("hold_zeros", None)  # a run of a build without it may be resumed
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in getattr(config, "added", ()):
        if values[name] == defaults[name]:
            del values[name]
    if "epochs" in values:
        del values["steps"]  # which follow from them and the data
    if values.get("targets", "") is None:
        values["targets"] = GATE_PROJECTIONS
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


class RunFolder:
    """`<output>.run`, kept until the mask is written.

    contents: digests of what the run depends on besides its settings, by name; accept_changes:
    resume with code that has changed, as a mended reward; say: shows a line.
    Raises ResumeError if the folder belongs to a run with other settings or contents or of another
    number of processes, and OutputError if it holds a checkpoint and `resume` is not set, or cannot
    be written. Of several processes the first makes and checks the folder, and all have its notes.
    """

    def __init__(
        self,
        output: Path,
        settings: dict[str, Any],
        *,
        resume: bool,
        accept_changes: bool = False,
        contents: Mapping[str, str] = MappingProxyType({}),
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = outputs.run_folder(output)
        self._settings, self._contents, self._say = settings, dict(contents), say
        self._accept = accept_changes
        self.notes: dict[str, Any] = {}
        self.checkpoints = Checkpoints(self.folder, say)
        self._last: Path | None = None
        self._lock: IO[str] | None = None
        if output.is_dir():
            raise OutputError(f"output {output} is a folder; name a file")
        with failing_together():
            if is_main_process():
                self._open(resume)
        self.notes, self._last = of_main_process((self.notes, self._last))
        with failing_together():
            if self._last is not None and not self._last.is_dir():
                raise ResumeError(
                    f"process {rank()} of {world_size()} does not see {self._last}; put the output "
                    "on storage that all machines of the run share"
                )

    def _open(self, resume: bool) -> None:
        """Make and lock the folder, or take up the run that is in it."""
        if self.folder.exists():
            before = self._read()
            self._hold()
            if resume:
                self._restore(before)
            elif self.checkpoints.candidates():
                raise OutputError(
                    f"{self.folder} holds an unfinished run; go on with --resume, or remove it"
                )
            else:
                kept = before["notes"]
                self.notes = {name: kept[name] for name in _LASTING if name in kept}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made ({error.strerror})") from None
        if self._lock is None:
            self._hold()
        self._write()

    def _hold(self) -> None:
        """Lock the folder for this process: two runs in it would replace each other's checkpoints.

        The lock ends with the process, however it ends. Raises OutputError.
        """
        try:
            self._lock = (self.folder / _LOCK).open("a")
        except OSError:  # a folder that cannot be written, which the next write says
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{self.folder} is in use by another process, which trains this output; wait for "
                "it, or name another output"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / _FILE).read_text())
            contents = kept.get("contents")
            return {
                "settings": dict(kept["settings"]),
                "notes": dict(kept["notes"]),
                "contents": None if contents is None else dict(contents),
                "processes": int(kept.get("processes", 1)),
            }
        except _UNREADABLE as error:
            raise ResumeError(f"{self.folder} is no run of ours ({error}); remove it") from None

    def _restore(self, kept: dict[str, Any]) -> None:
        before, now = kept["settings"], json.loads(json.dumps(self._settings))
        accepted: set[str] = set()
        for key in sorted(before.keys() | now.keys()):
            if key in _MOVABLE:
                here, there = (values.get(key) or _MOVABLE[key] for values in (now, before))
                if here != there:
                    self._say(f"{key}: {here} from here on, {there} before")
            elif before.get(key) != now.get(key):
                if key == "base":
                    raise ResumeError(
                        f"{self.folder} was started on another base: the weights of the model have "
                        "changed since; use those, or remove it"
                    )
                if not self._may_change(key):
                    raise ResumeError(
                        f"{self.folder} was started with {key} = {before.get(key)!r}, not "
                        f"{now.get(key)!r}; use its settings, {changes.fix_of([key])}or remove it"
                    )
                accepted.add(key)
        if (processes := kept["processes"]) != world_size():
            raise ResumeError(
                f"{self.folder} was started in {processes} processes, not {world_size()}, and each "
                f"drew its own examples and answers; resume it in {processes} "
                f"(--nproc_per_node or --num_processes {processes}), or remove it"
            )
        contents = kept["contents"]
        if contents is None:  # written by a build before 0.1.0
            self._say(f"{self.folder} has no digests: if data or rewards changed is not known")
            self.checkpoints = Checkpoints(self.folder, self._say, unchecked=True)
        else:
            both = sorted(contents.keys() & self._contents.keys())
            changed = [key for key in both if contents[key] != self._contents[key]]
            if not all(map(self._may_change, changed)):
                raise ResumeError(
                    f"{self.folder} was started with another {', '.join(changed)}: the content has "
                    f"changed since; restore it, {changes.fix_of(changed)}or remove the folder to "
                    "start over"
                )
            accepted.update(changed)
        self.notes = kept["notes"]
        if "init_density" in self.notes:  # written by a build before 0.1.0
            self.notes["init_sparsity"] = self.notes.pop("init_density")
        self._last = self.checkpoints.newest_whole()
        if accepted:
            self.notes = changes.accepted(self.notes, accepted, self.steps_done())
            self._say(
                f"{', '.join(sorted(accepted))}: changed after step {self.steps_done()}, which the "
                "mask's metadata says; scores by the code before are left out"
            )

    def _may_change(self, key: str) -> bool:
        return self._accept and key in changes.CODE

    def note(self, key: str, value: Any) -> None:
        """Keep an intermediate result of this run across interruptions. Raises OutputError."""
        self.notes[key] = value
        self._write()

    def rewrite(self) -> None:
        """Write the notes again, if the disk has refused them. Raises OutputError."""
        self._write()

    def note_writing(self) -> None:
        """Note that the output is about to be written; a run that is killed then may resume."""
        self.note(_WRITING, True)

    def _write(self) -> None:
        if not is_main_process():
            return
        kept: dict[str, Any] = {
            "settings": self._settings,
            "contents": self._contents,
            "notes": self.notes,
        }
        if world_size() > 1:
            kept["processes"] = world_size()
        outputs.write_json(self.folder / _FILE, kept)

    def last_checkpoint(self) -> Path | None:
        """The checkpoint that this run resumes from: the newest whole one when it started."""
        return self._last

    def steps_done(self) -> int:
        """Optimizer steps of `last_checkpoint`; 0 without one."""
        return steps_of(self._last) if self._last is not None else 0

    def finish(self) -> None:
        """Remove the folder; the mask is written."""
        barrier()
        if is_main_process():
            done = self.folder.with_name(f".{self.folder.name}.done")
            shutil.rmtree(done, ignore_errors=True)  # of a run that was killed here
            # At once: a folder that is half removed would be no run.
            os.replace(self.folder, done)
            shutil.rmtree(done)


def is_writing(output: Path) -> bool:
    """True if the unfinished run of this output was killed while it wrote it."""
    try:
        kept = json.loads((outputs.run_folder(output) / _FILE).read_text())
        return bool(kept["notes"].get(_WRITING))
    except _UNREADABLE:
        return False


def _no_progress(count: int) -> None:
    """Progress that is not shown."""


class HeldoutScores:
    """Scores of the model as it is when called, each name once in a run, resumed or not.

    measure: the number of a score by which masks are chosen, with an interval; guessable: what is
    scored is an answer, so an answer that is given to all has a score too.
    """

    measure = "mean"
    guessable = True

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
        grader: Scorer,
        thoughts: str | None = None,
    ) -> None:
        self._grader = grader
        self._reader = CompletionReader(tokenizer, thoughts)
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
        try:
            with self._display.stage(f"evaluate {name}", len(chosen)) as advance:
                score = self.of(chosen, advance)
        except NonFinite as error:
            raise NonFinite(f"evaluate {name}: {error}") from None
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
            scorer=self._grader,
            advance=advance,
            reader=self._reader,
        )
