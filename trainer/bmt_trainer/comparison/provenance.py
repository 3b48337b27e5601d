"""Content identity of models, data sets and files that settings name, whatever their location.

A result is identified by the bytes that it came from: a moved folder or a copy on another machine
has the same identity, another model under the same name does not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bmt_core import fingerprint

from bmt_trainer.data.names import split_names
from bmt_trainer.data.rows.local_files import is_data_file, is_url, local_paths
from bmt_trainer.evaluation.graders import GRADERS
from bmt_trainer.rewards.digests import digest
from bmt_trainer.rewards.specification import JOINED, parse
from bmt_trainer.settings import expanded

# Settings that name graders or Python code.
_REWARDS = ("reward", "grader", "retention_grader")


def of_model(model: str) -> str:
    """A folder's fingerprint, or the name of a model of the Hub. Raises CheckpointError."""
    folder = expanded(model)
    return fingerprint(folder) if folder.is_dir() else model


def of_dataset(dataset: str) -> str:
    """Names without folders and SHA-256 of files; of another data set, its name.

    A folder or a pattern has the digest of its files' names and digests.
    """
    return " + ".join(map(_of_one, split_names(dataset)))


def of_setting(name: str, value: Any) -> Any:
    """A setting's value, with the digest of the files that it names. Raises ConfigError."""
    if isinstance(value, list | tuple) and name in ("heldout_dataset", *_REWARDS):
        value = JOINED.join(map(str, value))
    if not isinstance(value, str):
        return value
    if name == "heldout_dataset":
        return of_dataset(value)
    if name == "chat_template" and (file := expanded(value)).is_file():
        return f"{file.name} {_digest(file)}"
    if name in _REWARDS and any(one.name not in GRADERS for one in parse(value)):
        return f"{value} {digest(value)}"
    return value


def _of_one(dataset: str) -> str:
    name, _, _ = dataset.partition("?")
    files = _files(name)
    if not files:
        return dataset
    digests = [_digest(file) for file in files]
    if len(files) == 1:
        return f"{_without_folder(dataset)} {digests[0]}"
    whole = "".join(f"{f.name} {d}\n" for f, d in zip(files, digests, strict=True))
    return f"{_without_folder(dataset)} {hashlib.sha256(whole.encode()).hexdigest()}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def without_folder(dataset: str) -> str:
    """A data set's name without folders, which differ between machines."""
    return " + ".join(map(_without_folder, split_names(dataset)))


def _without_folder(dataset: str) -> str:
    location, mark, query = dataset.partition("?")
    if is_url(location):
        return dataset
    kind, colon, path = location.rpartition(":")
    name = Path(path).name if is_data_file(path) or Path(path).is_absolute() else path
    return f"{kind}{colon}{name}{mark}{query}"


def _files(location: str) -> list[Path]:
    """The files of FORM:FILE, FILE, a folder or a pattern; none if they do not exist."""
    for name in (location, location.partition(":")[2]):
        path = expanded(name)
        if name and path.is_dir():
            return sorted(file for file in path.rglob("*") if file.is_file())
        if name and (found := local_paths(name)):
            return [Path(file) for file in found]
    return []
