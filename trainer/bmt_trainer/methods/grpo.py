"""Reinforcement learning of a mask with verifiable rewards (Eq. 2-3), on TRL's `GRPOTrainer`.

Rollouts run under the hard mask (Eq. 8), losses under the soft one (Eq. 6), and the KL reference
is the base itself: the same model with its mask off.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bmt_trainer.distributed import join, processes
from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.limits import SHARP
from bmt_trainer.methods.config import RunConfig
from bmt_trainer.settings import option

if TYPE_CHECKING:
    from bmt_core import Mask
    from transformers import TrainerCallback

    from bmt_trainer.console import Display
    from bmt_trainer.data.examples import Example
    from bmt_trainer.evaluation.graders import Judge
    from bmt_trainer.methods.rollouts.server import ServerRollouts
    from bmt_trainer.methods.session import Logs, Prepared, Session
    from bmt_trainer.methods.validation import Validate


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RunConfig):
    """Settings of `train`. Defaults are the paper's for GSM8K. Raises ConfigError.

    The paper does not state the clip range and the rollout temperature: 0.2 and 1 are the
    defaults of verl, which it used. Its Eq. 3 averages over a sequence's tokens and then over
    sequences; verl's default averages over all tokens, `loss: token-mean` here.
    """

    steps: int = option(
        "Optimizer steps, T of Eq. 7; the paper's are 3 epochs of GSM8K.", 348, least=1
    )
    learning_rate: float = option("Constant AdamW learning rate of the gates.", 3e-4, above=0)
    alpha_start: float = option("Sharpness at the first step (Eq. 7).", 1e3, above=0)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e4, above=0)
    max_length: int = option("Longer prompts are left out, in tokens.", 512, least=1)
    max_new_tokens: int = option(
        "Length of an answer, in rollouts and in evaluation, in tokens.", 4096, least=1
    )
    prompts_per_step: int = option("Prompts of one optimizer step.", 64, least=1)
    completions: int = option("Completions sampled of each prompt.", 4, least=2)
    micro_batch: int = option("Completions per forward pass of the loss.", 16, least=1)
    temperature: float = option("Of the rollouts' sampling.", 1.0, above=0)
    beta: float = option("Weight β of the KL divergence to the base (Eq. 3).", 0.0, least=0)
    clip: float = option("Clip range ε of the ratio (Eq. 3).", 0.2, above=0)
    loss: Literal["sequence-mean", "token-mean"] = option(
        "How tokens are averaged: Eq. 3, or verl's default.", "sequence-mean"
    )
    reward: str = option(
        "What is right: words, number, gsm8k, math, letter, bbeh, tools, or FILE.py:FUNCTION.",
        "words",
    )
    reading: Literal["strict", "lenient"] = option(
        "Which reading of the reward is trained on; both are reported.", "strict"
    )
    server: str | None = option(
        "URL of a bmt-server of the same base that answers rollouts; its key: BMT_API_KEY.", None
    )
    heldout_dataset: str | None = option("Hold out from this data set instead.", None)
    validation: int = option(
        "Training examples set aside to choose the best mask by; 0 for none.", 100, least=0
    )
    validate_every: int = option("Steps between validations, greedy, hard mask.", 25, least=1)
    select: Literal["best", "last"] = option("Which mask is written.", "best")
    live_set: Literal["auto", "on", "off"] = option(
        "Train only gates that can flip; auto: where that is exact, from alpha_start 1000 on.",
        "auto",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares(1)
        if self.live_set == "on" and self.alpha_start < SHARP:
            raise ConfigError(
                f"live_set: on needs alpha_start of at least {SHARP:g}, not {self.alpha_start:g}: "
                "below that every gate moves; use auto or off"
            )

    def shares(self, processes: int) -> int:
        """Forward passes that each process makes in a step. Raises ConfigError."""
        sampled, at_once = self.prompts_per_step * self.completions, self.micro_batch * processes
        if sampled % at_once:
            among = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"micro_batch: {self.micro_batch}{among} does not divide the {sampled} completions "
                f"of a step (prompts_per_step {self.prompts_per_step} x completions "
                f"{self.completions})"
            )
        if processes > 1 and self.server is not None:
            raise ConfigError(f"server: rollouts on a server need one process, not {processes}")
        return sampled // at_once

    @property
    def live_at(self) -> float | None:
        """The sharpness that the live set is chosen at; None trains all gates."""
        sharp = self.live_set == "on" or (self.live_set == "auto" and self.alpha_start >= SHARP)
        return self.alpha_start if sharp else None


def train(config: GrpoConfig, display: Display | None = None) -> Mask:
    """Train a mask by its own sampled answers, and write it to `config.output`.

    `<output>.history.json` beside it holds what each step saw: reward, zeros, validations. Raises
    TrainerError and bmt_core.BmtError.
    """
    from bmt_trainer.console import Display
    from bmt_trainer.process import only_our_progress

    with only_our_progress():
        return _train(config, display or Display())


def _train(config: GrpoConfig, display: Display) -> Mask:
    from bmt_trainer.methods.validation import finish_best

    prepared = prepare(config, display)
    session = prepared.session
    session.start(live_at=config.live_at)
    logs = prepared.fit(())
    session.write_history({"steps": logs, "validation": session.run.notes["validation"]})
    return finish_best(session, config.select, prepared.told)


def prepare(config: GrpoConfig, display: Display, *, scored: bool = True) -> Prepared:
    """Everything before what is trained starts. scored: as in `Session.open`."""
    from bmt_trainer.evaluation.graders import find
    from bmt_trainer.methods.on_policy import prompts
    from bmt_trainer.methods.session import Prepared

    join(config)
    config.shares(processes())
    grader = find(config.reward)
    found = prompts(config, display, grader, scored=scored)
    session, examples = found.session, found.examples
    judge = grader.judge(config.reading)
    return Prepared(
        session=session,
        fit=lambda callbacks: _fit(config, session, examples, found.validate, judge, callbacks),
        told={"method": "grpo", "train_examples": len(examples)},
    )


def _fit(
    config: GrpoConfig,
    session: Session,
    examples: Sequence[Example],
    validate: Validate,
    judge: Judge,
    callbacks: Sequence[TrainerCallback],
) -> Logs:
    from bmt_trainer.methods.config import trl_arguments
    from bmt_trainer.methods.trl_setup import prepare_trl

    prepare_trl()
    from trl import GRPOConfig as TrlConfig
    from trl import GRPOTrainer

    from bmt_trainer.methods.fit import fit
    from bmt_trainer.methods.on_policy import prompt_rows
    from bmt_trainer.methods.trl_mixins import BaseReference, HardRollouts, MaskedTraining
    from bmt_trainer.models import load_model

    class Trainer(HardRollouts, MaskedTraining, GRPOTrainer):
        pass

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return [float(judge(text, a)) for text, a in zip(texts, answer, strict=True)]

    def refer(trainer: Any) -> None:
        if config.beta:
            trainer.beta = config.beta
            # A baseline has no way back to what it was trained from.
            trainer.ref_model = (
                BaseReference(session.model, session.attached.state)
                if session.attached.layers
                else load_model(session.folder, session.model.device)
            )

    validate.begin(session.run.steps_done())
    passes = config.shares(processes())
    arguments = TrlConfig(
        **trl_arguments(config, session.run.folder, session.model.device.type == "cpu"),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=passes,
        # One optimizer step for each batch of rollouts, so that the ratio of Eq. 3 is 1.
        steps_per_generation=passes,
        num_iterations=1,
        num_generations=config.completions,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        # Set on the trainer by `refer`: here it would load a second copy of the base.
        beta=0.0,
        epsilon=config.clip,
        loss_type="grpo" if config.loss == "sequence-mean" else "dapo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        use_vllm=False,
    )
    rows = prompt_rows(session, examples, answer=lambda example: example.answer)
    with _rollouts(config, session) as rollouts:
        return fit(
            config,
            session,
            Trainer,
            arguments,
            rows,
            [validate, *callbacks],
            figure="reward",
            ready=refer,
            reward_funcs=reward,
            rollout_func=rollouts,
        )


@contextmanager
def _rollouts(config: GrpoConfig, session: Session) -> Iterator[ServerRollouts | None]:
    """Rollouts on the server of the settings; None where the model generates them itself."""
    if config.server is None:
        yield None
        return
    from bmt_client import BmtClient

    from bmt_trainer.data.encoding import render
    from bmt_trainer.methods.rollouts.server import ServerRollouts

    with BmtClient(config.server) as client:
        rollouts = ServerRollouts(
            client,
            f"rollout-{uuid.uuid4().hex[:12]}",
            session.export,
            lambda prompt: render(session.tokenizer, prompt),
            completions=config.completions,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        try:
            yield rollouts
        finally:
            rollouts.close()
