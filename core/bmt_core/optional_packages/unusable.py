"""Leave out optional packages that cannot be imported, in this process and in those it starts.

transformers and vLLM use torchvision, torchaudio and torchcodec where they find them, and end with
a traceback if one is there that was built for another torch: pip chooses it by its version alone.
Models of text need none of the three. For Python a package is absent if `sys.modules` has None in
its place: `import` raises ModuleNotFoundError, and `importlib.util.find_spec` returns None.
Processes that this one starts do the same before they import anything, by
`child/sitecustomize.py`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Optional parts of transformers and vLLM with compiled code that must fit torch's build.
TORCH_PARTS = ("torchvision", "torchaudio", "torchcodec")
#: Names of the packages that a child process leaves out, with commas.
CHILD_ENV = "BMT_LEFT_OUT"
_CHILD_FOLDER = str(Path(__file__).with_name("child"))
_REASON_CHARACTERS = 160
_UNKNOWN = "of unknown version"


@dataclass(frozen=True, slots=True)
class Unusable:
    """A package that is left out. reason: the first line of the error of its import."""

    name: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.reason})"


def leave_out(names: Sequence[str] = TORCH_PARTS) -> list[Unusable]:
    """Import each package that is installed, and leave out those that cannot be imported.

    Call it before any library that uses them. Returns those left out, in the order of `names`.
    """
    found = []
    for name in names:
        if sys.modules.get(name) is not None or importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            _remove(name)
            found.append(Unusable(name, _version(name), _first_line(error)))
    if found:
        _tell_children([one.name for one in found])
    return found


def fix(found: Sequence[Unusable]) -> str:
    """The pip command that installs builds of the same versions for the torch that is there."""
    packages = " ".join(
        one.name if one.version == _UNKNOWN else f"{one.name}=={one.version.partition('+')[0]}"
        for one in found
    )
    return f"pip install --force-reinstall --no-deps {packages}{_index()}"


def fix_torchvision() -> str:
    """The pip command that installs the build of torchvision for the torch that is there.

    torchvision 0.N+15 is built for torch 2.N, up to the last number.
    """
    found = re.match(r"2\.(\d+)\.(\d+)", _torch())
    version = f"==0.{int(found[1]) + 15}.{found[2]}" if found else ""
    return f"pip install --force-reinstall --no-deps torchvision{version}{_index()}"


def _index() -> str:
    """The option for PyTorch's index of builds like the installed torch; empty if it has none."""
    build = _torch().partition("+")[2]
    return f" --index-url https://download.pytorch.org/whl/{build}" if build else ""


def _torch() -> str:
    version = _version("torch")
    if "+" in version:
        return version
    return getattr(sys.modules.get("torch"), "__version__", version)


def _remove(name: str) -> None:
    # What was imported of it is of no use to a second attempt.
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]
    sys.modules[name] = None  # type: ignore[assignment]


def _tell_children(names: Sequence[str]) -> None:
    before = [name for name in os.environ.get(CHILD_ENV, "").split(",") if name]
    os.environ[CHILD_ENV] = ",".join(dict.fromkeys([*before, *names]))
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if _CHILD_FOLDER not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([_CHILD_FOLDER, *path])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _UNKNOWN


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= _REASON_CHARACTERS else line[: _REASON_CHARACTERS - 1] + "…"
