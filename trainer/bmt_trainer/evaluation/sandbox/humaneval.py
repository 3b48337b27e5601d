"""Functions of the task file `humaneval.yaml`, which lm-eval calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bmt_trainer.evaluation.sandbox.programs import Sandbox


def programs(
    completions: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]
) -> list[list[str]]:
    """Prompt and completion of each problem, as lm-eval's `build_predictions` joins them."""
    pairs = zip(completions, docs, strict=True)
    return [[doc["prompt"] + completion for completion in given] for given, doc in pairs]


def passed(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of programs that run to the end with their test, in a sandbox."""
    [test], [[program]] = references, predictions
    return {"pass@1": float(Sandbox().passes(f"{program}\n{test}"))}
