"""Base weights that are replaced while masks are served."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bmt_server.worker.base_weights import BaseWeights, checksum
from bmt_server.worker.engine_vllm.mask_manager import MaskManager
from bmt_server.worker.runtime import BaseReplacedError, MaskRuntime

from tests.support.worker import COLS, ROWS, dense, gates, laid_out, random_mask

pytestmark = [pytest.mark.found, pytest.mark.usefixtures("each_kernel")]
FINGERPRINT = "ab" * 32
ONES, BASE = np.ones(4, np.int64), np.zeros(4, np.int64)


def served(tmp_path, mode):
    """A runtime with mask 1 in use, the mask, the layers' weights [2R, K], and the manager."""
    weights = [
        torch.randn(2 * ROWS, COLS, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    layers = gates(2)
    for gate, weight in zip(layers, weights, strict=True):
        gate.base = gate.live = weight[:ROWS]
    runtime = MaskRuntime(layers, mode, 1 << 20)
    mask = random_mask(1)
    runtime.add(1, "m", laid_out(mask, tmp_path))
    runtime.begin_step(ONES)
    base = BaseWeights(runtime, FINGERPRINT, lambda: weights)
    return runtime, mask, weights, MaskManager(runtime, None, None, base)


def replaced(weights):
    """New values in all weights, and a copy of them."""
    for weight in weights:
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)))
    return [weight.clone() for weight in weights]


@pytest.mark.parametrize("announced", [True, False])
def test_values_of_the_former_base_are_written_nowhere(tmp_path, announced):
    """A mask is in place, the weights are replaced, and a step of the base runs."""
    runtime, _, weights, manager = served(tmp_path, "scatter")
    assert all((w[:ROWS] == 0).any() for w in weights)
    if announced:
        with manager.base.replacement("a test"):
            new = replaced(weights)
    else:
        new = replaced(weights)
        manager.remove_all_adapters()
    runtime.begin_step(BASE)
    assert all(torch.equal(w, n) for w, n in zip(weights, new, strict=True))
    with pytest.raises(BaseReplacedError, match=r"'m'.*base weights were replaced"):
        runtime.add(1, "m", laid_out(random_mask(1), tmp_path))
    assert runtime.collect_stats().base_error


@pytest.mark.parametrize("mode", ["scatter", "auto"])
def test_a_mask_leaves_weights_that_are_not_replaced(tmp_path, mode):
    """vLLM removes all adapters also where it replaced nothing: the base returns."""
    runtime, _, weights, manager = served(tmp_path, "delta")
    runtime.mode = mode
    before = [w.clone() for w in weights]
    runtime.live_weights.switch(runtime.store.use([1])[1])
    manager.remove_all_adapters()
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert not runtime.collect_stats().base_error


def test_one_replaced_layer_keeps_its_values_and_the_others_return(tmp_path):
    runtime, _, weights, manager = served(tmp_path, "delta")
    before = weights[1].clone()
    runtime.live_weights.switch(runtime.store.use([1])[1])
    new = replaced(weights[:1])
    manager.remove_all_adapters()
    assert torch.equal(weights[0], new[0])
    assert torch.equal(weights[1], before)
    assert runtime.collect_stats().base_error


@pytest.mark.parametrize("mode", ["scatter", "delta"])
def test_a_verified_base_serves_masks_with_its_own_values(tmp_path, mode):
    """After a reload of the fingerprint's checkpoint the kept values are those of the weights."""
    runtime, mask, weights, manager = served(tmp_path, mode)
    with manager.base.replacement("reload_weights"):
        new = replaced(weights)
    assert not manager.base.verified("cd" * 32)
    with pytest.raises(BaseReplacedError, match=f"{FINGERPRINT[:12]}.*reload"):
        runtime.begin_step(ONES)
    assert manager.base.verified(FINGERPRINT)
    runtime.begin_step(ONES)
    x = torch.randn(4, COLS)
    y = x @ weights[0].t()
    if mode == "delta":
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    torch.testing.assert_close(y[:, :ROWS], x @ (new[0][:ROWS] * dense(mask, 0)).t())
    runtime.begin_step(BASE)
    assert all(torch.equal(w, n) for w, n in zip(weights, new, strict=True))


def test_a_failed_replacement_refuses_masks_too(tmp_path):
    runtime, _, weights, manager = served(tmp_path, "scatter")

    def fail():
        with manager.base.replacement("update_weights"):
            weights[0][0, 0] = 5.0
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        fail()
    with pytest.raises(BaseReplacedError, match="update_weights"):
        runtime.begin_step(ONES)


def test_a_function_gets_the_base_and_is_seen_if_it_writes(tmp_path):
    runtime, _, weights, manager = served(tmp_path, "scatter")
    manager.base.expose()
    assert not any((w[:ROWS] == 0).any() for w in weights)
    manager.base.check_exposed()
    runtime.begin_step(ONES)
    manager.base.expose()
    weights[1].data[3, 3] += 1
    manager.base.check_exposed()
    with pytest.raises(BaseReplacedError, match="function"):
        runtime.begin_step(ONES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_the_checksum_sees_single_elements(dtype):
    tensor = torch.zeros(5, 3).to(dtype)
    seen = {checksum([tensor]), checksum([tensor[:0], tensor])}
    tensor[4, 2] = 1
    seen.add(checksum([tensor]))
    assert len(seen) == 3
