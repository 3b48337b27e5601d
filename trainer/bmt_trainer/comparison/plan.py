"""What a comparison is of: methods x models x data sets x settings, from a recipe.

A recipe is a YAML file. `extends` names another one beside it, whose settings it takes over;
`trainer`, `methods`, `models`, `datasets`, `sweep`, `rates` and what `Plan` has else are the
comparison's, and every other line is a setting of the trainer, as in its own recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bmt_trainer.comparison import provenance
from bmt_trainer.distributed import processes
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig, TrainConfig
from bmt_trainer.settings import build, check, option, read_yaml

CONFIGS: Mapping[str, type[TrainConfig]] = {
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "sdft": SdftConfig,
}
_STANDARD = {"full": 1e-6, "lora": 1e-4, "mth-99": 1e-4, "mth-99.95": 1e-3}
#: The paper's learning rates of baselines (section 5.1), by trainer.
RATES: Mapping[str, Mapping[str, float]] = {
    "sft": _STANDARD,
    "grpo": _STANDARD,
    "sdft": _STANDARD | {"full": 5e-5},
}
_METHOD = re.compile(r"base|wanda|full|bmt|lora-[1-9]\d*|mth-\d+(?:\.\d+)?")
_LISTS = ("methods", "models", "datasets")
_MAPPINGS = ("sweep", "rates", "settings")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison. Raises ConfigError, and CheckpointError for a folder that is no model."""

    trainer: Literal["sft", "grpo", "sdft"] = option("How to train.")
    output: Path = option("The folder of results.")  # noqa: RUF009
    methods: Sequence[str] = option("Of base, wanda, full, lora-R, mth-P, bmt; perhaps with @RATE.")
    models: Sequence[str] = option("Folders or models of the Hub.")
    datasets: Sequence[str] = option("As in the trainer's own command.")
    track_every: int = option("Steps between looks at zeros and distance; 0: none.", 0, least=0)
    retention: str | None = option(
        "A data set that is to be kept, scored at each look; lm-eval: the paper's six tasks.", None
    )
    retention_grader: str = option("What is right there.", "words")
    retention_examples: int = option("How many.", 400, least=1)
    geometry: bool = option("Measure the updates' geometry at the end.", False)
    suites: str | None = option("Evaluation sets to score each at the end, as in `suites`.", None)
    suites_data: Path | None = option("The folder of their files.", None)  # noqa: RUF009
    suites_limit: int | None = option("Examples of each set.", None, least=1)
    seeds: Sequence[int] = option("Seeds, a run of each; default: the trainer's seed.", ())
    sweep: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, str) or not value:
                raise ConfigError(f"{name}: {value!r} must be a list of at least one")
        for name in _MAPPINGS:
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name}: {getattr(self, name)!r} must hold `name: value` lines")
        for name, values in self.sweep.items():
            if not isinstance(values, list | tuple) or not values:
                raise ConfigError(f"sweep: {name} needs a list of values")
        self._check_seeds()
        rates = {name: _number(value, f"rates: {name}") for name, value in self.rates.items()}
        object.__setattr__(self, "rates", rates)
        check(self, skip=(*_LISTS, *_MAPPINGS, "seeds"))
        for method in self.methods:
            if not _METHOD.fullmatch(method.partition("@")[0]):
                raise ConfigError(
                    f"methods: {method!r} is none of base, wanda, full, lora-R, mth-P, bmt"
                )
        for cell in self.cells():
            cell.config()  # what is wrong with one is said before the first is run

    def _check_seeds(self) -> None:
        seeds = self.seeds
        if not isinstance(seeds, list | tuple) or any(type(s) is not int or s < 0 for s in seeds):
            raise ConfigError(f"seeds: {seeds!r} must be a list of integers of at least 0")
        if seeds and ("seed" in self.settings or "seed" in self.sweep):
            raise ConfigError("seeds: the recipe sets seed too; leave one of them out")

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """Its models and data sets by what they are; read once, for they may be large."""
        kept = [self.retention] if self.retention else []
        return {
            **{model: provenance.of_model(model) for model in self.models},
            **{name: provenance.of_dataset(name) for name in [*self.datasets, *kept]},
        }

    def cells(self) -> Iterator[Cell]:
        """Every run of it; a sweep's settings are masks' alone, so that baselines come once."""
        seen = set()
        names = list(self.sweep)
        for seed, *values in itertools.product(self.seeds or (None,), *self.sweep.values()):
            changes = dict(zip(names, values, strict=True))
            for model, dataset, method in itertools.product(
                self.models, self.datasets, self.methods
            ):
                own = changes if method.partition("@")[0] == "bmt" else {}
                cell = Cell(self, method, model, dataset, own, seed)
                if cell.key not in seen:
                    seen.add(cell.key)
                    yield cell


@dataclass(frozen=True)
class Cell:
    """One run of a plan; changes: the sweep's settings; seed: None takes the trainer's setting."""

    plan: Plan
    method: str
    model: str
    dataset: str
    changes: Mapping[str, Any]
    seed: int | None = None

    @property
    def kind(self) -> str:
        """The method without its rate."""
        return self.method.partition("@")[0]

    @property
    def label(self) -> str:
        """The run in one line, for messages."""
        changes = dict(self.changes) | ({} if self.seed is None else {"seed": self.seed})
        return f"{self.method} of {self.model} on {self.dataset} {changes}"

    def config(self) -> TrainConfig:
        """The trainer's settings. Raises ConfigError."""
        values = {
            **self.plan.settings,
            **self.changes,
            "model": self.model,
            "dataset": self.dataset,
            "output": self.file.with_suffix(".bmt"),
            "lean": "off",  # the paper's masks are whole
            "resume": self.goes_on,
        }
        if self.seed is not None:
            values["seed"] = self.seed
        if self.rate is not None:
            values["learning_rate"] = self.rate
        if not self.goes_on:
            values["checkpoint_every"] = 0
        return build(CONFIGS[self.plan.trainer], values)

    @property
    def goes_on(self) -> bool:
        """Whether an interrupted run goes on from its last checkpoint."""
        if processes() > 1 or self.kind in ("base", "wanda"):
            return False  # several processes write no checkpoints
        # The teacher of a baseline is TRL's own, which is in no checkpoint.
        return self.kind == "bmt" or self.plan.trainer != "sdft"

    @property
    def rate(self) -> float | None:
        """The learning rate where it is not the trainer's setting. Raises ConfigError."""
        _, at, rate = self.method.partition("@")
        if at:
            return _number(rate, f"methods: {self.method}")
        if self.kind in ("base", "wanda", "bmt"):
            return None
        known = {**RATES[self.plan.trainer], **self.plan.rates}
        for name in (self.kind, self.kind.partition("-")[0]):
            if name in known:
                return known[name]
        raise ConfigError(f"methods: give {self.kind} a rate, {self.kind}@1e-4, or set rates")

    @property
    def key(self) -> str:
        """What decides the result, as text: the same on every machine."""
        looks = ["track_every", "retention_grader", "retention_examples", "geometry"]
        looks += ["suites", "suites_limit"]
        known, kept = self.plan.contents, self.plan.retention
        told = {
            **{name: getattr(self.plan, name) for name in looks},
            "retention": kept and known[kept],
            "trainer": self.plan.trainer,
            # Seed 0 is left out: results of builds without `seeds` are seed 0's.
            "settings": {
                **self.plan.settings,
                **self.changes,
                **({"seed": self.seed} if self.seed else {}),
            },
            "method": self.method,
            "rate": self.rate,
            "model": known[self.model],
            "dataset": known[self.dataset],
        }
        return json.dumps(told, sort_keys=True, default=str)

    @property
    def file(self) -> Path:
        """Where its result is kept: the same settings, the same file."""
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:8]
        model = _plain(Path(self.model).name)
        place, _, query = self.dataset.partition("?")
        data = _plain(f"{place.rpartition('/')[2].split('.')[0]}-{query}")[:40]
        return self.plan.output / f"{model}.{data}.{_plain(self.method)}.{digest}.json"


def read(path: Path | None, changes: Mapping[str, Any]) -> Plan:
    """A plan from a recipe, and changes to it by name. Raises ConfigError."""
    values = _extended(path, ()) if path else {}
    values |= _plural(changes)
    own = {f.name for f in dataclasses.fields(Plan)} - {"settings"}
    settings = {name: value for name, value in values.items() if name not in own}
    chosen = {name: value for name, value in values.items() if name in own}
    return build(Plan, {**chosen, "settings": settings})


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path}: extends itself")
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return _plural(values)
    return {**_extended(path.parent / str(base), (*seen, path)), **_plural(values)}


def _plural(given: Mapping[str, Any]) -> dict[str, Any]:
    """`model`, `dataset` and `method` as lists of one, text as a list."""
    values = dict(given)
    for name in _LISTS:
        if name[:-1] in values:
            values[name] = values.pop(name[:-1])
        if isinstance(values.get(name), str):
            # A data set's options may hold commas.
            whole = values[name]
            values[name] = [whole] if name == "datasets" else _split(whole)
    return values


def _split(names: str) -> list[str]:
    return [part.strip() for part in names.split(",") if part.strip()]


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {value!r} is no number") from None
