"""The grader of a reinforcement job as a reward of GRPO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmt_core import GraderError
from bmt_core.fine_tuning import graders
from bmt_core.fine_tuning.graders import (
    Grader,
    Multi,
    One,
    PythonCode,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)

from bmt_trainer.errors import ConfigError, RewardError
from bmt_trainer.evaluation.thoughts import completion_of
from bmt_trainer.rewards.openai_graders.model_score import ModelScores
from bmt_trainer.rewards.openai_graders.python_code import PythonScores
from bmt_trainer.rewards.openai_graders.similarity import similarity
from bmt_trainer.rewards.reward import text_of


class JobReward:
    """Scores of answers by a grader. file: of the grader and the worker's settings, as JSON.

    What stands after an answer's thoughts is graded. Raises ConfigError where the grader cannot
    work here.
    """

    def __init__(self, file: Path) -> None:
        try:
            given = json.loads(file.read_text())
            self._grader = graders.parse(given["grader"])
        except (OSError, ValueError, KeyError, GraderError) as error:
            raise ConfigError(f"grader: {error}") from None
        kinds = graders.graders_of(self._grader)
        self._models = ModelScores(given.get("server"))
        self._programs = PythonScores()
        if any(isinstance(one, PythonCode) for one in kinds):
            if not given.get("run_code"):
                raise ConfigError(
                    "grader: python is off; this server's operator allows it by bmt-train worker "
                    "--run-grader-code"
                )
            self._programs.check()
        for one in kinds:
            if isinstance(one, TextSimilarity):
                similarity(one.metric, "a", "a")  # a package that is missing is found now

    def __call__(self, completions: Sequence[Any], item: Sequence[str]) -> list[float]:
        """A number for each completion. Raises RewardError."""
        rows = [json.loads(text) for text in item]
        texts = [completion_of(_text(completion)).answer for completion in completions]
        try:
            return self._scores(self._grader, rows, texts)
        except GraderError as error:
            raise RewardError(f"grader: {error}") from None

    def _scores(
        self, grader: Grader, rows: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> list[float]:
        if isinstance(grader, Multi):
            each = {n: self._scores(one, rows, texts) for n, one in grader.graders.items()}
            return [
                grader.formula.value({name: scores[at] for name, scores in each.items()})
                for at in range(len(texts))
            ]
        return self._of_one(grader, rows, texts)

    def _of_one(
        self, grader: One, rows: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> list[float]:
        pairs = list(zip(rows, texts, strict=True))
        if isinstance(grader, ScoreModel):
            asked = [[(r, t.render(*pair)) for r, t in grader.messages] for pair in pairs]
            return self._models.scores(grader, asked)
        if isinstance(grader, PythonCode):
            return [self._programs.score(grader, *pair) for pair in pairs]
        compared = ((grader.input.render(*p), grader.reference.render(*p)) for p in pairs)
        if isinstance(grader, StringCheck):
            return [float(_is_so(grader.operation, *two)) for two in compared]
        return [similarity(grader.metric, *two) for two in compared]


def _is_so(operation: str, text: str, reference: str) -> bool:
    if operation in ("eq", "ne"):
        return (text == reference) is (operation == "eq")
    if operation == "ilike":
        text, reference = text.casefold(), reference.casefold()
    return reference in text


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return text_of(completion[-1]) if completion else ""
