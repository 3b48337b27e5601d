"""Places of files: local paths, globs, folders and URLs of any file system that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from datasets.data_files import get_data_patterns, resolve_pattern
from fsspec.implementations.local import LocalFileSystem

from bmt_trainer import hub
from bmt_trainer.data.rows.local_files import (
    EXTENSIONS,
    GLOB,
    extensions,
    is_data_file,
    is_url,
    local_paths,
)
from bmt_trainer.errors import DataError
from bmt_trainer.settings import expanded

_HTTP = ("http", "https")
# Packages of file systems, by the scheme of their URLs.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
}
_CONNECT_SECONDS, _READ_SECONDS = 10, 60


@dataclass(frozen=True)
class Place:
    """A file: its file system, its path there, and its name as the user knows it."""

    system: Any
    path: str
    name: str

    @property
    def extensions(self) -> tuple[str, str]:
        """The extension that names the format, and that of the compression, in lower case."""
        return extensions(urlsplit(self.name).path if is_url(self.name) else self.name)

    def open(self) -> IO[bytes]:
        """The file's bytes, as they are stored. Raises what the file system raises."""
        return self.system.open(self.path, "rb")  # type: ignore[no-any-return]


def is_path(name: str) -> bool:
    """True for a name that can only be a path: it ends like a data file, or is no Hub id."""
    return is_data_file(name) or not hub.is_id(name)


def local(name: str) -> list[Place] | None:
    """The local files of a path or a glob; None if there are none, or for a folder."""
    paths = local_paths(name)
    if paths is None:
        return None
    # A file has the name that the user gave; a match of a pattern, its path.
    names = [name] if expanded(name).is_file() else paths
    system = LocalFileSystem()
    return [Place(system, path, shown) for path, shown in zip(paths, names, strict=True)]


def remote(url: str) -> tuple[list[Place], bool]:
    """The files of a URL or of its pattern, and True if it is a folder instead. Raises DataError.

    A `?` that belongs to the URL is written %3F, since `?` begins the options.
    """
    scheme = urlsplit(url).scheme.lower()
    address = scheme + url[len(scheme) :]
    if scheme in _HTTP:
        address = re.sub("%3f", "?", address, flags=re.IGNORECASE)
    try:
        system, path = fsspec.core.url_to_fs(address, **_options(scheme))
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"pip install {package}" if package else str(error)
        raise DataError(f"{url}: {scheme}:// needs another package: {hint}") from None
    except ValueError as error:
        raise DataError(f"{url} cannot be read ({error})") from None
    if scheme in _HTTP:
        return [Place(system, path, address)], False
    if GLOB.search(path):
        found = sorted(system.glob(path))
        if not found:
            raise DataError(f"{url} cannot be read: no such file: the pattern matches nothing")
        return [Place(system, p, f"{scheme}://{p}") for p in found], False
    if system.isdir(path):
        return [], True
    return [Place(system, path, url)], False


def _options(scheme: str) -> dict[str, Any]:
    if scheme in _HTTP:
        # Without a limit on the whole: a large file takes its time.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
        )
        return {"client_kwargs": {"trust_env": True, "timeout": timeout}}
    if scheme in ("s3", "s3a"):
        return {
            "config_kwargs": {"connect_timeout": _CONNECT_SECONDS, "retries": {"max_attempts": 2}}
        }
    return {}


def is_saved(folder: str) -> bool:
    """True for a folder, local or remote, that `save_to_disk` of `datasets` wrote."""
    system, path = LocalFileSystem(), str(expanded(folder))
    if is_url(folder):
        system, path = fsspec.core.url_to_fs(folder)
    return any(system.exists(f"{path}/{name}") for name in ("dataset_dict.json", "state.json"))


def of_folder(
    folder: str, patterns: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[Place]]:
    """The data files of a folder by split, found by `datasets`' rules for their names.

    folder: a local path or a URL; patterns: of the files of each split, if they are known.
    Raises DataError.
    """
    base = folder if is_url(folder) else str(expanded(folder).resolve())
    system = fsspec.core.url_to_fs(base)[0] if is_url(folder) else LocalFileSystem()
    splits = {}
    for split, chosen in (patterns or _default_patterns(base, folder)).items():
        found: set[str] = set()
        for pattern in chosen:
            try:
                found.update(resolve_pattern(pattern, base))
            except FileNotFoundError:
                # Of `datasets`' own patterns, only one has to match.
                if patterns:
                    raise DataError(
                        f"the folder {folder} has no file {pattern}, which its README.md names for "
                        f"the split {split}"
                    ) from None
        made = [Place(system, path, _shown(path, base, folder)) for path in sorted(found)]
        splits[str(split)] = [place for place in made if place.extensions[0] in EXTENSIONS]
    splits = {split: places for split, places in splits.items() if places}
    if not splits:
        raise DataError(
            f"the folder {folder} holds no data files; they end in {', '.join(EXTENSIONS)}"
        )
    return splits


def _default_patterns(base: str, folder: str) -> dict[str, list[str]]:
    try:
        return get_data_patterns(base)  # type: ignore[no-any-return]
    except FileNotFoundError:  # EmptyDatasetError is one
        raise DataError(
            f"the folder {folder} holds no data files; they end in {', '.join(EXTENSIONS)}"
        ) from None


def _shown(path: str, base: str, folder: str) -> str:
    inside = path.removeprefix(base).lstrip("/")
    return f"{folder.rstrip('/')}/{inside}" if path.startswith(base) else path
