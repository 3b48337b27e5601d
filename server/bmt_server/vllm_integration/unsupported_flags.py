"""vLLM flags that are incompatible with masks, each with its reason and fix. Imports no vLLM."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bmt_server.vllm_integration.arguments.decided import DECIDED
from bmt_server.vllm_integration.arguments.speculation import method_allowed, reason_against

#: Load formats that read the *.safetensors that the fingerprint covers.
FINGERPRINTED_FORMATS = (
    *("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer"),
)


class UnsupportedFlagError(ValueError):
    """A vLLM flag is incompatible with masks; the message names the flag, the reason, the fix."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused flag: its name, a predicate for "is set", and the reason with the fix.

    serve_only: `masked_llm` accepts it.
    """

    flag: str
    given: Callable[[Any], bool]
    reason: str
    serve_only: bool = False


def _truthy(value: Any) -> bool:
    return bool(value)


def _other_than(*values: Any) -> Callable[[Any], bool]:
    """A predicate for a value that is none of these, and not None."""
    return lambda value: value is not None and value not in values


def _with(name: str) -> Callable[[Any], bool]:
    """A predicate for a JSON object, or vLLM's class for it, that sets `name`."""

    def given(value: Any) -> bool:
        return bool(value.get(name) if isinstance(value, dict) else getattr(value, name, False))

    return given


_FUSED = "one kernel computes a whole layer then, and masks act between the products of a layer"
_LORA = "masks replace LoRA adapters; remove the flag"
_OFFLOAD = (
    "masks read and write the gate weights where vLLM computes with them, and offloaded weights "
    "move between memories; serve without offloading"
)
_CONNECTOR = (
    "a connector may find the KV cache by its tokens alone, and give one mask that of another"
)
_QUANTIZED = (
    "it would quantize weights that masks name, or read codes otherwise than the checkpoint says; "
    "serve a quantized checkpoint without it"
)
_PARTS = "the parts of a step would use each other's masks"
_SUPERVISOR = "it starts API servers of its own, without masks; start one bmt-server for each rank"

REFUSED: tuple[Refusal, ...] = (
    Refusal("enable_lora", _truthy, _LORA),
    Refusal("lora_modules", _truthy, "upload masks with `bmt-client upload` instead"),
    Refusal("max_loras", _other_than(1), "masks have no slots; remove the flag"),
    Refusal("max_lora_rank", _other_than(16), "masks have no rank; remove the flag"),
    Refusal("max_cpu_loras", _truthy, "masks have no slots; remove the flag"),
    Refusal("lora_dtype", _other_than("auto"), _LORA),
    Refusal("enable_tower_connector_lora", _truthy, _LORA),
    Refusal("fully_sharded_loras", _truthy, _LORA),
    Refusal("lora_target_modules", _truthy, _LORA),
    Refusal("default_mm_loras", _truthy, _LORA),
    Refusal("specialize_active_lora", _truthy, "one graph serves any number of masks"),
    Refusal("enable_mixed_moe_lora_format", _truthy, _LORA),
    Refusal("enable_moe_shared_loras", _truthy, _LORA),
    Refusal("api_key", _truthy, "it protects only some routes; API keys come from the registry"),
    Refusal(
        "quantization",
        _other_than("none"),
        _QUANTIZED,
    ),
    Refusal(
        "quantization_config",
        _truthy,
        _QUANTIZED,
    ),
    Refusal("monokernel", _truthy, _FUSED),
    Refusal("kernel_config", _with("monokernel"), _FUSED),
    Refusal("enable_sleep_mode", _truthy, "sleep discards the weights that mask values come from"),
    Refusal(
        "enable_cumem_allocator",
        _truthy,
        "`LLM.sleep` discards its memory, and with it the tables by which masks find the weights",
    ),
    Refusal("scheduler_cls", _truthy, "mask mode 'scatter' sets its own scheduler"),
    Refusal("headless", _truthy, "a node without an API process cannot receive masks"),
    Refusal("enable_dbo", _truthy, "the two halves of a step would use each other's masks"),
    Refusal("ubatch_size", lambda v: (v or 0) > 1, _PARTS),
    Refusal("prefill_context_parallel_size", lambda v: (v or 1) > 1, _PARTS),
    Refusal("diffusion_config", _truthy, "its steps were never tried with masks"),
    Refusal("cpu_offload_gb", _truthy, _OFFLOAD),
    Refusal("offload_group_size", _truthy, _OFFLOAD),
    Refusal("offload_backend", _other_than("auto"), _OFFLOAD),
    Refusal(
        "load_format",
        _other_than(*FINGERPRINTED_FORMATS),
        "masks belong to the weights in the checkpoint's *.safetensors, and this format loads "
        "others, or shares them with another server, whose answers a mask in place would change; "
        f"use one of {', '.join(FINGERPRINTED_FORMATS)}",
    ),
    Refusal("kv_transfer_config", _truthy, _CONNECTOR),
    Refusal("kv_offloading_backend", _other_than("native"), f"{_CONNECTOR}; use native"),
    Refusal("model_weights", _truthy, "the fingerprint covers the weights in the model's folder"),
    Refusal("enable_elastic_ep", _truthy, "workers that join later would have no masks"),
    Refusal("enable_fault_tolerance", _truthy, "a recovered engine would have no masks"),
    Refusal("data_parallel_multi_port_external_lb", _truthy, _SUPERVISOR),
    Refusal("worker_cls", _other_than("auto"), "only vLLM's own workers are known to load masks"),
    Refusal(
        "weight_transfer_config",
        _truthy,
        "no route of this server replaces weights; start it again with the new checkpoint",
        serve_only=True,
    ),
    Refusal("grpc", _truthy, "the gRPC server has neither authentication nor masks"),
    Refusal(
        "served_model_name",
        lambda v: any("@" in n for n in ([v] if isinstance(v, str) else v or [])),
        "'@' separates a mask's name from its version",
    ),
    Refusal(
        "spec_method",
        lambda v: not method_allowed(v),
        "it is not known to verify its drafts under a request's mask",
    ),
)
# Flags whose values no message or log may show.
_SECRET = ("api_key",)
# Refused by parts of its value, see `check`.
_SPECULATION = "speculative_config"
# Each of them makes vLLM speculate.
_SPECULATES = (_SPECULATION, "spec_method", "spec_model", "spec_tokens")
_PER_REQUEST = "per_request_spec_decode_metrics"


def check(
    args: Namespace,
    refused: Sequence[Refusal] = REFUSED,
    *,
    offline: bool = False,
    defaults: Namespace | None = None,
) -> None:
    """Raise UnsupportedFlagError for the first flag in `args` that is incompatible with masks.

    offline: the flags are options of `masked_llm`, where one program owns all requests. defaults:
    vLLM's; a flag with another value that is neither refused nor decided on is refused then.
    """
    for refusal in refused:
        value = getattr(args, refusal.flag, None)
        if refusal.given(value) and not (offline and refusal.serve_only):
            raise _error(refusal.flag, value, refusal.reason)
    speculation = getattr(args, _SPECULATION, None)
    method = getattr(args, "spec_method", None)
    if speculation is not None or method:
        whole = {} if speculation is None else speculation
        if method and isinstance(whole, Mapping):
            whole = {"method": method, **whole}
        if reason := reason_against(whole, tenants=not offline):
            raise _error("spec_method" if speculation is None else _SPECULATION, whole, reason)
    known = DECIDED | {_SPECULATION} | {refusal.flag for refusal in refused}
    for flag, default in sorted(vars(defaults or Namespace()).items()):
        if flag not in known and getattr(args, flag, default) != default:
            raise _error(
                flag,
                getattr(args, flag),
                "this version of bmt-adapters does not know how it acts on masks; remove it",
            )


def check_model(model: str, args: Namespace, defaults: Namespace) -> None:
    """Raise UnsupportedFlagError if vLLM's flags, or a file of them, name another model."""
    for flag in ("model", "model_tag"):
        named = getattr(args, flag)
        if named not in (model, getattr(defaults, flag)):
            raise _error("model", named, f"{model!r} is served; name the model once")


def count_drafts(args: Namespace) -> None:
    """Let vLLM count each request's drafted and accepted tokens, for the metrics by mask."""
    if (
        any(getattr(args, flag, None) for flag in _SPECULATES)
        and getattr(args, _PER_REQUEST, "none") == "none"
    ):
        setattr(args, _PER_REQUEST, "summary")


def _error(flag: str, value: Any, reason: str) -> UnsupportedFlagError:
    name = "--" + flag.replace("_", "-")
    shown = "" if flag in _SECRET else f" ({value!r})"
    return UnsupportedFlagError(f"{name}{shown} cannot be used: {reason}")
