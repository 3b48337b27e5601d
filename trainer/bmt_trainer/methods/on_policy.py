"""Prompts and validation of the methods that train on the model's own answers: GRPO, SDFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from bmt_trainer.console import Display
from bmt_trainer.data import preview
from bmt_trainer.data.encoding import plain, render
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.score import require_answers
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline, schedules
from bmt_trainer.methods.config import OnPolicyConfig
from bmt_trainer.methods.pipeline import Inputs, Loaded
from bmt_trainer.methods.rollouts.environments import Environments
from bmt_trainer.methods.validation import of_run
from bmt_trainer.methods.validation.callback import Validation
from bmt_trainer.rewards.combined import Rewards


def read(
    config: OnPolicyConfig,
    display: Display,
    grader: Rewards,
    *,
    answered: Callable[[Example], Example] = lambda example: example,
    environments: Environments | None = None,
) -> tuple[Inputs, list[Example]]:
    """Read the run's data; its training examples, without those for validation.

    environments: of rollouts whose prompts are rendered one by one, as in evaluation; without it
    TRL renders them together, and rows that it would change are refused.
    answered: as in `pipeline.read`: its prompt is the one that max_length bounds. Raises
    TrainerError.
    """
    wanted = schedules.wanted(config, config.prompts_per_step)
    inputs = pipeline.read(
        config,
        display,
        # Examples are set aside for validation even if the run does not score on them, so that
        # a comparison's baselines train on the same examples as the mask.
        train_examples=wanted + config.validation,
        grader=grader,
        reading="lenient" if config.reading == "lenient" else "exact",
        heldout_dataset=config.heldout_dataset,
        answered=answered,
        environments=environments or Environments(),
    )
    most = inputs.config.max_length
    _, examples = of_run.set_aside(config, inputs)
    for example in (*inputs.split.train, *inputs.split.heldout):
        _require_question(example)
    _require_one_form(inputs.split.train)
    if environments is None:
        _require_plain(inputs.split.train, config)
    require_answers(inputs.split.train, grader, "use a reward of your own, or sft")
    if len(examples) < config.prompts_per_step:
        raise DataError(
            f"{config.dataset} leaves {len(examples)} training prompts of at most "
            f"{most} tokens, demonstrations included, and a step takes "
            f"{config.prompts_per_step}; set prompts_per_step lower, raise max_length, or set "
            "aside fewer (heldout, validation)"
        )
    # As TRL's sampler, which leaves out the prompts that fill no step.
    a_epoch = len(examples) // config.prompts_per_step
    of = f"{len(examples):,} prompts in steps of {config.prompts_per_step}"
    inputs = schedules.with_steps(inputs, a_epoch, of)
    for line in _without_effect(config, grader):
        display.say(line)
    display.say(
        f"{inputs.base.model_id} on {inputs.device}: {len(examples)} training prompts, "
        f"{len(validation_examples(config, inputs))} for validation, "
        f"{len(inputs.split.heldout)} held out, of {config.dataset}"
    )
    first = examples[0]
    _show_prompt(inputs, first, "first prompt")
    if (taught := answered(first)) is not first:
        _show_prompt(inputs, taught, "the teacher's prompt")
    return inputs, examples


def _require_question(example: Example) -> None:
    """Raise DataError for a chat whose last turn asks nothing: an answer has a turn of its own."""
    if isinstance(example.prompt, str):
        return
    role = example.prompt[-1]["role"]
    if role not in ("user", "tool"):
        raise DataError(
            f"{example.where}turn {len(example.prompt)} ({role}): a prompt must end with a turn of "
            "the user or of a tool, which the model answers; remove the turn, or learn it by sft"
        )


def _without_effect(config: OnPolicyConfig, grader: Rewards) -> Iterator[str]:
    """Lines on settings that change nothing in this run."""
    if not config.validation and config.select == "best":
        yield "select: best chooses by validations, and there are none: the last mask is written"
    if config.reading == "lenient" and not grader.comparing:
        yield f"reading: {grader.name} has no lenient reading, so both are the same"


def _require_one_form(examples: Sequence[Example]) -> None:
    """Raise DataError for raw text among chats: TRL reads the first prompt's form."""
    if len({isinstance(example.prompt, str) for example in examples}) < 2:
        return
    text = next(e for e in examples if isinstance(e.prompt, str))
    raise DataError(f"{text.where}prompt: raw text, and other rows are chats; train on one kind")


def _require_plain(examples: Sequence[Example], config: OnPolicyConfig) -> None:
    """Raise DataError for a prompt that rollouts would change.

    TRL writes all prompts of a run with the same functions and arguments, and reads them from a
    table, in which all calls have the arguments of all others.
    """
    of_run = dict(config.chat_template_kwargs or {})
    for example in examples:
        where = example.where
        if example.tools:
            raise DataError(
                f"{where}tools: rollouts describe the run's functions, not a row's; leave the "
                "column out, or learn by sft"
            )
        if any("tool_calls" in message for message in example.messages):
            raise DataError(f"{where}tool_calls: a prompt with calls is learnt by sft alone")
        if example.template_kwargs != of_run:
            raise DataError(
                f"{where}chat_template_kwargs: rollouts take the run's setting, not a row's; give "
                "all rows the same by --chat-template-kwargs, or learn by sft"
            )


def _show_prompt(inputs: Inputs, example: Example, title: str) -> None:
    named = f"{title} ({example.location})" if example.location else title
    row = {"input_ids": render(inputs.tokenizer, example)}
    display = inputs.display
    display.show(preview.of_row(inputs.tokenizer, row, named, color=display.color))


def validation(config: OnPolicyConfig, loaded: Loaded, attached: Attached) -> Validation:
    """The callback that scores the mask on the examples set aside for it."""
    return Validation(
        validation_examples(config, loaded),
        every=config.validate_every,
        attached=attached,
        run=loaded.run,
        score=loaded.score.of,
        export=partial(pipeline.current_mask, loaded, attached),
        write=pipeline.write_mask,
        say=loaded.display.say,
        patience=config.patience,
    )


def validation_examples(config: OnPolicyConfig, inputs: Inputs) -> list[Example]:
    """The training examples that are set aside for validation."""
    return list(inputs.split.train[: config.validation])


def prompt_rows(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    **columns: Callable[[Example], Any],
) -> list[dict[str, Any]]:
    """Rows of TRL's trainers: a prompt each, and a column per function of `columns`.

    A prompt is messages if the tokenizer has a chat template, else their text, a line each.
    Raw text stays as it is.
    """
    chat = bool(tokenizer.chat_template)
    return [
        {
            "prompt": [dict(m) for m in e.prompt]
            if chat and not isinstance(e.prompt, str)
            else plain(e),
            **{name: value(e) for name, value in columns.items()},
        }
        for e in examples
    ]
