"""Content identity of models and data sets, independent of their location.

A result is identified by the bytes that it came from: a moved folder or a copy on another machine
has the same identity, another model under the same name does not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bmt_core import fingerprint


def of_model(model: str) -> str:
    """A folder's fingerprint, or the name of a model of the Hub. Raises CheckpointError."""
    folder = Path(model).expanduser()
    return fingerprint(folder) if folder.is_dir() else model


def of_dataset(dataset: str) -> str:
    """A file's name without folder and its SHA-256, or the name of another data set."""
    name, _, _ = dataset.partition("?")
    file = _file(name)
    if file is None:
        return dataset
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{without_folder(dataset)} {digest}"


def without_folder(dataset: str) -> str:
    """A data set's name without folders, which differ between machines."""
    location, mark, query = dataset.partition("?")
    kind, colon, path = location.rpartition(":")
    name = Path(path).name if path.endswith((".jsonl", ".json", ".gz")) else path
    return f"{kind}{colon}{name}{mark}{query}"


def _file(location: str) -> Path | None:
    """The file of FORM:FILE or FILE; None if it does not exist."""
    for name in (location, location.partition(":")[2]):
        if name and Path(name).is_file():
            return Path(name)
    return None
