"""TRL's LM head on a CPU: log-probabilities at labels only, with equal losses and gradients."""

import pytest
import torch
from bmt_trainer.methods.trl_setup import prepare_trl
from torch import Tensor

from tests.support.tiny_model import tiny_llama


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """The positions that the head was applied to, by call."""
    from trl.trainer import utils

    real, seen = utils._ChunkedLogProbFunction, []

    class Counting:
        @staticmethod
        def apply(hidden: Tensor, *rest):
            seen.append(len(hidden))
            return real.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counting)
    return seen


def loss_and_gradients(labels: Tensor) -> tuple[Tensor, Tensor]:
    from trl.trainer import utils

    torch.manual_seed(0)
    model = tiny_llama().double()
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.arange(labels.numel()).reshape(labels.shape) % 50 + 5
    out = model(input_ids=ids, labels=labels, fused_lm_head=True)
    out.loss.backward()
    return out.loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_only_labels_are_scored_with_the_same_loss_and_gradients(scored, monkeypatch):
    from trl.trainer import utils

    labels = torch.full((3, 20), -100)
    labels[0, 15:], labels[1, 12:14], labels[2, 19:] = 7, 8, 9
    with monkeypatch.context() as plain:
        plain.setattr(utils, "_use_triton", lambda device: False)
        loss, gradients = loss_and_gradients(labels)
    prepare_trl()
    prepare_trl()
    ours, own_gradients = loss_and_gradients(labels)
    assert scored == [3 * 19, 5 + 2 + 1]
    assert torch.allclose(ours, loss, atol=1e-6)
    assert torch.allclose(own_gradients, gradients, atol=1e-6)
    assert gradients.abs().max() > 1e-3


def test_a_batch_without_a_label_is_a_loss_of_nothing():
    prepare_trl()
    loss, gradients = loss_and_gradients(torch.full((2, 6), -100))
    assert loss == 0
    assert not gradients.any()
