"""A GRPO step with rollouts by vLLM in process against transformers', and both under one mask."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train
from bmt_trainer.methods.rollouts.in_process.engine import EngineRollouts
from bmt_trainer.settings import build, read_yaml
from torch import Tensor

from benchmarks.harness.environment import demo_model
from benchmarks.harness.stats import estimate, median
from reproduce.experiments.record import Figure, keep, ratio

COMMAND = "make reproduce NAME=costs-rollouts"
RECIPE = Path(__file__).parents[3] / "recipes" / "grpo-arithmetic.yaml"
# Steps of each kind after a warm-up of both.
TURNS = 8
# Times that the first step's prompts are sampled by both, to compare distributions.
DRAWS = 6


def compare() -> None:
    """Steps of one run in turns; keep the ratios of their times and the log-probabilities."""
    seen = InTurns()
    plain = EngineRollouts.turn
    EngineRollouts.turn = seen.turn_of(plain)  # type: ignore[method-assign]
    try:
        with TemporaryDirectory() as folder:
            train(_config(Path(folder) / "mask.bmt"))
    finally:
        EngineRollouts.turn = plain  # type: ignore[method-assign]
    steps, rollouts = seen.steps, seen.rollouts
    figures = [
        ratio("grpo_step_time_vllm_over_transformers", _ratios(steps), COMMAND),
        ratio("rollout_time_vllm_over_transformers", _ratios(rollouts), COMMAND),
        *seen.figures,
    ]
    for name, spent in (("step", steps), ("rollouts", rollouts)):
        for kind in spent:
            print(f"{name:8} {kind:12} {median(spent[kind][1:]):6.2f} s")
    keep(figures)
    for figure in figures:
        print(figure.id, figure.value, figure.interval)


def _config(output: Path) -> GrpoConfig:
    settings = {
        **read_yaml(RECIPE),
        "model": str(demo_model()),
        "output": str(output),
        "rollouts": "vllm",
        "steps": 2 * (TURNS + 1) + 1,
        "precision": "fp32",
        "heldout": 0,
        "lean": "off",
        "validation": 0,
        "select": "last",
        "checkpoint_every": 0,
        # A quarter of the recipe's step, so that steps follow each other within a minute.
        "prompts_per_step": 4,
        "completions": 4,
        "micro_batch": 16,
        # No part of a step.
        "calibration_prompts": 16,
    }
    return build(GrpoConfig, settings)


def _ratios(spent: dict[str, list[float]]) -> Any:
    """vLLM's over transformers', of steps that follow each other, without the first of each."""
    pairs = zip(spent["vllm"][1:], spent["transformers"][1:], strict=False)
    return estimate([[a / b] for a, b in pairs])


class InTurns:
    """Rollouts of even steps by vLLM, of odd ones by transformers, and the time of each."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {"vllm": [], "transformers": []}
        self.rollouts: dict[str, list[float]] = {"vllm": [], "transformers": []}
        self.figures: list[Figure] = []
        self._kind, self._began = "", 0.0

    def turn_of(self, plain: Any) -> Any:
        """`EngineRollouts.turn`, or transformers' at every other step."""

        def turn(rollouts: Any, prompts: Any, trainer: Any, *, first: bool) -> Any:
            now, step = time.perf_counter(), trainer.state.global_step
            if self._kind:  # a step lasts until the next one's rollouts
                self.steps[self._kind].append(now - self._began)
            if step == 1:
                self.figures = _distributions(rollouts, prompts, trainer)
            self._kind = ("vllm", "transformers")[step % 2]
            self._began = time.perf_counter()
            if self._kind == "vllm":
                made = plain(rollouts, prompts, trainer, first=first)
            else:
                made = trainer.sampled(prompts), None
            self.rollouts[self._kind].append(time.perf_counter() - self._began)
            return made

        return turn


def _distributions(rollouts: Any, prompts: Any, trainer: Any) -> list[Figure]:
    """Both kinds' completions of the same prompts under the same mask.

    The log-probability of each of vLLM's tokens, by vLLM and by transformers; and, all of them by
    transformers, those of the tokens that either kind samples: their means, and the greatest
    distance of the distributions of a completion's sum (Kolmogorov and Smirnov).
    """
    asked: list[list[int]] = [list(ids) for ids in prompts]
    rollouts._push(trainer)
    ours: list[tuple[list[int], list[int], list[float] | None]] = []
    theirs = list(ours)
    sampling = {**rollouts._sampling, "temperature": 1.0}
    for draw in range(DRAWS):
        seeds = [1_000_000 * (draw + 1) + at for at in range(len(asked))]
        limits = [rollouts._max_tokens] * len(asked)
        made = rollouts._engine.sample(asked, [1] * len(asked), seeds, limits, sampling)
        ours += [(ids, *completion[0]) for ids, completion in zip(asked, made, strict=True)]
        kept, trainer.args.temperature = trainer.args.temperature, 1.0
        drawn = trainer.sampled(asked)
        trainer.args.temperature = kept
        theirs += [(ids, done, None) for ids, done in zip(asked, drawn, strict=True)]
    scored = [_scores(trainer, rows) for rows in (ours, theirs)]
    said = torch.tensor([value for _, _, values in ours for value in values or ()])
    difference = (said - torch.cat(scored[0])).abs()
    means = [torch.cat(values).mean() for values in scored]
    sums = [torch.tensor([float(v.sum()) for v in values]).sort().values for values in scored]
    edges = torch.cat(sums)
    distance = (_below(sums[0], edges) - _below(sums[1], edges)).abs().max()
    # Of two samples of n each from one distribution 5 in 100 are further apart than this.
    chance = 1.358 * (2 / len(sums[0])) ** 0.5
    spread = [torch.stack([v.mean() for v in values]) for values in scored]
    gap = float(spread[0].mean() - spread[1].mean())
    error = 1.96 * float(sum(x.var() / len(x) for x in spread) ** 0.5)
    print(
        f"{len(ours)} completions each, {difference.numel()} tokens of vLLM's: mean log p "
        f"{means[0]:.4f} and {means[1]:.4f}; distance {distance:.3f}, by chance up to {chance:.3f}"
    )
    count = difference.numel()
    return [
        _figure("rollout_logprob_difference_max", float(difference.max()), None, count),
        _figure("rollout_logprob_difference_mean", float(difference.mean()), None, count),
        _figure("rollout_logprob_gap", gap, (gap - error, gap + error), len(ours)),
        _figure("rollout_distance_over_chance", float(distance) / chance, None, len(ours)),
    ]


def _figure(name: str, value: float, interval: tuple[float, float] | None, n: int) -> Figure:
    return Figure(id=name, value=value, interval=interval, n=n, command=COMMAND)


@torch.no_grad()
def _scores(trainer: Any, rows: list[tuple[list[int], list[int], Any]]) -> list[Tensor]:
    """log p of each completion's tokens by transformers, a row at a time, hard mask."""
    found = []
    model = trainer.model.eval()
    with trainer.attached.state.use("hard"):
        for prompt, completion, _ in rows:
            ids = torch.tensor([[*prompt, *completion]], device=model.device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            log_p = torch.log_softmax(logits, -1)
            found.append(log_p.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu())
    model.train()
    return found


def _below(values: Tensor, edges: Tensor) -> Tensor:
    """The share of ascending `values` up to each of `edges`."""
    return torch.searchsorted(values, edges, right=True) / len(values)
