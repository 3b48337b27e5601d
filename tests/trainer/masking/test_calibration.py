"""Input norms against a naive loop."""

import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.calibration import input_norms

from tests.support.tiny_model import tiny_llama


def naive_norms(model, prompts, name):
    """‖X_j‖₂ from one prompt at a time, without padding."""
    total = None
    module = model.get_submodule(name)
    inputs = []
    handle = module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    for prompt in prompts:
        inputs.clear()
        with torch.no_grad():
            model(torch.tensor([prompt]))
        for token in inputs[0][0]:
            square = token.double() ** 2
            total = square if total is None else total + square
    handle.remove()
    return total.sqrt()


def test_norms_equal_a_naive_loop_and_leave_padding_out():
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    model = tiny_llama()
    name = "model.layers.1.mlp.gate_proj"
    expected = naive_norms(model, prompts, name)
    attached = attach(model)
    for gate in attached.gates():
        gate.data.fill_(-1.0)  # calibration runs the unmasked base, whatever the gates

    def batch(rows):
        size = max(map(len, rows))
        return {
            "input_ids": torch.tensor([r + [0] * (size - len(r)) for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (size - len(r)) for r in rows]),
        }

    norms = input_norms(model, attached, [batch(prompts[:2]), batch(prompts[2:])])
    torch.testing.assert_close(norms[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert attached.state.mode == "soft"
    assert not model.get_submodule(name)._forward_pre_hooks
