"""Places of pip's packages, for a build: its settings as a secret, its folders as volumes."""

from __future__ import annotations

import ast
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

# Those of this environment alone, and caps on versions: the lock decides.
_OURS = ("constraint", "python", "require-virtualenv", "disable-pip-version-check")


def pip_options(folder: Path) -> list[str]:
    """Options of `buildah bud`: a secret `pip`, and volumes that its settings name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        name = name.removeprefix(":env:.").rpartition(".")[2] if "." in name else name
        if name not in _OURS:
            settings[name] = ast.literal_eval(value)
    config = ConfigParser(interpolation=None)
    config["global"] = {name: value.replace("\n", "\n\t") for name, value in settings.items()}
    secret = folder / "pip.conf"
    with secret.open("w") as file:
        config.write(file)
    options = ["--secret", f"id=pip,src={secret}"]
    for word in (word for value in settings.values() for word in value.split()):
        path = Path(urlsplit(word).path if word.startswith("file:") else word)
        if path.is_absolute():
            # An index is a folder of links to files of its parent.
            place = path.parent if path.name == "simple" else path
            if place.exists():
                options += ["--volume", f"{place}:{place}:ro"]
    return options
