"""The paper's evaluation sets: where each lies, how it is asked, what is right, how long it may be.

A set without its data, or without a package that its grader needs, is skipped with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote_plus

from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.evaluation.graders import find
from bmt_trainer.evaluation.intervals import Paired, paired, quarter
from bmt_trainer.evaluation.score import Score, outcomes

#: Prompts, and the most tokens of an answer -> the answers.
Answer = Callable[[Sequence[Sequence[Message]], int], list[str]]

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
    """One set. form: of its rows (`forms`); file: its place in a folder of data; hub: its place in
    the Hub, where it has one in this form; heldout: a quarter of it, as it is trained on too."""

    name: str
    form: str
    file: str
    grader: str
    max_new_tokens: int
    hub: str | None = None
    subject: str | None = None
    heldout: bool = False

    def load(self, folder: Path | None, seed: int = 0) -> list[Example]:
        """Its examples, in a shuffled order that the seed decides. Raises DataError."""
        examples = sources.load(self._place(folder), heldout=0, train=1 << 30, seed=seed).train
        # As `data.load` would hold out first for training on the rest, with the same seed.
        return examples[: quarter(len(examples))] if self.heldout else examples

    def _place(self, folder: Path | None) -> str:
        options = f"subject={quote_plus(self.subject)}" if self.subject else ""
        if folder is not None:
            for path in (folder / self.file, folder / f"{self.file}.gz"):
                if path.exists():
                    return f"{self.form}:{path}" + (options and f"?{options}")
        if self.hub is None:
            raise DataError(f"no file {self.file} in the folder of data ({folder or 'none given'})")
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
    """What one set came to: by model, the right answers; or why it was skipped."""

    suite: str
    right: Mapping[str, tuple[bool, ...]]
    lenient: Mapping[str, int]
    skipped: str | None = None

    def score(self, model: str) -> Score:
        right = self.right[model]
        return Score(sum(right), self.lenient[model], len(right))

    def against(self, first: str, second: str) -> Paired:
        """The second model compared with the first on the same examples."""
        return paired(self.right[first], self.right[second])

    def to_json(self) -> dict[str, Any]:
        if self.skipped is not None:
            return {"suite": self.suite, "skipped": self.skipped}
        found: dict[str, Any] = {
            "suite": self.suite,
            "scores": {model: self.score(model).to_json() for model in self.right},
        }
        if {"base", "mask"} <= self.right.keys():
            pair = self.against("base", "mask")
            found["difference"] = round(pair.difference, 6)
            found["interval95"] = [round(bound, 6) for bound in pair.interval]
            found["mcnemar_p"] = pair.p_value
        return found


def named(names: str) -> list[Suite]:
    """The sets of a comma-separated list; `mmlu-pro` and `bbeh` are all of theirs, `mmlu-pro law`
    one. Raises ConfigError."""
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        group, _, one = name.partition(" ")
        suites = [s for s in SUITES.get(group, ()) if not one or s.name == name]
        if not suites:
            raise ConfigError(f"tasks: {name!r} is none of {', '.join(SUITES)}")
        found += suites
    if not found:
        raise ConfigError(f"tasks: name some of {', '.join(SUITES)}")
    return found


def run(
    suites: Sequence[Suite],
    models: Mapping[str, Answer],
    *,
    folder: Path | None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[Result]:
    """Ask all models each set, one set after the other.

    limit: of examples a set; max_new_tokens: at most, where a set's own is more.
    """
    for suite in suites:
        try:
            examples = suite.load(folder, seed)
            grader = find(suite.grader)
        except (DataError, ConfigError) as error:
            yield Result(suite.name, {}, {}, str(error))
            continue
        if limit is not None and limit < len(examples):
            examples = Random(seed).sample(examples, limit)
        tokens = min(suite.max_new_tokens, max_new_tokens or suite.max_new_tokens)
        right, lenient = {}, {}
        for name, answer in models.items():
            texts = answer([e.prompt for e in examples], tokens)
            right[name] = tuple(outcomes(texts, examples, grader))
            lenient[name] = sum(outcomes(texts, examples, grader, lenient=True))
        yield Result(suite.name, right, lenient)
