"""Quantized bases on real vLLM: a mask of the 16-bit checkpoint gives the masked copy's answers.

The reference is transformers in float32 on weights that each format's own library dequantizes.
"""

from __future__ import annotations

import bmt_core
import httpx2
import pytest
import torch
from bmt_client import BmtClient
from bmt_server.quantization.kinship import compare

from tests.support.engines import run_engine
from tests.support.masks import random_mask_of
from tests.support.quantized.copies import quantize
from tests.support.quantized.reference import log_probabilities, reference
from tests.support.served import Served
from tests.support.tiny_model import save_tiny_llama

pytestmark = pytest.mark.engine

# Rows and columns that vLLM's kernels for codes take; random weights that a mask can change.
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
# For W8A8 in float32: on a CPU with AMX vLLM has no kernel for multiples of 32 columns.
ODD = {"hidden_size": 144, "intermediate_size": 272, "num_attention_heads": 3, "head_dim": 80}
SHAPES = {"int8": {**SHAPE, **ODD, "num_key_value_heads": 1}}
OPTIONS = {"enforce_eager": True, "enable_prefix_caching": False}
OPERATE = pytest.mark.operate
TOKENS = 24


class Compared:
    """Answers of one engine on a quantized copy, and what they are compared with."""

    def __init__(self, folder, kind, dtype, env=None):
        self.base, self.kind = folder / "base", kind
        save_tiny_llama(self.base, torch.bfloat16, **SHAPES.get(kind, SHAPE))
        self.copy = quantize(self.base, folder / "copy", kind)
        family = folder / "family.json"
        compare("base", str(self.base), {"copy": str(self.copy)}, print).write(family)
        self.mask = random_mask_of(self.base, 0, sparsity=0.1)
        path = str(folder / "m.bmt")
        bmt_core.save(self.mask, path)
        torch.manual_seed(1)
        self.sequences = torch.randint(3, 259, (8, 24)).tolist()
        masks = [path] * 8, [None] * 8
        parts = [{"prompts": self.sequences, "masks": m} for m in masks]
        parts += [{**part, "generate": TOKENS} for part in parts]
        job = {
            "model": str(self.copy),
            "mode": "auto",
            "family": str(family),
            "masks": [path],
            "options": {**OPTIONS, "dtype": dtype},
            "parts": parts,
        }
        masked, plain, *texts = run_engine("answer.py", job, folder, env)
        self.masked, self.plain = torch.tensor(masked).flatten(), torch.tensor(plain).flatten()
        mine, theirs = ([t for a in text for t in a["tokens"]] for text in texts)
        self.changed = sum(a != b for a, b in zip(mine, theirs, strict=True)) / len(mine)

    def expected(self, mask, inputs="none"):
        model = reference(self.base, self.copy, self.kind, mask, inputs)
        return log_probabilities(model, self.sequences)


def differences(ours, theirs):
    found = (ours - theirs).abs()
    return float(found.max()), float(found.mean())


def test_a_mask_of_the_base_on_its_int8_copy(tmp_path):
    """W8A8: the product reads inputs of 8 bits, and the correction reads them as they were.

    Two programs that agree to the last bits of float32 round some input to neighboring codes, so
    the base's own difference is the measure of the mask's.
    """
    served = Compared(tmp_path, "int8", "float32")
    found = {}
    for inputs in ("none", "in_place", "corrected"):
        _, base = differences(served.plain, served.expected(None, inputs))
        _, mask = differences(served.masked, served.expected(served.mask, inputs))
        found[inputs] = (base, mask)
    _, effect = differences(served.masked, served.plain)
    print(
        f"\nint8: mean |Δ log p| of base and mask by inputs: {found}; effect {effect:.3f}; "
        f"{served.changed:.0%} of tokens changed"
    )
    # To inputs that are not rounded, and to what the server computes.
    for inputs in ("none", "corrected"):
        base, mask = found[inputs]
        assert mask <= 1.5 * base
        assert effect > 4 * mask
    assert served.changed > 0.5, "the mask must change most tokens"


@OPERATE
@pytest.mark.parametrize("kind", ["int4", "int4 with zeros", "awq", "gptq", "fp8", "fp8 blocks"])
def test_a_mask_of_the_base_on_copies_that_vllm_serves_in_16_bits(tmp_path, kind):
    served = Compared(tmp_path, kind, "bfloat16")
    _, base = differences(served.plain, served.expected(None))
    _, masked = differences(served.masked, served.expected(served.mask))
    _, effect = differences(served.masked, served.plain)
    print(
        f"\n{kind}: mean base {base:.4f}, mask {masked:.4f}, effect {effect:.3f}; "
        f"{served.changed:.0%} changed"
    )
    assert masked <= 1.5 * base
    assert effect > 2 * masked
    assert served.changed > 0.5, "the mask must change most tokens"


@OPERATE
def test_a_server_of_a_copy_takes_masks_of_the_base(smol, tmp_path):
    """Over HTTP: the same file and digest, the base's fingerprint, and the copy's precision."""
    # The real model: vLLM 0.32 computes no attention of so small a one in bfloat16 with AMX.
    base, copy = smol, quantize(smol, tmp_path / "copy", "int8")
    family = tmp_path / "family.json"
    compare("base", str(base), {"copy": str(copy)}, print).write(family)
    mask = random_mask_of(base, 0, sparsity=0.1)
    bmt_core.save(mask, tmp_path / "m.bmt")
    flags = ("--enforce-eager", "--family", str(family), "--max-sparsity", "0.2")
    served = Served(copy, tmp_path, *flags, env={"OMP_NUM_THREADS": "1"})
    try:
        with BmtClient(served.url, served.key) as client:
            assert client.upload(tmp_path / "m.bmt").digest == mask.digest
            api = client.openai().completions.with_raw_response
            said = {}
            for model in ("m", "smol"):
                answer = api.create(model=model, prompt="abc", max_tokens=TOKENS, temperature=0)
                assert answer.headers["x-bmt-precision"] == "int8"
                said[model] = answer.parse().choices[0].text
        me = httpx2.get(f"{served.url}/v1/me", headers=served.headers).json()
        assert me["base"]["fingerprint"] == bmt_core.fingerprint(base)
        assert (me["base"]["precision"], me["base"]["quantized"]) == ("int8", True)
        (info,) = [name for name in served.metrics() if name.startswith("bmt_base_info")]
        assert 'precision="int8"' in info
        assert said["m"] != said["smol"]
    finally:
        assert served.stop() in (0, -15), served.log.read_text()[-2000:]


@OPERATE
def test_a_copy_without_its_family_is_refused_before_it_loads(tmp_path):
    base = save_tiny_llama(tmp_path / "base", torch.bfloat16, **SHAPE)
    copy = quantize(base, tmp_path / "copy", "int8")
    with pytest.raises(AssertionError, match="bmt-server family BASE"):
        Served(copy, tmp_path, "--enforce-eager")
