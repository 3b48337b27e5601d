"""vLLM options that masks require on this host, and configurations that they cannot work with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm.platforms import current_platform

from bmt_server.settings import SettingsError
from bmt_server.vllm_integration import cpu_environment
from bmt_server.vllm_integration.arguments.speculation import method_allowed
from bmt_server.worker.kernels import selection


def eager_reason() -> str | None:
    """Reason why vLLM must run eagerly on this host; None if it may compile and capture graphs."""
    if not current_platform.is_cpu() and not selection.supports_cuda_graphs():
        return (
            "masks run on the portable kernel, which graphs cannot capture; the Triton kernel "
            "needs CUDA and the triton package"
        )
    folder = Path(torch.__file__).parent
    if current_platform.is_cpu() and any(c.isspace() for c in str(folder)):
        # Inductor links against this folder and passes its path to the compiler unquoted.
        return f"vLLM's compiler cannot use torch from a path with spaces ({folder})"
    return None


def float32_reason() -> str | None:
    """Reason to compute in float32 on this host; None if 16-bit weights are no slower."""
    level = cpu_environment.lacks_16_bits()
    if current_platform.is_cpu() and level:
        return (
            f"this CPU ({level}) has no instructions for 16-bit weights, and float32 is several "
            "times faster"
        )
    return None


def check_configuration(vllm_config: Any) -> None:
    """Raise SettingsError for a configuration that masks cannot work with, as vLLM completed it.

    vllm_config: vLLM 0.32.0, `config/vllm.py`, `VllmConfig`.
    """
    if current_platform.is_cpu() and vllm_config.use_v2_model_runner:
        raise SettingsError(
            "vLLM would use its second model runner on the CPU, for which masks are not made; set "
            "VLLM_USE_V2_MODEL_RUNNER=0, and remove --watermark-config"
        )
    model = vllm_config.model_config
    if current_platform.is_cpu() and model.dtype != torch.bfloat16:
        text = model.hf_text_config
        # Gated delta networks (Qwen 3.5): vLLM's `layers/mamba/ops/cpu/gdn_attention.py` asserts it
        # in the first step, which ends the engine.
        if "linear_attention" in (getattr(text, "layer_types", None) or ()) and hasattr(
            text, "linear_num_key_heads"
        ):
            raise SettingsError(
                f"{text.model_type} has linear attention, which vLLM computes in bfloat16 alone on "
                f"CPUs, and --dtype is {str(model.dtype).removeprefix('torch.')}; use --dtype "
                "bfloat16"
            )
    speculative = vllm_config.speculative_config
    if speculative is not None and not method_allowed(speculative.method):
        raise SettingsError(
            f"--speculative-config: its draft model is one of method {speculative.method!r}, which "
            "is not known to verify its drafts under a request's mask"
        )
