"""On-policy self-distillation of a mask (Eq. 4-5), on TRL's experimental `SDFTTrainer`.

The student answers a prompt under its hard mask (Eq. 8). The teacher, the same weights under the
hard mask of its own slowly following gates (Eq. 4), reads that answer after a prompt that also has
a demonstration. The student's soft mask (Eq. 6) is trained towards the teacher's distribution of
every token: forward KL divergence over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bmt_core import Mask
from transformers import TrainerCallback
from trl.experimental.sdft import SDFTConfig as TrlConfig
from trl.experimental.sdft import SDFTTrainer

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.distributed import any_rank, join
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import lengths, on_policy, pipeline, schedules
from bmt_trainer.methods.config import SdftConfig
from bmt_trainer.methods.finish import finish
from bmt_trainer.methods.fit import fit_with_trl, trl_arguments
from bmt_trainer.methods.pipeline import Loaded, Logs, Rows
from bmt_trainer.methods.rollouts.in_process.of_run import (
    check_engine,
    engine_rollouts,
    rows_at_once,
)
from bmt_trainer.methods.rollouts.of_run import check_servers, server_rollouts
from bmt_trainer.methods.trl_mixins import UNLEARNED, MaskedTraining, MaskTeacher
from bmt_trainer.methods.validation import of_run
from bmt_trainer.process import world_size
from bmt_trainer.rewards.find import find_for
from bmt_trainer.rewards.watch import WINDOW


def train(config: SdftConfig, display: Display | None = None) -> Mask:
    """Train a mask by self-distillation from demonstrations, and write it to `config.output`.

    The score named `teacher` is the base's with each example's demonstration in the prompt, the
    accuracy that there is to learn from. `<output>.history.json` holds each step's loss, closed
    gates and validation. Raises TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        config = schedules.of_run(config, loaded)
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached, teacher=_teachers(config, loaded))
        pipeline.initialize(loaded, attached)
        validation = on_policy.validation(config, loaded, attached)
        if config.steps:
            fit(config, loaded, attached, rows, [validation])
        metadata: dict[str, Any] = {"method": "sdft", "train_examples": len(rows)}
        return finish(loaded, attached, metadata | of_run.choose(loaded, attached, validation))


def load(config: SdftConfig, display: Display, *, scored: bool = True) -> tuple[Loaded, Rows]:
    """Read prompts and demonstrations as rows, and load the run. scored: as in `pipeline.load`."""
    join(config.device, say=display.say)
    inputs, examples = on_policy.read(
        config,
        display,
        find_for(config.dataset, config.grader),
        answered=partial(teacher_example, template=config.template),
    )
    check_servers(config, inputs)
    check_engine(config, inputs)
    inputs.grader.try_on(examples, display.say)
    rows = on_policy.prompt_rows(inputs.tokenizer, examples, privileged_context=_demonstration)
    return pipeline.load(inputs, scored=scored), rows


def _teachers(config: SdftConfig, loaded: Loaded) -> list[Example]:
    """Held-out examples as the teacher reads them, without those that training would leave out."""
    bound = lengths.bound_of_prompts(
        loaded.tokenizer,
        loaded.config.max_length,
        partial(teacher_example, template=config.template),
    )
    kept = [e for e in loaded.split.heldout if bound.fits(e)]
    for line in bound.lines():
        loaded.display.say(f"teacher: {line}")
    return [teacher_example(example, config.template) for example in kept]


def teacher_example(example: Example, template: str) -> Example:
    """`example` with the teacher's last turn, `template` filled with prompt and demonstration.

    Raises DataError for a row that has no user's turn to fill, nothing to demonstrate, or tools.
    """
    where = example.where
    if not example.has_prompt:
        raise DataError(f"{where}sdft needs a prompt, and the row is text or tokens; use sft")
    if example.tools or any("tool_calls" in message for message in example.messages):
        raise DataError(f"{where}tools: sdft trains on chats without tools; use sft or grpo")
    *before, last = example.messages
    if last["role"] != "user":
        raise DataError(
            f"{where}the turn before the answer is of the {last['role']}; sdft writes the "
            "demonstration into a user's turn, so a prompt must end with one"
        )
    if not _demonstration(example).strip():
        raise DataError(
            f"{where}the row has neither demonstration nor completion for the teacher; add one, "
            "or train by rewards (grpo)"
        )
    text = template.format(prompt=last["content"], demonstration=_demonstration(example))
    if isinstance(example.prompt, str):
        return replace(example, prompt=text)
    turn: Message = {"role": last["role"], "content": text}
    return replace(example, prompt=(*before, turn))


def _demonstration(example: Example) -> str:
    return example.answer if example.demonstration is None else example.demonstration


class MaskedSDFTTrainer(MaskTeacher, MaskedTraining, SDFTTrainer):
    """TRL's trainer under masks, student and teacher in one model."""


class ShortAnswers(TrainerCallback):
    """Ends a run whose first steps learn from no token; warns of one with half of them so.

    skip: first tokens of an answer that have no loss; say: shows a line.
    """

    def __init__(self, skip: int, say: Callable[[str], None]) -> None:
        self._skip, self._say = skip, say

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shares = [entry[UNLEARNED] for entry in state.log_history if UNLEARNED in entry]
        window = min(WINDOW, state.max_steps)
        if state.global_step != window or len(shares) < window:
            return
        share = sum(shares) / window
        of = (
            f"skip_tokens: {self._skip} have no loss, and in steps 1 to {window} {share:.0%} of "
            "the answers had no more, their end included"
        )
        fix = "set skip_tokens lower, or take prompts with longer answers"
        if not any_rank(share < 1, args.device):
            raise DataError(f"{of}, so nothing is learned; {fix}")
        if share >= 0.5:
            self._say(f"warning: {of}; {fix}")


def fit(
    config: SdftConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates towards the teacher's distribution on sampled answers."""
    # Departure: TRL's defaults are top-k logits, both directions of the KL and a clipped ratio.
    attached.start_teacher()
    passes = config.accumulation(world_size())
    arguments = TrlConfig(
        **trl_arguments(config, loaded.run.folder, loaded.model.device.type == "cpu"),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=passes,
        # One optimizer step for each batch of rollouts; one completion of a prompt.
        steps_per_generation=passes,
        num_iterations=1,
        num_generations=1,
        max_prompt_length=None,  # by default prompts would be cut at their beginning
        max_completion_length=loaded.config.max_new_tokens,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        teacher_model_kind="ema",
        teacher_update_rate=config.teacher_rate,
        teacher_prompt_template=config.template_of("privileged_context"),
        # KL(teacher || student) over the vocabulary. Without a ratio to the rollouts' policy: soft
        # and hard masks are far apart at the first steps' sharpness.
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        distillation_is_clip=None,
        num_loss_tokens_to_skip=config.skip_tokens,
        use_vllm=False,
        chat_template_kwargs=dict(config.chat_template_kwargs or {}),
    )
    sampler = engine_rollouts if config.rollouts == "vllm" else server_rollouts
    with sampler(config, loaded, attached) as rollouts:
        return fit_with_trl(
            MaskedSDFTTrainer,
            arguments,
            loaded,
            attached,
            rows,
            [*callbacks, ShortAnswers(config.skip_tokens, loaded.display.say)],
            rollouts=rollouts,
            at_once=rows_at_once(config, loaded, attached),
        )
