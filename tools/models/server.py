"""Trial of architectures in vLLM: tiny random checkpoints, loaded as a worker loads them.

    python -m tools.models.server OUT KIND...

Its own process, because vLLM configures the one that it runs in. Loads no engine: the gates of the
loaded model are compared with the checkpoint's, by name and by value, as the server's worker finds
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bmt_core.gates.geometry import served_geometry
from bmt_core.gates.rows import Rows
from bmt_server.settings import Settings
from bmt_server.vllm_integration.engine_flags import TEXT_ONLY
from bmt_server.vllm_integration.worker_hooks import expert_loading
from bmt_server.worker.engine_vllm.expert_gates import expert_layers
from bmt_server.worker.engine_vllm.gate_projections import (
    UnsupportedModelError,
    check_names,
    checkpoint_names,
    fused_projections,
    gate_layer,
)
from bmt_trainer.models import architecture_of
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.models import registry

from tools.models.configurations import ENGINE_SIZES, tiny
from tools.models.processors import write_processors


def trials(kinds: list[str], scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The outcome of each `model_type`: `serves`, None if untried, and the reason if not True.

    All checkpoints are written first, for vLLM changes classes of transformers that it runs.
    """
    unwritten: dict[str, Exception] = {}
    for kind in kinds:
        try:
            _write(kind, scratch / kind)
        except Exception as error:  # whatever a configuration's code raises
            unwritten[kind] = error
    for kind in kinds:
        folder = scratch / kind
        if kind in unwritten:
            yield kind, {"serves": None, "reason": _reason(unwritten[kind], folder)}
            continue
        try:
            found = _compare(_load(folder), folder)
        except Exception as error:  # whatever vLLM's code raises
            found = {"serves": None, "reason": _reason(error, folder)}
        yield kind, found


def _write(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    config = tiny(kind, **ENGINE_SIZES)
    architecture_of(config).from_config(config, dtype=torch.float32).save_pretrained(folder)
    # Of some, no such files can be made of defaults; vLLM says then what it lacks.
    with contextlib.suppress(Exception):
        write_processors(kind, folder)


def _load(folder: Path) -> torch.nn.Module:
    arguments = EngineArgs(
        model=str(folder),
        enforce_eager=True,
        dtype="float32",
        max_model_len=32,
        **TEXT_ONLY,
    )
    config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
            initialize_model_parallel()
        return get_model(vllm_config=config)


def _compare(model: torch.nn.Module, folder: Path) -> dict[str, Any]:
    known = served_geometry(folder)
    settings = Settings(model_id="m", model_path=str(folder), fingerprint="ab" * 32, gates=known)
    try:
        names = checkpoint_names(model, known)
        gates = [gate_layer(fused, names, known) for fused in fused_projections(model)]
        gates += [gate for layer in expert_layers(model, known) for gate in layer.gates]
        check_names(gates, settings, 1)
    except UnsupportedModelError as error:
        return {"serves": False, "reason": str(error).split(". Masks need")[0]}
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    for gate in gates:
        rows = Rows.parse(gate.name)
        tensor = stored[gate.name if rows is None else rows.tensor]
        expected = tensor if rows is None else tensor[rows.first : rows.end]
        if not torch.equal(gate.base.float(), expected.float()):
            return {"serves": False, "reason": f"vLLM changes the rows of {gate.name}"}
    return {"serves": True, "reason": None}


def _reason(error: Exception, folder: Path) -> str:
    """An error as one line, the same in every run; of a class that vLLM cannot import, that error.

    vLLM logs the latter and raises another (0.32, model_executor/models/registry.py).
    """
    if "failed to be inspected" in str(error):
        name = json.loads((folder / "config.json").read_text())["architectures"][0]
        try:
            registry.ModelRegistry.models[name].load_model_cls()
        except Exception as cause:
            error = cause
    text = " ".join(str(error).replace(str(folder), "the checkpoint").split())
    return f"{type(error).__name__}: {text}"[:200]


def main() -> None:
    """Try each architecture, and write the outcomes as they come."""
    out, kinds = Path(sys.argv[1]), sys.argv[2:]
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # The weights are read as they were loaded; repacked ones are not compared.
    UnquantizedLinearMethod.process_weights_after_loading = lambda self, layer: None  # type: ignore[method-assign]
    expert_loading.install()
    # vLLM looks at each class in a process of its own, which takes longer than all else here.
    registry._run_in_subprocess = lambda look: look()
    # vLLM's loader frees an accelerator's memory; its CPU runner replaces the call too.
    torch.accelerator.empty_cache = lambda: None
    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for kind, outcome in trials(kinds, Path(scratch)):
            found[kind] = outcome
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
