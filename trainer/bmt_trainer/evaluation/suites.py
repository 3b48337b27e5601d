"""The paper's evaluation sets: location, form, grader and answer length of each, and their scores.

A set whose data or whose grader's package is missing is skipped with a reason.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import torch
from bmt_core import BmtError

from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import ConfigError, DataError, TrainerError
from bmt_trainer.evaluation.generate import Generate
from bmt_trainer.evaluation.graders import find
from bmt_trainer.evaluation.intervals import Paired, paired, quarter
from bmt_trainer.evaluation.score import Score, is_right

# New tokens of an answer with reasoning.
_LONG = 4096
SUBJECTS = (
    *("biology", "business", "chemistry", "computer science", "economics", "engineering"),
    *("health", "history", "law", "math", "other", "philosophy", "physics", "psychology"),
)
SUBTASKS = (
    *("boardgame_qa", "boolean_expressions", "buggy_tables", "causal_understanding"),
    *("disambiguation_qa", "dyck_languages", "geometric_shapes", "hyperbaton", "linguini"),
    *("movie_recommendation", "multistep_arithmetic", "nycc", "object_counting"),
    *("object_properties", "sarc_triples", "shuffled_objects", "spatial_reasoning", "sportqa"),
    *("temporal_sequence", "time_arithmetic", "web_of_lies", "word_sorting", "zebra_puzzles"),
)


@dataclass(frozen=True)
class Suite:
    """One evaluation set.

    form: of its rows (`data.benchmark_formats`); file: path in a folder of data; hub: Hub data set
    of this form, if there is one; subject: of its rows; heldout: score only the quarter that
    training on the same set holds out.
    """

    name: str
    form: str
    file: str
    grader: str
    max_new_tokens: int
    hub: str | None = None
    subject: str | None = None
    heldout: bool = False

    def load(
        self, folder: Path | None, seed: int = 0, *, duplicates: bool = False
    ) -> list[Example]:
        """Load its examples, shuffled by the seed. Raises DataError.

        duplicates: keep rows with the prompt of another, as the paper counts.
        """
        return self.split(folder, seed, duplicates=duplicates)[0]

    def split(
        self, folder: Path | None, seed: int, *, duplicates: bool
    ) -> tuple[list[Example], list[Example]]:
        """Its examples, and those that are for training; arguments as of `load`."""
        name = self.dataset(folder)
        if duplicates:
            name += ("&" if "?" in name else "?") + "duplicates=keep"
        examples = sources.load(name, heldout=0, train=1 << 30, seed=seed).train
        if not duplicates:
            # One of each prompt, the one that is held out of a prompt with several.
            examples = list({example.key: example for example in examples}.values())
        # The examples that `sources.load` with the same seed holds out from training.
        count = quarter(len(examples)) if self.heldout else len(examples)
        return examples[:count], examples[count:]

    def dataset(self, folder: Path | None) -> str:
        """The data set's name, as `sources.load` takes it. Raises DataError without one."""
        options = f"subject={quote(self.subject)}" if self.subject else ""
        if folder is not None:
            for path in (folder / self.file, folder / f"{self.file}.gz"):
                if path.exists():
                    return f"{self.form}:{path}" + (options and f"?{options}")
        if self.hub is None:
            raise DataError(f"no file {self.file} in the data folder ({folder or 'none given'})")
        joined = "&" if "?" in self.hub else "?"
        return f"{self.form}:{self.hub}" + (options and f"{joined}{options}")


def _math(name: str, file: str, hub: str | None = None) -> Suite:
    return Suite(name, "math", f"simplerl_eval/{file}.jsonl", "math", _LONG, hub)


SUITES: Mapping[str, tuple[Suite, ...]] = {
    "gsm8k": (
        Suite(
            *("gsm8k", "gsm8k", "gsm8k/test.jsonl", "gsm8k", _LONG),
            hub="openai/gsm8k?config=main&split=test",
        ),
    ),
    "gsm8k-boxed": (
        Suite(
            *("gsm8k-boxed", "gsm8k-boxed", "gsm8k/test.jsonl", "math", _LONG),
            hub="openai/gsm8k?config=main&split=test",
        ),
    ),
    "math500": (_math("math500", "math500", "HuggingFaceH4/MATH-500?split=test"),),
    "minerva": (_math("minerva", "minerva_math"),),
    "olympiadbench": (_math("olympiadbench", "olympiadbench"),),
    "aime24": (_math("aime24", "aime24"),),
    "amc23": (_math("amc23", "amc23"),),
    "mmlu-pro": tuple(
        Suite(
            *(f"mmlu-pro {subject}", "mmlu-pro", "mmlu_pro/test.jsonl", "letter", 32),
            hub="TIGER-Lab/MMLU-Pro?split=test",
            subject=subject,
            heldout=True,
        )
        for subject in SUBJECTS
    ),
    "bbeh": tuple(
        Suite(f"bbeh {task}", "bbeh", f"bbeh/bbeh_{task}.json", "bbeh", 64, heldout=True)
        for task in SUBTASKS
    ),
    "toolalpaca": (
        Suite("toolalpaca", "tools", "toolalpaca/sdft_tooluse_eval.jsonl", "tools", 1024),
    ),
    "toolalpaca-simulated": (
        Suite("toolalpaca-simulated", "tools", "toolalpaca/eval_simulated.json", "tools", 1024),
    ),
}


@dataclass(frozen=True)
class Result:
    """Outcome of one set.

    right: by model, True for each answer that is right by the strict reading; lenient: by model,
    the number right by the lenient reading; skipped: reason, if the set was not run; cut: by model,
    the number of answers that ended at max_new_tokens; unfinished: of those within a thought;
    overrun: by model, the number that the math grader could not finish within its bounds; failed:
    an error ended it; trained_on: examples with the prompt of a row
    that is for training, if duplicates are kept.
    """

    suite: str
    right: Mapping[str, tuple[bool, ...]]
    lenient: Mapping[str, int]
    skipped: str | None = None
    cut: Mapping[str, int] = field(default_factory=dict)
    unfinished: Mapping[str, int] = field(default_factory=dict)
    overrun: Mapping[str, int] = field(default_factory=dict)
    failed: bool = False
    trained_on: int = 0

    def score(self, model: str) -> Score:
        """The score of one model."""
        right = self.right[model]
        return Score(
            sum(right),
            self.lenient[model],
            len(right),
            cut=self.cut.get(model, 0),
            unfinished=self.unfinished.get(model, 0),
            overrun=self.overrun.get(model, 0),
        )

    def against(self, first: str, second: str) -> Paired:
        """Paired comparison of the second model with the first."""
        return paired(self.right[first], self.right[second])

    def cells(self) -> list[tuple[str, ...]]:
        """A row of text for each model, in the order of HEADER."""
        rows: list[tuple[str, ...]] = []
        for name in self.right:
            score = self.score(name)
            low, high = score.interval
            p = f"{self.against('base', name).p_value:.2g}" if name != "base" else ""
            rows.append(
                (
                    *(self.suite, name, f"{100 * score.accuracy:.2f}"),
                    f"{100 * low:.1f} to {100 * high:.1f}",
                    *(f"{100 * score.lenient / score.total:.1f}", p, str(score.total)),
                    *(str(score.cut), str(score.unfinished)),
                )
            )
        return rows

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"{self.suite}: {'failed' if self.failed else 'skipped'}, {self.skipped}"
        line = f"{self.suite}: " + "; ".join(f"{n} {self.score(n)}" for n in self.right)
        if not self.trained_on:
            return line
        share = self.trained_on / max(map(len, self.right.values()))
        return f"{line}; prompts that are trained on: {self.trained_on} ({share:.1%})"

    def to_json(self) -> dict[str, Any]:
        """The outcome for results; base and mask are compared if both ran."""
        if self.skipped is not None:
            return {"suite": self.suite, "skipped": self.skipped}
        summary: dict[str, Any] = {
            "suite": self.suite,
            "scores": {model: self.score(model).to_json() for model in self.right},
        }
        if self.trained_on:
            summary["trained_on"] = self.trained_on
        if {"base", "mask"} <= self.right.keys():
            pair = self.against("base", "mask")
            summary["difference"] = round(pair.difference, 6)
            summary["interval95"] = [round(bound, 6) for bound in pair.interval]
            summary["mcnemar_p"] = pair.p_value
        return summary


HEADER = ("set", "model", "accuracy, %", "95 %", "lenient, %", "p", "n", "cut", "unfinished")


def named(names: str) -> list[Suite]:
    """The sets of a comma-separated list. Raises ConfigError.

    `mmlu-pro` and `bbeh` name all their subjects and subtasks, `mmlu-pro law` names one. A set that
    is named twice is there once.
    """
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        group, _, one = name.partition(" ")
        suites = [s for s in SUITES.get(group, ()) if not one or s.name == name]
        if not suites:
            raise ConfigError(f"tasks: {name!r} is not one of {', '.join(SUITES)}")
        chosen += [suite for suite in suites if suite not in chosen]
    if not chosen:
        raise ConfigError(f"tasks: name at least one of {', '.join(SUITES)}")
    return chosen


def _failed(suite: Suite, error: Exception) -> Result:
    """The outcome of a set that an error ended; of a fault of ours with its traceback."""
    if isinstance(error, TrainerError | BmtError | OSError):
        reason = str(error)
    else:
        traceback.print_exception(error)
        first = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {first}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            reason += "; lower --batch-size or --max-new-tokens"
    return Result(suite.name, {}, {}, reason, failed=True)


def run(
    suites: Sequence[Suite],
    models: Mapping[str, Generate],
    *,
    folder: Path | None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    duplicates: bool = False,
) -> Iterator[Result]:
    """Score all models on each set, one set after the other; one that fails ends no other.

    models: by name, as of `backends`; folder: of data files; limit: examples of each set;
    max_new_tokens: upper limit for sets whose own limit is higher; duplicates: as in `Suite.load`.
    """
    for suite in suites:
        try:
            examples, rest = suite.split(folder, seed, duplicates=duplicates)
            grader = find(suite.grader)
        except (DataError, ConfigError) as error:
            yield Result(suite.name, {}, {}, str(error))
            continue
        except Exception as error:
            yield _failed(suite, error)
            continue
        if limit is not None and limit < len(examples):
            examples = Random(seed).sample(examples, limit)
        prompts = {example.key for example in rest}
        trained_on = sum(example.key in prompts for example in examples)
        tokens = min(suite.max_new_tokens, max_new_tokens or suite.max_new_tokens)
        try:
            marks = {
                name: grader.marks(answer(examples, tokens), examples)
                for name, answer in models.items()
            }
        except (DataError, ConfigError) as error:  # a prompt beyond the context
            yield Result(suite.name, {}, {}, str(error))
            continue
        except Exception as error:  # a server's, weights that are not finite, memory that is full
            yield _failed(suite, error)
            continue
        yield Result(
            suite.name,
            {name: tuple(map(is_right, found.strict)) for name, found in marks.items()},
            {name: sum(map(is_right, found.lenient)) for name, found in marks.items()},
            cut={name: found.cut for name, found in marks.items()},
            unfinished={name: found.unfinished for name, found in marks.items()},
            overrun={name: found.overrun for name, found in marks.items()},
            trained_on=trained_on,
        )
