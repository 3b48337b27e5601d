"""Recipes of comparisons: YAML files with one comparison, or with several that share settings.

A file of one comparison holds `setting: value` lines. A file of several holds::

    about: GRPO on GSM8K                                text
    hardware: {gpus: 1, gpu_gb: 141, note: …}           machine that it is meant for
    data: [{name: GSM8K, source: openai/gsm8k, …}]      origin and license
    shared: {trainer: grpo, steps: 348}                 settings of each comparison
    comparisons:
      table1: {about: Table 1, methods: [base, bmt]}    own settings, by name

`extends`, in a file, in `shared` or in a comparison, names a file of one comparison, relative to
the file's folder, whose settings are inherited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bmt_trainer.errors import ConfigError
from bmt_trainer.settings import read_yaml

#: Settings that are lists and may be written as text.
LISTS = ("methods", "models", "datasets")
_PARTS = "comparisons"
_KNOWN = ("about", "hardware", "data", "shared", _PARTS)


def settings(path: Path, name: str | None = None) -> dict[str, Any]:
    """Settings of a recipe's comparison; name: None if the file has one alone.

    Raises ConfigError.
    """
    values = read_yaml(path)
    if _PARTS not in values:
        if name is not None:
            raise ConfigError(f"{path} has one comparison, without a name; leave {name!r} out")
        return _inherited(path, values)
    parts = _parts(path, values)
    if name is None and len(parts) == 1:
        [name] = parts
    if name not in parts:
        said = "has several comparisons" if name is None else f"has no comparison {name!r}"
        raise ConfigError(f"{path} {said}; choose one of {', '.join(parts)}")
    shared = values.get("shared", {})
    own = {key: value for key, value in parts[name].items() if key != "about"}
    return {**_inherited(path, shared), **_inherited(path, own)}


def descriptions(path: Path) -> dict[str, str]:
    """The `about` of each comparison in a file of several, by name. Raises ConfigError."""
    parts = _parts(path, read_yaml(path))
    return {name: str(values.get("about", "")) for name, values in parts.items()}


def plural(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `model`, `dataset` and `method` as lists, also if they are text."""
    values = dict(given)
    for name in LISTS:
        if name[:-1] in values:
            values[name] = values.pop(name[:-1])
        if isinstance(values.get(name), str):
            # Options of a data set may contain commas.
            text = values[name]
            values[name] = [text] if name == "datasets" else list(_split(text))
    return values


def _parts(path: Path, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if unknown := [name for name in values if name not in _KNOWN]:
        raise ConfigError(
            f"{path}: {', '.join(unknown)} must stand in `shared` or in a comparison; the file's "
            f"own lines are {', '.join(_KNOWN)}"
        )
    _mapping(path, "shared", values.get("shared", {}))
    parts = _mapping(path, _PARTS, values.get(_PARTS))
    if not parts:
        raise ConfigError(f"{path}: {_PARTS} must hold at least one comparison")
    return {name: _mapping(path, name, part) for name, part in parts.items()}


def _inherited(
    path: Path, values: Mapping[str, Any], seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    own = dict(values)
    base = own.pop("extends", None)
    if base is None:
        return plural(own)
    file = path.parent / str(base)
    if file in (*seen, path):
        raise ConfigError(f"{file}: extends itself")
    found = read_yaml(file)
    if _PARTS in found:
        raise ConfigError(f"{path}: extends {base}, which has several comparisons")
    return {**_inherited(file, found, (*seen, path)), **plural(own)}


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: {name} must hold `name: value` lines")
    return value


def _split(names: str) -> Iterator[str]:
    return (part.strip() for part in names.split(",") if part.strip())
