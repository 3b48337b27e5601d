"""Models and data sets by what they are, wherever they lie.

A result is of the bytes that it came from: a folder that was moved, or another machine's copy,
gives the same, and another model under the same name does not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bmt_core import fingerprint


def of_model(model: str) -> str:
    """A folder's fingerprint; a model of the Hub as it is named. Raises CheckpointError."""
    folder = Path(model).expanduser()
    return fingerprint(folder) if folder.is_dir() else model


def of_dataset(dataset: str) -> str:
    """A file's data set without its folder and with its SHA-256; another one as it is named."""
    place, _, _ = dataset.partition("?")
    file = _file(place)
    if file is None:
        return dataset
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{without_folder(dataset)} {digest}"


def without_folder(dataset: str) -> str:
    """A data set's name without the folders of somebody's machine."""
    place, mark, query = dataset.partition("?")
    kind, colon, path = place.rpartition(":")
    name = Path(path).name if path.endswith((".jsonl", ".json", ".gz")) else path
    return f"{kind}{colon}{name}{mark}{query}"


def _file(place: str) -> Path | None:
    """FORM:FILE or FILE, where there is such a file."""
    for name in (place, place.partition(":")[2]):
        if name and Path(name).is_file():
            return Path(name)
    return None
