"""vLLM flags that are incompatible with masks, each with its reason and fix. Imports no vLLM."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class UnsupportedFlagError(ValueError):
    """A vLLM flag is incompatible with masks; the message names the flag, the reason, the fix."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused flag: its name, a predicate for "is set", and the reason with the fix."""

    flag: str
    given: Callable[[Any], bool]
    reason: str


def _truthy(value: Any) -> bool:
    return bool(value)


REFUSED: tuple[Refusal, ...] = (
    Refusal("enable_lora", _truthy, "masks replace LoRA adapters; remove the flag"),
    Refusal("lora_modules", _truthy, "upload masks with `bmt-client upload` instead"),
    Refusal("api_key", _truthy, "it protects only some routes; API keys come from the registry"),
    Refusal(
        "quantization",
        lambda v: v not in (None, "none"),
        "masks need unquantized gate projections; serve the unquantized checkpoint",
    ),
    Refusal("enable_sleep_mode", _truthy, "sleep discards the weights that mask values come from"),
    Refusal("speculative_config", _truthy, "the draft model would run without the request's mask"),
    Refusal("scheduler_cls", _truthy, "mask mode 'scatter' sets its own scheduler"),
    Refusal("headless", _truthy, "a node without an API process cannot receive masks"),
    Refusal("enable_dbo", _truthy, "the two halves of a step would use each other's masks"),
    Refusal(
        "ubatch_size",
        lambda v: (v or 0) > 1,
        "the parts of a step would use each other's masks",
    ),
    Refusal("grpc", _truthy, "the gRPC server has neither authentication nor masks"),
    Refusal(
        "served_model_name",
        lambda v: any("@" in n or ":" in n for n in (v or [])),
        "'@' and ':' separate a mask's name from its version and alias",
    ),
)


def check(args: Namespace, refused: Sequence[Refusal] = REFUSED) -> None:
    """Raise UnsupportedFlagError for the first flag in `args` that is incompatible with masks."""
    for refusal in refused:
        value = getattr(args, refusal.flag, None)
        if refusal.given(value):
            name = "--" + refusal.flag.replace("_", "-")
            raise UnsupportedFlagError(f"{name} ({value!r}) cannot be used: {refusal.reason}")
