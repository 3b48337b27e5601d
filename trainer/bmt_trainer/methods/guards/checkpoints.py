"""Checkpoints that count only if they are whole: a manifest of sizes and digests is written last.

`<run>/checkpoint-<step>/manifest.json`: {"files": {name: {"bytes": n, "sha256": hex}}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"

# As many whole ones are kept: the newest may be damaged later, by a disk that was full or died.
_KEPT = 2


class Checkpoints:
    """The checkpoints of a run's folder.

    say: shows a line; unchecked: also take checkpoints without a manifest, of builds that wrote
    none.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], *, unchecked: bool = False
    ) -> None:
        self._folder, self._say, self._unchecked = folder, say, unchecked

    def folders(self) -> list[Path]:
        """The folders of complete and partial checkpoints, newest first."""
        found = [p for p in self._folder.glob("checkpoint-*") if p.name[11:].isdecimal()]
        return sorted(found, key=steps_of, reverse=True)

    def candidates(self) -> list[Path]:
        """Those whose writing was completed, newest first; not checked."""
        last = (MANIFEST, "trainer_state.json") if self._unchecked else (MANIFEST,)
        return [p for p in self.folders() if any((p / name).exists() for name in last)]

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that its manifest confirms, or None.

        Damaged newer ones are named in a line and removed.
        """
        damaged: list[Path] = []
        for folder in self.candidates():
            fault = self._fault(folder)
            if fault is None:
                for old in damaged:
                    shutil.rmtree(old, ignore_errors=True)
                return folder
            self._say(f"{folder} is damaged ({fault}); the checkpoint before it is taken")
            damaged.append(folder)
        if damaged:
            self._say(f"no checkpoint of {self._folder} is whole; the run starts over at step 0")
            for old in damaged:
                shutil.rmtree(old, ignore_errors=True)
        return None

    def _fault(self, folder: Path) -> str | None:
        if self._unchecked and not (folder / MANIFEST).exists():
            return None
        return fault(folder)

    def save(self, step: int, write: Callable[[], None]) -> bool:
        """Write the checkpoint of `step` by `write`, then its manifest; False if the disk refuses.

        A disk that is full or read-only is named in a line: training goes on, and the next
        checkpoint is tried. Older checkpoints are removed but for one.
        """
        target = self._folder / f"checkpoint-{step}"
        try:
            # A killed run may have left a part of the same step.
            shutil.rmtree(target, ignore_errors=True)
            write()
            write_manifest(target)
        except Exception as error:
            if not is_write_failure(error):
                raise
            shutil.rmtree(target, ignore_errors=True)
            kept = next(iter(self.candidates()), None)
            self._say(
                f"checkpoint of step {step} cannot be written ({reason(error)}); training goes on, "
                f"and a resumed run starts from {'step 0' if kept is None else kept.name}"
            )
            return False
        whole = [p for p in self.candidates() if steps_of(p) <= step]
        for old in self.folders():
            if old not in whole[:_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        return True


def steps_of(checkpoint: Path) -> int:
    """Optimizer steps of a checkpoint, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in `folder`, atomically."""
    files = {p.name: _entry(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    scratch = folder / f"{MANIFEST}.tmp"
    scratch.write_text(json.dumps({"files": files}, indent=1) + "\n")
    os.replace(scratch, folder / MANIFEST)


def fault(folder: Path) -> str | None:
    """The first difference between a checkpoint and its manifest, in words, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} of {entry['bytes']} bytes"
            if _entry(path) != entry:
                return f"the content of {name} differs from its digest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None if files else f"{MANIFEST} names no file"


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def is_write_failure(error: Exception) -> bool:
    """True if the file system refused to write: full, read-only or gone.

    torch.save raises a RuntimeError of its archive's writer, and safetensors an error of its own
    with the system's words.
    """
    if isinstance(error, OSError):
        return True
    words = ("os error", "I/O error", "PytorchStreamWriter", "inline_container", "file write")
    known = isinstance(error, SafetensorError | RuntimeError) or type(error) is Exception
    return known and any(word in str(error) for word in words)


def reason(error: Exception) -> str:
    """The first line of an error, in the system's words if it has any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
