"""Gates in a projection that is fused with another one: their rows alone are masked."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest
import torch
from bmt_core.gates.geometry import GATE_FIRST
from bmt_trainer.comparison.baselines import check_projections
from bmt_trainer.errors import FusedGate, ModelError
from bmt_trainer.masking.apply import apply, write_checkpoint
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.equations import hard_weight
from bmt_trainer.masking.gated_rows import GatedRows
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState
from bmt_trainer.masking.targets import select
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.guards.targets import masked_tensors, not_served
from bmt_trainer.methods.sft import train
from bmt_trainer.models import architecture_of, load_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from reproduce.tiny import SHAPE
from tests.support.tiny_model import byte_tokenizer
from tests.support.training.architectures import small_config
from tests.support.training.display import quiet
from tools.models.configurations import tiny

FUSED = ["phi3", "glm", "glm4"]
ORDERED = [*FUSED, "phi4_multimodal", "glm4v", "glm_ocr"]
# Families whose masks were never tried before, with fused gates and with gates of their own.
NEW = ["phi3", "glm4", "gemma3_text", "olmo3"]


def checkpoint_of(kind, folder):
    torch.manual_seed(0)
    extra = {"head_dim": SHAPE["hidden_size"] // SHAPE["num_attention_heads"], "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**SHAPE, **extra})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ORDERED)
def test_the_first_rows_are_the_gates(kind):
    """Outputs are linear in the up projection and not in the gate."""
    torch.manual_seed(0)
    config = tiny(kind)
    model = architecture_of(config).from_config(config)
    mlp = model.get_decoder().layers[0].mlp
    (name, target), *_ = select(model).items()
    assert name.endswith("layers.0.mlp.gate_up_proj")
    assert target.layer is mlp.gate_up_proj
    x = torch.randn(3, mlp.gate_up_proj.in_features)
    weight = mlp.gate_up_proj.weight.data
    with torch.no_grad():
        before = mlp(x)
        up = weight[target.rows.end :]
        up *= 2
        assert torch.equal(mlp(x), 2 * before)
        up /= 2
        gate = target.rows.of(weight)
        assert len(gate) == len(up) == mlp.down_proj.in_features
        gate *= 2
        assert not torch.allclose(mlp(x), 2 * before)


def test_every_family_with_a_known_order_is_among_the_tested():
    configs = [tiny(kind) for kind in ORDERED]
    types = {part.model_type for c in configs for part in (c, c.get_text_config())}
    assert types >= GATE_FIRST


def test_an_unknown_order_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(small_config("phi3"))
    model.config.model_type = "phi9"
    with pytest.raises(FusedGate, match="rows of a phi9"):
        select(model)
    # The whole matrix, both projections of it, only if its own name is asked for.
    assert {t.shape for t in select(model, "gate_up_proj").values()} == {(96, 32)}


def test_a_pattern_picks_layers_by_the_gates_name():
    model = AutoModelForCausalLM.from_config(small_config("glm4"))
    chosen = select(model, r"layers\.[01]\.mlp\.gate_proj$")
    assert {n: t.shape for n, t in chosen.items()} == {
        f"model.layers.{i}.mlp.gate_up_proj": (48, 32) for i in (0, 1)
    }
    with pytest.raises(FusedGate, match=r"answer to the name mlp\.gate_proj"):
        select(model, r"mlp\.no_proj$")


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_rows(live, dtype):
    torch.manual_seed(0)
    rows = GatedRows(0, 4)
    made = MaskedLinear.wrap(nn.Linear(7, 10, dtype=dtype), MaskState(30.0), rows)
    with torch.no_grad():
        made.gate_logits.copy_(0.05 * torch.randn(4, 7))
    gates = made.gate_logits.detach().to(dtype).requires_grad_()
    S = torch.arange(0, 28, 2) if live else torch.arange(28)
    if live:
        # The others are kept: a sigmoid of 1.
        with torch.no_grad():
            kept = torch.ones(28, dtype=torch.bool)
            kept[S] = False
            gates.view(-1)[kept] = 10.0
            made.gate_logits.view(-1)[kept] = 10.0
        made.train_only(S)
    made.state.regularizer = 0.3
    made.train()
    x = torch.randn(2, 3, 7, dtype=dtype, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y = made(x)
    seed = torch.randn_like(y)
    (y * seed).sum().backward()
    W = made.weight.detach()
    soft = W[:4] * torch.sigmoid(30.0 * gates)
    y2 = F.linear(x2, torch.cat([soft, W[4:]]), made.bias)
    ((y2 * seed).sum() - 0.3 * soft.square().sum()).backward()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(y, y2, **close)
    torch.testing.assert_close(x.grad, x2.grad, **close)
    found = made.gate_logits.grad.flatten().to(dtype)
    torch.testing.assert_close(found, gates.grad.flatten()[S], **close)
    hard = torch.cat([hard_weight(W[:4], gates.detach()), W[4:]])
    assert torch.equal(made.effective_weight("hard"), hard)
    assert torch.equal(made.effective_weight("off"), W)
    assert (made.zero_positions() < 28).all()


@pytest.mark.parametrize("kind", NEW)
def test_a_new_family_is_trained_exported_and_applied(kind, tmp_path):
    folder = checkpoint_of(kind, tmp_path / "base")
    config = SftConfig(
        model=str(folder),
        dataset="task:initials",
        output=tmp_path / "m.bmt",
        heldout=2,
        steps=3,
        batch_size=2,
        learning_rate=0.02,
        calibration_prompts=4,
        max_new_tokens=2,
        device="cpu",
        precision="fp32",
    )
    mask = train(config, quiet())
    assert bmt_core.load(config.output) == mask
    assert mask.zeros > 0
    shapes = {tensor.name: tensor.shape for tensor in mask.tensors}
    assert bmt_core.geometry(folder) == shapes
    width = SHAPE["intermediate_size"]
    assert set(shapes.values()) == {(width, SHAPE["hidden_size"])}
    if kind in FUSED:
        assert all(name.endswith(f".mlp.gate_up_proj.weight[0:{width}]") for name in shapes)

    # The gates as trained, in the model; the same mask in a model and in a checkpoint.
    ids = torch.arange(40).view(2, 20)
    base, masked = load_model(folder), load_model(folder)
    attached = attach(base)
    attached.load_mask(mask)
    apply(mask, masked)
    written = load_model(write_checkpoint(mask, folder, tmp_path / "applied"))
    with torch.no_grad():
        with attached.state.use("hard"):
            hard = base(ids).logits
        with attached.state.use("off"):
            off = base(ids).logits
        assert torch.equal(masked(ids).logits, hard)
        assert torch.equal(written(ids).logits, hard)
    assert not torch.equal(off, hard)
    assert torch.equal(off, load_model(folder)(ids).logits)

    # The rows of the mask are zeroed at its positions, and nothing else changes.
    plain, zeroed = load_model(folder).state_dict(), written.state_dict()
    changed = 0
    for name, value in plain.items():
        expected = value.clone()
        for tensor in mask.tensors:
            if tensor.name.split("[")[0] == name:
                part = expected[: tensor.shape[0]]
                part.view(-1)[torch.from_numpy(tensor.positions.astype(np.int64))] = 0
        assert torch.equal(zeroed[name], expected), name
        changed += int((value != expected).sum())
    assert changed == mask.zeros


def test_a_mask_of_rows_is_refused_by_another_base(tmp_path):
    folder = checkpoint_of("phi3", tmp_path / "base")
    fingerprint, width = bmt_core.fingerprint(folder), SHAPE["hidden_size"]
    name = "model.layers.0.mlp.gate_up_proj.weight"
    for rows, size in (("[9000:9001]", width), ("[0:1]", width + 1)):
        tensor = bmt_core.TensorMask(name + rows, (1, size), np.array([0], np.uint32))
        mask = bmt_core.Mask(bmt_core.Base("x", fingerprint), (tensor,))
        with pytest.raises(bmt_core.BaseMismatch):
            write_checkpoint(mask, folder, tmp_path / "out")
        with pytest.raises(bmt_core.BaseMismatch):
            apply(mask, load_model(folder))


def test_a_comparison_on_fused_projections_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(small_config("phi3"))
    with pytest.raises(ModelError, match="has no gate_proj, k_proj, q_proj, up_proj, v_proj"):
        check_projections(model)


def test_targets_that_no_server_takes_are_a_line(tmp_path):
    folder = checkpoint_of("phi3", tmp_path / "base")
    geometry = bmt_core.geometry(folder, "")
    masked = masked_tensors(folder, None, geometry)
    assert list(masked) == list(bmt_core.geometry(folder))
    assert not_served(folder, masked) is None
    whole = masked_tensors(folder, r"\.gate_up_proj$", geometry)
    line = not_served(folder, whole)
    assert line is not None
    assert "not of model.layers.0.mlp.gate_up_proj.weight;" in line
