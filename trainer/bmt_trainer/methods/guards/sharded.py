"""Checkpoints of gates that FSDP2 shards: gathered by all processes, written by the first one.

The files are those of a single process, gates alone: the trainer's own under FSDP2 hold the base
too, and a disk that is full in one process would leave the others waiting.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from bmt_trainer.distributed import (
    choose_sharding,
    full_tensor,
    of_all_processes,
    plan_sharding,
    require_sharding,
)
from bmt_trainer.errors import ResumeError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.process import is_main_process, world_size

_GATES, _OPTIMIZER, _SCHEDULER = "model.safetensors", "optimizer.safetensors", "scheduler.json"
_GROUPS = "param_groups"  # in the optimizer's metadata
# TRL's and transformers' name of a process's generators.
_GENERATORS = "rng_state_{}.pth"


@dataclass(frozen=True)
class _Snapshot:
    """State of a step, unsharded, on the CPU; gates and optimizer in the first process alone."""

    gates: dict[str, Tensor]
    optimizer: dict[str, Any]
    generators: list[dict[str, Any]]


class ShardedCheckpoints:
    """Mixin before a `transformers.Trainer` in a class's bases: its checkpoints in several
    processes. In a single one it changes nothing.

    Every process calls `gather` before the first one saves. transformers 5.19, trainer.py:
    `store_flos`, `save_model`, `_save_optimizer_and_scheduler`, `_save_rng_state`,
    `_load_from_checkpoint`, `_load_optimizer_and_scheduler`.
    """

    attached: Attached
    _snapshot: _Snapshot | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, which shards on CPUs too."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        plan_sharding(self)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        choose_sharding(self)
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        require_sharding(p for p in trainer.model.parameters() if p.requires_grad)
        return prepared

    def gather(self) -> None:
        """Collect the state of all processes in the first one. Collective."""
        if world_size() == 1:
            return
        trainer: Any = self
        self.store_flos()
        gates = dict[str, Tensor]()
        for name, gate in self._gates():
            whole = full_tensor(gate.detach())
            if is_main_process():
                gates[name] = whole.cpu().clone()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer = get_optimizer_state_dict(
            trainer.model, trainer.optimizer.optimizer, options=options
        )
        self._snapshot = _Snapshot(gates, optimizer, of_all_processes(_generators()))

    def release(self) -> None:
        """Free what `gather` collected."""
        self._snapshot = None

    def store_flos(self) -> None:
        """Add up the operations of all processes: in `gather`, because it is collective."""
        if self._snapshot is None:
            super().store_flos()  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the gates of the snapshot."""
        if self._snapshot is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._snapshot.gates, folder / _GATES)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        if self._snapshot is None:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        _save_optimizer(self._snapshot.optimizer, Path(output_dir) / _OPTIMIZER)
        schedule = json.dumps(trainer.lr_scheduler.state_dict())
        (Path(output_dir) / _SCHEDULER).write_text(schedule)

    def _save_rng_state(self, output_dir: str) -> None:
        if self._snapshot is None:
            super()._save_rng_state(output_dir)  # type: ignore[misc]
            return
        for at, generators in enumerate(self._snapshot.generators):
            torch.save(generators, Path(output_dir) / _GENERATORS.format(at))

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.attached.layers:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        # By their names, all of them: transformers leaves out what a file lacks.
        access, folder = self.attached.state.access, Path(resume_from_checkpoint)
        try:
            with safe_open(folder / _GATES, "pt") as tensors:
                kept = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
                self._check_gates(folder, kept)
                for name, gate in self._gates():
                    access.assign(gate, tensors.get_tensor(name).to(gate.device))
        except (OSError, SafetensorError) as error:
            raise ResumeError(
                f"{folder / _GATES} cannot be read ({error}); restore it, or remove "
                f"{folder.parent} to start over"
            ) from None

    def _check_gates(self, folder: Path, kept: Mapping[str, Sequence[int]]) -> None:
        """Raise ResumeError unless a checkpoint has all gates, by their shapes."""
        gates = dict(self._gates())
        if missing := [name for name in gates if name not in kept]:
            raise ResumeError(
                f"{folder} lacks {len(missing)} of the run's gates, {missing[0]} among them; "
                f"remove {folder.parent} to start over"
            )
        # A smaller tensor would be repeated.
        for name, gate in gates.items():
            if list(kept[name]) != list(gate.shape):
                raise ResumeError(
                    f"{folder} has {name} of {list(kept[name])}, and the run's is of "
                    f"{list(gate.shape)}; remove {folder.parent} to start over"
                )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = self
        if world_size() == 1 or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        folder, optimizer = Path(checkpoint), dict[str, Any]()
        if is_main_process():
            optimizer = _load_optimizer(folder / _OPTIMIZER)
        set_optimizer_state_dict(
            trainer.model,
            trainer.optimizer.optimizer,
            optimizer,
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
        )
        trainer.lr_scheduler.load_state_dict(json.loads((folder / _SCHEDULER).read_text()))

    def _gates(self) -> Iterator[tuple[str, Tensor]]:
        """Gates and the teacher's, by their names in the model, in one order in all processes."""
        for name, layer in self.attached.layers.items():
            yield f"{name}.gate_logits", layer.gate_logits
            if layer.teacher_logits is not None:
                yield f"{name}.teacher_logits", layer.teacher_logits


def _save_optimizer(state: dict[str, Any], path: Path) -> None:
    """Write the state of each gate, by its name, and the settings of the groups."""
    tensors = {
        f"{gate}.{name}": tensor.contiguous()
        for gate, values in state["state"].items()
        for name, tensor in values.items()
    }
    save_file(tensors, path, {_GROUPS: json.dumps(state[_GROUPS])})


def _load_optimizer(path: Path) -> dict[str, Any]:
    """The state that `_save_optimizer` wrote."""
    state: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            gate, _, name = key.rpartition(".")
            state.setdefault(gate, {})[name] = tensors.get_tensor(key)
        groups = json.loads(tensors.metadata()[_GROUPS])
    return {"state": state, _GROUPS: groups}


def _generators() -> dict[str, Any]:
    """The states of this process's generators, as transformers writes them."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state_all()
    return states
