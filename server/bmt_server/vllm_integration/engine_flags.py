"""vLLM's own options that a mask mode sets. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bmt_server.settings import MaskMode

#: No request has an image (`api/request_limits.py`), so towers that read them are not loaded.
TEXT_ONLY: Mapping[str, Any] = MappingProxyType({"language_model_only": True})
SCHEDULER = "bmt_server.scheduler.scheduler.exclusive_scheduler"


def for_mode(mode: MaskMode, additional: Mapping[str, Any] | None) -> dict[str, Any]:
    """Values of `additional_config` and, in mode `scatter`, of `scheduler_cls`.

    additional: the user's `additional_config`, which is kept.
    """
    # The compiled graph differs by mode, and vLLM's compile cache hashes this field.
    flags: dict[str, Any] = {"additional_config": {**(additional or {}), "bmt_mask_mode": mode}}
    if mode == "scatter":
        flags["scheduler_cls"] = SCHEDULER
    return flags
