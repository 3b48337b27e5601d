"""Local folder of the checkpoint that vLLM serves."""

from __future__ import annotations

from pathlib import Path

from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED, second_copies
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from bmt_server.settings import SettingsError


class ModelNotFoundError(SettingsError):
    """A model is neither a folder nor a repository of the Hub; the message names it."""


def checkpoint_folder(model: str, revision: str | None = None) -> str:
    """Return the checkpoint's folder: `model` itself, or the Hub snapshot of that id.

    Downloads the snapshot if the Hub cache does not hold it. Raises ModelNotFoundError.
    """
    if Path(model).is_dir():
        return model
    try:
        return snapshot_download(
            model,
            revision=revision,
            allow_patterns=[*DOWNLOADED],
            ignore_patterns=[*NOT_DOWNLOADED],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        revised = f" at revision {revision!r}" if revision else ""
        raise ModelNotFoundError(
            f"model {model!r} is not a folder, and the Hub does not provide it{revised} "
            f"({type(error).__name__}); name the folder of a checkpoint or a model such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error


def load_format(folder: str, chosen: str) -> str:
    """vLLM's `--load-format` for a checkpoint: `chosen`, or the format of the fingerprint's files.

    With `auto`, vLLM 0.32.0 (`model_executor/model_loader/default_loader.py`) prefers a second copy
    of the weights, which the fingerprint does not cover.
    """
    return "safetensors" if chosen == "auto" and second_copies(folder) else chosen
