"""deploy/compose.yaml as Compose reads it: variables of .env filled in, profiles chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dotenv
import yaml

from tests.support.deploy.chart import StrictLoader
from tests.support.programs import ROOT

FOLDER = ROOT / "deploy"
FILE = FOLDER / "compose.yaml"
EXAMPLE = FOLDER / "compose/env.example"
#: Passwords with characters that shells, URLs, YAML and Valkey's configuration treat apart.
PASSWORDS = {"VALKEY_PASSWORD": "p@s/s #\"'%41 \\x", "GRAFANA_PASSWORD": "0123456789abcdef"}
# The forms that the file uses: $$, ${NAME}, ${NAME:-default}, ${NAME:?message}.
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


class Missing(ValueError):
    """A variable that the file requires is unset or empty."""


def variables(**more: str) -> dict[str, str]:
    """Those of env.example with passwords."""
    example = {k: v or "" for k, v in dotenv.dotenv_values(EXAMPLE).items()}
    return {**example, **PASSWORDS, **more}


def fill(value: Any, given: Mapping[str, str]) -> Any:
    """The value with its variables replaced, in texts at any depth. Raises Missing."""
    if isinstance(value, dict):
        return {k: fill(v, given) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, given) for v in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name, form, text = match.groups()
        if name is None:
            return "$"
        if found := given.get(name):
            return found
        if form == "?":
            raise Missing(f"{name} {text}")
        return text or ""

    return _VARIABLE.sub(replaced, value)


def names_of_variables() -> set[str]:
    return {match[1] for match in _VARIABLE.finditer(FILE.read_text()) if match[1]}


def raw() -> dict[str, Any]:
    """The file with its anchors merged and its variables as they are."""
    loaded: dict[str, Any] = yaml.load(FILE.read_text(), StrictLoader)
    return loaded


def project(given: Mapping[str, str]) -> dict[str, Any]:
    """The project of the variables' profile. Raises Missing."""
    filled: dict[str, Any] = fill(raw(), given)
    chosen = set(given["COMPOSE_PROFILES"].split(","))
    filled["services"] = {
        name: service
        for name, service in filled["services"].items()
        if not service.get("profiles") or chosen & set(service["profiles"])
    }
    return filled


def config_files(project: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Path]:
    """Files of the repository by their paths in the service's container."""
    return {
        one["target"]: FOLDER / project["configs"][one["source"]]["file"]
        for one in service.get("configs", [])
    }


def mounts(service: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Named volumes, and if they are read-only, by their paths in the service's container."""
    found = {}
    for volume in service.get("volumes", []):
        name, path, *options = volume.split(":")
        found[path] = (name, options == ["ro"])
    return found


def size(text: str) -> int:
    """Bytes of 4g, 64m or 2457mb."""
    number, unit = re.fullmatch(r"(\d+)([kmg]?)b?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"": 0, "k": 10, "m": 20, "g": 30}[unit]
