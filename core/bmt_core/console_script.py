"""Shared parts of the console scripts `bmt-train`, `bmt-server` and `bmt-client`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Keyword arguments of `typer.Typer`. Plain help: rich's panels take half of 80 columns for frames.
TYPER_SETTINGS: Mapping[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def version_line(program: str) -> str:
    """Output of `program --version`."""
    return f"{program} {importlib.metadata.version('bmt-adapters')}"


def run(program: str, module: str, extras: Mapping[str, Sequence[str]]) -> None:
    """Import `module` and call its `main()`.

    extras: the extras of bmt-adapters that install an optional dependency, by its import name;
    any one of them is enough. If such a dependency is missing, print the `pip install` command
    that adds it and exit with code 1. Any other missing module raises ModuleNotFoundError, also a
    submodule of an installed dependency: its build or version does not fit, or is damaged.
    """
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in extras or importlib.util.find_spec(name) is not None:
            raise
        packages = " or ".join(f"'bmt-adapters[{extra}]'" for extra in extras[name])
        print(f"{program}: {name} is not installed; run: pip install {packages}", file=sys.stderr)
        sys.exit(1)
