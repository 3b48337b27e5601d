"""The config file: the default server, the keys by address, and profiles, names of addresses.

The file is `$BMT_CONFIG`, by default `$XDG_CONFIG_HOME/bmt/client.json` (~/.config):

    {"url": "https://masks.example.org", "keys": {"https://masks.example.org": "bmt_…"},
     "profiles": {"prod": "https://masks.example.org"}}

It must have mode 0600, because anyone who reads it can act as the user. Fields of a newer client
are kept.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmt_client._errors import UsageError

MAX_BYTES = 16 << 20  # bound on the file, bytes


@dataclass(frozen=True)
class Content:
    """Content of the file. The repr omits the keys."""

    url: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # by address
    profiles: Mapping[str, str] = field(default_factory=dict)  # addresses by name
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)


def config_path() -> Path:
    """Path of the config file, which need not exist."""
    if given := os.environ.get("BMT_CONFIG"):
        return Path(given)
    try:
        home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError as error:
        raise UsageError(f"no home folder ({error}); set BMT_CONFIG to a file") from error
    return Path(home) / "bmt" / "client.json"


def load(path: Path) -> Content:
    """Read the file; without one, an empty content. Raises UsageError if it is damaged."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Content()
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    content = _parsed(path)
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"the config file {path} has mode {stat.S_IMODE(mode):04o}, so other users can read "
            f"its keys; run: chmod 600 {path}",
            code="config_mode",
        )
    return content


def change(
    url: str | None, *, key: str | None = None, drop_keys: bool = False, profile: str | None = None
) -> tuple[Path, Path | None]:
    """Change the file, atomically and with mode 0600.

    A damaged file is mended: it is kept under another name, and its sound fields stay.

    Parameters
    ----------
    url : address of the key; with a key, it becomes the default server
    key : key of `url`
    drop_keys : remove the key of `url`, or with url None all keys
    profile : name of `url`

    Returns the file and the copy of a damaged one, or None. Raises UsageError.
    """
    path = config_path()
    backup = None
    try:
        content = load(path)
    except UsageError as error:
        # Keys that others could read still belong to their servers: only the mode is mended.
        content = sound_fields(path)
        if error.code != "config_mode":
            backup = _set_aside(path)
    keys, profiles = dict(content.keys), dict(content.profiles)
    if drop_keys:
        keys = {address: k for address, k in keys.items() if url is not None and address != url}
    if url is not None and key is not None:
        keys[url] = key
    if url is not None and profile is not None:
        profiles[profile] = url
    default = url if key is not None else content.url
    value = {**content.others, "url": default, "keys": keys, "profiles": profiles}
    _write(
        path,
        {n: part for n, part in value.items() if part or n not in ("url", "profiles")},
    )
    return path, backup


def _parsed(path: Path) -> Content:
    raw = _json(path)
    if not isinstance(raw, dict):
        raise _damaged(path, "it must hold a JSON object")
    for name in ("keys", "profiles"):
        part = raw.get(name)
        if part is not None and not (
            isinstance(part, dict) and all(isinstance(text, str) for text in part.values())
        ):
            raise _damaged(path, f"its `{name}` must be an object of texts")
    if not isinstance(raw.get("url"), str | None):
        raise _damaged(path, "its `url` must be a text")
    return _content(raw)


def _json(path: Path) -> Any:
    try:
        # A pipe or a device has no end.
        if not path.is_file():
            raise _damaged(path, "it is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _damaged(path, f"it is longer than {MAX_BYTES} bytes")
        return json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _content(raw: Mapping[str, Any]) -> Content:
    known = ("url", "keys", "profiles")
    return Content(
        url=raw.get("url"),
        keys=raw.get("keys") or {},
        profiles=raw.get("profiles") or {},
        others={name: part for name, part in raw.items() if name not in known},
    )


def sound_fields(path: Path) -> Content:
    """The fields that have their types, also of a damaged file, or one that others can read."""
    if not path.exists():
        return Content()
    try:
        raw = _json(path)
    except UsageError:
        return Content()
    if not isinstance(raw, dict):
        return Content()
    sound = {name: part for name, part in raw.items() if name not in ("url", "keys", "profiles")}
    if isinstance(raw.get("url"), str):
        sound["url"] = raw["url"]
    for name in ("keys", "profiles"):
        if isinstance(part := raw.get(name), dict):
            sound[name] = {key: text for key, text in part.items() if isinstance(text, str)}
    return _content(sound)


def _damaged(path: Path, reason: object) -> UsageError:
    text = reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    return UsageError(
        f"the config file {path} cannot be used: {text}; mend it with `bmt-client login`, "
        "or remove it",
        code="config_damaged",
    )


def _set_aside(path: Path) -> Path:
    """Rename a damaged file to the first free `client.json.damaged`, `….damaged.2`, …"""
    place = 1
    while True:
        backup = path.with_name(f"{path.name}.damaged{f'.{place}' if place > 1 else ''}")
        if not os.path.lexists(backup):
            break
        place += 1
    try:
        path.rename(backup)
        if backup.is_file():
            backup.chmod(0o600)
    except OSError as error:
        raise UsageError(f"cannot rename {path} to {backup}: {error.strerror or error}") from error
    return backup


def _write(path: Path, value: Mapping[str, Any]) -> None:
    # A link to a file elsewhere stays one.
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp creates the file with mode 0600, before the key is written.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(value, file, indent=2)
                file.write("\n")
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write the config file {path}: {error.strerror or error}"
        ) from error
