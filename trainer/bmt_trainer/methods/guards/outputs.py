"""Files that a run will write: refused before it starts if they cannot be, and written whole."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from bmt_trainer.errors import OutputError


def history_file(output: Path) -> Path:
    """The file of the steps' logs and validations."""
    return output.with_name(f"{output.name}.history.json")


def run_folder(output: Path) -> Path:
    """The folder of the unfinished run of this output."""
    return output.with_name(f"{output.name}.run")


def check(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse an output that cannot be written, or that exists. Raises OutputError.

    overwrite: allow the files of an earlier run; resume: the command goes on with a run.
    """
    for file in (output, history_file(output)):
        if file.is_dir():
            raise OutputError(f"output {file} is a folder; name a file")
        # A file would take the place of a link to nothing, of a pipe, and of /dev/null.
        if os.path.lexists(file) and not file.is_file():
            kind = "a link to nothing" if file.is_symlink() else "a pipe or a device"
            raise OutputError(f"output {file} is {kind}; name a file")
    parent = output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output: {parent} cannot be made ({error.strerror})") from None
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output: no file can be written in {parent}; choose another folder")
    if overwrite:
        return
    unfinished = (run_folder(output) / "run.json").exists()
    if output.exists():
        if resume and not unfinished:
            raise OutputError(
                f"{output} exists, and its run is finished: nothing is left to resume; "
                "--overwrite trains it again"
            )
        raise OutputError(f"{output} exists; name another output, or pass --overwrite")
    history = history_file(output)
    if history.exists() and not unfinished:
        raise OutputError(
            f"{history} exists, of an earlier run; name another output, or pass --overwrite"
        )


def check_space(folder: Path, size: int) -> None:
    """Write `size` bytes to `folder` and remove them. Raises OutputError if the disk is full."""
    scratch = folder / f".space.{secrets.token_hex(4)}"
    block = bytes(min(size, 1 << 20))
    try:
        with scratch.open("wb") as file:
            for at in range(0, size, len(block) or 1):
                file.write(block[: size - at])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{folder} does not take a checkpoint of {size:,} bytes ({error.strerror}); make room, "
            "or name an output on another disk"
        ) from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all. Raises OutputError."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror})") from None
