"""Packages that vLLM's class of a model imports and that this environment cannot.

Families of several inputs, and text models that share their code (Qwen 3.5), import torchvision,
of which pip may have chosen a build for another torch (`bmt_core.optional_packages`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

from bmt_core.optional_packages import fix_torchvision
from vllm import ModelRegistry

from bmt_server.settings import SettingsError

#: The part of vLLM that some classes of models import.
IMAGES = "torchvision"
# In tracebacks, Python's message and those of transformers' own check of what a class needs.
_ABSENT = re.compile(rf"No module named '{IMAGES}\b|requires the {IMAGES} library", re.IGNORECASE)
# transformers' message for a class that it cannot import, whose cause it hides.
_HIDDEN = "Are this object's requirements defined correctly"


def check_parts(folder: str) -> None:
    """Raise SettingsError if vLLM's class of the checkpoint imports torchvision, which is absent.

    vLLM looks at the class in a process of its own, as it would at its start, and keeps what it
    found in its cache; with torchvision there, nothing is looked at.
    """
    if importlib.util.find_spec(IMAGES) is not None:
        return
    name = _architecture(folder)
    known = ModelRegistry.models.get(name)
    if known is None:  # vLLM runs transformers' code, or refuses it by name
        return
    try:
        known.inspect_model_cls()
    except Exception as error:
        # Other failures are vLLM's to explain, when it comes to the same point.
        if _ABSENT.search(str(error)):
            raise SettingsError(
                f"vLLM's class of {name} imports {IMAGES}, which {_state()}; {fix_torchvision()}"
            ) from error


def hint(reason: str) -> str:
    """`reason` of a start that failed, and the fix if what is missing is torchvision."""
    if importlib.util.find_spec(IMAGES) is None and (_ABSENT.search(reason) or _HIDDEN in reason):
        return f"{reason} ({IMAGES} {_state()}; {fix_torchvision()})"
    return reason


def _state() -> str:
    try:
        version = importlib.metadata.version(IMAGES)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
    return f"is installed as {version}, a build that does not fit this torch"


def _architecture(folder: str) -> str:
    try:
        listed = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return str(listed["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
