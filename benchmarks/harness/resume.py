"""Results of finished steps, so that a run that was interrupted goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """JSON results of one section's steps in `folder`, one file a step.

    identity: what must be the same for an old result to count (commit, scale, model). Without
    `resume` the section starts empty.
    """

    def __init__(self, folder: Path, identity: dict[str, str], resume: bool) -> None:
        self._folder, self._identity = folder, identity
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)

    def step(self, key: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Result of `measure(*arguments)`, a JSON value; that of an earlier run if it is known."""
        path = self._folder / f"{key}.json"
        found = self._read(path)
        if found is not None:
            return found[0]
        value = measure(*arguments)
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"identity": self._identity, "value": value}))
        os.replace(temporary, path)
        return json.loads(json.dumps(value))

    def _read(self, path: Path) -> list[Any] | None:
        """The value in a list, for it may be any JSON; None where there is none of this run."""
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return [raw["value"]] if raw.get("identity") == self._identity else None
