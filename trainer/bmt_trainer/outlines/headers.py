"""A folder that stands for a checkpoint of the Hub: its small files, and headers of its weights.

A header is some hundred kilobytes, the weights behind it gigabytes. Their files here are as long as
those of the Hub, and sparse: the file system keeps no byte of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import httpx
from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED, weight_files
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import SafetensorsFileMetadata

from bmt_trainer import hub
from bmt_trainer.checkpoint_files import INDEX, indexed_files
from bmt_trainer.errors import ModelError, ModelNotFound
from bmt_trainer.settings import expanded

# Files that say what a checkpoint is. Not the tokenizer: of large vocabularies it has megabytes.
_SMALL = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.index.json"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
)
# Other formats of weights, by whose names a checkpoint without safetensors is explained.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf")
_REQUESTS = 8


def with_headers(model: str, scratch: Path) -> Path:
    """A folder with a checkpoint's configuration and headers; no weight is downloaded.

    `model` itself if it is a folder, the Hub's snapshot if that is downloaded already, or else a
    folder in `scratch`. Raises ModelNotFound.
    """
    folder = expanded(model)
    if folder.is_dir():
        return folder
    if (cached := _downloaded(model)) is not None:
        return cached
    reason = hub.unreachable() if hub.is_id(model) else "no such folder"
    if reason is None:
        try:
            return _stand_in(model, scratch)
        except SafetensorsParsingError as error:
            raise ModelError(f"model {model!r}: {error}") from None
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
            reason = type(error).__name__
    raise ModelNotFound(
        f"model {model!r} is not a folder, and the Hub does not provide it ({reason}); name a "
        "folder or a model such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def _downloaded(model: str) -> Path | None:
    """The snapshot of the Hub's cache, if its weights are there."""
    if not hub.is_id(model):
        return None
    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    if (folder / INDEX).is_file():
        try:
            names = indexed_files(folder / INDEX)
        except ModelError:  # which the look at the checkpoint raises again
            return folder
        return folder if all((folder / name).is_file() for name in names) else None
    return folder if weight_files(folder) and (folder / "config.json").is_file() else None


def _stand_in(model: str, scratch: Path) -> Path:
    api = HfApi(endpoint=hub.endpoint())
    info = api.model_info(model)
    folder = scratch / model.rpartition("/")[2]
    snapshot_download(
        model,
        revision=info.sha,
        allow_patterns=[*_SMALL],
        ignore_patterns=[*NOT_DOWNLOADED],
        local_dir=folder,
        endpoint=hub.endpoint(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    for name in names:
        if name.endswith(_OTHER_WEIGHTS) and "/" not in name:
            (folder / name).touch()

    def write(name: str) -> None:
        try:
            metadata = api.parse_safetensors_file_metadata(model, name, revision=info.sha)
            _write_header(folder / name, metadata)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {model!r}: the header of {name} is malformed ({error}); its owner has to "
                "upload it again"
            ) from None

    with ThreadPoolExecutor(_REQUESTS) as threads:
        list(threads.map(write, _weights(names)))
    return folder


def _weights(names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if name.endswith(".safetensors")
        and any(fnmatch(name, pattern) for pattern in DOWNLOADED)
        and not any(fnmatch(name, pattern) for pattern in NOT_DOWNLOADED)
    ]


def _write_header(file: Path, metadata: SafetensorsFileMetadata) -> None:
    """A safetensors file with this header, and a hole in place of its tensors."""
    header = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": list(one.data_offsets)}
        for name, one in metadata.tensors.items()
    }
    extra = {"__metadata__": metadata.metadata} if metadata.metadata else {}
    text = json.dumps({**extra, **header}).encode()
    end = max((one.data_offsets[1] for one in metadata.tensors.values()), default=0)
    with file.open("wb") as written:
        written.write(struct.pack("<Q", len(text)) + text)
        written.truncate(8 + len(text) + end)
