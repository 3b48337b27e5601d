"""State of entries: what is done, and what is missing on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
from bmt_trainer.comparison.plan import Plan
from bmt_trainer.comparison.results import kept
from bmt_trainer.console import Display

from benchmarks.harness.environment import ROOT, has_gpu
from benchmarks.report.results import LATEST
from reproduce import memory
from reproduce.catalog import Comparison, Entry, Run

#: Packages of the extra `paper` by the module that each is imported as.
_PACKAGES = {"math_verify": "math-verify", "lm_eval": "lm-eval", "peft": "peft"}
_USE = """\
make reproduce NAME=…              run one of these, or all of a beginning such as small
make reproduce NEXT=1 [NAME=…]     the next unfinished run of a comparison, by default of small
make reproduce NAME=… DRY_RUN=1    a step of each row on a tiny model
PAPER_DATA=FOLDER                  the folder with the data, by default data
SEEDS=0,1                          seeds of a comparison instead of its file's"""


@dataclass(frozen=True, kw_only=True)
class State:
    """Runs or figures that are kept, of so many; missing: what keeps the entry from running.

    notes: what does not, such as a model that is not yet downloaded.
    """

    done: int
    total: int
    unit: str
    missing: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def word(self) -> str:
        """done, unfinished or not run, with the counts."""
        if self.finished:
            return f"done: {self.total} {self.unit}"
        return (
            f"{'unfinished' if self.done else 'not run'}: {self.done} of {self.total} {self.unit}"
        )

    @property
    def finished(self) -> bool:
        return self.done >= self.total


def of(entry: Entry, data: Path, changes: Mapping[str, Any] | None = None) -> State:
    """The state of an entry; data: the folder of data. Raises ConfigError."""
    missing = [
        f"{data / one.path}: {one.name}, from {one.source}, license {one.license}"
        for one in entry.data
        if one.path and one.only in (None, entry.name) and not (data / one.path).exists()
    ]
    if isinstance(entry, Run):
        ids = _kept_ids()
        done = len(ids.intersection(entry.figures))
        return State(done=done, total=len(entry.figures), unit="figures", missing=missing)
    assert isinstance(entry, Comparison)
    plan = entry.plan(changes or {}, data)
    cells = list(plan.cells())
    absent = [model for model in plan.models if not Path(model).is_dir()]
    if missing or absent:
        # Names of results hold digests of the model and the data.
        done = min(len(list(plan.output.glob("*.json"))), len(cells))
    else:
        done = sum(map(kept.exists, cells))
    missing += [f"package {name}: pip install 'bmt-adapters[paper]'" for name in _packages(plan)]
    return State(
        done=done,
        total=len(cells),
        unit="runs",
        missing=missing,
        notes=[*_models(absent), *_gpu(entry)],
    )


def show(known: Sequence[Entry], data: Path, display: Display) -> None:
    """Print all entries with their state, by file."""
    file = None
    for entry in known:
        if entry.file != file:
            file = entry.file
            display.say(f"\n{entry.title}; {_meant(entry)}")
        state = of(entry, data)
        display.say(f"  {entry.name:<31} {state.word}. {entry.about}")
        if not state.finished:
            for text in state.missing:
                display.say(f"  {'':31} missing: {text}")
            if isinstance(entry, Comparison):
                for text in memory.lines(entry.plan({}, data), entry.hardware):
                    display.say(f"  {'':31} {text}")
    display.say(f"\n{_USE}")


def _kept_ids() -> set[str]:
    file = LATEST / "paper.json"
    return {entry["id"] for entry in json.loads(file.read_text())} if file.exists() else set()


def _packages(plan: Plan) -> Iterator[str]:
    needed = {
        "math_verify": plan.settings.get("reward") == "math",
        "lm_eval": plan.retention == "lm-eval",
        "peft": any(method.startswith("lora") for method in plan.methods),
    }
    for module, name in _PACKAGES.items():
        if needed[module] and find_spec(module) is None:
            yield name


def _models(absent: Sequence[str]) -> Iterator[str]:
    for model in absent:
        if (ROOT / model).parent.name == "models":
            yield f"the first run makes {model}"
        elif not isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json"), str):
            yield f"the first run downloads {model}"


def _gpu(entry: Entry) -> Iterator[str]:
    if entry.hardware.gpus and not has_gpu():
        yield _meant(entry)


def _meant(entry: Entry) -> str:
    absent = entry.hardware.gpus and not has_gpu()
    return f"meant for {entry.hardware}{', and this machine has no GPU' if absent else ''}"
