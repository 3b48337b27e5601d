"""vLLM flags that do not go with masks, each with the reason and what to do instead."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmt_server.vllm_integration import cpu_environment


class UnsupportedFlagError(ValueError):
    """A vLLM flag cannot be combined with masks; the message names it, why, and the way out."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused flag: its name, when it counts as given, and the reason with the fix."""

    flag: str
    given: Callable[[Any], bool]
    reason: str


def _truthy(value: Any) -> bool:
    return bool(value)


REFUSED: tuple[Refusal, ...] = (
    Refusal("enable_lora", _truthy, "masks take the place of LoRA adapters; drop the flag"),
    Refusal("lora_modules", _truthy, "upload masks with `bmt-client upload` instead"),
    Refusal("api_key", _truthy, "it guards only some routes; keys come from the registry"),
    Refusal(
        "quantization",
        lambda v: v not in (None, "none"),
        "the gate projections must be unquantized for now; serve the unquantized checkpoint",
    ),
    Refusal("enable_sleep_mode", _truthy, "sleep discards weights that masks were read from"),
    Refusal("speculative_config", _truthy, "the drafter would run without the request's mask"),
    Refusal("scheduler_cls", _truthy, "mask mode 'scatter' brings its own scheduler"),
    Refusal("headless", _truthy, "a node without the API process cannot be given masks yet"),
    Refusal("enable_dbo", _truthy, "a step's halves would take each other's masks"),
    Refusal("ubatch_size", lambda v: (v or 0) > 1, "a step's parts would take each other's masks"),
    Refusal("grpc", _truthy, "the gRPC server has no authentication and no masks"),
    Refusal(
        "served_model_name",
        lambda v: any("@" in n or ":" in n for n in (v or [])),
        "'@' and ':' separate a mask's name from its version and alias",
    ),
)


def eager_reason() -> str | None:
    """Why vLLM must run eagerly on this host, or None where it may compile and capture."""
    import torch
    from vllm.platforms import current_platform

    from bmt_server.worker.kernels.masked_delta import graphs

    if current_platform.is_cuda_alike() and not graphs():
        return (
            "masks run on the portable kernel, which CUDA graphs cannot capture: their own kernel "
            "needs CUDA and the triton package"
        )
    folder = Path(torch.__file__).parent
    if current_platform.is_cpu() and any(c.isspace() for c in str(folder)):
        # Inductor links against it, and hands its path to the compiler unquoted.
        return f"vLLM's compiler cannot use torch from a path with spaces ({folder})"
    return None


def float32_reason() -> str | None:
    """Why vLLM should compute in float32 on this host, or None where 16 bits are no slower."""
    from vllm.platforms import current_platform

    level = cpu_environment.lacks_16_bits()
    if current_platform.is_cpu() and level:
        return (
            f"this CPU ({level}) has no instructions for 16-bit weights, and float32 is several "
            "times faster"
        )
    return None


def check(args: Namespace, refused: Sequence[Refusal] = REFUSED) -> None:
    """Raise UnsupportedFlagError for the first flag that masks do not go with."""
    for refusal in refused:
        value = getattr(args, refusal.flag, None)
        if refusal.given(value):
            name = "--" + refusal.flag.replace("_", "-")
            raise UnsupportedFlagError(f"{name} ({value!r}) cannot be used: {refusal.reason}")
