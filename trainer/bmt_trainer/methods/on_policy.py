"""What the methods that learn from their own answers prepare alike: prompts, and validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError

if TYPE_CHECKING:
    from bmt_trainer.console import Display
    from bmt_trainer.evaluation.graders import Grader
    from bmt_trainer.methods.grpo import GrpoConfig
    from bmt_trainer.methods.sdft import SdftConfig
    from bmt_trainer.methods.session import Session
    from bmt_trainer.methods.validation import Validate


@dataclass(frozen=True, slots=True)
class Prompts:
    """A session with what it trains on and what it chooses a mask by."""

    session: Session
    examples: list[Example]
    validate: Validate


def prompts(
    config: GrpoConfig | SdftConfig,
    display: Display,
    grader: Grader,
    *,
    scored: bool,
    longest: Callable[[Example], Example] = lambda example: example,
) -> Prompts:
    """Open a session and set aside for validation. Raises TrainerError.

    longest: what max_length bounds of an example; scored: as in `Session.open`.
    """
    from bmt_trainer.data.encoding import render
    from bmt_trainer.methods.session import Session
    from bmt_trainer.methods.validation import Validate

    used = config.steps * config.prompts_per_step
    wanted = config.train_examples or max(used, config.calibration_prompts)
    session = Session.open(
        config,
        display,
        train_examples=wanted + config.validation,
        grader=grader,
        reading="lenient" if config.reading == "lenient" else "exact",
        heldout_from=config.heldout_dataset,
        scored=scored,
    )
    validation = session.split.train[: config.validation]
    examples = [
        e
        for e in session.split.train[config.validation :]
        if len(render(session.tokenizer, longest(e).prompt)) <= config.max_length
    ]
    if len(examples) < config.prompts_per_step:
        raise DataError(
            f"{config.dataset} leaves {len(examples)} training prompts of at most "
            f"{config.max_length} tokens, demonstrations included, and a step takes "
            f"{config.prompts_per_step}; raise max_length, or set aside fewer"
        )
    display.say(
        f"{session.base.model_id} on {session.model.device}: {len(examples)} training prompts, "
        f"{len(validation)} for validation, {len(session.split.heldout)} held out, of "
        f"{config.dataset}"
    )
    # Unscored, the same examples are set aside, so that training sees the same.
    validate = Validate(session, validation if scored else [], every=config.validate_every)
    return Prompts(session, examples, validate)


def prompt_rows(
    session: Session, examples: Sequence[Example], **columns: Callable[[Example], str]
) -> list[dict[str, Any]]:
    """What TRL's trainers read: a prompt each, and what `columns` say of it.

    Messages where the tokenizer has a chat template, else their text, a line each.
    """
    from bmt_trainer.data.encoding import plain

    chat = bool(session.tokenizer.chat_template)
    return [
        {
            "prompt": [dict(m) for m in e.prompt] if chat else plain(e.prompt),
            **{name: value(e) for name, value in columns.items()},
        }
        for e in examples
    ]
