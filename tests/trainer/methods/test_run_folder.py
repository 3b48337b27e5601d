"""Notes of an interrupted run."""

from __future__ import annotations

import json

from bmt_trainer.methods.run_folder import RunFolder


def test_a_run_that_was_killed_while_its_folder_was_removed_leaves_nothing(tmp_path):
    left = tmp_path / ".m.bmt.run.done" / "checkpoint-2"
    left.mkdir(parents=True)
    run = RunFolder(tmp_path / "m.bmt", {"seed": 1}, resume=False)
    run.finish()
    assert not list(tmp_path.iterdir())


def test_notes_of_a_build_before_0_1_are_read(tmp_path):
    output = tmp_path / "m.bmt"
    run = RunFolder(output, {"seed": 1}, resume=False)
    (run.folder / "run.json").write_text(
        json.dumps({"settings": {"seed": 1}, "notes": {"init_density": 0.25}})
    )
    assert RunFolder(output, {"seed": 1}, resume=True).notes == {"init_sparsity": 0.25}
