"""Measurements of a run of a comparison: scores, retention, geometry of its update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from bmt_trainer import models
from bmt_trainer.comparison import baselines
from bmt_trainer.comparison.baselines import Tuned, Weights
from bmt_trainer.comparison.plan import Plan
from bmt_trainer.comparison.tracking import Row
from bmt_trainer.data import sources
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example, with_template_kwargs
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import retention, suites, update_geometry
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.formulas.overruns import described
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.kl import Policy
from bmt_trainer.evaluation.score import grade, is_right, score_of
from bmt_trainer.evaluation.thoughts import Completion
from bmt_trainer.methods.pipeline import Loaded
from bmt_trainer.rewards.find import find

Result = dict[str, Any]
#: The note of a run: tasks of lm-eval without a score, each with its reason.
SKIPPED = "retention_skipped"


def score_heldout(loaded: Loaded, model: nn.Module, label: str) -> Result:
    """Score of the model's greedy answers to the held-out examples.

    `right` has a character per example, in their order, for paired tests: "1" if the answer is
    right by the run's reading, else "0".
    """
    examples, grader = loaded.split.heldout, loaded.grader
    if not examples:
        return {"score": None, "right": ""}
    with loaded.display.stage(f"evaluate {label}", len(examples)) as advance:
        texts = _answers(loaded, model, examples, loaded.config.max_new_tokens, advance)
    marks = grader.marks(texts, examples)
    right = list(map(is_right, marks.chosen))
    line = f"{label}: {sum(right)} of {len(right)} right"
    loaded.display.say(line + (f", {described(marks.overrun)}" if marks.overrun else ""))
    return {
        "score": score_of(marks, grader.name).to_json(),
        "reading": loaded.reading,
        "right": "".join("01"[one] for one in right),
    }


def _answers(
    loaded: Loaded,
    model: nn.Module,
    examples: Sequence[Example],
    tokens: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Completion]:
    """Greedy answers of at most `tokens` tokens, to prompts as those of the run are rendered."""
    return generate(
        cast(PreTrainedModel, model),
        loaded.tokenizer,
        _rendered(loaded, examples),
        max_new_tokens=tokens,
        batch_size=loaded.config.eval_batch_size,
        advance=advance,
        reader=CompletionReader(loaded.tokenizer, loaded.config.thoughts),
    )


def _rendered(loaded: Loaded, examples: Sequence[Example]) -> list[Example]:
    return with_template_kwargs(examples, loaded.config.chat_template_kwargs)


def score_suites(plan: Plan, loaded: Loaded, model: nn.Module) -> list[Result]:
    """Scores on the plan's evaluation sets."""
    config = loaded.config
    assert plan.suites is not None
    results = suites.run(
        suites.named(plan.suites),
        {"tuned": partial(_answers, loaded, model)},
        folder=plan.suites_data,
        limit=plan.suites_limit,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    return [result.to_json() for result in results]


def retention_score(plan: Plan, loaded: Loaded, tuned: Tuned) -> Callable[[], Row]:
    """A function that scores another skill: a data set, or lm-eval's tasks.

    It returns `retention` and `retention_lenient`, shares of right answers, and n.
    """
    assert plan.retention is not None
    model, config = cast(PreTrainedModel, tuned.model), loaded.config
    if plan.retention == "lm-eval":

        def by_lm_eval() -> Row:
            with models.evaluating(model), tuned.tuned():
                scores = retention.retained(
                    model, loaded.tokenizer, run_model_code=plan.run_model_code
                )
            if not scores.accuracy:
                raise ConfigError(f"retention: lm-eval runs no task ({scores.skipped})")
            if scores.skipped != loaded.run.notes.get(SKIPPED, {}):
                loaded.run.note(SKIPPED, dict(scores.skipped))
                loaded.display.say(
                    f"retention: no mean, because tasks have no score: {dict(scores.skipped)}"
                )
            row: Row = {"n": 0, **scores.accuracy}
            if scores.mean is not None:
                row |= {"retention": scores.mean, "retention_lenient": scores.mean}
            return row

        return by_lm_eval
    count = plan.retention_examples
    split = sources.load(plan.retention, heldout=count, train=0, seed=config.seed)
    encoder = Encoder(loaded.tokenizer)
    examples = [encoder.checked(example) for example in _rendered(loaded, split.heldout)]
    grader = find(plan.retention_grader).for_model(
        loaded.tokenizer, config.max_new_tokens, thoughts=config.thoughts
    )

    def by_answers() -> Row:
        with tuned.tuned():
            texts = _answers(loaded, model, examples, config.max_new_tokens)
        score = grade(texts, examples, grader)
        shares = {"retention": score.accuracy, "retention_lenient": score.lenient / score.total}
        return {**shares, "n": score.total}

    return by_answers


def heldout_score(loaded: Loaded, tuned: Tuned) -> Callable[[], Row]:
    """A function that scores the held-out examples: `heldout`, the share of right answers."""
    examples, model = loaded.split.heldout, cast(PreTrainedModel, tuned.model)

    def by_answers() -> Row:
        with tuned.tuned():
            texts = _answers(loaded, model, examples, loaded.config.max_new_tokens)
        right = list(map(is_right, loaded.grader.marks(texts, examples).chosen))
        return {"heldout": sum(right) / len(right)}

    return by_answers


def best_of(track: Sequence[Row]) -> Row | None:
    """Step and share of the best held-out score, the earliest of equals; None without any.

    The paper's choice of a checkpoint. It is made by the score that it reports, so it is too good.
    """
    scored = [row for row in track if "heldout" in row]
    if not scored:
        return None
    best = max(scored, key=lambda row: (row["heldout"], -row["step"]))
    return {"step": best["step"], "heldout": best["heldout"]}


def base_policy(loaded: Loaded, tuned: Tuned) -> Policy:
    """The base: the same model if its weights are still the base's, else a second copy."""
    if tuned.base is not None:
        return tuned.model, tuned.base
    # In the arithmetic of the tuned model: otherwise the KL divergence would start at that of two
    # roundings, not at 0.
    base = models.load_model(loaded.folder, loaded.model.device)
    base.to(dtype=loaded.model.dtype)
    return base, lambda: models.autocast_of(tuned.model)


@torch.no_grad()
def geometry(loaded: Loaded, tuned: Tuned) -> Result:
    """Geometry of the update of each projection, summarized (paper, section 5.5)."""
    base, _ = base_policy(loaded, tuned)
    return update_geometry.summary(list(_measure(loaded, tuned.weights(base))))


def _measure(loaded: Loaded, weights: Weights) -> Iterator[tuple[str, update_geometry.Geometry]]:
    total = len(baselines.projections(loaded.model))
    with loaded.display.stage("geometry", total) as advance:
        for name, before, after in weights:
            yield name, update_geometry.measure(before, after)
            advance(1)
