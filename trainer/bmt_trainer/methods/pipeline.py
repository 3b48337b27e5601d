"""Stages that every training method begins with; `methods.finish` has the last one.

`Loaded` and `masking.attach.Attached` pass between the stages. Both are frozen; training changes
only the gates in the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import bmt_core
import torch
from bmt_core import Base, Mask
from bmt_core.config import arithmetic, config_warning
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer import models
from bmt_trainer.checkpoint_files import check_checkpoint
from bmt_trainer.console import Display
from bmt_trainer.data import sources
from bmt_trainer.data.batching import batches
from bmt_trainer.data.encoding import Encoder, Learn, complete_special_tokens
from bmt_trainer.data.examples import Example, Split, with_template_kwargs
from bmt_trainer.data.fitting import LengthBound
from bmt_trainer.data.split import with_heldout
from bmt_trainer.distributed import assign_sharded, barrier, failing_together, full_tensor
from bmt_trainer.errors import ConfigError, OutputError
from bmt_trainer.evaluation.generate import stop_at_end_of_turn
from bmt_trainer.evaluation.score import require_answers
from bmt_trainer.masking import initialization, live_gates
from bmt_trainer.masking.apply import check_base
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.attach import attach as attach_gates
from bmt_trainer.masking.experts import MaskedExpert
from bmt_trainer.masking.export import export
from bmt_trainer.masking.masked_linear import ParameterAccess
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.masking.targets import coverage
from bmt_trainer.methods import lengths
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.methods.guards import contents, interruption, outputs, pushing
from bmt_trainer.methods.guards.finite import check_weights
from bmt_trainer.methods.guards.interruption import Interruption
from bmt_trainer.methods.guards.metadata import check_metadata
from bmt_trainer.methods.guards.targets import masked_tensors, not_served
from bmt_trainer.methods.guards.trl_contract import check_trl
from bmt_trainer.methods.lengths import Answered
from bmt_trainer.methods.memory import of_run
from bmt_trainer.methods.rollouts.environments import Environments
from bmt_trainer.methods.rollouts.scores import RolloutScores
from bmt_trainer.methods.run_folder import HeldoutScores, RunFolder, is_writing, settings_of
from bmt_trainer.methods.trackers import check_installed
from bmt_trainer.methods.trl_setup import prepare_tool_calls
from bmt_trainer.methods.validation.data_set import validation_examples
from bmt_trainer.process import is_main_process, world_size
from bmt_trainer.rewards.combined import Rewards
from bmt_trainer.templates.chat_templates import check_row_kwargs, check_template_kwargs

#: Access of masked layers to parameters that FSDP2 may shard.
SHARDED = ParameterAccess(full_tensor, assign_sharded)

#: A training example as a TRL trainer reads it, by column.
Rows = Sequence[Mapping[str, Any]]
#: A trainer's log entries, one per step.
Logs = list[dict[str, float]]
#: The count of a score that selects masks: of the grader's strict reading, or of its lenient one.
Reading = Literal["exact", "lenient"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A run's settings, data, tokenizer and rewards, before a weight is loaded.

    settings: all that decide the result; folder: of the base's checkpoint; geometry:
    [d_out, d_in] of its tensors by name; gates: of each tensor, the number to mask;
    reading: the count by which masks are selected; lengths: of the training examples in tokens, if
    the run has a bound on them; environments: of rollouts; first: the mask of `from_mask`. The
    configuration's lengths are within the model's context.
    """

    config: TrainConfig
    display: Display
    settings: Mapping[str, Any]
    folder: Path
    base: Base
    geometry: Mapping[str, tuple[int, int]]
    gates: Sequence[int]
    device: torch.device
    split: Split
    tokenizer: PreTrainedTokenizerBase
    grader: Rewards
    reading: Reading
    lengths: Sequence[int]
    environments: Environments
    first: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded(Inputs):
    """The same with the model, and the run's folder.

    scored: False in a comparison, which scores by itself and keeps no history; validation: rows set
    aside for the loss in training.
    """

    run: RunFolder
    model: PreTrainedModel
    score: HeldoutScores
    interruption: Interruption
    scored: bool
    validation: Rows = ()

    @property
    def start_file(self) -> Path:
        """The mask that training started from."""
        return self.run.folder / "start.bmt"


def read(
    config: TrainConfig,
    display: Display,
    *,
    train_examples: int,
    grader: Rewards,
    reading: Reading = "exact",
    heldout_dataset: str | None = None,
    answered: Answered | None = None,
    learn: Learn | None = None,
    environments: Environments = Environments(),  # noqa: B008
    preferences: Literal["pair", "label"] | None = None,
) -> Inputs:
    """Read tokenizer and data, after all checks of the output and of the checkpoint's files.

    heldout_dataset: another data set to hold out from.
    answered: the longest prompt that is made of a training example, if the run answers those;
    learn: the turns of which rows are made, if those above max_length are left out. Training
    examples that are too long for the run are replaced by others.
    environments: the environment and the tools of rollouts; preferences: read preference pairs, or
    labeled answers and pairs.
    Raises TrainerError.
    """
    check_trl(display.say)
    may_replace = config.overwrite or (config.resume and is_writing(config.output))
    outputs.check(config.output, overwrite=may_replace, resume=config.resume)
    pushing.check(config.push)
    check_installed(config.report_to)
    folder = models.checkpoint_folder(config.model)
    check_checkpoint(folder)
    geometry = dict(bmt_core.geometry(folder, ""))
    masked = masked_tensors(folder, config.targets, geometry)
    if (line := not_served(folder, masked)) is not None:
        display.say(line)
    base = models.base_of(config.model, folder)
    first = _first_mask(config, base, folder, display)
    tokenizer = models.load_tokenizer(folder, config.chat_template)
    check_template_kwargs(tokenizer, config.chat_template_kwargs)
    if environments:
        prepare_tool_calls(tokenizer)
    complete_special_tokens(tokenizer)
    device = models.pick_device(config.device)
    if (line := models.device_note(config.device)) is not None:
        display.say(line)
    settings = {**settings_of(config), "base": base.fingerprint}
    if first is not None:
        settings["from_mask"] = first.digest  # a file may have moved
    check_metadata(settings, folder)
    config = lengths.within_context(config, folder, display)
    bound = lengths.bound_of(tokenizer, config.max_length, answered, learn, preferences)
    kwargs = config.chat_template_kwargs
    if bound is not None:
        bound = bound.of(lambda e: environments.shown_to(with_template_kwargs([e], kwargs)[0]))
    split = _examples(config, train_examples, heldout_dataset, display, bound, preferences)
    trained = [bound.length_of(example) for example in split.train] if bound else []
    rows = ((e.location, e.template_kwargs) for e in (*split.train, *split.heldout))
    check_row_kwargs(tokenizer, rows)
    encoder = Encoder(tokenizer)
    train, heldout = (
        [encoder.checked(environments.shown_to(e)) for e in with_template_kwargs(examples, kwargs)]
        for examples in (split.train, split.heldout)
    )
    split = Split(train, heldout, split.counts)
    require_answers(split.heldout, grader, "set heldout: 0")
    config = lengths.with_room(config, folder, display, tokenizer, split, answered, trained)
    return Inputs(
        config=config,
        display=display,
        settings=settings,
        folder=folder,
        base=base,
        geometry=geometry,
        gates=[math.prod(shape) for shape in masked.values()],
        device=device,
        split=split,
        tokenizer=tokenizer,
        grader=grader.for_model(
            tokenizer,
            config.max_new_tokens,
            "lenient" if reading == "lenient" else "strict",
            config.thoughts,
        ),
        reading=reading,
        lengths=trained,
        environments=environments,
        first=first,
    )


def _first_mask(config: TrainConfig, base: Base, folder: Path, display: Display) -> Mask | None:
    """The mask that training begins from. Raises ConfigError, BaseMismatch."""
    if config.from_mask is None:
        return None
    try:
        mask = bmt_core.load(config.from_mask)
    except OSError as error:
        # As a path, hf:// has one slash.
        of_hub = config.from_mask.parts[:1] == ("hf:",)
        fix = "; fetch a mask of the Hub by bmt-client pull, and name its file" if of_hub else ""
        raise ConfigError(
            f"from_mask: {config.from_mask} cannot be read ({error.strerror}){fix}"
        ) from None
    except bmt_core.BmtError as error:
        raise ConfigError(f"from_mask: {config.from_mask} is no mask: {error}") from None
    check_base(mask, base.fingerprint)
    if not mask.zeros and not config.steps:
        raise ConfigError(
            f"from_mask: {config.from_mask} deletes no weight, and without steps the mask would be "
            "the same; set steps, or name another mask"
        )
    if (warning := config_warning(mask.metadata, arithmetic(folder))) is not None:
        display.say(warning)
    return mask


def load(inputs: Inputs, *, scored: bool = True) -> Loaded:
    """Open the run's folder, and load the model. Raises TrainerError.

    scored: without it, held-out examples stay held out, and the caller scores on them.
    """
    config, display = inputs.config, inputs.display
    tokenizer, split = inputs.tokenizer, inputs.split
    run = RunFolder(
        config.output,
        dict(inputs.settings),
        resume=config.resume,
        accept_changes=config.accept_changes,
        contents=contents.of_run(inputs.folder, tokenizer, split, inputs.settings),
        say=display.say,
    )
    with failing_together():
        if config.checkpoint_every and is_main_process():
            # Gates and AdamW's two moments, in fp32.
            outputs.check_space(run.folder, 12 * sum(inputs.gates))
    if scored:
        for line in of_run.lines_of_run(inputs):
            display.say(line)
    model = models.load_model(inputs.folder, inputs.device, fp32=config.precision == "fp32")
    check_weights(model)
    if (stop := stop_at_end_of_turn(model, tokenizer)) is not None:
        display.say(stop)
    score = (RolloutScores if inputs.environments else HeldoutScores)(
        model,
        tokenizer,
        split.heldout if scored else [],
        run,
        display,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        grader=inputs.grader,
        thoughts=config.thoughts,
    )
    return Loaded(
        **vars(inputs),
        run=run,
        model=model,
        score=score,
        interruption=interruption.current(),
        scored=scored,
    )


def _examples(
    config: TrainConfig,
    train: int,
    heldout_dataset: str | None,
    display: Display,
    bound: LengthBound | None,
    preferences: str | None,
) -> Split:
    """At most `train` training examples and the held-out ones, which is said. Raises DataError."""
    aside = validation_examples(config, bound, preferences)
    split = sources.load(
        config.dataset,
        heldout=0 if heldout_dataset else config.heldout,
        train=train - len(aside),
        seed=config.seed,
        system=config.system,
        share=None if heldout_dataset else config.heldout_share,
        bound=bound,
        pairs=preferences == "pair",
        labels=preferences == "label",
    )
    if heldout_dataset:
        other = sources.load(
            heldout_dataset,
            heldout=config.heldout,
            train=0,
            seed=config.seed,
            system=config.system,
        )
        split = with_heldout(split, other)
    split = replace(split, train=[*aside, *split.train])
    for line in split.lines():
        display.say(line)
    return split


def attach(loaded: Loaded) -> Attached:
    """Attach gates to the model's target layers, and show how much of it they cover.

    Under the state's mode "off" the model is the base, bit for bit.
    """
    model, display = loaded.model, loaded.display
    total = sum(p.numel() for p in model.parameters())
    stored = stored_names(model, loaded.geometry)
    attached = attach_gates(model, loaded.config.targets, SHARDED, stored)
    if world_size() > 1 and any(isinstance(m, MaskedExpert) for m in attached.layers.values()):
        raise ConfigError(
            f"targets: gates of experts in one tensor train in one process, not {world_size()}"
        )
    if loaded.first is not None and (
        outside := initialization.zeros_outside(attached, loaded.first)
    ):
        raise ConfigError(
            f"from_mask: {loaded.config.from_mask} deletes weights of {outside[0]}"
            + (f" and {len(outside) - 1} tensors more" if outside[1:] else "")
            + ", which are not among the targets of this run, so they would be lost; set targets "
            "to those of the mask's training"
        )
    covered, blocks = coverage(model, attached.layers)
    display.say(f"masking {covered} of {blocks} layers, {attached.numel:,} of {total:,} weights")
    return attached


def score_base(
    loaded: Loaded, attached: Attached, *, teacher: Sequence[Example] | None = None
) -> None:
    """Score the base: the model with its mask off; before it, as `teacher`, on those examples."""
    with attached.state.use("off"):
        if teacher is not None:
            loaded.score("teacher", teacher)
        loaded.score("base")


def initialize(loaded: Loaded, attached: Attached, *, live_alpha: float | None = None) -> None:
    """Give the gates their first values (Eq. 9, or a mask's), score that mask and save it.

    A run that resumes from a checkpoint takes its gates from there. live_alpha: the sharpness at
    which to choose the live set, the only gates that are trained; None trains all.
    """
    run, positions = loaded.run, loaded.run.folder / "live.safetensors"
    if run.last_checkpoint() is None:
        _first_gates(loaded, attached)
        with attached.state.use("hard"):
            loaded.score("init")
        write_mask(first := current_mask(loaded, attached), loaded.start_file)
        run.note("init_sparsity", first.sparsity)
        if live_alpha is not None and is_main_process():
            live_gates.save(live_gates.live_positions(attached, live_alpha), positions)
        barrier()
    attached.state.cache_hard_weights = world_size() == 1
    if live_alpha is not None:
        live_gates.train_only(attached, live_gates.load(positions))
    trained = sum(gates.numel() for gates in attached.gates())
    loaded.display.say(f"training {trained:,} of {attached.numel:,} gates")


def _first_gates(loaded: Loaded, attached: Attached) -> None:
    """The gates' first values: by `from_mask`, or by Eq. 9."""
    config = loaded.config
    if loaded.first is not None:
        initialization.init_from(
            attached,
            loaded.first,
            mean=config.init_mean,
            std=config.init_std,
            hold=config.hold_zeros,
            seed=config.seed,
        )
        loaded.display.say(
            f"from {config.from_mask}: {loaded.first.zeros:,} zeros, "
            f"{'held' if config.hold_zeros else 'free to come back'}; eta, init and calibration "
            "have no part in it"
        )
        return
    if config.other_start:
        loaded.display.say(f"start: {config.other_start}")
    initialization.initialize(
        loaded.model,
        attached,
        calibration_batches(loaded),
        eta=config.eta,
        mean=config.init_mean,
        std=config.init_std,
        tail=config.init == "paper",
        seed=config.seed,
        nonzero=config.eta_among == "nonzero",
    )


def calibration_batches(loaded: Loaded) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of training prompts for `masking.calibration`, with a bar of their progress."""
    config, tokenizer = loaded.config, loaded.tokenizer
    chosen = loaded.split.train[: config.calibration_prompts]
    encoder = Encoder(tokenizer)
    prompts = [encoder.calibration(e)[: config.max_length] for e in chosen]
    size, pad = config.eval_batch_size, tokenizer.pad_token_id
    with loaded.display.stage("calibrate", len(prompts)) as advance:
        for batch in batches(prompts, size, pad, loaded.model.device):
            yield batch
            advance(len(batch["input_ids"]))


def current_mask(
    loaded: Loaded, attached: Attached, metadata: Mapping[str, Any] | None = None
) -> Mask:
    """The hard mask of the gates' current values (Eq. 8)."""
    return export(
        attached, loaded.base, geometry=loaded.geometry, metadata=metadata, first=loaded.first
    )


def write_mask(mask: Mask, path: Path) -> None:
    """Save from the first process; return when the file is there for all. Raises OutputError."""
    with failing_together():
        if is_main_process():
            try:
                bmt_core.save(mask, path)
            except OSError as error:
                raise OutputError(f"{path} cannot be written ({error.strerror})") from None


def write_history(loaded: Loaded, history: Mapping[str, Any]) -> None:
    """Write the logs of steps and validations to `<output>.history.json`. Raises OutputError."""
    if is_main_process():
        written = {"reading": loaded.reading, **history}
        outputs.write_json(outputs.history_file(loaded.config.output), written)
