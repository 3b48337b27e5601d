"""Tutorials, run from end to end where that costs seconds.

On a tiny model those that train, and on the shared server those that serve. On the real model
they run whole in tests/system/tutorials.
"""

from __future__ import annotations

import re

import bmt_core
import pytest
import torch

from tests.support.masks import random_mask_of
from tests.support.pages import shell
from tests.support.pages.blocks import ROOT, Block, blocks
from tests.support.tiny_model import save_tiny_llama

TUTORIALS = ROOT / "docs" / "tutorials"
_OF_SERVER = re.compile(r"^(?:bmt-server serve|bmt-client (?!inspect)|kill )", re.MULTILINE)


def run_of(page: str) -> list[Block]:
    return [block for block in blocks(TUTORIALS / page) if block.runs]


@pytest.mark.slow
def test_own_data_on_a_tiny_model(tmp_path):
    model = save_tiny_llama(tmp_path / "model", torch.bfloat16)
    folder = shell.checkout(tmp_path / "checkout")
    given = [block for block in run_of("own-data.md") if not _OF_SERVER.search(block.text)]
    assert len(given) == 5
    shell.run(given, folder, {"BMT_DEMO_MODEL": str(model)})
    assert bmt_core.load(folder / "messages.bmt").zeros


@pytest.mark.operate
def test_an_own_reward_on_a_tiny_model(tmp_path):
    model = save_tiny_llama(tmp_path / "model", torch.bfloat16)
    folder = shell.checkout(tmp_path / "checkout")
    shell.run(run_of("own-reward.md"), folder, {"BMT_DEMO_MODEL": str(model)})
    mask = bmt_core.load(folder / "short.bmt")
    assert mask.zeros
    # The rows have no answers, so none of them can be a guess.
    assert set(mask.metadata["scores"]) == {"base", "init", "mask"}


@pytest.mark.engine
def test_versions_on_the_shared_server(server, smol, tmp_path):
    """All but training and the page's own server."""
    folder = shell.checkout(tmp_path / "checkout")
    for seed, name in enumerate(("reverse", "second")):
        bmt_core.save(random_mask_of(smol, 40 + seed), folder / f"{name}.bmt")
    given = [
        block
        for block in run_of("serving-versions.md")
        if not block.text.startswith(("bmt-train", "bmt-server"))
    ]
    (last,) = (block for block in given if block.text.endswith("kill $SERVER\n"))
    given[given.index(last)] = Block(
        last.page, last.line, last.language, "", last.text.replace("kill $SERVER\n", "")
    )
    key = {"BMT_API_KEY": server.key, "MODEL": str(smol)}
    for block, printed in zip(given, shell.run(given, folder, key, server.port), strict=True):
        if block.output:
            shell.compare(block, printed)
