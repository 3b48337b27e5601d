"""Local folder of the checkpoint that vLLM serves."""

from __future__ import annotations

import os

from huggingface_hub import snapshot_download

_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]


def checkpoint_folder(model: str, revision: str | None = None) -> str:
    """Return the checkpoint's folder: `model` itself, or the Hub snapshot of that id.

    Downloads the snapshot if the Hub cache does not hold it. Raises huggingface_hub's errors.
    """
    if os.path.isdir(model):
        return model
    return snapshot_download(model, revision=revision, allow_patterns=_FILES)
