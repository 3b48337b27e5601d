"""On-policy self-distillation of a mask (Eq. 4-5), on TRL's experimental `SDFTTrainer`.

The student answers a prompt under its hard mask (Eq. 8). The teacher, the same weights under the
hard mask of its own slowly following gates (Eq. 4), reads that answer after a prompt that also has
a demonstration. The student's soft mask (Eq. 6) is trained towards the teacher's distribution of
every token: forward KL divergence over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bmt_trainer.data.examples import Example, Message
from bmt_trainer.distributed import join, processes
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.graders import find_for
from bmt_trainer.methods.config import RunConfig
from bmt_trainer.settings import option

if TYPE_CHECKING:
    from bmt_core import Mask
    from transformers import TrainerCallback

    from bmt_trainer.console import Display
    from bmt_trainer.methods.session import Logs, Prepared, Session
    from bmt_trainer.methods.validation import Validate

#: The teacher's last turn in SDFT, which the paper takes over.
TEACHER_PROMPT = (
    "\n{prompt}\n\nThis is an example for a response to the question:\n{demonstration}\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)


@dataclass(frozen=True, kw_only=True)
class SdftConfig(RunConfig):
    """Settings of `train`. The defaults are the paper's for ToolAlpaca. Raises ConfigError.

    The loss is a mean over a completion's tokens and then over completions, as in SDFT's code;
    Eq. 5 is a sum over tokens.
    """

    steps: int = option(
        "Optimizer steps, T of Eq. 7; the paper's are 2 epochs of ToolAlpaca.", 252, least=1
    )
    learning_rate: float = option(
        "AdamW learning rate of the gates, of which a cosine goes down to 0.", 5e-3, above=0
    )
    warmup: float = option("Share of the steps that the rate rises in.", 0.1, least=0, most=1)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e4, above=0)
    reg_lambda: float = option(
        "Weight λ of the regulariser; the teacher anchors the mask already.", 0.0, least=0
    )
    max_length: int = option(
        "Longer prompts, the teacher's with its demonstration, are left out, in tokens.",
        1024,
        least=1,
    )
    max_new_tokens: int = option(
        "Length of an answer, in rollouts and in evaluation, in tokens.", 1024, least=1
    )
    prompts_per_step: int = option("Prompts of one optimizer step.", 32, least=1)
    micro_batch: int = option("Prompts per rollout batch and forward pass.", 4, least=1)
    temperature: float = option("Of the rollouts' sampling.", 1.0, above=0)
    teacher_rate: float = option(
        "γ of Eq. 4: how far the teacher's gates follow in a step.", 0.01, above=0, most=1
    )
    skip_tokens: int = option("First tokens of a completion without a loss.", 3, least=0)
    teacher_prompt: str | None = option(
        "The teacher's last turn, with {prompt} and {demonstration}; default: SDFT's.", None
    )
    grader: str | None = option(
        "What is right in evaluation: words, number, gsm8k, math, letter, bbeh, tools, or "
        "FILE.py:FUNCTION; default: by the data set's form, else words.",
        None,
    )
    reading: Literal["strict", "lenient"] = option(
        "Which reading of the grader chooses masks; both are reported.", "strict"
    )
    heldout_dataset: str | None = option("Hold out from this data set instead.", None)
    validation: int = option(
        "Training examples set aside to choose the best mask by; 0 for none.", 100, least=0
    )
    validate_every: int = option("Steps between validations, greedy, hard mask.", 100, least=1)
    select: Literal["best", "last"] = option("Which mask is written.", "best")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts_per_step % self.micro_batch:
            raise ConfigError(
                f"micro_batch: {self.micro_batch} does not divide prompts_per_step "
                f"{self.prompts_per_step}"
            )
        if processes() > 1:
            raise ConfigError(f"sdft trains in one process, not {processes()}")
        try:
            shown = self.template.format(prompt="<prompt>", demonstration="<demonstration>")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"teacher_prompt: braces are doubled in it ({error!r})") from None
        if "<prompt>" not in shown or "<demonstration>" not in shown:
            raise ConfigError("teacher_prompt: {prompt} and {demonstration} must occur in it")

    @property
    def template(self) -> str:
        """The teacher's last turn."""
        return TEACHER_PROMPT if self.teacher_prompt is None else self.teacher_prompt


def train(config: SdftConfig, display: Display | None = None) -> Mask:
    """Train a mask by its own demonstrated self, and write it to `config.output`.

    The score named `teacher` is the base's where it is given each demonstration: what there is to
    learn from. `<output>.history.json` holds the steps' losses, zeros and validations. Raises
    TrainerError and bmt_core.BmtError.
    """
    from bmt_trainer.console import Display
    from bmt_trainer.process import only_our_progress

    with only_our_progress():
        return _train(config, display or Display())


def shown(example: Example, template: str) -> Example:
    """`example` as the teacher sees it: its demonstration is in the last turn."""
    demonstration = example.answer if example.demonstration is None else example.demonstration
    *before, last = example.prompt
    text = template.format(prompt=last["content"], demonstration=demonstration)
    turn: Message = {"role": last["role"], "content": text}
    return replace(example, prompt=(*before, turn))


def _train(config: SdftConfig, display: Display) -> Mask:
    from bmt_trainer.methods.validation import finish_best

    prepared = prepare(config, display)
    session = prepared.session
    session.score("teacher", [shown(e, config.template) for e in session.split.heldout])
    session.start()
    logs = prepared.fit(())
    session.write_history({"steps": logs, "validation": session.run.notes["validation"]})
    return finish_best(session, config.select, prepared.told)


def prepare(config: SdftConfig, display: Display, *, scored: bool = True) -> Prepared:
    """Everything before what is trained starts. scored: as in `Session.open`."""
    from bmt_trainer.methods.on_policy import prompts
    from bmt_trainer.methods.session import Prepared

    join(config)
    found = prompts(
        config,
        display,
        find_for(config.dataset, config.grader),
        scored=scored,
        longest=lambda example: shown(example, config.template),
    )
    session, examples = found.session, found.examples
    return Prepared(
        session=session,
        fit=lambda callbacks: _fit(config, session, examples, found.validate, callbacks),
        told={"method": "sdft", "train_examples": len(examples)},
    )


def _fit(
    config: SdftConfig,
    session: Session,
    examples: Sequence[Example],
    validate: Validate,
    callbacks: Sequence[TrainerCallback],
) -> Logs:
    from bmt_trainer.methods.config import trl_arguments
    from bmt_trainer.methods.trl_setup import prepare_trl

    prepare_trl()
    from trl.experimental.sdft import SDFTConfig as TrlConfig
    from trl.experimental.sdft import SDFTTrainer

    from bmt_trainer.methods.fit import fit
    from bmt_trainer.methods.on_policy import prompt_rows
    from bmt_trainer.methods.trl_mixins import MaskedTraining, MaskTeacher

    class Trainer(MaskTeacher, MaskedTraining, SDFTTrainer):
        pass

    session.attached.start_teacher()
    validate.begin(session.run.steps_done())
    passes = config.prompts_per_step // config.micro_batch
    common = trl_arguments(config, session.run.folder, session.model.device.type == "cpu")
    arguments = TrlConfig(
        **common
        | {
            "lr_scheduler_type": "cosine",
            "warmup_steps": math.ceil(config.warmup * config.steps),
        },
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=passes,
        # One optimizer step for each batch of rollouts; one completion of a prompt.
        steps_per_generation=passes,
        num_iterations=1,
        num_generations=1,
        max_prompt_length=None,  # by default prompts would be cut at their beginning
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        teacher_model_kind="ema",
        teacher_update_rate=config.teacher_rate,
        teacher_prompt_template=config.template.replace("{demonstration}", "{privileged_context}"),
        # KL(teacher || student) over the vocabulary. Without a ratio to the rollouts' policy: soft
        # and hard masks are far apart at the first steps' sharpness.
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        distillation_is_clip=None,
        num_loss_tokens_to_skip=config.skip_tokens,
        use_vllm=False,
    )
    rows = prompt_rows(
        session,
        examples,
        privileged_context=lambda e: e.answer if e.demonstration is None else e.demonstration,
    )
    return fit(config, session, Trainer, arguments, rows, [validate, *callbacks])
