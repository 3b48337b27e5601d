"""Training one mask in several processes: FSDP2 through `accelerate launch`.

Each process trains on its share of a step's examples and runs everything else alike. Evaluations
answer the same prompts in every process, in lockstep, because all processes gather a sharded layer
together. Rank 0 alone writes files and output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import accelerate
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.process import is_launched_alone, world_size

T = TypeVar("T")


def join(device: str, *, say: Callable[[str], None] = print) -> None:
    """Initialize the process group of a multi-process run; a single process returns at once.

    device: the setting; say: shows a line. Raises ConfigError if the launcher did not set up
    FSDP2, and for "mps".
    """
    if world_size() == 1:
        if is_launched_alone():
            say(
                "accelerate launch started one process, which trains alone (WORLD_SIZE is not "
                "set); on CPUs it starts one whatever --num_processes says: use torchrun there"
            )
        return
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if not fsdp or os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            f"WORLD_SIZE is {world_size()} without FSDP2; start with `accelerate launch "
            "--config_file recipes/fsdp2.yaml -m bmt_trainer …`, or start one process"
        )
    if device == "mps":
        raise ConfigError("device: mps trains in one process; start one")
    state = PartialState(cpu=device == "cpu")
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        torch.distributed.barrier()


def any_rank(value: bool, device: torch.device) -> bool:
    """Logical OR of `value` over all processes. Collective: every process must call it."""
    return bool(greatest(int(value), device))


def greatest(value: int, device: torch.device) -> int:
    """The greatest `value` of all processes. Collective: every process must call it."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def total(value: int, device: torch.device) -> int:
    """The sum of `value` over all processes. Collective: every process must call it."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared)
    return int(shared)


def of_main_process(value: T) -> T:
    """Rank 0's value in all processes. Collective: every process must call it."""
    if world_size() == 1:
        return value
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def of_all_processes(value: T) -> list[T]:
    """The value of each process, by rank. Collective: every process must call it."""
    values = [value] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise a TrainerError of the block in every process: that of the lowest rank that has one.

    The others would wait for that process for ever. Collective: every process must leave the
    block, by its end or by a TrainerError. Does nothing in a single process.
    """
    failed: TrainerError | None = None
    try:
        yield
    except TrainerError as error:
        if world_size() == 1:
            raise
        failed = error
    if world_size() == 1:
        return
    first = next((error for error in of_all_processes(failed) if error is not None), None)
    if first is not None:
        raise failed or first


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor. Collective if `tensor` is a DTensor; any other is returned as it is."""
    if world_size() > 1 and isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def assign_sharded(tensor: Tensor, values: Tensor) -> None:
    """Copy unsharded `values` into `tensor`, which may be a DTensor."""
    if world_size() > 1 and isinstance(tensor, DTensor):
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements)
    tensor.copy_(values)


def plan_sharding(trainer: Any) -> None:
    """Make `trainer` shard on CPUs too. Call it once its accelerator is made.

    accelerate 1.15 (state.py, `AcceleratorState`) heeds FSDP on accelerators alone: processes on
    CPUs would each hold the whole model and average gradients.
    """
    state = trainer.accelerator.state
    if world_size() > 1 and getattr(state, "fsdp_plugin", None) is None:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        trainer.is_fsdp_enabled = True


def choose_sharding(trainer: Any) -> None:
    """Make `trainer` shard the model that it prepares. Call it right before.

    Each `AcceleratorState()` copies the type of the processes back, MULTI_GPU or MULTI_CPU, and a
    seed for each device makes one, as TRL's GRPO trainer does: it would copy the whole model.
    """
    if world_size() > 1:
        trainer.accelerator.state.distributed_type = DistributedType.FSDP


def require_sharding(parameters: Iterable[Tensor]) -> None:
    """Raise ConfigError for a parameter of several processes that is not sharded."""
    if world_size() > 1 and not all(isinstance(one, DTensor) for one in parameters):
        raise ConfigError(
            f"{world_size()} processes, and accelerate {accelerate.__version__} has not sharded "
            "the gates by FSDP2; start with recipes/fsdp2.yaml as it is, or in one process"
        )


def keep_gates_fp32(trainer: Any) -> None:
    """Make FSDP2 gather parameters in their stored dtype. Call it before the trainer shards.

    FSDP2 would gather all parameters in bf16 under bf16 training. The gradient of a gate is
    exponential in it, so a rounding error of 0.4 % in a gate is several percent in its gradient.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
