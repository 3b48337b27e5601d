"""Settings with which masks of experts cannot be served, before the engine starts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from bmt_core.gates.geometry import expert_of
from vllm.platforms import current_platform

from bmt_server.settings import MaskMode, SettingsError
from bmt_server.vllm_integration.versions.check import check_version


def check_experts(folder: str, gates: Iterable[str], *, mode: MaskMode, args: Namespace) -> None:
    """Raise SettingsError if gates of experts are among `gates` and cannot be served so.

    gates: names in the checkpoint; args: vLLM's arguments, those that were given. Raises
    VllmContractError for a vLLM that has not what experts need.
    """
    if not any(map(expert_of, gates)):
        return
    check_version(experts=True)
    has = f"{folder} has experts, whose masks"
    if not current_platform.is_cpu():
        raise SettingsError(
            f"{has} are served on CPUs alone: on a GPU they were never tried; `bmt-train export` "
            "writes a checkpoint with a mask's zeros, which any engine serves"
        )
    if mode == "scatter":
        raise SettingsError(
            f"--mask-mode scatter cannot be used: {has} correct answers and do not change weights "
            "in place, because vLLM repacks those of experts; use delta or auto"
        )
    for flag, given in _FLAGS.items():
        value = getattr(args, flag, None)
        if given(value):
            name = "--" + flag.replace("_", "-")
            raise SettingsError(
                f"{name} ({value!r}) cannot be used: {has} are served where each process has all "
                "experts and all tokens of its steps, by vLLM's own choice of kernel; remove it"
            )


def _backend(value: Any) -> bool:
    return value not in (None, "auto")


_FLAGS: dict[str, Any] = {
    "enable_expert_parallel": bool,
    "enable_eplb": bool,
    "moe_backend": _backend,
    "kernel_config": lambda value: _backend(
        value.get("moe_backend") if isinstance(value, dict) else getattr(value, "moe_backend", None)
    ),
    "data_parallel_size": lambda value: (value or 1) > 1,
}
