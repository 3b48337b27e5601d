"""Each tutorial, run from its first line to its last in a folder that has nothing else in it.

A page that goes on with another one runs in the folder that the other has left. What a page shows
under a command must have the shape of what the command prints.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import shell
from tests.support.pages.blocks import ROOT, blocks

pytestmark = [pytest.mark.operate, pytest.mark.timeout(5400)]

TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.mark.parametrize(
    "pages",
    [
        ("install.md",),
        ("first-mask.md", "serving-versions.md"),
        ("own-data.md",),
        ("own-reward.md",),
        ("moving-from-lora.md",),
        ("troubleshooting.md",),
        ("../serving/moving-from-hosted-fine-tuning.md",),
    ],
    ids=lambda names: Path(names[-1]).stem,
)
def test_a_tutorial_runs_as_it_stands(smol, tmp_path: Path, pages):
    folder = shell.checkout(tmp_path / "checkout")
    for page in pages:
        given = [block for block in blocks(TUTORIALS / page) if block.runs]
        for block, printed in zip(given, shell.run(given, folder), strict=True):
            print(f"== {block.place}\n{block.text}\n{printed}", flush=True)
            if block.output:
                shell.compare(block, printed)
