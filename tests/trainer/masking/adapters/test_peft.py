"""A mask as an adapter of PEFT: the same model as the masked one, bit for bit."""

from __future__ import annotations

import json
import shutil

import bmt_core
import numpy as np
import pytest
import torch
from bmt_core import Base, BaseMismatch, Mask, TensorMask
from bmt_trainer.errors import ModelError, OutputError
from bmt_trainer.masking.adapters.peft import write_adapter
from bmt_trainer.masking.apply import apply
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from reproduce.tiny import SHAPE
from tests.support.masks import random_mask
from tests.support.tiny_model import byte_tokenizer, save_tiny_llama

TOKENS = torch.arange(10, 40)[None]


def checkpoint_of(kind, folder, dtype):
    torch.manual_seed(0)
    head = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    config = AutoConfig.for_model(kind, **{**SHAPE, "head_dim": head, "pad_token_id": 0})
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def mask_of(folder, *, sparsity=0.01, seed=0):
    base = Base("tiny", bmt_core.fingerprint(folder))
    return random_mask(bmt_core.geometry(folder), seed, sparsity=sparsity, base=base)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def masked_and_adapted(mask, folder, adapter):
    """Logits of the base, of the masked model, and by way of the adapter."""
    model = load(folder)
    base = logits(model)
    apply(mask, model)
    adapted = PeftModel.from_pretrained(load(folder), adapter).eval()
    return base, logits(model), adapted


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("llama", torch.float16),
        ("llama", torch.float32),
        ("phi3", torch.bfloat16),
        ("gemma3_text", torch.float32),
    ],
)
def test_the_adapter_is_the_masked_model_bit_for_bit(tmp_path, kind, dtype):
    folder = checkpoint_of(kind, tmp_path / "base", dtype)
    mask = mask_of(folder)
    write_adapter(mask, folder, tmp_path / "adapter", say=print)
    base, masked, adapted = masked_and_adapted(mask, folder, tmp_path / "adapter")
    assert torch.equal(logits(adapted), masked)
    assert not torch.equal(base, masked)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    assert torch.equal(logits(adapted.merge_and_unload()), masked)


def test_uneven_layers_have_one_rank(tmp_path):
    """One layer without a zero, one with a single zero, one with a sixth of its weights."""
    folder = save_tiny_llama(tmp_path / "base", torch.bfloat16, num_hidden_layers=3)
    names = sorted(bmt_core.geometry(folder))
    shape = bmt_core.geometry(folder)[names[0]]
    count = shape[0] * shape[1]
    positions = [[], [count - 1], range(0, count, 6)]
    tensors = tuple(
        TensorMask(n, shape, np.array(p, dtype=np.uint32))
        for n, p in zip(names, positions, strict=True)
    )
    mask = Mask(Base("tiny", bmt_core.fingerprint(folder)), tensors)
    write_adapter(mask, folder, tmp_path / "adapter")
    _, masked, adapted = masked_and_adapted(mask, folder, tmp_path / "adapter")
    assert torch.equal(logits(adapted), masked)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["r"] == -(-len(positions[2]) // sum(shape))
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        assert len(file.keys()) == 4  # of two layers
        assert file.metadata()["bmt_digest"] == mask.digest


def test_a_mask_that_shira_cannot_hold_is_an_error(tmp_path):
    folder = save_tiny_llama(tmp_path / "base", torch.bfloat16)
    with pytest.raises(ModelError, match="--to checkpoint"):
        write_adapter(mask_of(folder, sparsity=0.99), folder, tmp_path / "adapter")
    with pytest.raises(ModelError, match="empty"):
        write_adapter(mask_of(folder, sparsity=0), folder, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_type_that_is_not_added_is_an_error(checkpoint, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(checkpoint, folder)
    for file in folder.glob("*.safetensors"):
        eighths = {n: w.to(torch.float8_e4m3fn) for n, w in load_file(file).items()}
        save_file(eighths, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"float8_e4m3fn.*--to checkpoint"):
        write_adapter(mask_of(folder), folder, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_another_base_and_a_folder_in_use_are_refused(checkpoint, tmp_path):
    other = save_tiny_llama(tmp_path / "other", torch.bfloat16, seed=1)
    with pytest.raises(BaseMismatch):
        write_adapter(mask_of(other), checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(OutputError):
        write_adapter(mask_of(other), other, other / "adapter")


def test_transformers_itself_drops_the_places(checkpoint, tmp_path):
    """The page says so; if a version of transformers keeps them, the page is to change."""
    mask = mask_of(checkpoint)
    write_adapter(mask, checkpoint, tmp_path / "adapter")
    _, masked, _ = masked_and_adapted(mask, checkpoint, tmp_path / "adapter")
    model = load(checkpoint)
    model.load_adapter(str(tmp_path / "adapter"))
    assert not torch.equal(logits(model), masked)
