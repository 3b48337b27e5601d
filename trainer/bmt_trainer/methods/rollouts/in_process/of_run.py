"""A run's rollouts in its own process: vLLM's engine, and the sizes of transformers' pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import bmt_core

from bmt_trainer.distributed import of_all_processes
from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline
from bmt_trainer.methods.config import OnPolicyConfig
from bmt_trainer.methods.guards.targets import masked_tensors
from bmt_trainer.methods.memory.of_run import rollout_rows
from bmt_trainer.methods.pipeline import Inputs, Loaded
from bmt_trainer.methods.rollouts.in_process.engine import EngineRollouts, check_installed
from bmt_trainer.methods.rollouts.local import eos_token_ids
from bmt_trainer.process import world_size


def check_engine(config: OnPolicyConfig, inputs: Inputs) -> None:
    """Raise ConfigError before weights are loaded if vLLM cannot sample the run's rollouts."""
    if config.rollouts != "vllm":
        return
    check_installed()
    if world_size() > 1:
        raise ConfigError(
            f"rollouts: vllm needs one process, not {world_size()}; use transformers or --server"
        )
    served = bmt_core.geometry(inputs.folder)
    masked = masked_tensors(inputs.folder, config.targets, inputs.geometry)
    if other := next((name for name in masked if name not in served), None):
        raise ConfigError(
            "targets: vLLM takes masks of the text model's gate projections alone, and "
            f"{config.targets or 'the default'} has {other}; leave out "
            f"{'--rollouts' if config.targets is None else 'targets, or --rollouts'}"
        )


@contextmanager
def engine_rollouts(
    config: OnPolicyConfig, loaded: Loaded, attached: Attached
) -> Iterator[EngineRollouts]:
    """Rollouts by vLLM in this process. Raises RolloutError if it does not start."""
    loaded.display.say("starting vLLM in this process for rollouts")
    longest = max(loaded.lengths[config.validation :]) + loaded.config.max_new_tokens
    rollouts = EngineRollouts(
        str(loaded.folder),
        partial(pipeline.current_mask, loaded, attached),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        # Results of calls take up more, as much as the model has.
        tokens=None if loaded.environments else longest,
        rows=_rows(config),
        memory=config.vllm_memory,
        max_tokens=loaded.config.max_new_tokens,
        sampling={
            "temperature": config.temperature,
            **config.sampling,
            "stop_token_ids": sorted(eos_token_ids(loaded.model, loaded.tokenizer)),
        },
        seed=config.seed,
    )
    try:
        yield rollouts
    finally:
        rollouts.close()


def rows_at_once(config: OnPolicyConfig, loaded: Loaded, attached: Attached) -> int | None:
    """Completions that the model samples at once; None if it samples none.

    A resumed run keeps the number: another one draws other completions. A line says if a step
    takes several pieces.
    """
    if config.rollouts == "vllm" or config.servers:
        return None
    kept = loaded.run.notes.get("rollout_batch")
    rows = kept or _fitting(config, loaded, attached)
    if kept is None:
        loaded.run.note("rollout_batch", rows)
    step = _rows(config) // world_size()
    if rows < step:
        why = ""
        if config.rollout_batch is None:
            why = ", as many as fit in memory; --rollout-batch sets another number"
        loaded.display.say(
            f"rollouts: the {step:,} completions of a step are sampled {rows:,} at a time{why} "
            "(another number draws other completions)"
        )
    return int(rows)


def _fitting(config: OnPolicyConfig, loaded: Loaded, attached: Attached) -> int:
    """Completions that fit in the memory of each process. Collective."""
    own = rollout_rows(
        config,
        loaded.model,
        [layer.gated_weight.numel() for layer in attached.layers.values()],
        loaded.lengths,
        loaded.config.max_new_tokens,
        held=attached.held,
    )
    # They sample in step, on devices that may differ.
    return min(of_all_processes(own))


def _rows(config: OnPolicyConfig) -> int:
    """Completions of a step, of all processes."""
    each: int = getattr(config, "completions", 1)
    return config.prompts_per_step * each
