"""Experts loaded so that masks of their gates can be served.

vLLM 0.32.0, `model_executor/layers/fused_moe/unquantized_fused_moe_method.py`:

- `__init__` chooses a kernel by the LoRA setting, and with LoRA one for GPUs, on the CPU too. The
  layer does not see the setting, because masks use no LoRA layers.
- `process_weights_after_loading` changes the order of the weights, of which the gates' rows are
  copied first.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)

from bmt_server.vllm_integration.method_patch import patch_method
from bmt_server.worker.engine_vllm.expert_gates import kept_gates


def install() -> None:
    """Hook vLLM's class, once."""
    patch_method(UnquantizedFusedMoEMethod, "__init__", _init)
    patch_method(UnquantizedFusedMoEMethod, "process_weights_after_loading", _process)


def _init(original: Any, self: Any, moe: Any) -> None:
    moe.is_lora_enabled = False
    original(self, moe)


def _process(original: Any, self: Any, layer: Any) -> None:
    with kept_gates(layer):
        original(self, layer)
