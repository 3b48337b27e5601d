"""Rows of files and folders, local or remote."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import sanitize_patterns

from bmt_trainer import hub
from bmt_trainer.data.names import check_options
from bmt_trainer.data.rows import Rows, local_files, places, tables, text_formats
from bmt_trainer.data.rows.local_files import COMPRESSED, EXTENSIONS
from bmt_trainer.data.rows.places import Place
from bmt_trainer.data.rows.slices import sliced
from bmt_trainer.data.rows.streams import COMPRESSIONS, text_lines
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.settings import as_written, expanded, parse_yaml

#: Options of files; those of folders are in `FOLDER_OPTIONS`.
FILE_OPTIONS = ("field", "delimiter")
FOLDER_OPTIONS = ("config", "split")
# The longest part of another library's message in ours.
_LONGEST_REASON = 300


def of_file(path: Path) -> Rows:
    """The rows of one local file. Raises DataError."""
    found = places.local(str(path))
    if found is None:
        raise DataError(f"{path} cannot be read: {local_files.missing(str(path))}")
    return of_places(found, {})


def of_places(found: Sequence[Place], options: Mapping[str, str]) -> Rows:
    """The rows of one file after the other.

    A file without rows is an error, unless others have some. Raises DataError.
    """
    seen = False
    for place in found:
        for location, row in _of_place(place, options):
            seen = True
            yield location, row
    if not seen:
        names = ", ".join(place.name for place in found[:3])
        raise DataError(f"{names}: empty, with no rows")


def _of_place(place: Place, options: Mapping[str, str]) -> Rows:
    extension, compression = place.extensions
    format = EXTENSIONS.get(extension)
    if format is None:
        raise DataError(
            f"{place.name}: a data file's name ends in {', '.join(EXTENSIONS)}, each perhaps also "
            f"in {', '.join(COMPRESSED)}"
        )
    try:
        with place.open() as raw:
            stream = COMPRESSIONS[compression](raw) if compression else raw
            if format in ("parquet", "arrow"):
                seekable = not compression and raw.seekable()
                data = stream if seekable else io.BytesIO(stream.read())
                read = tables.parquet_rows if format == "parquet" else tables.arrow_rows
                yield from read(data, place.name)
            else:
                lines = text_lines(stream, place.name)
                yield from _TEXT[format](lines, place.name, options)
    except DataError:
        raise
    except Exception as error:  # file systems, decompressors and Arrow each have their own errors
        raise DataError(f"{place.name} cannot be read ({reason(error)})") from error


_TEXT: Mapping[str, Callable[[text_formats.Lines, str, Mapping[str, str]], Rows]] = {
    "jsonl": lambda lines, name, options: text_formats.json_lines(lines, name),
    "json": lambda lines, name, options: text_formats.json_entries(
        lines, name, options.get("field")
    ),
    "csv": lambda lines, name, options: text_formats.csv_rows(
        lines, name, options.get("delimiter", ",")
    ),
    "tsv": lambda lines, name, options: text_formats.csv_rows(
        lines, name, options.get("delimiter", "\t")
    ),
    "txt": lambda lines, name, options: text_formats.text_rows(lines, name),
}


def reason(error: BaseException) -> str:
    """Another library's error in one line."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        # fsspec says so of a server that cannot be reached, too.
        error = error.__cause__
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, FileNotFoundError) and "o such file" not in text:
        text = f"no such file: {text}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def of_url(url: str, options: Mapping[str, str]) -> Rows:
    """The rows of a URL's file or files, or of its folder. Raises DataError."""
    if url.startswith("hf://"):
        offline = hub.unreachable()
        if offline is not None:
            raise DataError(f"{url} cannot be read: the Hub cannot be asked ({offline})")
    try:
        found, is_folder = places.remote(url)
        if is_folder:
            return of_folder(url, options)
    except DataError:
        raise
    except Exception as error:  # each file system has its own errors
        raise DataError(f"{url} cannot be read ({reason(error)})") from error
    check_options(url, options, FILE_OPTIONS)
    return of_places(found, options)


def of_folder(folder: str, options: Mapping[str, str]) -> Rows:
    """The rows of a folder's split, `train` by default. Raises DataError.

    The folder is what `save_to_disk` of `datasets` writes, or holds data files, perhaps with the
    configurations of a dataset card (README.md).
    """
    config, spec = options.get("config"), options.get("split", "train")
    if places.is_saved(folder):
        if config is not None:
            raise DataError(f"{folder} is a saved data set and does not take config")
        return _saved(folder, options.get("split"))
    splits = _card(folder, config)
    readers = {split: partial(of_places, found, options) for split, found in splits.items()}
    return sliced(readers, spec, folder)


def _saved(folder: str, spec: str | None) -> Rows:
    path = folder if local_files.is_url(folder) else str(expanded(folder))
    try:
        data = datasets.load_from_disk(path)
    except IndexError:  # of the list of its files, which is empty
        raise DataError(f"{folder}: empty, with no rows") from None
    except Exception as error:  # whatever its readers raise
        raise DataError(f"{folder} cannot be read ({reason(error)})") from error
    parts = dict(data) if isinstance(data, dict) else {str(data.split or "train"): data}
    if spec is None:
        spec = "train" if isinstance(data, dict) else next(iter(parts))
    readers = {split: partial(_saved_rows, part, folder) for split, part in parts.items()}
    return sliced(readers, spec, folder)


def _saved_rows(data: datasets.Dataset, folder: str) -> Rows:
    if not len(data):
        raise DataError(f"{folder}: empty, with no rows")
    try:
        yield from tables.dataset_rows(data, folder)
    except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are among them
        raise DataError(f"{folder} cannot be read ({reason(error)})") from error


def _card(folder: str, config: str | None) -> dict[str, list[Place]]:
    """The files of a configuration of the folder's dataset card, or of the folder."""
    configs = _configs(folder)
    if config is None:
        names = [n for n, c in configs.items() if c.get("default") is True]
        names += [n for n in configs if n == "default"]
        if not names and len(configs) > 1:
            raise DataError(
                f"{folder} has several configurations; choose one by ?config= "
                f"({', '.join(configs)})"
            )
        config = next(iter([*names, *configs]), None)
    elif config not in configs:
        raise DataError(
            f"{folder} has no configuration {config!r}; it has {', '.join(configs) or 'none'}"
        )
    chosen = configs.get(config or "", {})
    where = f"{folder.rstrip('/')}/{chosen['data_dir']}" if chosen.get("data_dir") else folder
    files = chosen.get("data_files")
    patterns = sanitize_patterns(files) if files else None
    return places.of_folder(
        where, patterns and {str(split): list(found) for split, found in patterns.items()}
    )


def _configs(folder: str) -> dict[str, dict[str, Any]]:
    """The configurations in the YAML head of a local README.md, by name, with text as values."""
    card = expanded(folder) / "README.md"
    if local_files.is_url(folder) or not card.is_file():
        return {}
    try:
        text = card.read_text(encoding="utf-8")
        _, _, rest = text.partition("---\n") if text.startswith("---") else ("", "", "")
        head = parse_yaml(rest.partition("\n---")[0])
        entries = head.get("configs", []) if isinstance(head, dict) else []
        return {str(as_written(entry["config_name"])): entry for entry in entries}
    except (OSError, UnicodeDecodeError, ConfigError, KeyError, TypeError) as error:
        raise DataError(f"{card} cannot be read ({reason(error)})") from None
