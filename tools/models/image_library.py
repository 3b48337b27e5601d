"""torchvision for processes that only import it, where no build of it fits the installed torch.

vLLM's classes of some families import torchvision at their top, and their text part calls nothing
of it. PyPI's build for x86 has operators for CUDA, so with a torch for CPUs its import ends at the
first of them. Here its Python code is unpacked to a folder of its own, and a `sitecustomize.py`
declares these operators without a kernel: a call of one raises. For trials and tests of text; no
server may run with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bmt" / "tools" / "torchvision"
# The release that is built for this torch: `constraints/cpu.txt`.
RELEASE = "torchvision==0.28.0"
_DECLARES = '''"""Declare operators that torchvision describes: tools/models/image_library.py."""

import sys
from importlib.abc import MetaPathFinder


class Declare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for op in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{op}", schema)


sys.meta_path.insert(0, Declare())
'''


def environment() -> dict[str, str]:
    """Variables for a child process that imports torchvision; empty where it can without them.

    Raises subprocess.CalledProcessError if pip does not find the release.
    """
    look = [sys.executable, "-c", "import torch, torchvision"]
    if subprocess.run(look, capture_output=True, check=False).returncode == 0:
        return {}
    if not (FOLDER / "sitecustomize.py").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(FOLDER), "--upgrade", RELEASE], check=True)
        (FOLDER / "sitecustomize.py").write_text(_DECLARES)
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
