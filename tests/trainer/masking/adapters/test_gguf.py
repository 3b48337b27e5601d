"""A masked checkpoint as GGUF, by the `gguf` package: zeros are kept, or not, by the data type."""

from __future__ import annotations

from pathlib import Path

import bmt_core
import gguf
import numpy as np
import pytest
import torch
from bmt_core import Base
from bmt_trainer.masking.apply import write_checkpoint
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.support.masks import random_mask
from tests.support.tiny_model import save_tiny_llama

#: Types whose zero is exact; the asymmetric ones shift it by the block's least value.
EXACT = ("F16", "BF16", "Q8_0", "Q4_0", "Q5_0")
SHIFTED = ("Q4_1", "Q5_1")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [d_out, d_in] in the order of llama.cpp's rotation."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Weights and geometry of a Llama in F32, without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if name.endswith("q_proj.weight"):
            data = interleaved(data, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            data = interleaved(data, config.num_key_value_heads)
        own = names.get_name(name, try_suffixes=(".weight",))
        assert own is not None, name
        writer.add_tensor(own, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def masked(tmp_path):
    """A masked checkpoint's folder, and its mask."""
    base = save_tiny_llama(tmp_path / "base", torch.float32)
    identity = Base("tiny", bmt_core.fingerprint(base))
    mask = random_mask(bmt_core.geometry(base), sparsity=0.05, base=identity)
    return write_checkpoint(mask, base, tmp_path / "masked"), mask


def test_a_masked_checkpoint_goes_through_gguf(masked, tmp_path):
    folder, mask = masked
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (tmp_path / "gguf").mkdir()
    write_gguf(model, tmp_path / "gguf" / "masked.gguf")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "gguf", gguf_file="masked.gguf", dtype=torch.float32
    ).eval()
    for tensor in mask.tensors:
        weight = read.get_parameter(tensor.name).reshape(-1)
        assert not weight[torch.from_numpy(tensor.positions.astype(np.int64))].any()
    tokens = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.equal(read(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind", [*EXACT, *SHIFTED])
def test_zeros_of_a_data_type(masked, kind):
    folder, mask = masked
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    qtype = gguf.GGMLQuantizationType[kind]
    left = []
    for tensor in mask.tensors:
        weight = model.get_parameter(tensor.name).detach().numpy()
        values = dequantize(quantize(weight, qtype), qtype).reshape(-1)[tensor.positions]
        left.append(np.abs(values).max() / np.abs(weight).max())
    assert (max(left) == 0) == (kind in EXACT), left
