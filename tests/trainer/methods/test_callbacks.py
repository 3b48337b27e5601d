"""Mask sharpening (Eq. 7)."""

from types import SimpleNamespace

import pytest
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskState
from bmt_trainer.methods.trl_mixins import SharpenMask


@pytest.mark.parametrize(
    ("step", "alpha"), [(0, 1e2), (1, 1e2 + 900 / 400), (200, 550.0), (400, 1e3)]
)
def test_equation_7(step, alpha):
    assert sharpness(step, 400, 1e2, 1e3) == pytest.approx(alpha)


def test_callback_follows_the_trainers_step_count():
    state = MaskState()
    callback = SharpenMask(state, 1e3, 1e4)
    for step in (7, 3):  # a resumed run starts anywhere
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=10), None)
        assert state.alpha == sharpness(step, 10, 1e3, 1e4)
