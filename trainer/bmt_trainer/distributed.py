"""Several processes that train one mask: FSDP2 through `accelerate launch`.

Every process does the same but for its share of a step's examples: evaluations answer the same
prompts everywhere, in step, because a sharded layer is gathered by all processes together. The
first one alone writes and shows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bmt_trainer.errors import ConfigError

# The command line asks who is first, and its help needs no torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bmt_trainer.methods.config import TrainConfig


def processes() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and shows."""
    return rank() == 0


def join(config: TrainConfig) -> None:
    """Meet the other processes. Raises ConfigError for what several of them cannot do."""
    if processes() == 1:
        return
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if not fsdp or os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            f"WORLD_SIZE is {processes()} without FSDP2; start with `accelerate launch "
            "--config_file recipes/fsdp2.yaml -m bmt_trainer …`, or start one process"
        )
    if config.checkpoint_every or config.resume:
        raise ConfigError(
            f"{processes()} processes write no checkpoints; set checkpoint_every: 0, without resume"
        )
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=config.device == "cpu")
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)


def barrier() -> None:
    """Wait for all processes."""
    if processes() > 1:
        import torch

        torch.distributed.barrier()


def any_of_all(here: bool, device: torch.device) -> bool:
    """Whether `here` is true in any process; all of them must ask."""
    if processes() == 1:
        return here
    import torch

    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all processes must ask."""
    if processes() > 1:
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            return tensor.full_tensor()
    return tensor


def put(tensor: Tensor, values: Tensor) -> None:
    """tensor = values, where the one may be sharded and the other is whole."""
    if processes() > 1:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(tensor, DTensor):
            values = distribute_tensor(values, tensor.device_mesh, tensor.placements)
    tensor.copy_(values)


def keep_gates_fp32(trainer: Any) -> None:
    """Gather parameters as they are stored, before the trainer shards its model.

    FSDP2 would gather all in bf16 under bf16 training, and an error of 0.4 % in a gate is one of
    several percent in its gradient, which has an exponential in it.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
