"""Server address and key: from arguments, else the environment, else the config file.

The file is `$BMT_CONFIG`, by default `$XDG_CONFIG_HOME/bmt/client.json` (~/.config):

    {"url": "https://masks.example.org", "keys": {"https://masks.example.org": "bmt_…"}}

A key belongs to one address and is sent to no other. The file must have mode 0600, because anyone
who reads it can act as the user.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._errors import UsageError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0  # of one attempt: connect, send and wait for the answer
MAX_KEY_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """Server address, key and timeout. The repr omits the key."""

    url: str  # scheme://host[:port][/prefix], no trailing slash, no /v1
    api_key: str | None = field(repr=False)
    timeout_s: float
    timeout_given: bool  # False: the default, which is too short for generation
    loopback: bool  # the server is on this machine


def resolve(
    base_url: str | None,
    api_key: str | None,
    timeout: float | None,
    *,
    allow_insecure: bool = False,
) -> Target:
    """Fill arguments that are None from `BMT_URL`, `BMT_API_KEY`, `BMT_TIMEOUT`, then the file.

    Raises UsageError for an invalid address or key, and for a key that would be sent unencrypted
    to another machine.
    """
    file = _read(config_path())
    url = normal_url(base_url or os.environ.get("BMT_URL") or file.get("url") or DEFAULT_URL)
    key = api_key if api_key is not None else os.environ.get("BMT_API_KEY")
    if key is None:
        keys = file.get("keys")
        key = keys.get(url) if isinstance(keys, dict) else None
    key = checked_key(key) if key else None
    given = timeout if timeout is not None else os.environ.get("BMT_TIMEOUT") or None
    loopback = _is_loopback(url)
    if key and not (allow_insecure or loopback or url.startswith("https://")):
        raise UsageError(
            f"the API key would go to {url} unencrypted; use https://, or allow "
            "it with allow_insecure=True (--allow-insecure)",
            code="insecure_url",
            param="base_url",
        )
    return Target(
        url=url,
        api_key=key,
        timeout_s=DEFAULT_TIMEOUT_S if given is None else _seconds(given),
        timeout_given=given is not None,
        loopback=loopback,
    )


def normal_url(url: str) -> str:
    """Normalize an http(s) address: no trailing slash, no `/v1`. Raises UsageError."""
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"the URL {text!r} is malformed: {error}", param="base_url") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(
            f"the URL {text!r} must look like http://127.0.0.1:8000 or https://host/prefix",
            param="base_url",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "the URL must have no user, query or fragment; put the key in BMT_API_KEY",
            param="base_url",
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def checked_key(key: str) -> str:
    """Validate a key for use in a header. The error message does not contain it."""
    key = key.strip()
    if not key or len(key) > MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise UsageError(
            f"the API key has {len(key)} characters; it must be 1 to {MAX_KEY_CHARS} printable "
            "ASCII characters",
            param="api_key",
        )
    return key


def config_path() -> Path:
    """Path of the config file, which need not exist."""
    if given := os.environ.get("BMT_CONFIG"):
        return Path(given)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "bmt" / "client.json"


def store(url: str, key: str | None) -> Path:
    """Make `url` the default server and store its key; None removes it. Atomic, mode 0600."""
    path = config_path()
    content = _read(path)
    keys = dict(content.get("keys") or {})
    url = normal_url(url)
    if key is None:
        keys.pop(url, None)
    else:
        keys[url] = checked_key(key)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp creates the file with mode 0600, before the key is written.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({**content, "url": url, "keys": keys}, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the config file {path} cannot be read: {error}") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"the config file {path} has mode {stat.S_IMODE(mode):04o}, so other users can read "
            f"its keys; run: chmod 600 {path}",
            code="config_mode",
        )
    if not isinstance(content, dict):
        raise UsageError(f"the config file {path} must hold a JSON object")
    return content


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(given: float | str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"the timeout is {given!r}; it must be a number of seconds above 0")
    return seconds
