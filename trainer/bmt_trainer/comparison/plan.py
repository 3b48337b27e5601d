"""Plan of a comparison: methods x models x data sets x settings, read from a recipe.

The fields of `Plan` are settings of the comparison; every other line of a recipe is a setting of
the trainer, as in the trainer's own recipes.
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

from bmt_trainer.comparison import provenance, recipe
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import suites
from bmt_trainer.evaluation.retention import LM_EVAL
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig, TrainConfig
from bmt_trainer.process import world_size
from bmt_trainer.settings import build, check, option

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
_METHOD = re.compile(
    r"base|wanda|full|bmt|lora-[1-9]\d*(?:-a[1-9]\d*)?|tinylora-[1-9]\d*|mth-\d+(?:\.\d+)?"
)
_MAPPINGS = ("sweep", "rates", "settings")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a comparison.

    sweep: values by setting of masks, all combinations of which are run; rates: learning rates by
    baseline, instead of the paper's; settings: of the trainer. Raises ConfigError, and
    bmt_core.CheckpointError for a folder that is not a model.
    """

    # Departure: several seeds; the paper's is 0.

    trainer: Literal["sft", "grpo", "sdft"] = option("Training method: sft, grpo or sdft.")
    output: Path = option("Folder of results.")  # noqa: RUF009
    methods: Sequence[str] = option(
        "Methods: base, wanda, full, lora-RANK, lora-RANK-aALPHA, tinylora-N, mth-PERCENT, bmt, "
        "each with an optional @RATE."
    )
    models: Sequence[str] = option("Models: folders or names on the Hub.")
    datasets: Sequence[str] = option("Data sets, as in the trainer's own command.")
    track_every: int = option(
        "Steps between measurements of closed gates and KL divergence; 0: none.", 0, least=0
    )
    track_heldout: bool = option(
        "Score the held-out examples at each measurement too: the best one is the paper's figure.",
        False,
    )
    retention: str | None = option(
        "Data set of another skill, scored at each measurement; lm-eval: the paper's six tasks.",
        None,
    )
    retention_grader: str = option("Grader of the retention data set.", "words")
    retention_examples: int = option("Examples of the retention data set.", 400, least=1)
    run_model_code: bool = option(
        "Run the programs that a model writes for lm-eval's humaneval, in a sandbox.", False
    )
    geometry: bool = option("Measure the geometry of the updates at the end.", False)
    suites: str | None = option(
        "Evaluation sets to score at the end, as in `bmt-train suites`.", None
    )
    suites_data: Path | None = option("Folder of the evaluation sets' files.", None)  # noqa: RUF009
    suites_limit: int | None = option("Examples of each evaluation set.", None, least=1)
    seeds: Sequence[int] = option("Seeds, a run of each; default: the trainer's seed.", ())
    sweep: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in recipe.LISTS:
            value = getattr(self, name)
            if isinstance(value, str) or not value:
                raise ConfigError(f"{name}: {value!r} must be a list with at least one entry")
        for name in _MAPPINGS:
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name}: {getattr(self, name)!r} must hold `name: value` lines")
        for name, values in self.sweep.items():
            if not isinstance(values, list | tuple) or not values:
                raise ConfigError(f"sweep: {name} needs a list of values")
        self._check_seeds()
        rates = {name: _number(value, f"rates: {name}") for name, value in self.rates.items()}
        object.__setattr__(self, "rates", rates)
        check(self, skip=(*recipe.LISTS, *_MAPPINGS, "seeds"))
        for method in self.methods:
            if not _METHOD.fullmatch(method.partition("@")[0]):
                raise ConfigError(
                    f"methods: {method!r} is not one of base, wanda, full, lora-RANK, "
                    "lora-RANK-aALPHA, tinylora-N, mth-PERCENT, bmt"
                )
        if self.suites is not None:
            suites.named(self.suites)
        if self.track_heldout and not self.track_every:
            raise ConfigError(
                "track_heldout: there are no measurements to score at; set track_every, or leave "
                "it out"
            )
        if self.run_model_code and self.retention != LM_EVAL:
            raise ConfigError(
                "run_model_code: only lm-eval's humaneval has programs; set retention: lm-eval, or "
                "leave it out"
            )
        for cell in self.cells():
            cell.check()  # an invalid run is an error before the first run starts

    def _check_seeds(self) -> None:
        seeds = self.seeds
        if not isinstance(seeds, list | tuple) or any(
            not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in seeds
        ):
            raise ConfigError(f"seeds: {seeds!r} must be a list of integers of at least 0")
        if seeds and ("seed" in self.settings or "seed" in self.sweep):
            raise ConfigError("seeds: the recipe sets seed too; leave one of them out")

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """Content identity of each model and data set, computed once because files may be large."""
        kept = [self.retention] if self.retention else []
        return {
            **{model: provenance.of_model(model) for model in self.models},
            **{name: provenance.of_dataset(name) for name in [*self.datasets, *kept]},
        }

    @cached_property
    def sources(self) -> provenance.Sources:
        """Contents that decide models, data and evaluation sets besides `contents`."""
        return provenance.Sources(
            suites.named(self.suites) if self.suites else (), self.suites_data
        )

    def cells(self) -> Iterator[Cell]:
        """All runs. A sweep changes only masks, so that each baseline is run once."""
        seen = set()
        names = list(self.sweep)
        for seed, *values in itertools.product(self.seeds or (None,), *self.sweep.values()):
            changes = dict(zip(names, values, strict=True))
            for model, dataset, method in itertools.product(
                self.models, self.datasets, self.methods
            ):
                own = changes if method.partition("@")[0] == "bmt" else {}
                run = (method, model, dataset, json.dumps(own, sort_keys=True, default=str), seed)
                if run not in seen:
                    seen.add(run)
                    yield Cell(self, method, model, dataset, own, seed)


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

    def check(self) -> None:
        """Raise ConfigError for settings that the run cannot have."""
        self._config(Path("run.bmt"))
        for name, value in {**self.plan.settings, **self.changes}.items():
            provenance.of_setting(name, value)

    def config(self) -> TrainConfig:
        """Settings of the trainer. Raises ConfigError."""
        return self._config(self.file.with_suffix(".bmt"))

    def _config(self, output: Path) -> TrainConfig:
        values = {
            **self.plan.settings,
            **self.changes,
            "model": self.model,
            "dataset": self.dataset,
            "output": output,
            "lean": "off",  # the paper's masks keep all deletions
            "resume": self.resumes,
            "overwrite": True,  # a run whose result exists is not run again
        }
        if self.seed is not None:
            values["seed"] = self.seed
        if self.rate is not None:
            values["learning_rate"] = self.rate
        if not self.resumes:
            values["checkpoint_every"] = 0
        made = build(CONFIGS[self.plan.trainer], values)
        for name in ("environment", "tools"):
            if getattr(made, name, None) is not None:
                raise ConfigError(
                    f"{name}: a comparison scores one answer to each prompt, without calls; leave "
                    "it out, or train by `bmt-train grpo`"
                )
        if made.push is not None:
            raise ConfigError(
                "push: a comparison trains many masks; push one of them with bmt-client push"
            )
        if made.from_mask is not None:
            raise ConfigError(
                "from_mask: a comparison starts each method from the base; leave it out"
            )
        if self.plan.track_heldout and not (
            made.heldout or made.heldout_share or getattr(made, "heldout_dataset", None)
        ):
            raise ConfigError(
                "track_heldout: heldout is 0, so there are no examples to score; set heldout, or "
                "leave track_heldout out"
            )
        if made.patience is not None:
            raise ConfigError(
                f"patience: {made.patience} has no effect in a comparison, which trains every "
                "method to its last step; leave it out"
            )
        if getattr(made, "server", None) is not None and self.kind not in ("base", "wanda", "bmt"):
            raise ConfigError(
                f"server: rollouts of {self.kind} cannot be sampled on a server, which has masks "
                "alone; leave it out, or compare bmt alone"
            )
        ours = self.kind in ("base", "wanda", "bmt")
        if getattr(made, "rollouts", "") == "vllm" and not ours:
            raise ConfigError(
                f"rollouts: vLLM has masks alone, and {self.kind} changes weights; leave it out, "
                "or compare bmt alone"
            )
        if world_size() > 1 and self.plan.trainer == "sdft" and not ours:
            raise ConfigError(
                f"methods: {self.kind} by sdft trains in one process, not {world_size()}, because "
                "its teacher is a second model; leave it out, or start one process"
            )
        return made

    @property
    def resumes(self) -> bool:
        """True if an interrupted run resumes from its last checkpoint."""
        if world_size() > 1 or self.kind in ("base", "wanda"):
            return False  # a comparison in several processes starts a method over
        # TRL's own teacher of a baseline is not in its checkpoints.
        return self.kind == "bmt" or self.plan.trainer != "sdft"

    @property
    def rate(self) -> float | None:
        """The learning rate, or None for the trainer's setting. Raises ConfigError."""
        _, at, rate = self.method.partition("@")
        if at:
            return _number(rate, f"methods: {self.method}")
        if self.kind in ("base", "wanda", "bmt"):
            return None
        known = {**RATES[self.plan.trainer], **self.plan.rates}
        for name in (self.kind, self.kind.partition("-")[0]):
            if name in known:
                return known[name]
        raise ConfigError(
            f"methods: {self.kind} needs a learning rate; write {self.kind}@1e-4 or set rates"
        )

    @cached_property
    def key(self) -> str:
        """All that determines the result, as JSON; equal on every machine. Raises DataError."""
        sources = self.plan.sources
        settings = {**self.plan.settings, **self.changes}
        data = [self.dataset]
        for name in provenance.DATASETS:
            other = settings.get(name) or ()
            data += [other] if isinstance(other, str) else map(str, other)
        retention = self.plan.retention
        return _json(
            {
                **self._decisive,
                "sources": {
                    "model": sources.of_model(self.model),
                    "data": [sources.of_dataset(name) for name in data],
                    "retention": retention and sources.of_retention(retention),
                    "suites": sources.of_suites,
                    # Results of builds without these settings have neither.
                    **({"track_heldout": True} if self.plan.track_heldout else {}),
                    **({"run_model_code": True} if self.plan.run_model_code else {}),
                },
            }
        )

    @property
    def _decisive(self) -> dict[str, Any]:
        """The part of the key that names results of earlier builds."""
        measured = ["track_every", "retention_grader", "retention_examples", "geometry"]
        measured += ["suites", "suites_limit"]
        contents, retention = self.plan.contents, self.plan.retention
        settings = {**self.plan.settings, **self.changes}
        return {
            **{n: provenance.of_setting(n, getattr(self.plan, n)) for n in measured},
            "retention": retention and contents[retention],
            "trainer": self.plan.trainer,
            # Seed 0 is left out: results of builds without `seeds` are seed 0's.
            "settings": {
                **{n: provenance.of_setting(n, v) for n, v in settings.items()},
                **({"seed": self.seed} if self.seed else {}),
            },
            "method": self.method,
            "rate": self.rate,
            "model": contents[self.model],
            "dataset": contents[self.dataset],
        }

    @property
    def file(self) -> Path:
        """File of the result, named by the run and a hash of `key`. Raises DataError."""
        return self._named(self.key)

    @property
    def earlier(self) -> Path:
        """File of the same run's result by builds that knew less of what decides it."""
        return self._named(_json(self._decisive))

    def _named(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        model = _plain(Path(self.model).name)
        name, _, query = self.dataset.partition("?")
        data = _plain(f"{name.rpartition('/')[2].split('.')[0]}-{query}")[:40]
        return self.plan.output / f"{model}.{data}.{_plain(self.method)}.{digest}.json"


def read(path: Path | None, changes: Mapping[str, Any], name: str | None = None) -> Plan:
    """Read a plan from a recipe, with changes by setting. Raises ConfigError.

    name: of the comparison, in a recipe that has several.
    """
    values = recipe.settings(path, name) if path else {}
    values |= recipe.plural(changes)
    own = {f.name for f in dataclasses.fields(Plan)} - {"settings"}
    settings = {name: value for name, value in values.items() if name not in own}
    chosen = {name: value for name, value in values.items() if name in own}
    return build(Plan, {**chosen, "settings": settings})


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {value!r} is not a number") from None
