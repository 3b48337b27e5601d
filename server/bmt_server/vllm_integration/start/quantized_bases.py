"""Quantized bases that this host, mask mode and type of activations cannot serve.

vLLM (0.32.0, `model_executor/kernels/linear/__init__.py`) has kernels on the CPU for INT8 weights
with INT8 activations, for 4 bits, and for FP8 with Intel's AMX. It says what it lacks after it has
started its workers, in a traceback; here it is one line before that.
"""

from __future__ import annotations

import torch
from vllm.platforms import current_platform

from bmt_server.quantization import codes
from bmt_server.settings import MaskMode, SettingsError
from bmt_server.vllm_integration.checkpoint import ServedGates

# Of the rows and columns of 4 bits on the CPU: `mixed_precision/cpu.py`, `can_implement`.
_MULTIPLE = 32
# Of the rows and columns of INT8 with AMX: `check_cpu_sgl_kernel`.
_AMX_ROWS, _AMX_COLUMNS = 16, 32
# vLLM's `get_supported_act_dtypes` of these names no float32.
_OF_16_BITS = frozenset({"awq-int4", "gptq-int4"})


def check_quantized(folder: str, gates: ServedGates, *, mode: MaskMode, dtype: str) -> None:
    """Raise SettingsError if the gates are codes that cannot be served here.

    dtype: vLLM's `--dtype`.
    """
    if not gates.quantized:
        return
    if mode == "scatter":
        raise SettingsError(
            f"--mask-mode scatter cannot be used: the gates of {folder} are codes "
            f"({gates.precision}), which masks correct and do not change in place; use delta or "
            "auto"
        )
    if gates.precision in _OF_16_BITS and dtype in ("float32", "float"):
        raise SettingsError(
            f"{folder} is quantized ({gates.precision}), for which vLLM computes in 16 bits alone, "
            "and --dtype is float32; use --dtype bfloat16"
        )
    if current_platform.is_cpu() and (reason := _lacks_kernel(folder, gates, dtype)):
        raise SettingsError(f"{folder} is quantized ({gates.precision}), and {reason}")


def _lacks_kernel(folder: str, gates: ServedGates, dtype: str) -> str:
    """Reason why vLLM has no kernel for these codes on this CPU; empty if it has."""
    if gates.precision == "fp8" and not torch.cpu._is_amx_tile_supported():
        return (
            "vLLM has kernels for FP8 on CPUs with AMX alone (Sapphire Rapids or newer), which "
            "this one lacks; serve INT8 or 4 bits here"
        )
    if gates.precision == "int8" and not codes.quantizes_inputs(folder):
        return (
            "vLLM has no kernel on the CPU for INT8 weights with activations of 16 bits; quantize "
            "both (W8A8), or serve 4 bits"
        )
    if gates.precision == "int8" and dtype in ("float32", "float"):
        # `scaled_mm/cpu.py` chooses it by the shape alone, and the first step ends the engine.
        of_amx = torch.cpu._is_amx_tile_supported() and any(
            2 * s[0] % _AMX_ROWS == 0 and s[1] % _AMX_COLUMNS == 0 for s in gates.shapes.values()
        )
        if of_amx and codes.symmetric_inputs(folder):
            return (
                "vLLM's kernel for INT8 on CPUs with AMX computes in 16 bits alone, and --dtype is "
                "float32; use --dtype bfloat16"
            )
    if gates.precision == "int4" and dtype in ("float32", "float"):
        # `cpu_gemm_wna16` has no float32, which the first step finds out.
        return (
            "vLLM's kernel for 4 bits on the CPU computes in 16 bits alone, and --dtype is "
            "float32; use --dtype bfloat16"
        )
    if gates.precision.endswith("int4"):
        odd = [s for s in gates.shapes.values() if s[0] * 2 % _MULTIPLE or s[1] % _MULTIPLE]
        if odd:
            return (
                f"vLLM's kernel for 4 bits on the CPU takes multiples of {_MULTIPLE} rows and "
                f"columns, and a gate is {list(odd[0])}; serve INT8 here"
            )
    return ""
