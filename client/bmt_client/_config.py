"""Server address, key and trust: from arguments, else the environment, else the config file.

A key belongs to one address and is sent to no other. The file is that of
`_connection.config_file`.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ._connection.config_file import Content, change, config_path, load, sound_fields
from ._errors import UsageError

__all__ = ["Target", "checked_key", "config_path", "normal_url", "profile_url", "resolve", "store"]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0  # of one attempt: connect, send and wait for the answer
MAX_KEY_CHARS = 4096

_PROFILE = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Target:
    """Server address, key, trust and timeout. The repr omits the key."""

    url: str  # scheme://host[:port][/prefix], no trailing slash, no /v1
    api_key: str | None = field(repr=False)
    timeout_s: float
    timeout_given: bool  # False: the default, which is too short for generation
    loopback: bool  # the server is on this machine
    ca_file: str | None = None  # file or folder of certificates that are trusted, and no others
    url_from: str = "the default"
    key_from: str = "none"


def resolve(
    base_url: str | None,
    api_key: str | None,
    timeout: float | None,
    *,
    ca_file: str | None = None,
    allow_insecure: bool = False,
    without_file: bool = False,
) -> Target:
    """Fill arguments that are None from the environment, then from the config file.

    The variables are `BMT_URL`, `BMT_API_KEY`, `BMT_TIMEOUT` and `BMT_CA_FILE`. An address may be
    the name of a profile. without_file: of a damaged config file, use the sound fields.

    Raises UsageError for an invalid address or key, and for a key that would be sent unencrypted
    to another machine.
    """
    path, file = config_path(), Content()
    # Arguments that leave nothing open need no file.
    if base_url is None or api_key is None or _PROFILE.fullmatch(base_url.strip()):
        file = sound_fields(path) if without_file else load(path)
    addresses = (
        ("the call", base_url),
        ("BMT_URL", os.environ.get("BMT_URL")),
        (str(path), file.url),
        ("the default", DEFAULT_URL),
    )
    url_from, address = next((source, text) for source, text in addresses if text)
    url = profile_url(address, file)
    keys = (("the call", api_key), ("BMT_API_KEY", os.environ.get("BMT_API_KEY")))
    key_from, key = next(
        ((source, text) for source, text in keys if text is not None),
        (str(path), file.keys.get(url)),
    )
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
        ca_file=ca_file or os.environ.get("BMT_CA_FILE") or None,
        url_from=url_from,
        key_from=key_from if key else "none",
    )


def profile_url(address: str, file: Content | None = None) -> str:
    """Address of a profile of the config file, or a normalized URL. Raises UsageError."""
    address = address.strip()
    if _PROFILE.fullmatch(address):
        profiles = (load(config_path()) if file is None else file).profiles
        if address in profiles:
            return normal_url(profiles[address])
        if "." not in address and address != "localhost":
            known = ", ".join(sorted(profiles)) or "none"
            raise UsageError(
                f"there is no profile {address} (there are: {known}); add it with: "
                f"bmt-client login --url URL --profile {address}",
                param="base_url",
            )
    return normal_url(address)


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


def checked_profile(name: str) -> str:
    """Validate the name of a profile. Raises UsageError."""
    if not _PROFILE.fullmatch(name) or name == "localhost":
        raise UsageError(
            f"the profile {name!r} must be lower-case letters and digits, with single . _ or - "
            "between them",
            param="profile",
        )
    return name


def store(url: str, key: str | None) -> Path:
    """Make `url` the default server and store its key; None removes it. Atomic, mode 0600."""
    url = normal_url(url)
    checked = None if key is None else checked_key(key)
    path, _ = change(url, key=checked, drop_keys=key is None)
    return path


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
