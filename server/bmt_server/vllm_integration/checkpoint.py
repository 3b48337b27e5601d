"""Local folder of the checkpoint that vLLM serves."""

from __future__ import annotations

import os

from huggingface_hub import snapshot_download

# A chat template may be a file of its own.
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def checkpoint_folder(model: str, revision: str | None = None) -> str:
    """Return the checkpoint's folder: `model` itself, or the Hub snapshot of that id.

    Downloads the snapshot if the Hub cache does not hold it. Raises huggingface_hub's errors.
    """
    if os.path.isdir(model):
        return model
    return snapshot_download(model, revision=revision, allow_patterns=_FILES)
