"""Content identity of models, data sets and files that settings name, whatever their location.

A result is identified by the bytes that it came from: a moved folder or a copy on another machine
has the same identity, another model under the same name does not. `of_model`, `of_dataset` and
`of_setting` give the names of results; `sources_of_*` are what these names leave out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from bmt_core import fingerprint
from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED

from bmt_trainer import models
from bmt_trainer.data.benchmark_formats import FORMS
from bmt_trainer.data.names import parse_name, split_names
from bmt_trainer.data.rows import files as rows_of_files
from bmt_trainer.data.rows import places, repositories
from bmt_trainer.data.rows.local_files import is_data_file, is_url, local_paths
from bmt_trainer.data.sources import source_of
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.graders import GRADERS
from bmt_trainer.evaluation.retention import LM_EVAL
from bmt_trainer.evaluation.suites import Suite
from bmt_trainer.masking.export import library_versions
from bmt_trainer.rewards.digests import digest
from bmt_trainer.rewards.specification import JOINED, parse
from bmt_trainer.settings import expanded

#: Settings that name data sets besides the one that is trained on.
DATASETS = ("heldout_dataset", "validation_dataset")
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
    if isinstance(value, list | tuple) and name in (*DATASETS, *_REWARDS):
        value = JOINED.join(map(str, value))
    if not isinstance(value, str):
        return value
    if name in DATASETS:
        return of_dataset(value)
    if name == "chat_template" and (file := expanded(value)).is_file():
        return f"{file.name} {_digest(file)}"
    if name in _REWARDS and any(one.name not in GRADERS for one in parse(value)):
        return f"{value} {digest(value)}"
    return value


def sources_of_model(model: str) -> str:
    """Digest of a folder's files besides the weights, or a commit of the Hub.

    Configuration, tokenizer, chat templates and code decide what a model computes too.
    """
    folder = expanded(model)
    if not folder.is_dir():
        return models.commit_of(model)
    found = {
        path.name: _digest(path)
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix != ".safetensors"
        and any(fnmatch(path.name, pattern) for pattern in DOWNLOADED)
        and not any(fnmatch(path.name, pattern) for pattern in NOT_DOWNLOADED)
    }
    return _of_json(found)


def sources_of_dataset(dataset: str) -> dict[str, str]:
    """Contents that decide a data set, by their name in it. Raises DataError.

    Commits of the Hub, bytes behind a URL, files in folders by their paths, and files that options
    name.
    """
    found: dict[str, str] = {}
    for at, one in enumerate(split_names(dataset)):
        for name, content in _sources(one):
            found[f"{at} {name}"] = content
    return found


def sources_of_suites(suites: Sequence[Suite], folder: Path | None) -> dict[str, Any]:
    """Contents of evaluation sets, by set; of a set without data, the reason."""
    found: dict[str, Any] = {}
    for suite in suites:
        try:
            location = suite.dataset(folder)
            found[suite.name] = {"of": of_dataset(location), **sources_of_dataset(location)}
        except DataError as error:  # it is skipped
            found[suite.name] = type(error).__name__
    return found


def _sources(dataset: str) -> Iterator[tuple[str, str]]:
    source = source_of(dataset)
    if source.generated:
        return
    for key, value in parse_name(dataset)[1].items():
        try:
            if (file := expanded(value)).is_file():
                yield key, _digest(file)
        except (OSError, ValueError):  # no path
            continue
    name = source.rest if source.kind in FORMS and source.rest else source.name
    if is_url(name):
        yield "content", _of_url(name)
    elif (folder := expanded(name)).is_dir():
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        yield "content", _of_json({str(p.relative_to(folder)): _digest(p) for p in paths})
    elif not _files(dataset.partition("?")[0]) and not places.is_path(name):
        yield "commit", repositories.commit_of(name, source.options.get("revision"))


def _of_url(url: str) -> str:
    """Digest of the bytes of a URL's files."""
    try:
        found, is_folder = places.remote(url)
        if is_folder:
            found = [place for part in places.of_folder(url).values() for place in part]
        digests = {}
        for place in found:
            with place.open() as stream:
                # Streams of file systems have no buffer for `hashlib.file_digest`.
                whole = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    whole.update(chunk)
            digests[place.name] = whole.hexdigest()
    except DataError:
        raise
    except Exception as error:  # each file system has its own errors
        raise DataError(f"{url} cannot be read ({rows_of_files.reason(error)})") from error
    return _of_json(digests)


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


class Sources:
    """`sources_of_*` of one plan, each computed once, when a run's key needs it."""

    def __init__(self, chosen: Sequence[Suite], folder: Path | None) -> None:
        self._suites, self._folder = chosen, folder
        self._known: dict[tuple[str, str], Any] = {}

    def of_model(self, model: str) -> str:
        """Of a model, besides its weights."""
        return self._once("model", model, sources_of_model)

    def of_dataset(self, dataset: str) -> Any:
        """Of a data set. Raises DataError."""
        return self._once("data", dataset, sources_of_dataset)

    def of_retention(self, retention: str) -> Any:
        """Of the data set of another skill, or the version of lm-eval."""
        if retention == LM_EVAL:
            return library_versions(LM_EVAL)[LM_EVAL]
        return self.of_dataset(retention)

    @cached_property
    def of_suites(self) -> Any:
        """Of the evaluation sets."""
        return sources_of_suites(self._suites, self._folder)

    def _once(self, kind: str, name: str, of: Callable[[str], Any]) -> Any:
        if (kind, name) not in self._known:
            self._known[kind, name] = of(name)
        return self._known[kind, name]
