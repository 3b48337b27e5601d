"""Entries of `reproduce/*.yaml`, comparisons and runs, in the order of FILES.

A file holds either `comparisons` (form: `bmt_trainer.comparison.recipe`) or `runs`, each with a
text, a function of `reproduce.experiments` and the ids of the figures that it keeps. Every file
names its hardware and its data with their licenses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmt_trainer.comparison import plan as plans
from bmt_trainer.comparison import recipe
from bmt_trainer.comparison.plan import Plan
from bmt_trainer.comparison.provenance import DATASETS
from bmt_trainer.errors import ConfigError
from bmt_trainer.settings import build, check, option, read_yaml

from benchmarks.harness.environment import ROOT
from benchmarks.report.results import LATEST

FOLDER = Path(__file__).resolve().parent
FILES = (
    *("paper-grpo-llama", "paper-grpo-qwen", "paper-sft", "paper-sdft"),
    *("small", "single-runs", "costs"),
)
#: Folder in names of data sets that PAPER_DATA replaces.
DATA = Path("data")
_RUNS = ("about", "hardware", "data", "runs")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Machine that a file's runs are meant for. Raises ConfigError."""

    gpus: int = option("GPUs.", 0, least=0)
    gpu_gb: int = option("Memory of each, GB.", 0, least=0)
    cores: int = option("CPU cores.", 1, least=1)
    memory_gb: int = option("Memory of the machine, GB.", 0, least=0)
    note: str = option("Where and how long it ran.")

    def __post_init__(self) -> None:
        check(self)

    def __str__(self) -> str:
        if self.gpus:
            return f"{self.gpus} GPU of {self.gpu_gb} GB"
        return f"{self.cores} CPU cores, {self.memory_gb} GB"


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set or model: origin and license; path: in the folder of data, if it is a file.

    only: the one entry that needs it, or None for all of the file. Raises ConfigError.
    """

    name: str = option("Name.")
    source: str = option("Where it comes from.")
    license: str = option("License.")
    path: str | None = option("Path in the folder of data.", None)
    only: str | None = option("Entry that needs it.", None)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A comparison or a run: its name, a text, and what its file says of hardware and data.

    title: the file's own text.
    """

    name: str
    about: str
    title: str
    file: Path
    hardware: Hardware
    data: Sequence[Data]


@dataclass(frozen=True, kw_only=True)
class Comparison(Entry):
    """A comparison, whose results are files, one for each run."""

    def plan(self, changes: Mapping[str, Any], data: Path = DATA) -> Plan:
        """Its plan with changes by setting; data: the folder of data. Raises ConfigError."""
        values = recipe.settings(self.file, self.name) | recipe.plural(changes)
        values["datasets"] = [within(name, data) for name in values["datasets"]]
        for name in set(DATASETS) & values.keys():
            values[name] = within(values[name], data)
        if values.get("suites_data") == str(DATA):
            values["suites_data"] = data
        values["models"] = [_local(name) for name in values["models"]]
        values["output"] = ROOT / values.get("output", LATEST / "paper" / self.name)
        return plans.read(None, values)


@dataclass(frozen=True, kw_only=True)
class Run(Entry):
    """An experiment in Python; figures: the ids that it keeps."""

    function: str
    figures: Sequence[str]

    def load(self) -> Callable[[], None]:
        """Import its function. Raises ConfigError."""
        module, _, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(f"reproduce.experiments.{module}"), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{self.file}: run: {self.function} ({error})") from None
        made: Callable[[], None] = found
        return made


def entries(folder: Path = FOLDER, files: Sequence[str] = FILES) -> list[Entry]:
    """All entries in order. Raises ConfigError, also for a name that two entries have."""
    made: dict[str, Entry] = {}
    for file in files:
        for entry in _read(folder / f"{file}.yaml"):
            if (other := made.get(entry.name)) is not None:
                raise ConfigError(f"{entry.file}: {entry.name} stands in {other.file} too")
            made[entry.name] = entry
    return list(made.values())


def select(known: Sequence[Entry], name: str) -> list[Entry]:
    """The entry of this name, or else all whose name begins with `NAME-`. Raises ConfigError."""
    exact = [entry for entry in known if entry.name == name]
    found = exact or [entry for entry in known if entry.name.startswith(f"{name}-")]
    if not found:
        raise ConfigError(f"nothing is named {name!r}; `make reproduce` lists the names")
    return found


def within(dataset: str, folder: Path) -> str:
    """The data set FORM:data/FILE with its file in `folder`; any other as it is."""
    form, colon, place = dataset.partition(":")
    if not colon or not place.startswith(f"{DATA}/"):
        return dataset
    return f"{form}:{folder / place.removeprefix(f'{DATA}/')}"


def _read(file: Path) -> Iterator[Entry]:
    values = read_yaml(file)
    lists = values.get("data")
    if not isinstance(lists, list) or not all(isinstance(one, dict) for one in lists):
        raise ConfigError(f"{file}: data must list name, source and license of each set and model")
    hardware = values.get("hardware")
    if not isinstance(hardware, dict):
        raise ConfigError(f"{file}: hardware must hold `name: value` lines")
    try:
        shared: dict[str, Any] = {
            "file": file,
            "title": str(values.get("about", file.stem)),
            "hardware": build(Hardware, hardware),
            "data": [build(Data, one) for one in lists],
        }
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if "runs" in values:
        yield from _runs(file, values, shared)
        return
    for name, about in recipe.descriptions(file).items():
        yield Comparison(name=name, about=about, **shared)


def _runs(file: Path, values: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterator[Entry]:
    if unknown := [name for name in values if name not in _RUNS]:
        raise ConfigError(f"{file}: {', '.join(unknown)} is not one of {', '.join(_RUNS)}")
    for name, run in values["runs"].items():
        if not isinstance(run, dict) or run.keys() != {"about", "run", "figures"}:
            raise ConfigError(f"{file}: {name} must have about, run and figures, and nothing else")
        if not isinstance(run["figures"], list) or not run["figures"]:
            raise ConfigError(f"{file}: {name}: figures must list ids")
        yield Run(
            name=name, about=run["about"], function=run["run"], figures=run["figures"], **shared
        )


def _local(model: str) -> str:
    """A model's folder relative to the repository as a path, if it is there."""
    return str(ROOT / model) if (ROOT / model).is_dir() else model
