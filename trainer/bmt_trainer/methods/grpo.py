"""Reinforcement learning of a mask with verifiable rewards (Eq. 2-3), on TRL's `GRPOTrainer`.

Rollouts run under the hard mask (Eq. 8), losses under the soft one (Eq. 6), and the KL reference
is the base itself: the same model with its mask off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bmt_core import Mask
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import join
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import on_policy, pipeline, schedules
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.finish import finish
from bmt_trainer.methods.fit import fit_with_trl, trl_arguments
from bmt_trainer.methods.pipeline import Loaded, Logs, Rows
from bmt_trainer.methods.rollouts import environments
from bmt_trainer.methods.rollouts.environments import Environments
from bmt_trainer.methods.rollouts.in_process.of_run import (
    check_engine,
    engine_rollouts,
    rows_at_once,
)
from bmt_trainer.methods.rollouts.of_run import check_servers, server_rollouts
from bmt_trainer.methods.rollouts.ratio import RolloutPolicy
from bmt_trainer.methods.rollouts.scores import RolloutScores
from bmt_trainer.methods.rollouts.turns import Turns
from bmt_trainer.methods.trl_mixins import BaseReference, HardRollouts, MaskedTraining
from bmt_trainer.methods.validation import of_run
from bmt_trainer.models import load_model
from bmt_trainer.process import world_size
from bmt_trainer.rewards.combined import ROW, Rewards
from bmt_trainer.rewards.find import find
from bmt_trainer.rewards.trl_functions import trl_functions, trl_rows
from bmt_trainer.rewards.watch import Limits, Watch

# Steps whose calls are summed up at the end of a run.
_LAST = 10


def train(config: GrpoConfig, display: Display | None = None) -> Mask:
    """Train a mask on its own sampled answers, and write it to `config.output`.

    `<output>.history.json` holds each step's reward, closed gates and validation. Raises
    TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        config = schedules.of_run(config, loaded)
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached)
        pipeline.initialize(loaded, attached, live_alpha=config.live_alpha)
        validation, watch = on_policy.validation(config, loaded, attached), _watch(config, loaded)
        logs = fit(config, loaded, attached, rows, [validation, watch]) if config.steps else []
        metadata: dict[str, Any] = {"method": "grpo", "train_examples": len(rows)}
        called = _calls(loaded, logs) if loaded.environments and logs else []
        if warnings := [*watch.warnings, *validation.warnings(), *called]:
            metadata["warnings"] = warnings
        return finish(loaded, attached, metadata | of_run.choose(loaded, attached, validation))


def load(config: GrpoConfig, display: Display, *, scored: bool = True) -> tuple[Loaded, Rows]:
    """Read prompts and answers as rows, and load the run. scored: as in `pipeline.load`."""
    join(config.device, say=display.say)
    config.accumulation(world_size())
    acting = environments.named(config.environment, config.tools)
    rewards = _rewards(config, acting)
    inputs, examples = on_policy.read(config, display, rewards, environments=acting)
    check_servers(config, inputs)
    check_engine(config, inputs)
    made = [environments.try_reset(acting, e.columns) for e in inputs.grader.tried(examples)]
    inputs.grader.try_on(examples, display.say, made if acting.factory else None)
    return pipeline.load(inputs, scored=scored), _rows(inputs.tokenizer, examples)


def _rewards(config: GrpoConfig, acting: Environments) -> Rewards:
    """The rewards of the settings; none if the environment rewards, and no others are named."""
    unnamed = config.reward == GrpoConfig.__dataclass_fields__["reward"].default
    if acting.rewards_itself and unnamed and not config.overlong_penalty:
        return Rewards(acting.name, ())
    return find(config.reward, overlong=config.overlong_penalty)


def _rows(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Rows:
    """Rows of the trainer's table, with the example of each."""
    return on_policy.prompt_rows(
        tokenizer,
        examples,
        answer=lambda e: e.answer,
        columns=lambda e: e.columns,
        example=lambda e: e,
    )


def _calls(loaded: Loaded, logs: Logs) -> list[str]:
    """Show how often the last steps' rollouts called; a warning if they did not."""
    last = logs[-_LAST:]
    calls, failed = (
        sum(entry.get(f"tools/{name}_frequency", 0.0) for entry in last) / len(last)
        for name in ("call", "failure")
    )
    steps = f"the last {len(last)} steps"
    loaded.display.say(
        f"tools: {calls:.2f} calls a rollout in {steps}, {failed:.1%} of them failed"
    )
    if calls:
        return []
    warning = (
        f"no rollout of {steps} called anything; show a call in the prompt, or train it by sft"
    )
    loaded.display.say(f"warning: {warning}")
    return [warning]


def _watch(config: GrpoConfig, loaded: Loaded) -> Watch:
    """The callback that warns of a run that does not learn."""
    return Watch(
        Limits(config.completions, loaded.config.max_new_tokens, config.reg_lambda > 0),
        say=loaded.display.say,
        keep=partial(loaded.run.note, "warnings"),
        before=loaded.run.notes.get("warnings", {}),
    )


class MaskedGRPOTrainer(Turns, RolloutPolicy, HardRollouts, MaskedTraining, GRPOTrainer):
    """TRL's trainer under masks. beta: weight of the KL divergence to `reference` (Eq. 3).

    TRL's own `beta` stays 0: with another one it would load a second copy of the base.
    scores: of a run in an environment, which this trainer's loop makes.
    """

    def __init__(
        self,
        *args: Any,
        beta: float,
        reference: Any,
        scores: RolloutScores | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._scores = scores
        if not beta:
            return
        if isinstance(reference, PreTrainedModel):
            # As TRL prepares a reference that it loads itself.
            add_fused_lm_head(reference, temperature=self.temperature)
            reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.beta, self.ref_model = beta, reference

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self._scores is not None:
            self._scores.start(self.judged, self.table, self.attached.state)
        return super().train(*args, **kwargs)


def fit(
    config: GrpoConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates by the rewards of sampled answers."""
    # Departure: stds of Eq. 2 get + 1e-4; one optimizer step for each batch of rollouts.
    passes = config.accumulation(world_size())
    arguments = TrlConfig(
        **trl_arguments(config, loaded.run.folder, loaded.model.device.type == "cpu"),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes,
        num_iterations=1,
        num_generations=config.completions,
        max_completion_length=loaded.config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        mask_truncated_completions=config.mask_truncated_completions,
        reward_weights=loaded.grader.weights,
        beta=0.0,  # see MaskedGRPOTrainer
        epsilon=config.clip,
        loss_type="grpo" if config.loss == "sequence-mean" else "dapo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        # Departure: no balance of experts, because their router is frozen.
        router_aux_loss_coef=0.0,
        use_vllm=False,
        chat_template_kwargs=dict(config.chat_template_kwargs or {}),
        max_tool_calling_iterations=config.max_tool_calling_iterations,
    )
    acting, scores = loaded.environments, loaded.score
    scored = [*on_policy.validation_examples(config, loaded), *loaded.split.heldout]
    table = [*rows, *_rows(loaded.tokenizer, scored if acting else [])]
    sampler = engine_rollouts if config.rollouts == "vllm" else server_rollouts
    with sampler(config, loaded, attached) as rollouts:
        return fit_with_trl(
            MaskedGRPOTrainer,
            arguments,
            loaded,
            attached,
            trl_rows(rows),
            callbacks,
            metric="reward",
            beta=config.beta,
            reference=_reference(loaded, attached) if config.beta else None,
            reward_funcs=trl_functions(loaded.grader, table),
            table=table,
            rollouts=rollouts,
            at_once=rows_at_once(config, loaded, attached),
            say=loaded.display.say,
            tools=list(acting.tools) or None,
            environment_factory=acting.for_rows(lambda row: table[row[ROW]]["columns"]),
            scores=scores if isinstance(scores, RolloutScores) else None,
        )


def _reference(loaded: Loaded, attached: Attached) -> Any:
    """The base as a KL reference. A baseline's weights have changed, so it needs a second copy."""
    if attached.layers:
        return BaseReference(loaded.model, attached.state)
    fp32 = loaded.config.precision == "fp32"
    return load_model(loaded.folder, loaded.model.device, fp32=fp32)
