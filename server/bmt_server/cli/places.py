"""Checks of folders and of the host of `bmt-server serve`, before anything is loaded."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bmt_server.ipc.object_store import parse_place
from bmt_server.settings import SettingsError


def check_places(data_dir: Path, key_file: Path | None) -> None:
    """Raise SettingsError for places where nothing can be written. Leaves no new folder."""
    new = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--data-dir {data_dir}: {error.strerror}") from None
    for flag, folder in (("--data-dir", data_dir), ("--key-file", key_file and key_file.parent)):
        if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            raise SettingsError(f"{flag}: {folder} is no folder that this user can write to")
    if key_file is not None and key_file.is_dir():
        raise SettingsError(f"--key-file: {key_file} is a folder; name a file")
    with suppress(OSError):  # another server has begun to use it
        for folder in new:
            folder.rmdir()


def require_loopback(host: str | None) -> None:
    """Raise SettingsError for a host that others may reach, for a server without keys."""
    try:
        if host == "localhost" or ipaddress.ip_address(host or "0.0.0.0").is_loopback:
            return
    except ValueError:
        pass  # a host name, which may resolve to any address
    raise SettingsError(
        f"--no-auth was given and the server would listen on {host or 'all addresses'}; it is "
        "allowed on loopback only: add --host 127.0.0.1"
    )


def files_place(given: str, blobs: str) -> str:
    """The place of clients' files as a URL; empty without one. given: a folder or a URL.

    blobs: the place of masks, which must be another: its collection removes what it does not know.
    Raises SettingsError.
    """
    if not given:
        return ""
    url = given if "://" in given else Path(given).expanduser().absolute().as_uri()
    try:
        place, other = parse_place(url), parse_place(blobs) if blobs else ""
    except ValueError as error:
        raise SettingsError(f"--files: {error}") from None
    if other and (f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/")):
        raise SettingsError(f"--files is {place} and --blobs {other}; name places apart")
    if place.startswith("file://"):
        folder = Path(unquote(urlsplit(place).path))
        try:
            # Training data: for the server's user alone.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--files: {folder} cannot be made ({error.strerror})") from None
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise SettingsError(f"--files: {folder} cannot be written by this user")
    return place
