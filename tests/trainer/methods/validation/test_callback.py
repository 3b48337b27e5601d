"""The mask that validations choose, the best one and of equals the later, and an early stop."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import bmt_core
import pytest
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import OutputError, RewardError
from bmt_trainer.evaluation.score import Score
from bmt_trainer.methods.validation.callback import LOSS, StoppedEarly, Validation
from bmt_trainer.methods.validation.losses import Loss
from bmt_trainer.methods.validation.step_masks import StepMasks

from tests.support.masks import make_mask

EXAMPLES = [Example(chat(str(n)), str(n)) for n in range(4)]


class Run(SimpleNamespace):
    def note(self, key, value):
        self.notes[key] = value


def validated(folder, means, *, exact=0, notes=None):
    """(the validation after steps of these means, the step whose mask is loaded, lines)."""
    masks = {step: make_mask(step) for step in range(1, len(means) + 1)}
    loaded, said, now = [], [], {"step": 0}
    run = Run(folder=folder, notes={} if notes is None else notes)
    attached = SimpleNamespace(
        state=SimpleNamespace(use=lambda mode: nullcontext()), closed=3, load_mask=loaded.append
    )

    def score(examples):
        mean = means[now["step"] - 1]
        return Score(exact, exact, len(examples), mean, (mean, mean), graded=False)

    validation = Validation(
        EXAMPLES,
        every=1,
        attached=attached,
        run=run,
        score=score,
        export=lambda metadata: masks[metadata["step"]],
        write=bmt_core.save,
        say=said.append,
    )
    start = len(run.notes.get("validation", []))
    validation.on_train_begin(None, SimpleNamespace(global_step=start, max_steps=9), None)
    for step in range(start + 1, len(means) + 1):
        now["step"] = step
        validation.on_log(None, SimpleNamespace(global_step=step, max_steps=9), None)
    step = validation.load_best()
    [mask] = loaded
    assert mask == masks[step]
    return validation, step, said


@pytest.mark.found
@pytest.mark.parametrize(
    ("means", "best"),
    [
        ([0.1, 0.5, 0.3], 2),
        ([-9.0, -3.0, -5.0], 2),
        ([0.0, 0.0, 0.0], 3),
        ([5.0, 7.0, 7.0, 6.0], 3),
        ([1e-7, 3e-7, 2e-7], 2),
        ([0.9, 0.9 - 1e-9], 1),
    ],
)
def test_the_best_mean_is_taken_and_the_later_of_equals(tmp_path, means, best):
    assert validated(tmp_path, means)[1] == best


def test_a_resumed_run_chooses_as_an_uninterrupted_one(tmp_path):
    notes: dict = {}
    validated(tmp_path, [0.2, 0.7], notes=notes)
    assert validated(tmp_path, [0.2, 0.7, 0.7], notes=notes)[1] == 3
    # The run had validated step 3 before it was interrupted at the checkpoint of step 2.
    assert (
        validated(tmp_path, [0.2, 0.7, 0.4], notes={"validation": notes["validation"][:2]})[1] == 2
    )


@pytest.mark.found
def test_equal_means_are_warned_of_once_and_no_longer_if_a_later_one_differs(tmp_path):
    validation, _, said = validated(tmp_path, [0.25] * 4)
    assert [line for line in said if line.startswith("warning")] == [said[3]]
    assert "all 3 validations" in said[3]
    assert "all 4 validations" in validation.warnings()[0]
    validation, _, said = validated(tmp_path, [0.25] * 3 + [0.5])
    assert validation.warnings() == []
    assert validated(tmp_path, [0.5])[0].warnings() == []


def test_an_error_of_a_reward_names_the_step(tmp_path):
    def fails(examples):
        raise RewardError("reward r.py:f: returned nan")

    validation, _, _ = validated(tmp_path, [0.5])
    validation._score = fails
    with pytest.raises(RewardError, match=r"validation of step 2: reward r\.py:f"):
        validation.on_log(None, SimpleNamespace(global_step=2, max_steps=9), None)


class FullDisk:
    """Writes masks and notes once there is room."""

    def __init__(self):
        self.room = False

    def write(self, mask, path):
        if not self.room:
            raise OutputError(f"{path} cannot be written (No space left on device)")
        bmt_core.save(mask, path)


@pytest.mark.found
@pytest.mark.parametrize("room_after", [1, None])
def test_a_full_disk_does_not_end_a_run_at_a_validation(tmp_path, room_after):
    disk, said, loaded, means = FullDisk(), [], [], [0.9, 0.1, 0.2]

    class FullRun(Run):
        def note(self, key, value):
            super().note(key, value)
            if not disk.room:
                raise OutputError("run.json cannot be written (No space left on device)")

    state = SimpleNamespace(global_step=0, max_steps=3)
    validation = Validation(
        EXAMPLES,
        every=1,
        attached=SimpleNamespace(
            state=SimpleNamespace(use=lambda mode: nullcontext()), closed=3, load_mask=loaded.append
        ),
        run=FullRun(folder=tmp_path, notes={}),
        score=lambda e: Score(0, 0, 4, means[state.global_step - 1], (0, 1), graded=False),
        export=lambda metadata: make_mask(metadata["step"]),
        write=disk.write,
        say=said.append,
    )
    steps = StepMasks(tmp_path, 1, lambda m: make_mask(m["step"]), disk.write, said.append)
    for state.global_step in (1, 2, 3):
        for callback in (validation, steps):
            callback.on_log(None, state, SimpleNamespace(should_training_stop=False))
        disk.room = state.global_step == room_after
    assert validation.load_best() == 1
    assert loaded == [make_mask(1)]
    refused = [line for line in said if "best-1.bmt cannot be written" in line]
    assert len(refused) == 1
    assert "No space left on device); training goes on" in refused[0]
    assert ((tmp_path / "best-1.bmt").exists(), (tmp_path / "step-1.bmt").exists()) == (
        (True, True) if room_after else (False, False)
    )


@pytest.mark.found
def test_a_resumed_run_leaves_out_a_best_mask_that_was_not_written(tmp_path):
    notes: dict = {}
    validated(tmp_path, [0.2, 0.7, 0.1], notes=notes)
    (tmp_path / "best-2.bmt").unlink()
    _, best, said = validated(tmp_path, [0.2, 0.7, 0.1, 0.3], notes=notes)
    assert best == 4
    assert "validation of step 2: its mask was not written" in said[0]


def watched(folder, losses, *, patience, notes=None, most=9):
    """(steps taken, the validation, lines) of a run whose validations have these losses."""
    said, masks = [], {}
    run = Run(folder=folder, notes={} if notes is None else notes)
    state = SimpleNamespace(global_step=0, max_steps=most)
    validation = Validation(
        EXAMPLES,
        every=1,
        attached=SimpleNamespace(
            state=SimpleNamespace(use=lambda mode: nullcontext()),
            closed=3,
            load_mask=lambda mask: masks.update(loaded=mask),
        ),
        run=run,
        score=lambda _: Loss(losses[state.global_step - 1], (0, 9), 4),
        export=lambda metadata: make_mask(metadata["step"]),
        write=bmt_core.save,
        say=said.append,
        measure=LOSS,
        patience=patience,
    )
    state.global_step = len(run.notes.get("validation", []))
    control = SimpleNamespace(should_training_stop=False)
    validation.on_train_begin(None, state, control)
    while state.global_step < most and not control.should_training_stop:
        state.global_step += 1
        validation.on_log(None, state, control)
        validation.on_log(None, state, control)  # another entry of the step changes nothing
    step = validation.load_best()
    assert masks["loaded"] == make_mask(step)
    return state.global_step, step, validation, said


@pytest.mark.parametrize(
    ("losses", "patience", "taken", "best"),
    [
        ([5.0, 4.0, 3.0, 2.0], 1, 4, 4),
        ([5.0, 4.0, 4.5, 1.0], 1, 3, 2),
        ([5.0, 4.0, 4.5, 1.0], 2, 4, 4),
        # An equal loss is no better one, but of equals the later mask is taken.
        ([5.0, 4.0, 4.0, 4.0, 1.0], 2, 4, 4),
        ([5.0, 4.0, 4.5, 4.5], 2, 4, 2),
        ([1.0, 2.0, 3.0, 4.0], 3, 4, 1),
        ([1.0, 2.0, 3.0, 4.0], None, 4, 1),
    ],
)
def test_patience_ends_training_at_the_first_validations_without_a_better_one(
    tmp_path, losses, patience, taken, best
):
    most = len(losses)
    found, step, validation, said = watched(tmp_path, losses, patience=patience, most=most)
    assert (found, step) == (taken, best)
    stopped = [line for line in said if line.startswith("stopped at step")]
    assert len(stopped) == (taken < most)
    first = losses.index(min(losses[:taken]))
    assert validation.stopped == (patience is not None and taken - 1 - first >= patience)


def test_a_run_that_had_stopped_takes_no_further_step(tmp_path):
    notes: dict = {}
    assert watched(tmp_path, [3.0, 4.0, 5.0, 1.0], patience=2, notes=notes, most=4)[0] == 3
    with pytest.raises(StoppedEarly):
        watched(tmp_path, [3.0, 4.0, 5.0, 1.0], patience=2, notes=notes, most=4)
