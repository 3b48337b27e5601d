"""A trial of loading a checkpoint, by its headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bmt_core.checkpoint_files import weight_files
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def reason_not_loaded(model: nn.Module, folder: Path) -> str | None:
    """Why a checkpoint's tensors do not make the model; None if they do.

    model: its outline. transformers loads tensors without values, so names, renamings, experts
    that it stacks and shapes are looked at as in loading.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    try:
        with _quiet():
            _, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=_empty(folder),
                device_map={"": "meta"},
                output_loading_info=True,
            )
    except Exception as error:  # of any kind, as in loading: RuntimeError, ValueError, KeyError, …
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return f"{folder.name} cannot be loaded as a {type(model).__name__} ({first})"
    if missing := sorted(info.get("missing_keys", ())):
        return (
            f"{folder.name} lacks {len(missing)} tensors of its model, {missing[0]} among them, "
            "which would start at random; use the complete checkpoint"
        )
    return None


def _empty(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, on torch's meta device."""
    tensors = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype(), torch.float32)
                tensors[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return tensors


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of what is missing, and its bar."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
